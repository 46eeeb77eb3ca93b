"""``upslope sweep``: its words and errors, its end by signals, and what it leaves for other commands."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import python
from tests.cli.conftest import SHORT, Answer, Command, good
from tests.studies.sweeping import here  # noqa: F401 (a fixture)
from upslope.cli import sweep as command
from upslope.run.config import RunConfig
from upslope.run.load import Run
from upslope.studies.sweep_space import Choices, Range

SWEEP = ["sweep", "ppo", "CartPole-v1", "--confirm", "0", "--total-steps", "64", "--eval-every", "32", *SHORT]


def bad(answer: Answer) -> str:
    """The one line of an answer with exit code 2."""
    assert answer.code == 2 and answer.err.count("\n") == 1 and answer.out == "", answer
    return answer.err


# ---------------------------------------------------------------------------------------------------------- words and errors


def test_what_is_searched_is_read_as_the_flags_would_be():
    config = RunConfig.of("ppo", "CartPole-v1")
    words = ["learning-rate=1e-4:1e-2:log", "num_steps=16:64", "gamma=0.9,0.99", "hidden_sizes=64 64,128 128", "baseline=true,false"]
    assert command.space_of(config, words[:4], {}) == {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "num_steps": Range(16, 64),
        "gamma": Choices((0.9, 0.99)),
        "hidden_sizes": Choices(((64, 64), (128, 128))),
    }
    assert command.space_of(RunConfig.of("reinforce", "CartPole-v1"), words[4:], {}) == {"baseline": Choices((True, False))}
    assert command.space_of(config, ["target_kl=none,0.03"], {})["target_kl"] == Choices((None, 0.03))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--search", "gama=0.9,0.99"], "unknown setting 'gama': did you mean 'gamma'?"),
        (["--search", "gamma"], "--search: expected NAME=LOW:HIGH"),
        (["--search", "gamma=0.9"], "--search gamma: expected LOW:HIGH, LOW:HIGH:log or a,b,c, found '0.9'"),
        (["--search", "gamma=0.9:0.8"], "--search gamma: expected LOW < HIGH, found 0.9:0.8"),
        (["--search", "gamma=0:1:log"], "--search gamma: a logarithmic range begins above 0"),
        (["--search", "gamma=low:high"], "--search gamma: expected a number, found 'low'"),
        (["--search", "gamma=0.9:2"], "gamma: expected a number in [0, 1], found 2"),
        (["--search", "gamma=0.9,0.9"], "--search gamma: 0.9 is named twice"),
        (["--search", "activation=relu:tanh"], "--search activation: it is no number, so it has no range"),
        (["--search", "gamma=0.9,0.99", "gamma=0.9,0.95"], "search: gamma is named twice"),
        (["--search", "seed=0,1"], "search: seed is not searched"),
        (["--search", "gamma=0.9,0.99", "--gamma", "0.9"], "search: gamma is held fixed by --gamma; leave one of them out"),
        (["--trials", "0"], "trials: expected an integer ≥ 1"),
        (["--jobs", "2000"], "jobs: expected an integer"),
        (["--objective", "speed"], "--objective"),
        (["--play"], "play: a sweep has many policies"),
        (["--out", "taken"], "--out: taken exists and is not empty"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words: list[str], message: str, cli: Command, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    line = bad(cli(*SWEEP, *words))
    assert message in line and "Traceback" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_errors_name_the_command(cli: Command):
    assert "sweep: expected ALGORITHM ENV_ID" in bad(cli("sweep", "ppo"))
    assert "NoSuchEnv" in bad(cli("sweep", "ppo", "NoSuchEnv-v0"))


def test_without_optuna_one_line_says_what_to_install(cli: Command, monkeypatch: pytest.MonkeyPatch):
    find = command.require_packages.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest))
    line = bad(cli(*SWEEP))
    assert "this needs optuna, which is not installed" in line and "[sweep]" in line


def test_help_needs_no_optuna_and_no_command_but_a_sweep_loads_it(cli: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # importing it fails
    assert "--search NAME=SPACE ..." in good(cli("sweep", "--help")).out
    assert "sweep" in good(cli("--help")).out


# ---------------------------------------------------------------------------------------------------- what is left for others


def test_flags_hold_settings_fixed_and_the_best_ones_train(cli: Command, here, tmp_path: Path):  # noqa: F811
    out = good(cli(*SWEEP, "--gamma", "0.9", "--trials", "2", "--seeds", "1", "--out", "s")).out
    assert "gae_lambda" in out and "    gamma" not in out
    command_line = next(line.split("   ")[0].split() for line in out.splitlines() if "--config" in line)
    assert command_line[:2] == ["upslope", "train"] and "--until-solved" in command_line and "100" in command_line
    good(cli(*command_line[1:], "--out", "judged", "--total-steps", "64", "--quiet", "--eval-episodes", "2"))
    best = json.loads((tmp_path / "s" / "trials.jsonl").read_text().splitlines()[0])
    recorded = Run.load(tmp_path / "judged").config
    assert recorded["algorithm"]["gamma"] == 0.9 and recorded["settings"]["seed"] == 100
    assert best["settings"].keys() >= {"learning_rate", "clip_range"} and "gamma" not in best["settings"]
    good(cli("plot", "s/trial-0000/seed-0", "s/trial-0001/seed-0", "--out", "curves.png"))
    good(cli("evaluate", "s/trial-0000/seed-0", "--episodes", "2"))


def test_more_trials_go_on_with_a_sweep_that_has_ended(cli: Command, here):  # noqa: F811
    good(cli(*SWEEP, "--trials", "1", "--seeds", "1", "--out", "s"))
    again = good(cli(*SWEEP, "--trials", "2", "--seeds", "1", "--out", "s")).out
    assert "going on: 1 trial ended, 0 under way" in again and "2 trials ended" in again and len(here.begun) == 2


# --------------------------------------------------------------------------------------------------------- ended by signals


def started(tmp_path: Path, *words: object):
    """A sweep in a process, whose trials are long."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = ["-m", "upslope", *SWEEP, "--total-steps", "1000000", "--eval-every", "64", "--trials", "3", "--jobs", "2", "--out", "s", *words]
    return python(line, cwd=tmp_path, env=environment, stdout=-1, stderr=-1)


def wait_for(done: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
def test_kill_9_and_ctrl_c_leave_no_process_and_runs_that_go_on(tmp_path: Path):
    """Killed in its first trial; carried on and stopped by Ctrl-C; both runs are the first trial's still, further on each time."""
    first = [tmp_path / "s" / "trial-0000" / f"seed-{seed}" for seed in (0, 1)]
    with started(tmp_path) as process:
        wait_for(lambda: all(rows(folder) > 20 and any((folder / "checkpoints").iterdir()) for folder in first))
        workers = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(map(alive, workers)), 10.0)
    assert len(workers) >= 2 and not any((folder / "summary.json").exists() for folder in first)
    with started(tmp_path, "--checkpoint-every", "0") as process:
        before = [rows(folder) for folder in first]
        wait_for(lambda: all(rows(folder) > count + 20 for folder, count in zip(first, before, strict=True)))
        workers = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "" and "going on: 0 trials ended, 1 under way" in out, (out, err)
    assert "goes on" in out.splitlines()[-2] + out.splitlines()[-1]
    wait_for(lambda: not any(map(alive, workers)), 10.0)
    for folder in first:
        run = Run.load(folder)
        assert run.summary is not None and run.summary["status"] == "interrupted" and run.summary["resumed_at"]
        assert [row["iteration"] for row in run.metrics()] == list(range(1, run.summary["iterations"] + 1))
    assert sorted(path.name for path in (tmp_path / "s").glob("trial-*")) == ["trial-0000"]
    assert (tmp_path / "s" / "trials.jsonl").read_text() == ""
