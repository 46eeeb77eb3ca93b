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
from dataclasses import dataclass
from typing import Any

from upslope.errors import RunFault
from upslope.language.values import error_line, numbers

Limit = Callable[[], float | None]
"""How many seconds the next call may take (None: as long as it likes), asked right before it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended. ``values`` mean something only where nothing else is said.

    ``error`` is what the function raised, in one line; ``fault`` says how what it returned breaks the convention.
    """

    values: list[float | None]
    error: str = ""
    fault: str = ""
    timed_out: bool = False

    @property
    def failed(self) -> bool:
        """Whether the function gave no answer."""
        return self.timed_out or self.error != ""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a reward: of the whole batch, or of the item ``first`` alone."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    count: int
    first: int = 0

    def __call__(self, seconds: float | None) -> Outcome:
        """Carry it out right here; an async function is awaited in an event loop of its own and canceled after ``seconds``."""
        try:
            value = self.function(**self.arguments)
            value = asyncio.run(_within(value, seconds)) if inspect.isawaitable(value) else value
        except _OutOfTime:
            return Outcome(values=[], timed_out=True)
        except (Exception, SystemExit) as error:
            return Outcome(values=[], error=error_line(error))
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
        seconds = limit()
        if seconds is not None and seconds <= 0:
            yield Outcome(values=[], timed_out=True)
            continue
        ended: list[Outcome] = []
        context = contextvars.copy_context()

        def carry_out(call: Call = call, seconds: float | None = seconds, ended: list[Outcome] = ended, context: Any = context) -> None:
            ended.append(context.run(call, seconds))

        thread = threading.Thread(target=carry_out, daemon=True, name="upslope-reward")
        thread.start()
        thread.join(seconds)
        yield ended[0] if ended else Outcome(values=[], timed_out=True)


async def _within(value: Awaitable[Any], seconds: float | None) -> Any:
    task = asyncio.ensure_future(value)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        raise _OutOfTime  # which ends the event loop, and with it the task is canceled
    return task.result()
