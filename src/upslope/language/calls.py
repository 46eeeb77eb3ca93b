"""Calling somebody else's reward function under a time limit: its values, what it raised, or that it took too long.

Two ways with the same answers. In a thread (:func:`in_thread`) a call that is out of time is abandoned: it runs on, and one that never
lets go of the interpreter cannot even be abandoned. In a process (:func:`~upslope.language.forked.in_process`) it is killed.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from upslope.errors import RunFault
from upslope.language.values import error_line, numbers

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
        """The same of each item alone."""
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
