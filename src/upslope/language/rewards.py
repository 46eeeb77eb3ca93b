"""Rewards: one or several functions, weights, a time limit, and what happens to items that get no score.

The convention is ``reward(*, prompts, completions, **columns) -> list[float | None]``, sync or async, every argument a list
with one entry per completion. A function is given only what it has parameters for; besides the columns of the data that may be
``completion_ids`` (token ids, the end token included), ``finish_reason`` (``"stop"`` or, cut by max_tokens, ``"length"``) and
``trainer_state``, one :class:`TrainerState` for the whole batch.

1. A reward is called once with the whole batch. If that call raises or takes too long, it is called again for one item at a
   time, so that one bad item does not lose the others; a reward that compares the items of a batch must not raise.
2. A reward that says ``None`` abstains: of several, those that spoke are added (as TRL does). An item about which none speaks has
   no score, and neither has one for which a reward raised or ran out of time, for what that one would have said is not known.
   An item without a score, never a silent 0, is masked and kept out of its group. Rewards of weight 0 are logged and decide nothing.
3. If no item of a batch has a score, or a reward returns something that is not one number or ``None`` per item, that is a fault.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

from upslope.errors import RunFault, is_kind, require, unknown
from upslope.language.calls import ALSO_KNOWN, Asked, Call, Outcome, TrainerState, can_fork, in_child, in_place, in_thread, repr_of
from upslope.language.checks import BUILTIN, Completion, Prompt, Reward, builtin


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reward function, the name it is logged under and its weight."""

    name: str
    function: Reward
    weight: float = 1.0

    @cached_property
    def asked(self) -> Asked:
        return Asked.by(self.function)


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


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The weighted sum of several rewards, over those that do not abstain: ``score = Σ weight · reward``.

    ``timeout`` is how many seconds a reward may take for one item, ``batch_timeout`` the most for a whole call of many and once
    more for the item-by-item pass after it; items that this leaves no time for count as timed out. None means no limit. A call that
    is out of time is abandoned: its thread runs on, and one that never lets go of the interpreter (a regular expression that
    backtracks without end) is not even abandoned. With ``in_subprocess`` it is killed (:mod:`upslope.language.calls`); what rewards
    change in memory is then lost after each call, and they cannot use a GPU that this process uses.
    """

    parts: tuple[Part, ...]
    timeout: float | None = 10.0
    batch_timeout: float | None = 60.0
    in_subprocess: bool = False

    def __post_init__(self) -> None:
        require(is_kind(self.parts, tuple) and len(self.parts) > 0, "rewards: expected one reward or more, found none")
        for part in self.parts:
            require(callable(part.function), f"reward {part.name}: expected a function, found {repr_of(part.function)}")
            require(not isinstance(part.function, type), f"reward {part.name}: it is a class; give an instance of it")
            require(_is_finite(part.weight), f"reward {part.name}: its weight is a finite number, found {part.weight!r}")
        names = [part.name for part in self.parts]
        require(len(set(names)) == len(names), f"rewards: two have the same name: {', '.join(names)}")
        require(any(part.weight != 0 for part in self.parts), "rewards: every weight is 0, so nothing would be learned")
        for name in ("timeout", "batch_timeout"):
            limit = getattr(self, name)
            require(limit is None or (_is_finite(limit) and limit > 0), f"{name}: expected seconds above 0, or None, found {limit!r}")
        require(can_fork() or not self.in_subprocess, "in_subprocess: this system cannot copy a process; leave it out")

    @classmethod
    def of(cls, *rewards: Reward | Rewards, weights: Sequence[float] | None = None, **limits: Any) -> Rewards:
        """Rewards from functions and, if they are not all 1, their weights; names come from the functions, numbered where equal.

        ``limits``: ``timeout``, ``batch_timeout``, ``in_subprocess``.
        """
        if len(rewards) == 1 and isinstance(rewards[0], Rewards) and weights is None:
            return rewards[0]
        weights = [1.0] * len(rewards) if weights is None else list(weights)
        require(len(weights) == len(rewards), f"weights: expected one for each of {len(rewards)} rewards, found {len(weights)}")
        parts: list[Part] = []
        for function, weight in zip(rewards, weights, strict=True):
            require(callable(function), f"reward: expected a function, found {repr_of(function)}")
            base = getattr(function, "__name__", type(function).__name__)
            taken = sum(part.name == base or part.name.startswith(f"{base}#") for part in parts)
            parts.append(Part(name=f"{base}#{taken + 1}" if taken else base, function=function, weight=weight))
        return cls(parts=tuple(parts), **limits)

    def check(self, columns: Sequence[str], also_known: Sequence[str] = ALSO_KNOWN) -> None:
        """Raise :class:`UsageError` if a reward asks for what is neither among ``columns`` nor ``also_known``."""
        for part in self.parts:
            for name in part.asked.needed:
                shown = ", ".join(column for column in columns if column not in ALSO_KNOWN) or "none"
                known = name in columns or name in also_known
                require(known, f"reward {part.name} needs the column {name!r}, which the data does not have (columns: {shown})")

    def __call__(
        self, *, prompts: Sequence[Prompt], completions: Sequence[Completion], trainer_state: TrainerState | None = None, **columns: Any
    ) -> Scores:
        """Scores of ``completions``; :class:`RunFault` where a reward breaks the convention, or where there is none at all."""
        given = {name: list(column) for name, column in {"prompts": prompts, "completions": completions, **columns}.items()}
        count = len(completions)
        for name, column in given.items():
            require(len(column) == count, f"{name}: expected one entry for each of {count} completions, found {len(column)}")
        if any(name not in given and name != "trainer_state" for part in self.parts for name in part.asked.needed):
            self.check([*columns, "trainer_state"], also_known=())
        parts: dict[str, list[float | None]] = {}
        lost: dict[tuple[str, int], Outcome] = {}  # what is not known, for a reward raised or took too long
        num_retried = 0
        for part in self.parts:
            call = self._call(part, given, trainer_state)
            values = self._at_once(call) if count > 1 else None
            num_retried += count > 1 and values is None
            parts[part.name] = self._item_by_item(call, lost) if values is None else values
        counted, scores = [part for part in self.parts if part.weight != 0], list[float | None]()
        for i in range(count):
            spoken = [(part.weight, value) for part in counted if (value := parts[part.name][i]) is not None]
            known = spoken and not any((part.name, i) in lost for part in counted)
            scores.append(math.fsum(weight * value for weight, value in spoken) if known else None)
        missing = [(name, i) for name, values in parts.items() for i, value in enumerate(values) if value is None]
        found = Scores(scores=scores, parts=parts, num_retried=num_retried, **(_counted(missing, lost) if missing else {}))
        if count and all(score is None for score in scores):
            raise RunFault(f"none of {count} completions got a score: {found.first_error}")
        return found

    def _call(self, part: Part, given: dict[str, list[Any]], state: TrainerState | None) -> Call:
        """One reward with those of its arguments that it has parameters for."""
        asked = part.asked
        state = TrainerState() if state is None and "trainer_state" in asked.needed else state
        arguments = {**given, **({} if state is None else {"trainer_state": state})}
        columns: dict[str, Any] = {name: arguments[name] for name in arguments if asked.takes is None or name in asked.takes}
        alone = {"trainer_state": columns.pop("trainer_state")} if "trainer_state" in columns else {}
        way = in_place if getattr(part.function, "no_timeout", False) else in_child if self.in_subprocess else in_thread
        return Call(name=part.name, function=part.function, columns=columns, alone=alone, count=len(given["completions"]), carry_out=way)

    def _at_once(self, call: Call) -> list[float | None] | None:
        """What a reward says of the whole batch; None where it gives no answer."""
        limits = [seconds for seconds in (self.timeout and self.timeout * call.count, self.batch_timeout) if seconds is not None]
        (outcome,) = call.carry_out([call], lambda: min(limits, default=None))
        if outcome.fault:
            raise RunFault(outcome.fault)
        return outcome.values

    def _item_by_item(self, call: Call, lost: dict[tuple[str, int], Outcome]) -> list[float | None]:
        """What it says of each item alone; what is ``lost`` is noted."""
        started, values = time.monotonic(), list[float | None]()

        def limit() -> float | None:
            left = None if self.batch_timeout is None else self.batch_timeout - (time.monotonic() - started)
            return min((seconds for seconds in (self.timeout, left) if seconds is not None), default=None)

        for i, outcome in enumerate(call.carry_out(call.items(), limit)):
            if outcome.fault:
                raise RunFault(outcome.fault)
            if outcome.values is None:
                lost[call.name, i] = outcome
            values += outcome.values or [None]
        return values


def _counted(missing: list[tuple[str, int]], lost: dict[tuple[str, int], Outcome]) -> dict[str, Any]:
    """How often rewards said None, raised or took too long, and why the first value is ``missing``."""
    (name, index), outcome = missing[0], lost.get(missing[0])
    why = "said None" if outcome is None else f"raised {outcome.error}" if outcome.error else "took too long"
    num_timed_out = sum(outcome.error == "" for outcome in lost.values())
    counts = {"num_none": len(missing) - len(lost), "num_raised": len(lost) - num_timed_out, "num_timed_out": num_timed_out}
    return {**counts, "first_error": f"reward {name} {why} (item {index + 1})"}


def reward_from(text: str, load: Callable[[str], Reward]) -> Reward:
    """The built-in reward that ``NAME`` or ``NAME:ARGUMENT`` names, else ``load(text)`` for ``module:function``."""
    if text.partition(":")[0] in BUILTIN:
        return builtin(text)
    if ":" not in text:
        raise unknown("reward", text, [*BUILTIN, "module:function"])
    function = load(text)
    require(callable(function), f"reward {text}: expected a function, found {repr_of(function)}")
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


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
