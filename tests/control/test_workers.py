"""Environments in processes of their own: what hangs, dies or answers nonsense ends in one line, and nothing is left running."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tests.children import python
from upslope import RunFault, UsageError, control
from upslope.control.evaluate import Evaluator
from upslope.control.workers import end

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are ended the POSIX way")


class Stubborn(gymnasium.Env):
    """Does ``fault`` at its third step, in ``reset``, when it is made or when it is closed, but only in a worker."""

    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, fault: str = "", parent: int = 0, pids: str | None = None):
        self.fault, self.time, self.apart, self.pids = fault, 0, os.getpid() != parent, pids or ""
        if self.apart and pids is not None:
            Path(pids, str(os.getpid())).touch()
        self.strike("made")

    def strike(self, where: str) -> None:
        if not self.apart or self.fault.partition(" ")[0] != where:
            return
        what = self.fault.partition(" ")[2]
        if what == "hangs":
            time.sleep(1000)
        if what.startswith("ignores"):  # SIGTERM, and hangs
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        if what == "backtracks":  # and holds the interpreter's lock
            re.match(r"(a+)+$", "a" * 60 + "b")
        if what == "dies":
            os._exit(3)
        if what == "dies once":
            with contextlib.suppress(FileExistsError):
                Path(self.pids, "struck").touch(exist_ok=False)  # one of the workers
                os._exit(3)
        if what == "dies twice" and len(list(Path(self.pids).iterdir())) < 4:  # two workers, and the first of those started anew
            os._exit(3)
        if what == "loses its files":
            os.closerange(3, 256)
            time.sleep(1000)
        if what == "leaves a child":
            with subprocess.Popen(
                [sys.executable, "-c", f"import os, time; open({self.pids!r} + '/' + str(os.getpid()), 'w'); time.sleep(1000)"]
            ):
                time.sleep(1000)
        if what == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exits":
            sys.exit(4)
        if what == "raises":
            raise OwnError("lost", "found")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.strike("reset")
        return np.zeros(3, np.float32), {"anything": lambda: 1}  # nobody reads it, and it cannot be sent

    def step(self, action):
        self.time += 1
        observation = np.zeros(3, np.float32)
        if self.time == 3:
            self.strike("step")
            if self.fault == "shape":
                observation = np.zeros((3, 1), np.float32)
            if self.fault == "dtype":
                observation = np.array(["a", "b", "c"])
            if self.fault == "keys":
                return observation, 0.0, False, False, None
        return observation, 0.0, False, False, {}

    def close(self):
        self.strike("close")


class OwnError(Exception):
    """Cannot be taken out of a pipe again: it needs two arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def workers(fault: str, max_restarts: int = 0, limit: int | None = None, **options):
    timeout = 1.5 if fault.endswith(("hangs", "ignores", "child")) else 60.0
    kwargs = {"fault": fault, "parent": os.getpid(), **options}
    limits = {"step_timeout": timeout, "max_restarts": max_restarts, "max_episode_steps": limit}
    return control.make(Stubborn, 2, vectorization="async", env_kwargs=kwargs, **limits)


FAULTS = {
    "step ignores": ": worker 0 (of 2, from 0) did not answer within 1.5 s in step; does it wait for something? give it longer with",
    "reset hangs": ": worker 0 (of 2, from 0) did not answer within 1.5 s in reset",
    "step dies": ": worker 0 (of 2, from 0) ended by itself with exit code 3 in step; --vectorization sync plays it in this process",
    "reset dies": "ended by itself with exit code 3 in reset",
    "step crashes": "was killed by SIGKILL in step; was there too little memory? try fewer --num-envs",
    "step loses its files": ": worker 0 (of 2, from 0) closed its pipe in step",
    "step exits": " raised SystemExit in step: 4 (test_workers.py, line",
    "step raises": " raised OwnError in step: lost and found (test_workers.py, line",
    "reset raises": " raised OwnError in reset: lost and found",
    "shape": ", step: observation has shape (3, 1), observation_space says (3,)",
    "dtype": ", step: observation has dtype <U1, observation_space says float32",
    "keys": ", step: info is None (NoneType), expected a dict",
}


@pytest.mark.parametrize("fault, message", FAULTS.items(), ids=FAULTS)
def test_a_fault_in_a_worker_is_one_line_and_ends_the_processes(fault, message, capfd):
    with workers(fault) as envs, pytest.raises(RunFault) as caught:
        envs.reset()
        for _ in range(3):
            envs.step(np.zeros(2, np.int64))
    assert str(caught.value).startswith("environment 'Stubborn'" + message) or message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(process.is_alive() for process in envs.vector.processes)
    assert capfd.readouterr() == ("", "")


MADE = {
    "made hangs": "env 'Stubborn': worker 0 (of 2, from 0) did not answer within 1.5 s in its constructor",
    "made dies": "env 'Stubborn': worker 0 (of 2, from 0) ended by itself with exit code 3 in its constructor",
    "made exits": "env 'Stubborn' raised SystemExit in its constructor: 4",
    "made raises": "env 'Stubborn' raised OwnError in its constructor: lost and found",
}


@pytest.mark.parametrize("fault, message", MADE.items(), ids=MADE)
def test_a_constructor_that_fails_in_a_worker_only(fault, message, capfd, tmp_path):
    with pytest.raises(UsageError) as caught:
        workers(fault, pids=str(tmp_path))
    assert str(caught.value).startswith(message)
    assert capfd.readouterr() == ("", "")
    assert gone([int(path.name) for path in tmp_path.iterdir()], 2.0)


def test_a_worker_that_died_is_started_anew_and_its_episode_is_cut_off(tmp_path):
    with workers("step dies once", max_restarts=1, pids=str(tmp_path)) as envs:
        envs.reset(seed=3)
        steps = [envs.step(np.zeros(2, np.int64)) for _ in range(2)]
        with pytest.warns(UserWarning, match=r"worker \d \(of 2, from 0\) ended by itself with exit code 3 in step.*started anew, and its"):
            steps.append(envs.step(np.zeros(2, np.int64)))
        steps += [envs.step(np.zeros(2, np.int64)) for _ in range(3)]
        (row,) = np.flatnonzero(steps[2].truncated)
        assert envs.restarts == 1 and steps[2].mask.all() and steps[2].reward[row] == 0.0
        assert [(np.isnan(total), length) for total, length in steps[2].finished] == [(True, 3)]  # of nobody's mean
        assert steps[3].mask.tolist() == [index != row for index in range(2)]  # the reset step of the other episode
        assert not any(step.truncated.any() or step.terminated.any() for step in (*steps[:2], *steps[3:]))
        assert envs.first_step[row] == 2 and envs.first_step[1 - row] == 6 and np.isfinite(envs.running(int(row))[0])
        state = envs.state_dict()
        envs.load_state_dict(state)
        assert envs.begun_anew == ""
    with workers("", max_restarts=1) as others:
        others.reset(seed=3)
        others.load_state_dict(state)  # the seeds of later restarts follow from their number
        assert others.begun_anew == "" and others.restarts == 1 and others.vector.unwrapped.restart_state() == state["workers"]


def test_a_reset_that_is_lost_with_its_worker_is_made_again(tmp_path):
    """With the seed that was asked for; so is the first reset of a worker that was started anew."""
    with workers("reset dies twice", max_restarts=3, pids=str(tmp_path)) as envs, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        envs.reset(seed=3)
        step = envs.step(np.zeros(2, np.int64))
    assert 2 <= envs.restarts == len(said) and step.mask.all() and not step.truncated.any()
    assert all(
        str(warning.message).endswith("in reset; --vectorization sync plays it in this process and shows more; it is started anew")
        for warning in said
    ), [str(warning.message) for warning in said]
    assert all(str(warning.message).startswith("environment 'Stubborn': worker ") for warning in said)
    assert [line.reset_with["seed"] for line in envs.vector.unwrapped.lines] == [3, 4]


def test_what_is_no_accident_is_a_fault_after_a_few_restarts():
    with workers("step dies", max_restarts=2) as envs, warnings.catch_warnings(), pytest.raises(RunFault) as caught:
        warnings.simplefilter("ignore", UserWarning)
        envs.reset()
        for _ in range(30):
            envs.step(np.zeros(2, np.int64))
    assert str(caught.value).endswith("plays it in this process and shows more; it was started anew 2 times in a row")
    assert not any(process.is_alive() for process in envs.vector.processes)


def test_what_an_environment_has_started_ends_with_its_worker(tmp_path):
    with workers("step leaves a child", pids=str(tmp_path)) as envs, pytest.raises(RunFault):
        envs.reset()
        for _ in range(3):
            envs.step(np.zeros(2, np.int64))
    assert gone([int(path.name) for path in tmp_path.iterdir()], 5.0)


def test_means_leave_out_an_episode_that_was_cut_off(tmp_path):
    policy_of = control.MLPPolicy.for_envs
    with workers("step dies once", max_restarts=1, pids=str(tmp_path)) as envs, pytest.warns(UserWarning, match="started anew"):
        rollout = control.Steps(envs, 4)(policy_of(envs, seed=0))
    assert rollout.truncated.sum() == 1 and rollout.metrics["num_episodes"] == 0.0 and "episode_return" not in rollout.metrics


def test_an_evaluation_begins_an_episode_again_that_was_cut_off(tmp_path):
    """As far as the time of an episode reaches: it counts with what it has, and as one that did not end."""
    with workers("step dies once", max_restarts=1, limit=5, pids=str(tmp_path)) as envs, pytest.warns(UserWarning, match="started anew"):
        result = Evaluator(envs, episodes=2, seed=0)(control.MLPPolicy.for_envs(envs, seed=0))
    assert np.isfinite(result.return_mean) and (result.episodes, result.episodes_ended) == (2, 1)


def test_closing_does_not_wait_for_ever(monkeypatch, capfd):
    monkeypatch.setattr("upslope.control.workers.CLOSING", 0.3)
    for fault in ("close hangs", "close ignores", "close raises"):
        with workers(fault) as envs:
            envs.reset()
        assert not any(process.is_alive() for process in envs.vector.processes)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and all("Stubborn raised OwnError in close: lost and found" in line for line in said)


def gone(pids: list[int], seconds: float) -> bool:
    """Whether none of these processes runs any more, at the latest after so many seconds."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + seconds
    while any(map(runs, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


PARENT = """
import sys
from tests.control.test_workers import workers
import numpy as np
envs = workers(sys.argv[2], pids=sys.argv[1])
envs.reset()
for _ in range(3):
    print("playing", flush=True)
    envs.step(np.zeros(2, np.int64))
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("fault", ["step ignores always", "step backtracks"])
def test_workers_do_not_outlive_their_parent(fault, tmp_path):
    root, signals = Path(__file__).parents[2], (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    folders = [tmp_path / number.name for number in signals]
    for folder in folders:
        folder.mkdir()
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with contextlib.ExitStack() as stack:
        commands = [python(["-c", PARENT, folder, fault], cwd=root, stdout=pipe, stderr=nowhere) for folder in folders]
        parents = [stack.enter_context(command) for command in commands]
        for parent, folder, number in zip(parents, folders, signals, strict=True):
            assert parent.stdout is not None
            assert [parent.stdout.readline() for _ in range(3)] == ["playing\n"] * 3
            time.sleep(0.2)  # both workers hang now
            pids = [int(path.name) for path in folder.iterdir()]
            assert len(pids) == 2
            parent.send_signal(number)
            parent.wait(30)
            assert gone(pids, 5.0)


def test_a_process_forked_later_leaves_the_workers_alone():
    with workers("") as envs:
        envs.reset()
        child = os.fork()
        if child == 0:  # what garbage collection may do there to its copies
            envs.vector.close_extras()
            end(envs.vector.processes, envs.vector.owner)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert envs.step(np.zeros(2, np.int64)).mask.all()
