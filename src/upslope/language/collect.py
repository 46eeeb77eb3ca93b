"""Collecting completions: prompts in, scored groups out, ``[prompts, G, T]``."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError, is_kind, require
from upslope.language.calls import ALSO_KNOWN, TrainerState
from upslope.language.checks import Prompt, Reward, text_of
from upslope.language.engine import EmbeddedEngine, Engine, Generated, padded
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Problem
from upslope.language.rewards import Rewards, Scores
from upslope.records import Metrics, Rollout, State, concatenate, map_tensors
from upslope.typed import as_list

Sampled = dict[str, Any]
"""One completion as the run folder keeps it: prompt, completion, the score that is trained on, what it is made of, length, its end."""


@dataclass(frozen=True)
class Round:
    """Some prompts with their completions: as a rollout, and how they were scored, ``[prompts, G]`` or row by row.

    ``score`` is the one that is trained on, where it is ``known``; ``problems`` and the rewards' ``arguments`` have an entry for each row.
    """

    rollout: Rollout
    generated: Generated
    problems: list[Problem]
    arguments: dict[str, Any]
    scores: Scores
    score: Tensor
    known: Tensor
    penalty: Tensor
    spread: Tensor


class Completions:
    """``policy -> Rollout``: ``num_prompts`` prompts, ``group_size`` completions each, scored by ``reward``; the unit is the group.

    A completion's score, the weighted rewards less the over-length penalty, is the reward of its last token; it is what ``reward`` in
    the metrics averages, what gives a group spread, and what samples show. An end token ends a completion (``terminated``); one that
    ``max_tokens`` cut short is ``truncated``, is scored as it stands, and nothing is bootstrapped. One without a score is masked and no
    member of its group. A KL term in the reward is the algorithm's: ``score_mean`` in the metrics is the score with it.

    Args:
        prompts: texts, lists of messages, or :class:`~upslope.language.problems.Problem` with columns for the reward.
        reward: a function, several, or :class:`~upslope.language.rewards.Rewards`.
        group_size: completions of each prompt.
        max_tokens: the longest completion; ``average_over="constant"`` divides by it.
        num_prompts: prompts per iteration, drawn without replacement until all had their turn.
        reference: a policy whose log-probabilities of the completions are recorded, for a KL term.
        overlong_buffer: completions longer than ``max_tokens − overlong_buffer`` lose up to 1 in proportion (DAPO, eq. 13); 0: off.
        refill: further rounds of prompts, at most, until ``num_prompts`` groups have spread (DAPO's dynamic sampling).
        engine: who samples; None decodes with the policy's modules.
        seed: of the order of prompts and of sampling.

    Raises:
        UsageError: no prompts, sizes below 1, a column that a reward asks for and that is not there.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt | Problem],
        reward: Reward | Rewards | Sequence[Reward],
        *,
        group_size: int = 8,
        max_tokens: int = 128,
        num_prompts: int = 8,
        reference: LanguagePolicy | None = None,
        overlong_buffer: int = 0,
        refill: int = 0,
        engine: Engine | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in {"group_size": group_size, "max_tokens": max_tokens, "num_prompts": num_prompts}.items():
            require(isinstance(value, Integral) and value >= 1, f"{name}: expected an integer ≥ 1, found {value!r}")
        require(not isinstance(prompts, str), "prompts: expected a list of prompts, found one text")
        require(bool(prompts), "prompts: expected at least one, found none")
        require(0 <= overlong_buffer < max_tokens, f"overlong_buffer: expected 0 to {max_tokens - 1}, found {overlong_buffer}")
        require(refill >= 0, f"refill: expected an integer ≥ 0, found {refill}")
        require(refill == 0 or group_size > 1, "refill: groups of one never have spread; raise group_size")
        self.problems = [p if isinstance(p, Problem) else Problem(prompt=p) for p in prompts]
        require(not isinstance(reward, str), f"reward: expected a function or several, found the text {reward!r:.40}")
        several: Any = reward if is_kind(reward, Sequence) else (reward,)
        self.rewards = reward if isinstance(reward, Rewards) else Rewards.of(*several)
        self.columns = sorted(set[str].intersection(*(set(p.columns) for p in self.problems)))  # a reward sees what every problem has
        for name in ALSO_KNOWN:
            require(name not in self.columns, f"prompts: a column may not be called {name}, which means something else to rewards")
        self.rewards.check(self.columns)
        self.group_size, self.max_tokens, self.num_prompts = group_size, max_tokens, num_prompts
        self.reference, self.overlong_buffer, self.refill, self.engine, self.seed = reference, overlong_buffer, refill, engine, seed
        self.order = Order(len(self.problems), seed)
        self.iteration = 0
        self.run: Any = None
        self.rounds: list[Round] = []

    def state_dict(self) -> State:
        """The order of the prompts, and how often this has collected, from which the seeds of sampling follow."""
        return {"order": self.order.state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: State) -> None:
        self.order.load_state_dict(state["order"])
        self.iteration = state["iteration"]

    def follow(self, run: Any) -> None:
        """Note which run this collects for: ``train`` hands its :class:`~upslope.run.train.RunState`, of which rewards may learn."""
        self.run = run

    @property
    def trainer_state(self) -> TrainerState:
        """How far the run is; without one, how often this has collected."""
        if self.run is None:
            return TrainerState(iteration=self.iteration)
        return TrainerState(**{name: getattr(self.run, name) for name in ("iteration", "iterations", "total_steps", "fraction")})

    def __call__(self, policy: LanguagePolicy) -> Rollout:
        if self.reference is not None:
            check_reference(self.reference, policy)
        engine = self.engine = self.engine or EmbeddedEngine(policy)
        engine.sync(policy, self.iteration)
        started, seconds, self.rounds = time.perf_counter(), 0.0, []
        while len(self.rounds) <= self.refill and sum(int(found.spread.sum()) for found in self.rounds) < self.num_prompts:
            before = time.perf_counter()
            problems = [self.problems[i] for i in self.order.take(self.num_prompts)]
            _, prompt_ids = policy.rendering.asked([p.prompt for p in problems], [p.place for p in problems])
            seed = self.seed * 1_000_003 + self.iteration * 101 + len(self.rounds)
            generated = engine.generate(prompt_ids, group_size=self.group_size, max_tokens=self.max_tokens, seed=seed)
            seconds += time.perf_counter() - before
            self.rounds.append(self.scored(policy, problems, prompt_ids, generated))
        rollout = self.rounds[0].rollout if len(self.rounds) == 1 else joined([found.rollout for found in self.rounds])
        rollout = with_values(policy, rollout) if policy.has_value else rollout
        if self.reference is not None:
            rollout = replace(rollout, reference_log_prob=log_probs(self.reference, rollout.inputs).where(rollout.mask, 0.0))
        self.iteration += 1
        tokens = int(rollout.inputs["completion_length"].sum())
        times = {"generate_seconds": seconds, "tokens_per_second": tokens / seconds, "collect_seconds": time.perf_counter() - started}
        return replace(rollout, metrics={**self.metrics(), **times})

    def scored(self, policy: LanguagePolicy, problems: list[Problem], prompt_ids: list[list[int]], generated: Generated) -> Round:
        """One round as a rollout, and how it was scored."""
        problems = [problem for problem in problems for _ in range(self.group_size)]
        arguments = spoken(policy, problems, generated)
        columns = {name: [problem.columns[name] for problem in problems] for name in self.columns}
        scores = self.rewards(**arguments, trainer_state=self.trainer_state, **columns)
        values = [float("nan") if score is None else score for score in scores.scores]
        rewarded = torch.tensor(values, device=generated.length.device).view_as(generated.length)
        known, penalty = ~rewarded.isnan(), self.overlong(generated.length) if self.overlong_buffer else torch.zeros_like(rewarded)
        score = rewarded.nan_to_num() + penalty.where(known, 0.0)
        rollout = recorded(prompt_ids, generated, score, known[..., None], max_steps=self.max_tokens)
        if policy.compute_dtype != torch.float32 or not isinstance(self.engine, EmbeddedEngine):  # other numerics than the policy's
            rollout = replace(rollout, sampler_log_prob=rollout.behavior_log_prob)
        return Round(rollout, generated, problems, arguments, scores, score, known, penalty, F.has_spread(score, known, dim=-1))

    def overlong(self, length: Tensor) -> Tensor:
        """``min(0, max(−1, (L_max − L_c − |y|) / L_c))`` for each completion."""
        return ((self.max_tokens - self.overlong_buffer - length) / self.overlong_buffer).clamp(-1.0, 0.0)

    def metrics(self) -> Metrics:
        """Of all rounds together: means of scores over the completions that have one, of a reward's values over what it spoke about."""
        flat = [(r.score, r.known, r.penalty, r.spread, r.generated.length, r.generated.finished) for r in self.rounds]
        score, known, penalty, spread, length, finished = (torch.cat([x.flatten() for x in same]) for same in zip(*flat, strict=True))
        all_scores = [found.scores for found in self.rounds]
        spoken = {name: [v for scores in all_scores for v in scores.parts[name] if v is not None] for name in all_scores[0].parts}
        means = {"completion_length": length, "cut_short": ~finished, "groups_with_spread": spread, "missing_rewards": ~known}
        return {
            "reward": float(score[known].mean()),
            **{f"reward/{name}": math.fsum(values) / len(values) for name, values in spoken.items() if values},
            **({"overlong_penalty": float(penalty[known].mean())} if self.overlong_buffer else {}),
            **{name: float(x.float().mean()) for name, x in means.items()},
            **{f"rewards_{n}": float(sum(getattr(scores, f"num_{n}") for scores in all_scores)) for n in ("none", "raised", "timed_out")},
        }

    @property
    def samples(self) -> list[Sampled]:
        """What was said in the last iteration, for people; the score is the one that is trained on."""
        found: list[Sampled] = []
        for r in self.rounds:
            lengths, lost = as_list(r.generated.length.flatten()), as_list(r.penalty.flatten())
            for i, (problem, score) in enumerate(zip(r.problems, r.scores.scores, strict=True)):
                sample: Sampled = {"iteration": self.iteration, "prompt": problem.prompt, **problem.columns}
                sample |= {"completion": text_of(r.arguments["completions"][i]), "score": None if score is None else score + lost[i]}
                sample["rewards"] = {name: values[i] for name, values in r.scores.parts.items()}
                sample |= {"overlong_penalty": lost[i]} if self.overlong_buffer else {}
                found.append({**sample, "tokens": lengths[i], "finish_reason": r.arguments["finish_reason"][i]})
        return found


class Order:
    """Indices without replacement, shuffled anew each time all had their turn."""

    def __init__(self, count: int, seed: int) -> None:
        self.random, self.count = random.Random(f"order/{seed}"), count
        self.left: list[int] = []

    def state_dict(self) -> State:
        return {"random": self.random.getstate(), "left": self.left}

    def load_state_dict(self, state: State) -> None:
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))
        self.left = list(state["left"])

    def take(self, number: int) -> list[int]:
        while len(self.left) < number:
            more = list(range(self.count))
            self.random.shuffle(more)
            self.left = [*more, *self.left]  # they are taken from the end
        return [self.left.pop() for _ in range(number)]


def spoken(policy: LanguagePolicy, problems: Sequence[Problem], generated: Generated) -> dict[str, Any]:
    """What rewards are given of completions, one for each of ``problems``, besides columns."""
    said = [ids[:n] for ids, n in zip(as_list(generated.completion_ids.flatten(0, 1)), as_list(generated.length.flatten()), strict=True)]
    prompts = [problem.prompt for problem in problems]
    texts = [policy.rendering.decode(ids, prompt) for ids, prompt in zip(said, prompts, strict=True)]
    pairs = zip(prompts, texts, strict=True)
    return {
        "prompts": prompts,
        "completions": [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}] for prompt, text in pairs],
        "completion_ids": said,
        "finish_reason": ["stop" if done else "length" for done in as_list(generated.finished.flatten())],
    }


def recorded(prompts: Sequence[Sequence[int]], made: Generated, score: Tensor, counted: Tensor | None = None, **others: Any) -> Rollout:
    """A rollout ``[units, G, T]`` with each row's score at its last token; tokens that are not ``counted`` (it broadcasts) are masked."""
    prompt_ids, prompt_length = padded(prompts, made.length.device)
    t = torch.arange(made.completion_ids.shape[-1], device=made.length.device)
    real = t < made.length[..., None]
    mask = real if counted is None else real & counted
    last = (t == made.length[..., None] - 1) & mask
    texts = {"prompt_ids": prompt_ids, "prompt_length": prompt_length, "completion_ids": made.completion_ids.where(real, 0)}
    ends = {"terminated": last & made.finished[..., None], "truncated": last & ~made.finished[..., None], "mask": mask}
    said: dict[str, Any] = {"behavior_log_prob": made.log_prob.where(mask, 0.0), "policy_version": made.policy_version, "unit": "group"}
    inputs, reward = {**texts, "completion_length": made.length}, (score[..., None] * last).float()
    return Rollout(inputs=inputs, reward=reward, **ends, **(said | others))


def check_reference(reference: LanguagePolicy, policy: LanguagePolicy) -> None:
    sizes = reference.vocabulary, policy.vocabulary
    require(sizes[0] == sizes[1], "reference: it has {} tokens, the policy {}; take one of the same vocabulary".format(*sizes))


def widened(x: Tensor, size: int) -> Tensor:
    """Rows padded with zeros, or cut, to this length."""
    return torch.nn.functional.pad(x, (0, size - x.shape[-1]))


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    prompt_size, steps = (max(r.inputs[name].shape[-1] for r in rollouts) for name in ("prompt_ids", "completion_ids"))
    wide: list[Rollout] = []
    for rollout in rollouts:
        found = map_tensors(rollout, lambda x: widened(x, steps) if x.dim() == 3 else x)  # [prompts, G, T]
        wide.append(replace(found, inputs={**found.inputs, "prompt_ids": widened(found.inputs["prompt_ids"], prompt_size)}))
    return concatenate(wide)


@torch.no_grad()
def with_values(policy: LanguagePolicy, rollout: Rollout) -> Rollout:
    """The critic's values, and on the way the policy's log-probabilities; nothing follows the last token."""
    scores = policy.evaluate(**rollout.inputs)
    if scores.value is None:
        raise UsageError("policy: evaluate() gave no value; make it with value_head=True")
    value = scores.value.where(rollout.mask, 0.0)
    following = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)
    behavior = rollout.behavior_log_prob if rollout.sampler_log_prob is None else scores.log_prob.where(rollout.mask, 0.0)
    return replace(rollout, value=value, next_value=following, behavior_log_prob=behavior)


@torch.no_grad()
def log_probs(policy: LanguagePolicy, inputs: dict[str, Tensor], size: int = 16) -> Tensor:
    """A policy's log-probabilities of recorded completions, ``size`` units at a time."""
    parts = [{name: x[start : start + size] for name, x in inputs.items()} for start in range(0, len(inputs["prompt_ids"]), size)]
    return torch.cat([policy.evaluate(**part).log_prob for part in parts])
