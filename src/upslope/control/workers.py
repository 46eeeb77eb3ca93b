"""Environments in processes of their own that cannot hang a run, and do not outlive it.

Gymnasium's ``AsyncVectorEnv`` waits for an answer for ever, says ``EOFError`` where a process died, and leaves behind what does not
end by itself. Here every answer has a time limit, a process that ended is named with its exit code, closing asks, then terminates,
then kills, and a worker whose parent is gone, however it went, ends itself.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from upslope.control import trees
from upslope.control.guard import Guard, Misbehaved, mask_source, raised
from upslope.control.restore import unstacked
from upslope.control.starts import limit_of
from upslope.records import State

CLOSING = 5.0  # seconds that workers have to close their environments before they are terminated
ASKED = {"_check_spaces": "its constructor", "reset": "reset", "reset-noop": "reset", "step": "step", "_call": "a call"}


class Workers(AsyncVectorEnv):
    """One process for each of ``num_envs`` environments; ``first`` is one that is made already, and ends here.

    ``step_timeout``: seconds that a constructor, a reset or a step may take; None: any time.

    Raises:
        Misbehaved: where an environment does, a process ends by itself, or an answer is late.
    """

    def __init__(
        self, build: Callable[[], Any], first: Any, num_envs: int, *, autoreset_mode: AutoresetMode, step_timeout: float | None
    ) -> None:
        self.max_episode_steps = limit_of(first)
        self.mask_source = mask_source(first)
        self.step_timeout = step_timeout
        self.owner = os.getpid()  # a process that is forked later holds copies of all this, and none of it is its own
        factories = [Factory(build, first if index == 0 else None, tells=index == 0) for index in range(num_envs)]
        try:
            super().__init__(factories, copy=False, autoreset_mode=autoreset_mode, worker=work)
        except BaseException:
            end(getattr(self, "processes", []), self.owner)
            raise

    def _check_spaces(self) -> None:
        """Called when all processes have started: from here on they are spoken to by way of :class:`Line`."""
        weakref.finalize(self, end, self.processes, self.owner)  # at the interpreter's end too
        names = [f"worker {index} (of {self.num_envs}, from 0)" for index in range(self.num_envs)]
        self.lines = [Line(*parts, self.step_timeout) for parts in zip(self.parent_pipes, self.processes, names, strict=True)]
        self.parent_pipes: list[Any] = list(self.lines)
        super()._check_spaces()

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        if all(successes):
            return
        self._state = AsyncState.DEFAULT
        try:
            _, _, error, _ = self.error_queue.get(timeout=CLOSING)
        except queue.Empty:
            raise Misbehaved(": a worker failed and did not say why; try --vectorization sync") from None
        raise error

    def saved_episodes(self) -> list[State | None]:
        return list(self.call("saved_episode"))

    def restore_episodes(self, episodes: Sequence[State], resetting: Sequence[bool]) -> list[Any]:
        """Bring each environment there; its last observation.

        A worker remembers by itself that its next step is a reset, so the last action of an episode that has ended is a step of its.
        """
        for line, episode, ended in zip(self.lines, episodes, resetting, strict=True):
            line.send(("_call", ("restore_episode", (episode, bool(ended)), {})))
        seen, well = map(list, zip(*[line.recv() for line in self.lines], strict=True))
        self._raise_if_errors(well)
        for index, (line, episode) in enumerate(zip(self.lines, episodes, strict=True)):
            if resetting[index]:
                line.send(("step", unstacked(self.single_action_space, episode["actions"], episode["num_actions"])[-1]))
                self._raise_if_errors([line.recv()[1]])
                seen[index] = trees.tree_map(lambda array, index=index: array[index].copy(), self.observations)
        return seen

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ask the workers to close, wait for :data:`CLOSING` seconds at most, end those that are left."""
        if os.getpid() != self.owner:
            return
        patience = CLOSING if timeout is None else timeout
        if any(line.busy for line in self.lines):  # interrupted in a step
            patience = min(patience, 1.0)
        if terminate or any(line.late for line in self.lines):
            patience = 0.0
        for line in self.lines:
            with contextlib.suppress(Exception):
                line.send(("close", None))
        deadline = time.monotonic() + patience
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        end(self.processes, self.owner)
        for line in self.lines:
            line.close()
        self.error_queue.close()


def end(processes: list[Any], owner: int) -> None:
    """Terminate the processes that ``owner`` started and that still run; kill those that do not care."""
    if os.getpid() != owner:
        return
    for stop in (BaseProcess.terminate, BaseProcess.kill):
        running = [process for process in processes if process.is_alive()]
        for process in running:
            stop(process)
        for process in running:
            process.join(1.0)


class Line:
    """A worker's pipe, whose answers may be late, missing or unreadable, and then raise :class:`Misbehaved`."""

    def __init__(self, pipe: Any, process: Any, name: str, seconds: float | None) -> None:
        self.pipe, self.process, self.name, self.seconds = pipe, process, name, seconds
        self.asked, self.since, self.busy, self.late = "", 0.0, False, False

    def close(self) -> None:
        with contextlib.suppress(OSError):  # where both are collected as garbage, the pipe may have been first
            self.pipe.close()

    def send(self, message: tuple[str, Any]) -> None:
        self.asked, self.since, self.busy = ASKED.get(message[0], message[0]), time.monotonic(), True
        try:
            self.pipe.send(message)
        except OSError as error:
            raise self.ended() from error

    def recv(self) -> Any:
        try:
            left = None if self.seconds is None else max(0.0, self.since + self.seconds - time.monotonic())
            if not self.pipe.poll(left):
                self.late = True
                raise Misbehaved(
                    f": {self.name} did not answer within {self.seconds:g} s in {self.asked}; "
                    "does it wait for something? give it longer with --step-timeout, or try --vectorization sync"
                )
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self.ended() from error
        except Misbehaved:
            raise
        except Exception as error:
            raise Misbehaved(f": the answer of {self.name} cannot be read ({type(error).__name__}: {error})") from error
        self.busy = False
        return answer

    def ended(self) -> Misbehaved:
        self.process.join(1.0)
        code = self.process.exitcode
        how = "closed its pipe" if code is None else f"ended by itself with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        hint = "; was there too little memory? try fewer --num-envs" if code == -signal.SIGKILL else ""
        return Misbehaved(f": {self.name} {how} in {self.asked}{hint}; --vectorization sync plays it in this process and shows more")


# ------------------------------------------------------------------------------------------------------- in the worker


class Factory:
    """Makes the environment where it is called; in the process of ``first``, gives that one."""

    def __init__(self, build: Callable[[], Any], first: Any, *, tells: bool) -> None:
        self.build, self.first, self.tells, self.here = build, first, tells, os.getpid()

    def __call__(self) -> Any:
        if self.first is not None and os.getpid() == self.here:
            return self.first
        return Guard(self.build(), apart=True, tells=self.tells)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "first": None}


def work(index: int, env_fn: Callable[[], Any], pipe: Any, parent_pipe: Any, memory: Any, errors: Any, *rest: Any) -> None:
    """Gymnasium's worker for an environment that may fail to be made, under a parent that may die."""
    for number in {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}:
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent says what happens
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        env = env_fn()
    except (Exception, SystemExit) as error:
        errors.put((index, Misbehaved, Misbehaved(raised(error, "its constructor")), ""))
        pipe.recv()
        pipe.send((None, False))
        return
    _async_worker(index, lambda: env, pipe, parent_pipe, memory, errors, *rest)


def end_with_parent() -> None:
    """Wait until the parent process is gone, and go: a step that never returns would keep this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
