"""Somebody else's reward function: what it asks for by the names of its parameters, and calls of it under a time limit.

Two ways with the same answers. In a thread (:func:`in_thread`) a call that is out of time is abandoned: it runs on, and one that never
lets go of the interpreter cannot even be abandoned. In a process (:func:`~upslope.language.forked.in_process`) it is killed.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

from upslope.errors import RunFault, one_line
from upslope.language.checks import Reward
from upslope.reward_bound import MAX_REWARD, beyond

Limit = Callable[[], float | None]
"""How many seconds the next call may take (None: as long as it likes), asked right before it."""
Way = Callable[["list[Call]", Limit], "Iterator[Outcome]"]
"""How calls are carried out: :func:`in_place`, :func:`in_thread` or in a process."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended: with ``values``, or None where the function raised an ``error`` (in one line) or took too long.

    ``fault`` says how what it returned breaks the convention.
    """

    values: list[float | None] | None = None
    error: str = ""
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A reward with what it is asked: about the whole batch, or the item ``first`` alone; ``columns`` have an entry for each item."""

    name: str
    function: Callable[..., Any]
    columns: dict[str, list[Any]]
    alone: dict[str, Any]
    count: int
    carry_out: Way
    first: int = 0

    def items(self) -> list[Call]:
        return [replace(self, columns={n: c[i : i + 1] for n, c in self.columns.items()}, count=1, first=i) for i in range(self.count)]

    def __call__(self, seconds: float | None) -> Outcome:
        """Carry it out right here; an async function is awaited in an event loop of its own and canceled after ``seconds``."""
        columns = {name: list(column) for name, column in self.columns.items()}  # what it does to its lists, the next one does not see
        try:
            value = self.function(**columns, **self.alone)
            value = asyncio.run(_within(value, seconds)) if inspect.isawaitable(value) else value
        except _OutOfTime:
            return Outcome()
        except (Exception, SystemExit) as error:
            return Outcome(error=error_line(error))
        try:
            return Outcome(values=numbers(self.name, value, self.count, self.first))
        except RunFault as fault:
            return Outcome(values=[], fault=str(fault))


class _OutOfTime(Exception):
    pass


def in_place(calls: list[Call], limit: Limit) -> Iterator[Outcome]:
    """Each call in the caller's thread, without a limit: for functions that are known to be quick."""
    for call in calls:
        yield call(None)


def in_thread(calls: list[Call], limit: Limit) -> Iterator[Outcome]:
    """Each call in a thread that is abandoned when its time is over."""
    for call in calls:
        seconds, ended = limit(), list[Outcome]()
        if seconds is None or seconds > 0:
            carry_out = partial(contextvars.copy_context().run, _answer, call, seconds, ended)
            thread = threading.Thread(target=carry_out, daemon=True, name="upslope-reward")
            thread.start()
            thread.join(seconds)
        yield ended[0] if ended else Outcome()


def _answer(call: Call, seconds: float | None, ended: list[Outcome]) -> None:
    ended.append(call(seconds))


async def _within(value: Awaitable[Any], seconds: float | None) -> Any:
    task = asyncio.ensure_future(value)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        raise _OutOfTime  # which ends the event loop, and with it the task is canceled
    return task.result()


# ----------------------------------------------------------------------------------------------------------------------- what was returned


def numbers(name: str, result: Any, count: int, first: int = 0) -> list[float | None]:
    """What reward ``name`` returned for ``count`` items, the first of which is item ``first`` of the batch.

    Raises RunFault where it is not one finite number or None for each item.
    """
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        raise RunFault(f"reward {name} returned {kind_of(result)}: expected a list with a number or None for each of {count} completions")
    if len(values) != count:
        raise RunFault(f"reward {name} returned {len(values)} values for {count} completions: expected one for each")
    return [_number(f"reward {name} gave", value, first + index) for index, value in enumerate(values)]


def _number(said: str, value: Any, index: int) -> float | None:
    single = value.tolist() if hasattr(value, "tolist") else value
    if single is None:
        return None
    if not isinstance(single, Real):
        raise RunFault(f"{said} {kind_of(value)} for item {index + 1}: expected a number, or None for no score")
    try:
        number = float(single)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RunFault(f"{said} {number} for item {index + 1}: expected a finite number, or None for no score")
    if abs(number) > MAX_REWARD:
        raise RunFault(f"{said} {beyond(number, f'for item {index + 1}')}")
    return number


def kind_of(value: Any) -> str:
    return "None" if value is None else f"{one_line(repr(value), 40)} of type {type(value).__name__}"


def error_line(error: BaseException) -> str:
    """An exception in one line of at most some 200 characters."""
    text = one_line(error, 200)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


ALSO_KNOWN = ("prompts", "completions", "completion_ids", "finish_reason", "trainer_state")
"""What a reward may ask for that is no column of the data."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """How far training is, for rewards that ask for ``trainer_state``: a curriculum, an annealed weight."""

    iteration: int = 0
    """iterations that are done"""
    iterations: int | None = None
    """iterations after which the run ends, where that is known"""
    total_steps: int = 0
    """tokens trained on so far"""
    fraction: float = 0.0
    """how much of the run is done, from 0 to 1"""

    @property
    def global_step(self) -> int:
        """TRL's name of ``iteration``."""
        return self.iteration

    @property
    def max_steps(self) -> int:
        """TRL's name of ``iterations``; −1 where it is not known."""
        return -1 if self.iterations is None else self.iterations


@dataclass(frozen=True)
class Asked:
    """The names that a function takes (None: whatever it is given), and what it cannot be called without besides texts."""

    takes: frozenset[str] | None
    needed: tuple[str, ...]

    @classmethod
    def by(cls, function: Reward) -> Asked:
        """By its parameters, and what it says itself that it ``needs``."""
        try:
            found = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            found = None
        named = [p for p in found or () if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
        needed = [name for name in (*(p.name for p in named), *getattr(function, "needs", ())) if name not in ("prompts", "completions")]
        everything = found is None or any(p.kind is p.VAR_KEYWORD for p in found)
        return cls(None if everything else frozenset(p.name for p in found or ()), tuple(needed))
