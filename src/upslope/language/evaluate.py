"""Measuring a language policy on problems that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upslope.errors import require
from upslope.intervals import wilson
from upslope.language.asked import TrainerState
from upslope.language.checks import Reward, completion_for
from upslope.language.engine import EmbeddedEngine
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Pair, Problem, Task, columns_of
from upslope.language.recorded import preference_pairs
from upslope.language.rewards import Rewards


@dataclass(frozen=True, kw_only=True)
class LanguageResult:
    """Means over problems, one completion each; ``accuracy_interval`` is the 95 % interval of the accuracy (Wilson).

    ``accuracy`` and ``format_rate`` are None where the task cannot tell.
    """

    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    reward_mean: float | None
    format_rate: float | None
    length_mean: float
    episodes: int


def evaluate(
    policy: LanguagePolicy,
    task: Task,
    *,
    episodes: int | None = 256,
    max_tokens: int | None = None,
    seed: int = 0,
    greedy: bool = True,
    rewards: Rewards | None = None,
    problems: Sequence[Problem] | None = None,
    trainer_state: TrainerState | None = None,
) -> LanguageResult:
    """One completion of each of the first ``episodes`` held-out problems (None: all), greedy unless known otherwise.

    Rewards that ask for ``trainer_state`` get the one given, else that of a run's end. A training's over-length penalty is no part of
    ``reward_mean``; completions without a score are left out of it.

    Raises:
        UsageError: a task that holds no problem out, or fewer than one episode.
    """
    found = list(task.held_out if problems is None else problems)
    require(bool(found), f"task {task.name}: it holds no problem out, so nothing can be evaluated; give it a FILE.test.jsonl")
    require(episodes is None or episodes >= 1, f"episodes: expected an integer ≥ 1, found {episodes}")
    found = found[:episodes]
    prompts = policy.encode_all([problem.prompt for problem in found], [problem.place for problem in found])
    made = EmbeddedEngine(policy).generate(prompts, group_size=1, max_tokens=max_tokens or task.max_tokens, seed=seed, greedy=greedy)
    lengths = made.length[:, 0].tolist()
    said = [ids[:n] for ids, n in zip(made.completion_ids[:, 0].tolist(), lengths, strict=True)]
    texts = [policy.decode(ids, problem.prompt) for ids, problem in zip(said, found, strict=True)]
    correct = checked(task.correct, found, texts)
    known: dict[str, Any] = {
        "completion_ids": said,
        "finish_reason": ["stop" if finished else "length" for finished in made.finished[:, 0].tolist()],
        "trainer_state": trainer_state or TrainerState(fraction=1.0),
    }
    by = rewards or (None if task.reward is None else Rewards.of(task.reward))
    scores = [] if by is None else [s for s in scored(by, found, texts, **known) if s is not None]
    form = checked(task.format, found, texts)
    return LanguageResult(
        accuracy=None if correct is None else float(np.mean(correct)),
        accuracy_interval=None if correct is None else wilson(correct),
        reward_mean=float(np.mean(scores)) if scores else None,
        format_rate=None if form is None else float(np.mean(form)),
        length_mean=float(np.mean(lengths)),
        episodes=len(found),
    )


@dataclass(frozen=True, kw_only=True)
class PairsResult:
    """The share of preference pairs whose chosen completion wins, with its 95 % interval (Wilson), and the number of pairs.

    ``ranked_by`` is ``score``, a reward model's value of the whole completion, or ``log_prob``, ``log π(y|x)``, its tokens' sum.
    """

    preference_accuracy: float
    preference_interval: tuple[float, float]
    pairs: int
    ranked_by: str


@torch.no_grad()
def evaluate_pairs(policy: LanguagePolicy, pairs: Sequence[Pair], *, by_score: bool = False, size: int = 16) -> PairsResult:
    """How many pairs a policy ranks right, by its value head's score or by the log-probability of the completions.

    By log-probability this is the ranking accuracy of Chen et al. 2024, "Preference Learning Algorithms Do Not Learn Preference
    Rankings"; no reference is part of it, so it is not the accuracy of DPO's implicit rewards that training reports. Ties are lost.

    Raises:
        UsageError: no pairs, or scores of a policy without a value head.
    """
    collect, wins = preference_pairs(policy, pairs), []
    for start in range(0, len(pairs), size):
        inputs = collect.rollout(policy, list(range(start, min(start + size, len(pairs))))).inputs
        value = policy.score(**inputs) if by_score else policy.evaluate(**inputs).log_prob.sum(-1)
        wins += (value[:, 0] > value[:, 1]).float().tolist()
    return PairsResult(
        preference_accuracy=float(np.mean(wins)),
        preference_interval=wilson(wins),
        pairs=len(wins),
        ranked_by="score" if by_score else "log_prob",
    )


def scored(rewards: Rewards, problems: list[Problem], texts: list[str], **known: Any) -> list[float | None]:
    """Scores of one completion per problem; ``known`` is what rewards may ask for besides."""
    completions = [completion_for(problem.prompt, text) for problem, text in zip(problems, texts, strict=True)]
    return rewards(prompts=[p.prompt for p in problems], completions=completions, **columns_of(problems), **known).scores


def checked(check: Reward | None, problems: list[Problem], texts: list[str]) -> list[float] | None:
    """A task's own check as 0 or 1 for each problem; None where it has none."""
    return None if check is None else [0.0 if s is None else s for s in scored(Rewards.of(check), problems, texts)]
