"""The command as a real process: exit codes, streams, start-up, Ctrl-C. Most cases need no PyTorch, and are quick for that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.children import python
from tests.cli.conftest import HERE
from tests.cli.test_bad_input import one_line
from upslope import Run

QUICK = {
    "overview": (["--help"], 0, ""),
    "version": (["--version"], 0, ""),
    "unknown command": (["evalute"], 2, "did you mean 'evaluate'?"),
    "unknown flag": (["--halp"], 2, "did you mean '--help'?"),
    "unknown algorithm": (["train", "poo", "CartPole-v1"], 2, "did you mean 'ppo'?"),
    "nothing to train on": (["train", "--seed", "1"], 2, "expected ALGORITHM ENV_ID"),
    "no run to evaluate": (["evaluate", "nowhere", "--json"], 2, "there is no such folder"),
    "no run to play": (["play", "nowhere", "--out", "a.gif"], 2, "there is no such folder"),
    "no run to plot": (["plot", "nowhere"], 2, "there is no such folder"),
    "a number that is none": (["evaluate", "nowhere", "--episodes", "many"], 2, "--episodes: expected an integer, found 'many'"),
}

SLOW = {
    "misspelled flag": (["train", "ppo", "CartPole-v1", "--lerning-rate", "1"], 2, "did you mean '--learning-rate'?"),
    "misspelled environment": (["train", "ppo", "CartPoel-v1"], 2, "did you mean 'CartPole-v1'?"),
    "a flag that names a module of the current folder": (
        ["train", "ppo", "CartPole-v1", "--surrogate", "faulty:wrong_shap"],
        2,
        "did you mean 'wrong_shape'?",
    ),
    "module in the current folder": (["train", "ppo", "faulty:broken"], 2, "no such port"),
    "a fault while running": (
        ["train", "ppo", "faulty:walk", "--env-kwargs", '{"fault": "step-raises", "at": 5}', "--quiet", "--out", "run"],
        1,
        "the motor is on fire",
    ),
}


def upslope(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("upslope")), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("words, code, expected", [*QUICK.values(), *SLOW.values()], ids=[*QUICK, *SLOW])
def test_processes(tmp_path: Path, words: list[str], code: int, expected: str):
    (tmp_path / "faulty.py").write_text((HERE / "faulty.py").read_text())
    done = upslope(words, tmp_path)
    assert done.returncode == code, done
    if code == 0:
        assert done.stderr == "" and "upslope" in done.stdout
    else:
        assert expected in one_line(done.stderr) and done.stdout == ""
    assert (tmp_path / "run").exists() == (code == 1)
    assert not (tmp_path / "runs").exists()


def loaded(words: list[str], names: tuple[str, ...], folder: Path) -> str:
    """Which of these modules a command leaves loaded."""
    code = f"import sys; from upslope.cli.main import main; main({words}); print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("words", [["--help"], ["train", "poo", "X-v0"], ["evaluate", "nowhere"], ["play", "nowhere"], ["plot", "nowhere"]])
def test_what_needs_no_pytorch_does_not_load_it(tmp_path: Path, words: list[str]):
    assert loaded(words, ("torch", "numpy", "gymnasium"), tmp_path) == "[]"


def test_training_loads_neither_pyplot_nor_rich(tmp_path: Path):
    flags = ["--num-envs", "1", "--num-steps", "8", "--num-minibatches", "1", "--total-steps", "8", "--eval-episodes", "1", "--no-fast"]
    assert loaded(["train", "ppo", "CartPole-v1", *flags], ("matplotlib.pyplot", "rich", "tyro"), tmp_path) == "[]"


@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
def test_ctrl_c_in_a_process(tmp_path: Path):
    words = ["train", "ppo", "CartPole-v1", "--total-steps", "10_000_000", "--out", "run", "--no-fast"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    with python(["-m", "upslope", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
    assert "stopped on request" in out
    run = Run.load(tmp_path / "run")
    assert run.summary is not None and run.summary["status"] == "interrupted"
    assert run.summary["iterations"] == len(run.metrics()) >= 2
    json.loads((tmp_path / "run" / "config.json").read_text())


def test_a_terminal_that_is_closed(tmp_path: Path):
    """Nobody reads any more, and the process is told so: first the output ends and the training goes on, then it ends with all saved."""
    words = ["train", "ppo", "CartPole-v1", "--total-steps", "10_000_000", "--out", "run", "--no-fast"]
    with python(["-m", "upslope", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
        while not (metrics.exists() and (lines := metrics.read_text().splitlines()) and json.loads(lines[-1])["train_seconds"] > 2.5):
            assert time.monotonic() < deadline and process.poll() is None  # a line of progress was due after two seconds
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 129
    run = Run.load(tmp_path / "run")
    assert run.summary is not None and run.summary["status"] == "interrupted" and run.summary["iterations"] == len(run.metrics())


def test_killed(tmp_path: Path):
    words = ["train", "ppo", "CartPole-v1", "--total-steps", "10_000_000", "--out", "run", "--no-fast", "--quiet"]
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    with python(["-m", "upslope", *words], cwd=tmp_path) as process:
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.kill()
    run = Run.load(tmp_path / "run")
    progress = run.progress()
    assert run.summary is None and progress is not None and progress["iteration"] >= 1
    assert "of 10,000,000 steps (the run was killed" in run.caution()
    run.policy.act(run.policy.observation_space.sample())


def children(pid: int) -> list[int]:
    """All that a process has started, and what these have."""
    asked = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in asked.stdout.splitlines()]
    found = [child for child, parent in pairs if parent == pid]
    return found + [below for child in found for below in children(child)]


def alive(pid: int) -> bool:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()[:1] not in (
        "",
        "Z",
    )


@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)])
def test_verify_resume_leaves_nothing_behind(number: int, code: int, tmp_path: Path):
    """Its runs are processes that have processes: they end with it, and its folder is gone (but after SIGKILL)."""
    words = ["verify-resume", "ppo", "CartPole-v1", "--total-steps", "10_000_000", "--stop-after", "100_000", "--vectorization", "async"]
    flags = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "2", "--no-fast"]
    options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    deadline = time.monotonic() + 120
    with python(["-m", "upslope", *words, *flags], **options) as process:
        while not list(tmp_path.glob("*/whole/metrics.jsonl")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        started = children(process.pid)
        assert len(started) >= 3
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err == ("" if number == signal.SIGKILL else "upslope: stopped\n")
    while any(map(alive, started)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (list(tmp_path.iterdir()) == []) == (number != signal.SIGKILL)
