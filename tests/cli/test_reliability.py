"""The scripts in benchmarks/reliability, a few cases of each; those of ``hostile_files.py`` are all in :mod:`tests.cli.test_hostile`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from upslope import Run
from upslope.run.config import RunConfig
from upslope.run.folder import Output
from upslope.run.verify import differences

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "reliability"
KILLED = ["--only", "ppo", "--points", "half a line", "half removed", "between cut and tidy"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that is to be killed is a fork")
@pytest.mark.parametrize(
    "script, words, expected",
    [
        ("kill_points.py", KILLED, "3 of 3"),
        ("damaged_checkpoints.py", ["--count", "40"], "45 of 45"),
        ("same_seed.py", ["--only", "sarsa", "--processes", "2"], "2 of 2"),
        ("faults.py", ["--only", "worker: dies, once", "own process: elsewhere", "reward, process: dies_once"], "3 of 3"),
        ("bad_input.py", ["--only", "a setting that cannot be", "a policy that cannot be", "--count", "30", "--fresh", "0"], "30 of 30"),
        ("signals.py", ["--only", "TERM at a step, twice: a2c", "HUP at a step: sarsa"], "2 of 2"),
        ("doctor.py", ["--only", "sick", "--kinds", "dead groups", "stale log-probabilities", "--most", "1"], "4 of 4"),
        ("environment.py", ["--only", "locale: ascii", "locale: stdout full", "locale: a folder that is gone"], "3 of 3"),
    ],
)
def test_all_of_some_cases_are_right(script: str, words: list[str], expected: str, tmp_path: Path):
    command = [sys.executable, SCRIPTS / script, *words, "--out", tmp_path / "result.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [expected]), done.stdout + done.stderr
    assert (tmp_path / "result.json").stat().st_size > 1000


def test_the_number_of_threads_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before, runs = torch.get_num_threads(), list[Run]()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            config = RunConfig.of("trpo", "CartPole-v1", num_envs=4, num_steps=256, total_steps=2048, eval_episodes=2)
            runs.append(config.run(Output(out=tmp_path / str(count), quiet=True)))
    finally:
        torch.set_num_threads(before)
    assert differences(runs[0].metrics(), runs[1].metrics()) == []
    assert (tmp_path / "1" / "policy.safetensors").read_bytes() == (tmp_path / "2" / "policy.safetensors").read_bytes()
