"""Calling somebody else's function under a time limit: what it returned, what it raised, or that it took too long."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a call ended; ``error`` is what it raised, ``value`` means something only where there is none and it ended in time."""

    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return self.timed_out or self.error is not None


class _OutOfTime(Exception):
    pass


def call(function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float | None) -> Outcome:
    """``function(**arguments)``, awaited if it is async, in a thread that is abandoned after ``seconds`` (None: no limit).

    An async function gets an event loop of its own for every call, and is canceled there when its time is over. A function with a
    true attribute ``no_timeout`` is called in the caller's thread, without a limit.
    """
    if getattr(function, "no_timeout", False):
        return _run(function, arguments, None)
    if seconds is not None and seconds <= 0:
        return Outcome(timed_out=True)
    ended: list[Outcome] = []
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=lambda: ended.append(context.run(_run, function, arguments, seconds)), daemon=True, name="upslope-reward"
    )
    thread.start()
    thread.join(seconds)
    return ended[0] if ended else Outcome(timed_out=True)


def _run(function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float | None) -> Outcome:
    try:
        value = function(**arguments)
        return Outcome(asyncio.run(_within(value, seconds)) if inspect.isawaitable(value) else value)
    except _OutOfTime:
        return Outcome(timed_out=True)
    except (Exception, SystemExit) as error:
        return Outcome(error=error)


async def _within(value: Awaitable[Any], seconds: float | None) -> Any:
    task = asyncio.ensure_future(value)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        raise _OutOfTime  # which ends the event loop, and with it the task is canceled
    return task.result()
