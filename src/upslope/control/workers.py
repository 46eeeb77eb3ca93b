"""Environments in separate processes that cannot hang a run, and do not outlive it.

Gymnasium's ``AsyncVectorEnv`` waits for an answer for ever, says ``EOFError`` where a process died, and leaves behind what does not
end by itself. Here every answer has a time limit, a process that ended is named with its exit code, closing asks, then terminates,
then kills, and a worker whose parent is gone, however it went, ends itself; each time with the processes that its environment started.
A worker that hung or died in a step is started anew, if it may: its episode is cut off there (truncated, in a step that paid nothing),
and the next step shows the first state of another one. One that was lost in a reset makes that reset again.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, async_vector_env
from gymnasium.vector.utils import CloudpickleWrapper

from upslope.control import trees
from upslope.control.guard import Guard, Lost, Misbehaved, mask_source, raised
from upslope.control.restore import limit_of, unstacked
from upslope.control.spaces import spaces_of
from upslope.records import State

CLOSING = 5.0  # seconds that workers have to close their environments before they are terminated
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: the signal that a process gets when its parent is gone
ASKED = {"_check_spaces": "its constructor", "reset": "reset", "reset-noop": "reset", "step": "step", "_call": "a call"}


class Workers(AsyncVectorEnv):
    """One process for each of ``num_envs`` environments; ``first`` is one that is made already, and ends here.

    ``step_timeout``: seconds that a constructor, a reset or a step may take; None: any time. ``max_restarts``: how often in a row,
    with no whole episode in between, a process is started anew that hung or died in a step or a reset (in mode ``NEXT_STEP``); a
    warning says so each time, by ``name``, and ``on_restart`` is called with the number of an environment whose episode was cut off.
    ``restarts`` counts them all.

    Raises:
        Misbehaved: where an environment does, a process ends by itself, or an answer is late.
    """

    error_queue: Any

    def __init__(
        self,
        build: Callable[[], Any],
        first: Any,
        num_envs: int,
        *,
        autoreset_mode: AutoresetMode,
        step_timeout: float | None,
        max_restarts: int = 0,
        name: str = "",
    ) -> None:
        self.max_episode_steps = limit_of(first)
        self.name, self.mask_source = name, mask_source(first)
        self.step_timeout, self.restarts = step_timeout, 0
        self.max_restarts = max_restarts if autoreset_mode is AutoresetMode.NEXT_STEP else 0
        self.on_restart: Callable[[int], None] = lambda index: None
        self.owner = os.getpid()  # a process that is forked later holds copies of all this, and none of it belongs to it
        factories = [Factory(build, first if index == 0 else None, tells=index == 0) for index in range(num_envs)]
        try:
            parent: Any = super()
            parent.__init__(factories, copy=False, autoreset_mode=autoreset_mode, worker=work_here())
        except BaseException:
            end(getattr(self, "processes", []), self.owner)
            raise

    def _check_spaces(self) -> None:
        """Called when all processes have started: from here on they are spoken to by way of :class:`Line`."""
        weakref.finalize(self, end, self.processes, self.owner)  # at the interpreter's end too
        pairs = zip(self.parent_pipes, self.processes, strict=True)
        self.lines = [Line(pipe, process, index, self) for index, (pipe, process) in enumerate(pairs)]
        self.parent_pipes: list[Any] = list(self.lines)
        super()._check_spaces()

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        if all(successes):
            return
        self._state = async_vector_env.AsyncState.DEFAULT
        try:
            _, _, error, _ = self.error_queue.get(timeout=CLOSING)
        except queue.Empty:
            raise Misbehaved(": a worker failed and did not say why; try --vectorization sync") from None
        raise error

    def start(self, index: int) -> tuple[Any, Any]:
        """Another process for an environment: ``(pipe, process)``. Its observations come by the pipe, not in shared memory."""
        context = multiprocessing.get_context()
        ours, theirs = context.Pipe()
        rest = (CloudpickleWrapper(self.env_fns[index]), theirs, ours, None, self.error_queue, self.autoreset_mode, None)
        process = context.Process(target=work_here(), name=f"Worker-{index}", args=(index, *rest), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of a fork beside threads
            process.start()
        theirs.close()
        self.processes[index] = process  # in place: whoever ends them holds this list
        return ours, process

    def restart_state(self) -> State:
        """What the seeds and the limit of later restarts follow from."""
        return {"restarts": self.restarts, "lines": [[line.seed, line.again] for line in self.lines]}

    def load_restart_state(self, state: State) -> None:
        self.restarts = state["restarts"]
        for line, (seed, again) in zip(self.lines, state["lines"], strict=True):
            line.seed, line.again = seed, again

    def saved_episodes(self) -> list[State | None]:
        return list(self.call("saved_episode"))

    def restore_episodes(self, episodes: Sequence[State], resetting: Sequence[bool]) -> list[Any]:
        """Bring each environment there; its last observation.

        A worker remembers by itself that its next step is a reset, so the last action of an episode that has ended is a step of its.
        """
        for episode, ended in zip(episodes, resetting, strict=True):
            if "actions" in (episode or {}) and not (ended and episode["num_actions"] == 0):
                continue
            raise ValueError("one of its processes was just started anew")
        for line, episode, ended in zip(self.lines, episodes, resetting, strict=True):
            line.send(("_call", ("restore_episode", (episode, bool(ended)), {})), num_steps=episode["num_actions"])
        seen = self._restored([line.restored() for line in self.lines])
        for index, (line, episode) in enumerate(zip(self.lines, episodes, strict=True)):
            if resetting[index]:
                line.send(("step", unstacked(spaces_of(self)[1], episode["actions"], episode["num_actions"])[-1]))
                self._raise_if_errors([line.recv()[1]])
                seen[index] = trees.tree_map(lambda array, index=index: array[index].copy(), self.observations)
        return seen

    def _restored(self, answers: list[tuple[Any, str]]) -> list[Any]:
        """The observations that the workers came back to; ValueError where one did not, once all have answered."""
        for _, why in answers:
            if why:
                raise ValueError(why)
        return [seen for seen, _ in answers]

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
            join_process(process, deadline - time.monotonic())
        end(self.processes, self.owner)
        for line in self.lines:
            line.close()
        self.error_queue.close()


def end(processes: list[Any], owner: int) -> None:
    """Terminate the processes that ``owner`` started and that still run; kill those that do not care."""
    if os.getpid() != owner:
        return
    interrupted = [process for process in processes if process.is_alive()]
    for stop in (BaseProcess.terminate, BaseProcess.kill):
        running = [process for process in interrupted if process.is_alive()]
        for process in running:
            stop(process)
        for process in running:
            join_process(process, 1.0)
    for process in interrupted:  # what they had started is still there
        kill_group(process.pid)


def join_process(process: Any, seconds: float) -> None:
    """Wait for a process's end, not longer than ``seconds``; ``join`` waits for ever where the process has closed all its files."""
    deadline = time.monotonic() + seconds
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.002)


def kill_group(pid: int | None) -> None:
    """Kill what a worker's environment has started; nothing where the worker leads no process group."""
    with contextlib.suppress(OSError, AttributeError):  # it is gone; no groups (Windows)
        if pid is not None and os.getpgrp() != pid:
            os.killpg(pid, signal.SIGKILL)


class Line:
    """A worker's pipe, whose answers may be late, missing or unreadable, and then raise :class:`Misbehaved`.

    What its worker was last reset with is kept for another one, and so is that one's ``first_state``, until the next step shows it.
    """

    def __init__(self, pipe: Any, process: Any, index: int, workers: Workers) -> None:
        self.pipe, self.process, self.index = pipe, process, index
        self.name, self.seconds = f"worker {index} (of {workers.num_envs}, from 0)", workers.step_timeout
        self.asked, self.since, self.busy, self.late = "", 0.0, False, False
        self.workers, self.again, self.seed, self.reset_with = weakref.proxy(workers), 0, 0, {}
        self.over, self.by_pipe, self.first_state, self.times = False, False, None, 1

    def close(self) -> None:
        with contextlib.suppress(OSError):  # where both are collected as garbage, the pipe may have been first
            self.pipe.close()

    def send(self, message: tuple[str, Any], num_steps: int = 0) -> None:
        """``num_steps``: how many steps the answer takes, each of which has its time, where it is not one."""
        self.asked, self.since, self.busy = ASKED.get(message[0], message[0]), time.monotonic(), True
        self.times = 1 + num_steps
        if message[0] == "step" and self.first_state is not None:
            return
        if message[0] == "reset":
            self.seed, self.first_state, self.reset_with = message[1]["seed"] or self.seed, None, message[1]
        try:
            self.pipe.send(message)
        except OSError as error:
            if self.asked not in ("step", "reset"):  # there the answer that does not come says it
                raise self.ended() from error

    def recv(self) -> Any:
        """The answer; of a step that was lost with its worker, the end of its episode."""
        if self.asked == "step" and self.first_state is not None:
            (seen, info), self.first_state, self.over, self.busy = self.first_state, None, False, False
            return (self.put(seen), 0.0, False, False, info), True
        try:
            answer = self.received()
        except Lost as lost:
            if self.asked not in ("step", "reset"):
                raise
            return self.restarted(lost), True
        if self.asked not in ("step", "reset") or not answer[1]:
            return answer
        result = (self.put(answer[0][0]), *answer[0][1:])
        if self.over and self.asked == "step":  # a whole episode and the reset behind it went well
            self.again = 0
        self.over = self.asked == "step" and bool(result[2] or result[3])
        return result, True

    def put(self, seen: Any) -> Any:
        """An observation that came by the pipe, where the others are; None otherwise, as Gymnasium's workers say."""
        if self.by_pipe:
            trees.write_row(self.workers.observations, self.index, seen)
        return None

    def restarted(self, lost: Misbehaved) -> Any:
        """What the step or reset answers whose worker was lost, after another one has been started and reset.

        A step that was to be a reset shows the first state at once; a reset that was asked for has the seed that was asked for.
        """
        asked, over, workers = self.asked, self.over, self.workers
        while True:
            if self.again >= workers.max_restarts:
                raise Misbehaved(f"{lost}; it was started anew {self.again} times in a row" if self.again else str(lost)) from lost
            self.again, workers.restarts = self.again + 1, workers.restarts + 1
            cut = ", and its episode is cut off" if asked == "step" and not over else ""
            warnings.warn(f"environment {workers.name!r}{lost}; it is started anew{cut}", stacklevel=2)
            self.renew()
            if asked == "step":
                self.reset_with = {"seed": (self.seed + 7919 * workers.restarts) % 2**31, "options": None}
            try:
                self.send(("reset", self.reset_with))
                answer, well = self.received()
                break
            except Lost as once_more:
                lost = once_more
        workers._raise_if_errors([well])
        seen, info = answer
        self.over = False
        if asked == "reset":
            return self.put(seen), info
        if over:
            return self.put(seen), 0.0, False, False, info
        workers.on_restart(self.index)
        self.first_state, self.over = (seen, info), True
        return None, 0.0, False, True, {}

    def renew(self) -> None:
        """Another process in the place of this one."""
        kill_group(self.process.pid)
        self.process.kill()
        join_process(self.process, CLOSING)
        self.close()
        self.pipe, self.process = self.workers.start(self.index)
        self.by_pipe, self.late, self.busy = True, False, False

    def restored(self) -> tuple[Any, str]:
        """The observation that an episode came back to, or why it did not; a worker that is lost over it makes place for another."""
        try:
            return self.received()[0]
        except Lost as lost:
            self.renew()
            return None, str(lost).removeprefix(": ")

    def received(self) -> Any:
        """What the worker says; :class:`Lost` where it says nothing."""
        try:
            left = None if self.seconds is None else max(0.0, self.since + self.seconds * self.times - time.monotonic())
            if not self.pipe.poll(left):
                self.late = True
                hint = "does it wait for something? give it longer with --step-timeout, or try --vectorization sync"
                raise Lost(f": {self.name} did not answer within {self.seconds:g} s in {self.asked}; {hint}")
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self.ended() from error
        except Misbehaved:
            raise
        except Exception as error:
            raise Misbehaved(f": the answer of {self.name} cannot be read ({type(error).__name__}: {error})") from error
        self.busy = False
        return answer

    def ended(self) -> Lost:
        join_process(self.process, 1.0)
        code = self.process.exitcode
        kill_group(self.process.pid)
        how = "closed its pipe" if code is None else f"ended by itself with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        hint = "; was there too little memory? try fewer --num-envs" if code == -signal.SIGKILL else ""
        return Lost(f": {self.name} {how} in {self.asked}{hint}; --vectorization sync plays it in this process and shows more")


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


def work_here() -> Callable[..., None]:
    """:func:`work` for a process that is started now. Linux would end it with the thread that started it: the main one lives longest."""
    return functools.partial(work, tied=threading.current_thread() is threading.main_thread())


def work(
    index: int, env_fn: Callable[[], Any], pipe: Any, parent_pipe: Any, memory: Any, errors: Any, *rest: Any, tied: bool = False
) -> None:
    """Gymnasium's worker for an environment that may fail to be made, under a parent that may die."""
    if tied and sys.platform == "linux":  # where a step holds the interpreter's lock, no thread of this process runs
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError, AttributeError):  # no groups (Windows)
        os.setpgid(0, 0)  # one signal reaches what its environment starts
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
    with contextlib.suppress(EOFError, OSError):  # the parent is gone; what an environment raises goes there as an answer
        vars(async_vector_env)["_async_worker"](index, lambda: env, pipe, parent_pipe, memory, errors, *rest)
    end_group(signal.SIGTERM)


def end_with_parent() -> None:
    """Wait until the parent process is gone, and go: a step that never returns would keep this one."""
    parent, above = multiprocessing.parent_process(), os.getppid()
    if parent is None:
        return
    while os.getppid() == above and (os.name == "posix" or parent.is_alive()):
        with contextlib.suppress(OSError, ValueError):  # where its environment has closed all files, this comes back at once
            parent.join(1.0)
        time.sleep(0.05)
    number = getattr(signal, "SIGKILL", signal.SIGTERM)
    end_group(number)
    os.kill(os.getpid(), number)


def end_group(number: int) -> None:
    """Send a signal to this process and what its environment has started."""
    with contextlib.suppress(OSError, AttributeError):
        if os.getpgrp() == os.getpid():
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_IGN)  # that one is for the others
            os.killpg(0, number)
