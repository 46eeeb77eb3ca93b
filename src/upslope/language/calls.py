"""Somebody else's reward function: what it asks for by the names of its parameters, and calls of it under a time limit.

Two ways with the same answers. In a thread (:func:`in_thread`) a call that is out of time is abandoned: it runs on, and one that never
lets go of the interpreter cannot even be abandoned. In a process (:func:`in_child`) it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import inspect
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from numbers import Real
from typing import Any

from upslope.errors import RunFault, is_kind, one_line
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
        """Carry it out right here; an async function is awaited in a new event loop and canceled after ``seconds``."""
        try:
            value = self.function(**own(self.columns), **self.alone)
            value = asyncio.run(_within(value, seconds)) if inspect.isawaitable(value) else value
        except _OutOfTime:
            return Outcome()
        except BaseException as error:
            if self.carry_out is in_place and isinstance(error, KeyboardInterrupt):
                raise  # Ctrl-C, which comes to no other thread or process
            text, kind = one_line(error, 200), type(error).__name__
            return Outcome(error=f"{kind}: {text}" if text else kind)
        try:
            return Outcome(values=numbers(self.name, value, self.count, self.first))
        except RunFault as fault:
            return Outcome(values=[], fault=str(fault))


def own(value: Any) -> Any:
    """A copy of lists and dictionaries, as deep as they go: what a reward does to its own, neither the next one nor the training sees."""
    if type(value) not in (list, dict):
        return value
    copied: Any = copy.copy(value)
    pairs: Any = copied.items() if is_kind(copied, dict) else enumerate(copied)
    if any(type(entry) in (list, dict) for _, entry in pairs):
        for key, entry in copied.items() if is_kind(copied, dict) else enumerate(copied):
            copied[key] = own(entry)
    return copied


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
    if not is_kind(values, list, tuple):
        raise RunFault(f"reward {name} returned {repr_of(result)}: expected a list with a number or None for each of {count} completions")
    if len(values) != count:
        raise RunFault(f"reward {name} returned {len(values)} values for {count} completions: expected one for each")
    return [_number(f"reward {name} gave", value, first + index) for index, value in enumerate(values)]


def _number(said: str, value: Any, index: int) -> float | None:
    single = value.tolist() if hasattr(value, "tolist") else value
    if single is None:
        return None
    if not isinstance(single, Real):
        raise RunFault(f"{said} {repr_of(value)} for item {index + 1}: expected a number, or None for no score")
    try:
        number = float(single)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RunFault(f"{said} {number} for item {index + 1}: expected a finite number, or None for no score")
    if abs(number) > MAX_REWARD:
        raise RunFault(f"{said} {beyond(number, f'for item {index + 1}')}")
    return number


def repr_of(value: Any) -> str:
    return "None" if value is None else f"{one_line(repr(value), 40)} of type {type(value).__name__}"


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


# A regular expression that backtracks without end holds the interpreter's lock: no thread runs beside it, no signal handler gets its
# turn. The operating system can still kill its process. So the calls of a batch are made in a forked copy of this process, which has the
# function and its arguments already (nothing is serialized on the way in, JSON comes back), and which is killed when a call is out of
# time; the next call starts another copy. What a reward changes in memory is therefore gone after the call, and a GPU that this process
# uses is out of its reach (PyTorch says so).

SPARE_SECONDS = 5.0  # a copy whose parent is gone ends itself, this long after the parent would have ended it


def can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods()


def in_child(calls: list[Call], limit: Limit) -> Iterator[Outcome]:
    """Each call in a forked process that is killed when its time is over; calls that end in time share one."""
    done = 0
    while done < len(calls):
        seconds = limit()
        if seconds is not None and seconds <= 0:
            done += 1
            yield Outcome()
            continue
        with copy_of_this_process(calls[done:], seconds) as answers:
            goes_on = True
            while goes_on and done < len(calls) and (seconds is None or seconds > 0):
                outcome, goes_on = next_outcome(answers, seconds)
                done += 1
                yield outcome
                seconds = limit()


def next_outcome(answers: Connection, seconds: float | None) -> tuple[Outcome, bool]:
    """The next outcome, and whether the process that sent it can go on."""
    if not answers.poll(seconds):
        return Outcome(), False
    try:
        return Outcome(**json.loads(answers.recv_bytes())), True
    except (EOFError, OSError):
        return Outcome(error="its process ended before it answered (killed for memory, or it crashed)"), False


@contextlib.contextmanager
def copy_of_this_process(calls: list[Call], seconds: float | None) -> Generator[Connection]:
    """A forked process that makes the calls one after the other and sends what came of them; it is gone at the end of the block."""
    context: Any = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=make_calls, args=(calls, seconds, sender, receiver), name="upslope-reward")
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = before or "false"  # else the tokenizers library writes a warning at every fork
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's: other threads are not copied, which is what we want
            process.start()
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
    sender.close()
    try:
        yield receiver
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
        process.kill()
        process.join()
        process.close()
        receiver.close()


def make_calls(calls: list[Call], seconds: float | None, answers: Connection, receiver: Connection) -> None:
    os.setpgid(0, 0)  # Ctrl-C at the terminal is for the run, and one kill reaches whatever a reward has started
    receiver.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the threads of the original's pool are not in its copy
    for call in calls:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds + SPARE_SECONDS)
        outcome = call(seconds)
        sys.stdout.flush()  # what a reward prints: the parent does not wait for the end of this process
        try:
            answers.send_bytes(json.dumps(asdict(outcome)).encode())
        except BrokenPipeError:
            return
