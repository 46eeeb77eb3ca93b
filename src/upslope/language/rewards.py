"""Rewards: one or several functions, weights, a time limit, and what happens to items that get no score.

The convention is ``reward(*, prompts, completions, **columns) -> list[float | None]``, sync or async, every argument a list
with one entry per completion. A function is told only what it has parameters for.

1. A reward is called once with the whole batch. If that call raises or takes too long, it is called again for one item at a
   time, so that one bad item does not lose the others; a reward that compares the items of a batch must not raise.
2. An item for which any reward (of a weight other than 0) raised, ran out of time or said ``None`` has no score, never a silent
   0: the item is to be masked and kept out of its group. A reward that has nothing to say about some problems says 0.0 there
   (TRL would add up the others).
3. If no item of a batch has a score, or a reward returns something that is not one number or ``None`` per item, that is a fault.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from upslope.errors import RunFault, require, unknown
from upslope.language.calls import Outcome, call
from upslope.language.checks import BUILTIN, Completion, Prompt, Reward, builtin, completion_for, text_of

__all__ = [
    "BUILTIN",
    "Part",
    "Reward",
    "Rewards",
    "Scores",
    "builtin",
    "completion_for",
    "parse_weight",
    "reward_from",
    "text_of",
]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reward function, the name it is logged under and its weight."""

    name: str
    function: Reward
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What :class:`Rewards` gives: ``scores`` per item (None: no score), and how that came about.

    ``parts`` holds the unweighted value of every reward per item. The counts are of items times rewards;
    ``num_retried`` is how many rewards had to be called item by item.
    """

    scores: list[float | None]
    parts: dict[str, list[float | None]]
    num_none: int = 0
    num_raised: int = 0
    num_timed_out: int = 0
    num_retried: int = 0
    first_error: str = ""

    @property
    def num_missing(self) -> int:
        """How many items have no score."""
        return sum(score is None for score in self.scores)

    @property
    def means(self) -> dict[str, float]:
        """The mean of every reward over the items that it scored; a reward that scored none is left out."""
        scored = {name: [value for value in values if value is not None] for name, values in self.parts.items()}
        return {name: math.fsum(values) / len(values) for name, values in scored.items() if values}


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The weighted sum of several rewards: ``score = Σ weight · reward``, None where any of them is missing.

    ``timeout`` is how many seconds a reward may take for one item, ``batch_timeout`` the most for a whole call of many and once
    more for the item-by-item pass after it; items that this leaves no time for count as timed out. A call that is out of time is
    abandoned, not ended: its thread runs on. One that never lets go of the interpreter (a regular expression that backtracks
    without end) cannot be interrupted. None means no limit.
    """

    parts: tuple[Part, ...]
    timeout: float | None = 10.0
    batch_timeout: float | None = 60.0

    def __post_init__(self) -> None:
        require(isinstance(self.parts, tuple) and len(self.parts) > 0, "rewards: expected one reward or more, found none")
        for part in self.parts:
            require(callable(part.function), f"reward {part.name}: expected a function, found {_kind(part.function)}")
            require(not isinstance(part.function, type), f"reward {part.name}: it is a class; give an instance of it")
            require(_is_finite(part.weight), f"reward {part.name}: its weight is a finite number, found {part.weight!r}")
        names = [part.name for part in self.parts]
        require(len(set(names)) == len(names), f"rewards: two have the same name: {', '.join(names)}")
        require(any(part.weight != 0 for part in self.parts), "rewards: every weight is 0, so nothing would be learned")
        for name in ("timeout", "batch_timeout"):
            limit = getattr(self, name)
            require(limit is None or (_is_finite(limit) and limit > 0), f"{name}: expected seconds above 0, or None, found {limit!r}")

    @classmethod
    def of(
        cls,
        *rewards: Reward | Rewards,
        weights: Sequence[float] | None = None,
        timeout: float | None = 10.0,
        batch_timeout: float | None = 60.0,
    ) -> Rewards:
        """Rewards from functions and, if they are not all 1, their weights; names come from the functions, numbered where equal."""
        if len(rewards) == 1 and isinstance(rewards[0], Rewards) and weights is None:
            return rewards[0]
        weights = [1.0] * len(rewards) if weights is None else list(weights)
        require(len(weights) == len(rewards), f"weights: expected one for each of {len(rewards)} rewards, found {len(weights)}")
        parts: list[Part] = []
        for function, weight in zip(rewards, weights, strict=True):
            require(callable(function), f"reward: expected a function, found {_kind(function)}")
            base = getattr(function, "__name__", type(function).__name__)
            taken = sum(part.name == base or part.name.startswith(f"{base}#") for part in parts)
            parts.append(Part(name=f"{base}#{taken + 1}" if taken else base, function=function, weight=weight))
        return cls(parts=tuple(parts), timeout=timeout, batch_timeout=batch_timeout)

    def check(self, columns: Sequence[str]) -> None:
        """Raise :class:`UsageError` if a reward asks for a column that is not among ``columns``."""
        for part in self.parts:
            for name in _needed(part.function):
                shown = ", ".join(columns) or "none"
                require(name in columns, f"reward {part.name} needs the column {name!r}, which the data does not have (columns: {shown})")

    def __call__(self, *, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Sequence[Any]) -> Scores:
        """Scores of ``completions``; raises :class:`RunFault` where a reward breaks the convention or scores nothing."""
        given = {"prompts": list(prompts), "completions": list(completions), **{name: list(column) for name, column in columns.items()}}
        count = len(given["completions"])
        for name, column in given.items():
            require(len(column) == count, f"{name}: expected one entry for each of {count} completions, found {len(column)}")
        self.check(list(columns))
        tally = _Tally()
        parts = {part.name: self._values(part, given, count, tally) for part in self.parts}
        scores: list[float | None] = []
        for index in range(count):
            terms = [(part.weight, parts[part.name][index]) for part in self.parts if part.weight != 0]
            known = [weight * value for weight, value in terms if value is not None]
            scores.append(math.fsum(known) if len(known) == len(terms) else None)
        if count and all(score is None for score in scores):
            raise RunFault(f"none of {count} completions got a score: {tally.first_error}")
        return Scores(scores=scores, parts=parts, **vars(tally))

    def _values(self, part: Part, given: Mapping[str, list[Any]], count: int, tally: _Tally) -> list[float | None]:
        """What one reward says about each item, None where it says nothing, raised or took too long."""
        arguments = _accepted(part.function, given)
        if count > 1:
            limit = None if self.timeout is None else self.timeout * count
            own = {name: list(column) for name, column in arguments.items()}  # what it does to its lists, the next one does not see
            outcome = call(part.function, own, _least(limit, self.batch_timeout))
            if not outcome.failed:
                return tally.counted(part.name, _numbers(part.name, outcome.value, count))
            tally.num_retried += 1
        started, values = time.monotonic(), []
        for index in range(count):
            left = None if self.batch_timeout is None else self.batch_timeout - (time.monotonic() - started)
            outcome = call(part.function, {name: [column[index]] for name, column in arguments.items()}, _least(self.timeout, left))
            if outcome.failed:
                tally.failed(part.name, outcome, index)
                values.append(None)
            else:
                values += tally.counted(part.name, _numbers(part.name, outcome.value, 1, index), index)
        return values


@dataclass
class _Tally:
    """What went wrong in one call of :class:`Rewards`."""

    num_none: int = 0
    num_raised: int = 0
    num_timed_out: int = 0
    num_retried: int = 0
    first_error: str = ""

    def counted(self, name: str, values: list[float | None], first: int = 0) -> list[float | None]:
        for index, value in enumerate(values, start=first):
            if value is None:
                self.num_none += 1
                self.first_error = self.first_error or f"reward {name} said None (item {index + 1})"
        return values

    def failed(self, name: str, outcome: Outcome, index: int) -> None:
        self.num_timed_out += outcome.timed_out
        self.num_raised += not outcome.timed_out
        what = "took too long" if outcome.error is None else f"raised {_line(outcome.error)}"
        self.first_error = self.first_error or f"reward {name} {what} (item {index + 1})"


def reward_from(text: str, load: Callable[[str], Reward]) -> Reward:
    """The built-in reward that ``NAME`` or ``NAME:ARGUMENT`` names, else ``load(text)`` for ``module:function``."""
    if text.partition(":")[0] in BUILTIN:
        return builtin(text)
    if ":" not in text:
        raise unknown("reward", text, [*BUILTIN, "module:function"])
    function = load(text)
    require(callable(function), f"reward {text}: expected a function, found {_kind(function)}")
    return function


def parse_weight(text: str) -> tuple[str, float]:
    """``module:function=0.5`` → ``("module:function", 0.5)``; without a number at the end the weight is 1.

    What follows the last ``=`` is the weight; only in a built-in reward with an argument may it be something else.
    """
    name, equals, tail = text.rpartition("=")
    try:
        weight = float(tail) if equals else 1.0
    except ValueError:
        head, colon, _ = text.partition(":")
        require(head in BUILTIN and bool(colon), f"reward {text!r}: expected a number after =, as in module:function=0.5, found {tail!r}")
        return text, 1.0
    name = name if equals else text
    require(name.strip() != "", f"reward {text!r}: a name is missing, write module:function=0.5")
    require(math.isfinite(weight), f"reward {name}: its weight is a finite number, found {tail!r}")
    return name, weight


def _parameters(function: Reward) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _accepted(function: Reward, given: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Those of the arguments that the function has parameters for."""
    parameters = _parameters(function)
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(given)
    return {name: column for name, column in given.items() if name in parameters}


def _needed(function: Reward) -> list[str]:
    """The columns that the function cannot be called without."""
    named = [
        name
        for name, parameter in (_parameters(function) or {}).items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and parameter.default is parameter.empty
    ]
    return [name for name in (*named, *getattr(function, "needs", ())) if name not in ("prompts", "completions")]


def _numbers(name: str, result: Any, count: int, first: int = 0) -> list[float | None]:
    """What a reward returned, as floats; raises :class:`RunFault` if it is not one number or None for each item."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        raise RunFault(f"reward {name} returned {_kind(result)}: expected a list with a number or None for each of {count} completions")
    if len(values) != count:
        raise RunFault(f"reward {name} returned {len(values)} values for {count} completions: expected one for each")
    return [_number(f"reward {name} gave", value, first + index) for index, value in enumerate(values)]


def _number(said: str, value: Any, index: int) -> float | None:
    single = value.tolist() if hasattr(value, "tolist") else value
    if single is None:
        return None
    if not isinstance(single, Real):
        raise RunFault(f"{said} {_kind(value)} for item {index + 1}: expected a number, or None for no score")
    try:
        number = float(single)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RunFault(f"{said} {number} for item {index + 1}: expected a finite number, or None for no score")
    return number


def _kind(value: Any) -> str:
    text = " ".join(repr(value).split())
    shown = text if len(text) <= 40 else f"{text[:39]}…"
    return "None" if value is None else f"{shown} of type {type(value).__name__}"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
