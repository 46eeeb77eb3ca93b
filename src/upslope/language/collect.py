"""Collecting completions: prompts in, scored groups out, ``[prompts, G, T]``."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError, require
from upslope.language.asked import ALSO_KNOWN, TrainerState
from upslope.language.engine import EmbeddedEngine, Engine, Generated, check_prompts
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Problem, columns_of
from upslope.language.rewards import Prompt, Reward, Rewards, Scores, completion_for
from upslope.language.scored import Scored, reward_metrics
from upslope.records import Rollout

Sampled = dict[str, Any]
"""One completion as the run folder keeps it: prompt, completion, the score that is trained on, what it is made of, length, its end."""


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
        engine: who samples; None decodes with the policy's own modules.
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
        self.rewards = reward if isinstance(reward, Rewards) else Rewards.of(*(reward if isinstance(reward, Sequence) else (reward,)))
        self.columns = sorted(set.intersection(*(set(p.columns) for p in self.problems)))  # a reward sees what every problem has
        for name in ALSO_KNOWN:
            require(name not in self.columns, f"prompts: a column may not be called {name}, which means something else to rewards")
        self.rewards.check(self.columns)
        self.group_size, self.max_tokens, self.num_prompts = group_size, max_tokens, num_prompts
        self.reference, self.overlong_buffer, self.refill, self.engine, self.seed = reference, overlong_buffer, refill, engine, seed
        self.order = Order(len(self.problems), seed)
        self.iteration = 0
        self.run: Any = None
        self.samples: list[Sampled] = []

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
        """Sample, score, record."""
        if self.reference is not None and self.reference.vocabulary != policy.vocabulary:
            raise UsageError(
                f"reference: it has {self.reference.vocabulary} tokens, the policy {policy.vocabulary}; take one of the same vocabulary"
            )
        engine = self.engine or EmbeddedEngine(policy)
        self.engine = engine
        engine.sync(policy, self.iteration)
        started, self.samples = time.perf_counter(), []
        rounds: list[tuple[Rollout, Scored]] = []
        seconds = 0.0
        while not rounds or (len(rounds) <= self.refill and sum(int(found.spread.sum()) for _, found in rounds) < self.num_prompts):
            problems = [self.problems[i] for i in self.order.take(self.num_prompts)]
            before = time.perf_counter()
            prompt_ids = policy.encode_all([problem.prompt for problem in problems], places_of(problems))
            seed = self.seed * 1_000_003 + self.iteration * 101 + len(rounds)
            generated = engine.generate(prompt_ids, group_size=self.group_size, max_tokens=self.max_tokens, seed=seed)
            seconds += time.perf_counter() - before
            rounds.append(self.scored(policy, problems, prompt_ids, generated))
        rollout = replace(joined([rollout for rollout, _ in rounds]), metrics=reward_metrics([found for _, found in rounds]))
        rollout = with_values(policy, rollout) if policy.has_value else rollout
        if self.reference is not None:
            rollout = replace(rollout, reference_log_prob=log_probs(self.reference, rollout.inputs).where(rollout.mask, 0.0))
        self.iteration += 1
        tokens = int(rollout.inputs["completion_length"].sum())
        times = {"generate_seconds": seconds, "tokens_per_second": tokens / seconds, "collect_seconds": time.perf_counter() - started}
        return replace(rollout, metrics={**rollout.metrics, **times})

    def scored(
        self, policy: LanguagePolicy, problems: list[Problem], prompt_ids: list[list[int]], generated: Generated
    ) -> tuple[Rollout, Scored]:
        """One round as a rollout, and how it was scored."""
        G = self.group_size
        lengths = generated.length.tolist()
        ids = generated.completion_ids.tolist()
        said = [ids[p][g][: lengths[p][g]] for p in range(len(problems)) for g in range(G)]
        texts = [policy.decode(row, problems[i // G].prompt) for i, row in enumerate(said)]
        repeated = [problem for problem in problems for _ in range(G)]
        completions = [completion_for(problem.prompt, text) for problem, text in zip(repeated, texts, strict=True)]
        ended = ["stop" if finished else "length" for finished in generated.finished.flatten().tolist()]
        scores = self.rewards(
            prompts=[p.prompt for p in repeated],
            completions=completions,
            completion_ids=said,
            finish_reason=ended,
            trainer_state=self.trainer_state,
            **columns_of(repeated, self.columns),
        )
        rewarded = torch.tensor([float("nan") if s is None else s for s in scores.scores], device=generated.length.device).view(-1, G)
        known = ~rewarded.isnan()
        penalty = self.overlong(generated.length)
        values = rewarded.nan_to_num() + penalty.where(known, 0.0)
        spread = F.has_spread(values, known, dim=-1)
        self.log_completions(repeated, texts, scores, penalty, generated)
        rollout = recorded(
            prompt_ids,
            generated.completion_ids,
            generated.length,
            score=values,
            finished=generated.finished,
            known=known,
            max_steps=self.max_tokens,
        )
        sampled = generated.log_prob.where(rollout.mask, 0.0)
        other_numerics = policy.compute_dtype != torch.float32 or not isinstance(self.engine, EmbeddedEngine)
        rollout = replace(
            rollout,
            behavior_log_prob=sampled,
            sampler_log_prob=sampled if other_numerics else None,
            policy_version=generated.policy_version,
        )
        return rollout, Scored(values, known, spread, penalty if self.overlong_buffer else None, generated, scores)

    def overlong(self, length: Tensor) -> Tensor:
        """``min(0, max(−1, (L_max − L_c − |y|) / L_c))`` for each completion; zeros without a buffer."""
        if self.overlong_buffer == 0:
            return torch.zeros(length.shape, device=length.device)
        return ((self.max_tokens - self.overlong_buffer - length) / self.overlong_buffer).clamp(-1.0, 0.0)

    def log_completions(self, problems: list[Problem], texts: list[str], scores: Scores, penalty: Tensor, generated: Generated) -> None:
        """Keep what was said, for people; the score is the one that is trained on."""
        lengths, finished = generated.length.flatten().tolist(), generated.finished.flatten().tolist()
        lost = penalty.flatten().tolist()
        for i, (problem, text) in enumerate(zip(problems, texts, strict=True)):
            parts = {name: values[i] for name, values in scores.parts.items()}
            ended = "stop" if finished[i] else "length"
            kept: Sampled = {"iteration": self.iteration + 1, "prompt": problem.prompt, **dict(problem.columns), "completion": text}
            found = scores.scores[i]
            made = {"score": None if found is None else found + lost[i], "rewards": parts}
            made |= {"overlong_penalty": lost[i]} if self.overlong_buffer else {}
            self.samples.append({**kept, **made, "tokens": lengths[i], "finish_reason": ended})


class Order:
    """Indices without replacement, shuffled anew each time all had their turn."""

    def __init__(self, count: int, seed: int) -> None:
        self.random, self.count = random.Random(f"order/{seed}"), count
        self.left: list[int] = []

    def take(self, number: int) -> list[int]:
        """The next ``number`` indices."""
        taken: list[int] = []
        while len(taken) < number:
            if not self.left:
                self.left = list(range(self.count))
                self.random.shuffle(self.left)
            taken.append(self.left.pop())
        return taken


def padded(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Ragged ids as a right-padded tensor ``[rows, longest]`` and their lengths ``[rows]``."""
    length = torch.tensor([len(row) for row in rows], device=device)
    longest = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long, device=device), length


def recorded(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Tensor,
    completion_length: Tensor,
    *,
    score: Tensor,
    finished: Tensor,
    known: Tensor | None = None,
    start: Tensor | None = None,
    max_steps: int | None = None,
    unit: Any = "group",
) -> Rollout:
    """A rollout ``[units, G, T]`` with each row's score at its last token; rows not ``known`` and tokens before ``start`` are masked."""
    device = completion_ids.device
    prompts, prompt_length = padded(prompt_ids, device)
    t = torch.arange(completion_ids.shape[-1], device=device)
    mask = t < completion_length[..., None]
    mask = mask if known is None else mask & known[..., None]
    mask = mask if start is None else mask & (t >= start[..., None])
    last = (t == completion_length[..., None] - 1) & mask
    reward = (score[..., None] * last).float()
    return Rollout(
        inputs={
            "prompt_ids": prompts,
            "prompt_length": prompt_length,
            "completion_ids": completion_ids.where(t < completion_length[..., None], 0),
            "completion_length": completion_length,
        },
        reward=reward,
        terminated=last & finished[..., None],
        truncated=last & ~finished[..., None],
        mask=mask,
        behavior_log_prob=torch.zeros_like(reward),
        max_steps=max_steps,
        unit=unit,
    )


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Several rounds as one rollout, padded to the longest prompt and completion."""
    if len(rollouts) == 1:
        return rollouts[0]
    longest = {name: max(r.inputs[name].shape[-1] for r in rollouts) for name in ("prompt_ids", "completion_ids")}
    steps = longest["completion_ids"]

    def cat(tensors: list[Tensor], size: int | None) -> Tensor:
        wide = tensors if size is None else [torch.nn.functional.pad(x, (0, size - x.shape[-1])) for x in tensors]
        return torch.cat(wide)

    inputs = {name: cat([r.inputs[name] for r in rollouts], longest.get(name)) for name in rollouts[0].inputs}
    names = ("reward", "terminated", "truncated", "mask", "behavior_log_prob", "sampler_log_prob")
    tensors = {n: cat([getattr(r, n) for r in rollouts], steps) for n in names if getattr(rollouts[0], n) is not None}
    return replace(rollouts[0], inputs=inputs, **tensors)


@torch.no_grad()
def with_values(policy: LanguagePolicy, rollout: Rollout) -> Rollout:
    """The critic's values, and on the way the policy's own log-probabilities; nothing follows the last token."""
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
    count = len(inputs["prompt_ids"])
    parts = [{name: x[start : start + size] for name, x in inputs.items()} for start in range(0, count, size)]
    return torch.cat([policy.evaluate(**part).log_prob for part in parts])


def places_of(problems: Sequence[Problem]) -> list[str]:
    """Where each problem was read, as far as it knows, for errors."""
    return [problem.place or f"prompts[{i}]" for i, problem in enumerate(problems)]


def check_room(policy: LanguagePolicy, prompts: Sequence[Prompt | Problem], max_tokens: int) -> None:
    """Refuse prompts that leave no room for a completion, before anything is sampled."""
    problems = [p if isinstance(p, Problem) else Problem(prompt=p) for p in prompts]
    ids = policy.encode_all([p.prompt for p in problems], places_of(problems))
    check_prompts(policy, ids, max_tokens)
    policy.look_up_to(max(map(len, ids)) + max_tokens)
