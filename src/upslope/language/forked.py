"""Rewards in a process of their own, which can be killed: the one way to end a call that never lets go of the interpreter.

A regular expression that backtracks without end holds the interpreter's lock: no thread runs beside it, no signal handler gets its
turn. The operating system can still kill its process. So the calls of a batch are made in a forked copy of this process, which has the
function and its arguments already (nothing is serialized on the way in, JSON comes back), and which is killed when a call is out of
time; the next call starts another copy. What a reward changes in memory is therefore gone after the call, and a GPU that this process
uses is out of its reach (PyTorch says so).
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from upslope.language.calls import Call, Limit, Outcome

SPARE_SECONDS = 5.0  # a copy whose parent is gone ends itself, this long after the parent would have ended it


def can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods()


def in_process(calls: list[Call], limit: Limit) -> Iterator[Outcome]:
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
                outcome, goes_on = answer_of(answers, seconds)
                done += 1
                yield outcome
                seconds = limit()


def answer_of(answers: Connection, seconds: float | None) -> tuple[Outcome, bool]:
    """The next outcome, and whether the process that sent it can go on."""
    if not answers.poll(seconds):
        return Outcome(), False
    try:
        return Outcome(**json.loads(answers.recv_bytes())), True
    except (EOFError, OSError):
        return Outcome(error="its process ended before it answered (killed for memory, or it crashed)"), False


@contextlib.contextmanager
def copy_of_this_process(calls: list[Call], seconds: float | None) -> Iterator[Connection]:
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
