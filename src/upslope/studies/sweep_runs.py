"""The runs of a sweep: worker processes that carry out one run after the other, and what a run's folder says of it.

A worker is a fresh process with one thread. It imports the libraries once, so a short run costs its training and little else. Where it is
told to stop, its run ends after the iteration with a checkpoint, as after Ctrl-C; where its parent is gone, it is gone at once, and the
run goes on from its last checkpoint the next time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch

from upslope.errors import Diverged, UsageError, describe_error
from upslope.run.config import RunConfig
from upslope.run.folder import Output
from upslope.run.load import AtItsEnd, Run
from upslope.run.session import Session
from upslope.run.train import RunState

EVALUATED = ("evaluation_return", "evaluation_accuracy", "evaluation_reward")
"""What a row of metrics calls the mean by which policies are compared, the first that it has."""
FINAL = ("return_mean", "accuracy", "reward_mean", "preference_accuracy")
"""What a summary calls it."""
STOP = "stop"
SECONDS_TO_END = 5.0  # that a worker without a run has for its end
FINISHED, STOPPED, DIVERGED, REFUSED, FAILED = "finished", "stopped", "diverged", "refused", "failed"


@dataclass(frozen=True)
class Result:
    """What a finished run has reached: its evaluations by the share of the budget, the final one, and what it took."""

    points: Mapping[float, float]
    final: float | None
    spent: int
    """steps, of a language model iterations"""
    solved: bool

    @classmethod
    def of(cls, folder: Path) -> Result | None:
        """The result of the run in a folder; None where it did not come to its end."""
        run = Run.load(folder)
        summary = run.summary
        if summary is None or not run.finished:
            return None
        unit = unit_of(run.world)
        final = next((float(summary[name]) for name in FINAL if summary.get(name) is not None), None)
        found = int(summary[unit])
        return cls(points_in(folder), final, spent=found, solved=bool(summary.get("solved")))


def unit_of(world: str) -> str:
    return "iterations" if world == "language" else "total_steps"


def evaluation_in(row: Mapping[str, Any]) -> float | None:
    return next((float(row[name]) for name in EVALUATED if row.get(name) is not None), None)


def points_in(folder: Path) -> dict[float, float]:
    """The evaluations that a run has written down: share of the budget → mean."""
    if not (folder / "config.json").exists():
        return {}
    run = Run.load(folder)
    counted, budget = ("iteration", "iterations") if run.world == "language" else ("total_steps", "total_steps")
    planned = run.config["settings"][budget]
    return {min(1.0, row[counted] / planned): mean for row in run.metrics() if (mean := evaluation_in(row)) is not None}


# --------------------------------------------------------------------------------------------------------- in the worker


class Watcher:
    """A callback that reports each evaluation to the parent, and ends the run where the parent says so."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.session: Session | None = None

    def __call__(self, state: RunState) -> bool:
        mean = None if self.session is None else evaluation_in(self.session.row)
        stopped = False
        try:
            if mean is not None:
                self.parent.send(("evaluation", state.fraction, mean))
            while self.parent.poll():
                stopped = self.parent.recv() == STOP or stopped
        except (EOFError, OSError):  # the parent is gone; what the run has left goes on the next time
            os._exit(1)
        if stopped:
            signal.raise_signal(signal.SIGINT)  # the run ends as after Ctrl-C: interrupted, with a checkpoint
        return stopped


def work(parent: Any) -> None:
    """The worker: one run after the other, until the parent closes the line."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C in a terminal is for the parent, which decides what ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=gone_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what matters of them stands in the run's summary
    with contextlib.suppress(EOFError, OSError):
        parent.send(("ready",))
        while True:
            job = parent.recv()
            if job != STOP:
                config, output = job
                parent.send(carried_out(config, output, Watcher(parent)))


def gone_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def carried_out(config: RunConfig, output: Output, watcher: Watcher) -> tuple[str, str]:
    """One run, from its beginning or from its last checkpoint: how it ended, and why where that was not its end."""
    try:
        watcher.session = session = session_in(config, output, watcher)
        session.run()
        return (STOPPED if session.exit_code else FINISHED), ""
    except AtItsEnd:  # it was finished, and nobody was left to hear of it
        return FINISHED, ""
    except Diverged as error:
        return DIVERGED, describe_error(error)
    except UsageError as error:
        return REFUSED, describe_error(error)
    except Exception as error:
        return FAILED, describe_error(error)


def session_in(config: RunConfig, output: Output, watcher: Watcher) -> Session:
    """The run in the output's folder where one can go on, else a new one in place of what is left there."""
    folder = output.out
    if folder is not None and (folder / "config.json").exists():
        try:
            return config.session(replace(output, out=None), [watcher], resumed=folder)
        except AtItsEnd:
            raise
        except UsageError:  # it has no checkpoint yet, or a damaged one
            shutil.rmtree(folder)
    return config.session(output, [watcher])


# --------------------------------------------------------------------------------------------------------- in the parent


class Worker:
    """A process that carries out runs; ``run`` is what it is busy with."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of threads
        self.line, other = context.Pipe()
        self.process = context.Process(
            target=work, args=(other,)
        )  # no daemon: those may have no processes of their own, as environments do
        with blocked():
            self.process.start()
        other.close()
        self.run: Any = None
        self.ready = False
        """whether it is there; while it imports the libraries it hears nothing"""

    def begin(self, run: Any, config: RunConfig, output: Output) -> None:
        """Let it carry out a run; UsageError where that cannot be described to another process (a lambda among its functions, for one)."""
        self.run = run
        try:
            self.send((config, output))
        except Exception as error:
            raise UsageError(f"sweep: this run cannot be described to another process ({describe_error(error)})") from error

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it has died, which is seen where it is waited for
            self.line.send(message)

    def received(self) -> list[tuple[Any, ...]]:
        """What it has said since; ``("died", exit code)`` at the end where it is gone."""
        found: list[tuple[Any, ...]] = []
        try:
            while self.line.poll():
                found.append(self.line.recv())
                self.ready = True
        except (EOFError, OSError):
            self.process.join()
            found.append(("died", self.process.exitcode))
        return found

    def end(self) -> None:
        """Let it go, by force where it is busy: what its run has written goes on the next time."""
        if self.run is not None:
            self.process.kill()
        self.line.close()
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def blocked() -> Generator[None]:
    """Hold Ctrl-C back while a process starts, which inherits that: it would end in a traceback before it can say what it does then."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else the start would start it, which ends with Ctrl-C let through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
