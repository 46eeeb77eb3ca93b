"""PPO on text one step at a time: generate, score as you like, step. For programs that write the loop themselves."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from upslope.algorithms import PPO
from upslope.errors import UsageError, require
from upslope.language.checks import Prompt
from upslope.language.collect import log_probs, recorded, with_values
from upslope.language.engine import EmbeddedEngine, Generated, padded
from upslope.language.policy import LanguagePolicy
from upslope.records import Metrics
from upslope.typed import as_list
from upslope.updates import Ascent


class PPOStepper:
    """``generate(queries) -> responses``; ``step(queries, responses, rewards)``: one PPO update on scored responses.

    Args:
        policy: with a value head: ``LanguagePolicy.from_pretrained(folder, value_head=True)``.
        algorithm: a :class:`~upslope.PPO`; None takes γ = λ = 1, 2 epochs, learning rate 1e-5.
        kl_coef: weight of the KL to the policy as it is now, in the reward of each token.
        seed: of sampling and shuffling.

    Raises:
        UsageError: a policy without a value head.
    """

    def __init__(self, policy: LanguagePolicy, algorithm: PPO | None = None, *, kl_coef: float = 0.01, seed: int = 0) -> None:
        require(policy.has_value, "policy: PPO needs a critic; load it with value_head=True")
        chosen = algorithm or PPO(gamma=1.0, gae_lambda=1.0, update=Ascent(learning_rate=1e-5, num_epochs=2, max_grad_norm=1.0))
        self.algorithm = replace(chosen, reference_kl_coef=kl_coef)
        self.policy, self.seed, self.num_steps = policy, seed, 0
        self.reference = policy.frozen() if kl_coef > 0 else None
        self.engine = EmbeddedEngine(policy)
        self.state = self.algorithm.update.start(policy, seed=seed)

    def generate(self, queries: Sequence[Prompt], *, max_tokens: int = 48) -> list[list[int]]:
        """One response to each query, as token ids; ``policy.decode`` makes text of them."""
        self.engine.sync(self.policy, self.num_steps)
        self.num_calls = getattr(self, "num_calls", 0) + 1
        prompts, order, size = grouped(self.policy.encode_all(queries, [f"queries[{i}]" for i in range(len(queries))]))
        made = self.engine.generate(prompts, group_size=size, max_tokens=max_tokens, seed=self.seed * 1_000_003 + self.num_calls)
        ids, lengths = as_list(made.completion_ids.flatten(0, 1)), as_list(made.length.flatten())
        responses = {place: ids[i][: lengths[i]] for i, place in enumerate(order)}
        return [responses[place] for place in range(len(queries))]

    def step(self, queries: Sequence[Prompt], responses: Sequence[Sequence[int]], rewards: Sequence[float]) -> Metrics:
        """One PPO update; what the objective reported, means over its minibatches.

        Raises:
            UsageError: lists of different lengths, an empty response, text where token ids belong, a reward that is no number.
        """
        check_step(queries, responses, rewards)
        policy, device = self.policy, self.policy.device
        prompts, order, size = grouped(policy.encode_all(queries, [f"queries[{i}]" for i in range(len(queries))]))
        shape = (len(prompts), size)
        ids, length = padded([responses[i] for i in order], device)
        finished = torch.tensor([responses[i][-1] in policy.stop_ids for i in order], device=device).view(shape)
        score = torch.tensor([float(rewards[i]) for i in order], device=device).view(shape)
        ids, length = ids.view(*shape, -1), length.view(shape)
        made = Generated(completion_ids=ids, log_prob=torch.zeros(ids.shape, device=device), length=length, finished=finished)
        rollout = recorded(prompts, made, score)
        with torch.no_grad():
            log_prob = policy.evaluate(**rollout.inputs).log_prob.where(rollout.mask, 0.0)
        rollout = with_values(policy, replace(rollout, behavior_log_prob=log_prob))
        if self.reference is not None:
            rollout = replace(rollout, reference_log_prob=log_probs(self.reference, rollout.inputs).where(rollout.mask, 0.0))
        batch = self.algorithm.estimate(policy, rollout)
        metrics = self.algorithm.update(self.algorithm, policy, batch, self.state)
        self.num_steps += 1
        return {**batch.metrics, **metrics, "reward": float(score.mean())}


def grouped(prompts: list[list[int]]) -> tuple[list[list[int]], list[int], int]:
    """Equal prompts side by side, if each comes equally often: distinct prompts, the places of their rows, rows of each.

    A group's prompt is computed once; where counts differ every row is a separate group, and nothing but time is lost.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for i, ids in enumerate(prompts):
        places.setdefault(tuple(ids), []).append(i)
    sizes = {len(found) for found in places.values()}
    if len(sizes) != 1:
        return prompts, list(range(len(prompts))), 1
    return [list(ids) for ids in places], [i for found in places.values() for i in found], sizes.pop()


def check_step(queries: Sequence[Any], responses: Sequence[Any], rewards: Sequence[Any]) -> None:
    counts = (len(queries), len(responses), len(rewards))
    message = "step: expected as many queries as responses and rewards, found {}, {} and {}".format(*counts)
    require(min(counts) == max(counts) and counts[0] > 0, message)
    for i, (response, reward) in enumerate(zip(responses, rewards, strict=True)):
        if isinstance(response, str) or not all(isinstance(token, int) for token in response):
            raise UsageError(f"responses[{i}]: expected token ids as generate() gave them, found {type(response).__name__}")
        require(len(response) > 0, f"responses[{i}]: it is empty")
        number = isinstance(reward, int | float) and not isinstance(reward, bool) and reward == reward and abs(reward) != float("inf")
        require(number, f"rewards[{i}]: expected a finite number, found {reward!r}")
