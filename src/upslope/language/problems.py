"""What a language task is made of: problems, a split, the task's check; and preference data."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from upslope.errors import require
from upslope.language.checks import Prompt, Reward

T = TypeVar("T")

HELD_OUT = 512
"""How many problems of a generated task are held out where there are at least four times as many; else a fifth of them."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One prompt and what rewards are given beside it: ``columns``, such as ``{"answer": "46"}``; ``place`` is its file and line."""

    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Problems to train on, others to evaluate on, and the task's reward.

    ``reward`` trains; ``correct`` (the answer is right) and ``format`` (the expected form was found) are 0 or 1 and give
    accuracy and format rate, None where the task cannot say. ``solution(problem)`` is a right completion, for a supervised
    warm start. ``max_tokens`` is what a completion needs. ``alphabet`` holds the characters of a generated task, else it is empty.
    """

    name: str
    train: Sequence[Problem]
    held_out: Sequence[Problem]
    columns: tuple[str, ...]
    reward: Reward | None
    correct: Reward | None = None
    format: Reward | None = None
    solution: Callable[[Problem], str] | None = None
    max_tokens: int = 256
    alphabet: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt with the better and the worse of two completions; ``place`` is their file and line."""

    prompt: Prompt
    chosen: str
    rejected: str
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """A prompt with a completion and whether it is wanted (the data of KTO); ``place`` is their file and line."""

    prompt: Prompt
    completion: str
    label: bool
    place: str = field(default="", compare=False, repr=False)


def columns_of(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """The columns of ``problems`` as rewards receive them, one list per column of the first problem."""
    return {name: [problem.columns[name] for problem in problems] for name in (problems[0].columns if problems else ())}


def prompt_key(prompt: Prompt) -> str:
    """A string that two prompts share only if they are equal."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def shuffled(items: Sequence[T], *key: Any) -> list[T]:
    """``items`` in an order that depends on ``key`` only, the same in every process."""
    chosen = list(items)
    random.Random("/".join(map(str, key))).shuffle(chosen)
    return chosen


def split(problems: Sequence[Problem], num_held_out: int, *key: Any) -> tuple[list[Problem], list[Problem]]:
    """Train and held-out problems, both shuffled, parted by their prompts: equal prompts are on the same side."""
    mixed = shuffled(problems, *key)
    prompts = list(dict.fromkeys(prompt_key(problem.prompt) for problem in mixed))
    held_out = set(prompts[: min(num_held_out, len(prompts) - 1)])
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in mixed:
        sides[prompt_key(problem.prompt) in held_out].append(problem)
    return sides


def num_held_out(num_problems: int, asked: int | None = None) -> int:
    """How many of a generated task's problems are held out: what was asked for, else :data:`HELD_OUT` or a fifth."""
    if asked is None:
        return HELD_OUT if num_problems >= 4 * HELD_OUT else max(1, num_problems // 5)
    require(0 < asked < num_problems, f"held_out: expected 1 to {num_problems - 1} of the {num_problems} problems, found {asked!r}")
    return asked
