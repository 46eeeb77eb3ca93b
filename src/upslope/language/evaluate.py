"""Measuring a language policy on problems that it was not trained on, and a trained reward model as a reward function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upslope.errors import require
from upslope.intervals import wilson
from upslope.language.calls import ALSO_KNOWN, TrainerState
from upslope.language.checks import Prompt, Reward, text_of
from upslope.language.collect import spoken
from upslope.language.engine import EmbeddedEngine, padded
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Pair, Problem, Task, columns_of
from upslope.language.recorded import preference_pairs
from upslope.language.rewards import Rewards
from upslope.typed import as_list


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
    found, columns = found[:episodes], columns_of(found[:episodes])
    for name in ALSO_KNOWN:
        require(name not in columns, f"task {task.name}: a column may not be called {name}, which means something else to rewards")
    prompts = policy.encode_all([problem.prompt for problem in found], [problem.place for problem in found])
    made = EmbeddedEngine(policy).generate(prompts, group_size=1, max_tokens=max_tokens or task.max_tokens, seed=seed, greedy=greedy)
    arguments: dict[str, Any] = {**spoken(policy, found, made), **columns, "trainer_state": trainer_state or TrainerState(fraction=1.0)}

    def scores(by: Reward | Rewards | None) -> list[float | None]:
        return [] if by is None else Rewards.of(by)(**arguments).scores

    correct, form = ([score or 0.0 for score in scores(check)] for check in (task.correct, task.format))
    rewarded = [score for score in scores(rewards or task.reward) if score is not None]
    measured: dict[str, Any] = {"accuracy_interval": wilson(correct) if correct else None, "episodes": len(found)}
    for name, numbers in (("accuracy", correct), ("reward_mean", rewarded), ("format_rate", form), ("length_mean", as_list(made.length))):
        measured[name] = float(np.mean(numbers)) if numbers else None
    return LanguageResult(**measured)


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
    collect, wins = preference_pairs(policy, pairs), list[float]()
    for start in range(0, len(pairs), size):
        inputs = collect.rollout(policy, list(range(start, min(start + size, len(pairs))))).inputs
        value = policy.score(**inputs) if by_score else policy.evaluate(**inputs).log_prob.sum(-1)
        wins += as_list((value[:, 0] > value[:, 1]).float())
    ranked_by = "score" if by_score else "log_prob"
    return PairsResult(preference_accuracy=float(np.mean(wins)), preference_interval=wilson(wins), pairs=len(wins), ranked_by=ranked_by)


def score_with(policy: LanguagePolicy, size: int = 32) -> Callable[..., list[float]]:
    """``reward(*, prompts, completions) -> list[float]``: what the value head says at each completion's end token.

    Raises UsageError for a policy without a value head.
    """
    require(policy.has_value, "reward: this model has no value head, so it is no reward model")

    @torch.no_grad()
    def reward_model(*, prompts: Sequence[Prompt], completions: Sequence[Any]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            texts = [[text_of(completion)] for completion in completions[part]]
            places = [f"item {i + 1}" for i in range(len(prompts))][part]
            rows = [row for (row,) in policy.rendering.rows(prompts[part], texts, places)]
            prompt_ids, prompt_length = padded([row.ids[: row.start] for row in rows], policy.device)
            ids, length = padded([row.ids[row.start :] for row in rows], policy.device)
            inputs = {"prompt_ids": prompt_ids, "prompt_length": prompt_length}
            found += as_list(policy.score(**inputs, completion_ids=ids[:, None], completion_length=length[:, None])[:, 0])
        return found

    vars(reward_model)["no_timeout"] = True  # no thread for each call of our function
    return reward_model
