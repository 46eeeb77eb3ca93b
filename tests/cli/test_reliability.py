"""The scripts in benchmarks/reliability, a few of their cases: killed runs, damaged checkpoints, the same seed in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "reliability"
KILLED = ["--only", "ppo", "--points", "half a line", "half removed", "between cut and tidy"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that is to be killed is a fork")
@pytest.mark.parametrize(
    "script, words, expected",
    [
        ("kill_points.py", KILLED, "3 of 3"),
        ("damaged_checkpoints.py", ["--count", "40"], "45 of 45"),
        ("same_seed.py", ["--only", "sarsa", "--processes", "2"], "2 of 2"),
    ],
)
def test_all_of_some_cases_are_right(script: str, words: list[str], expected: str, tmp_path: Path):
    command = [sys.executable, SCRIPTS / script, *words, "--out", tmp_path / "result.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [expected]), done.stdout + done.stderr
    assert (tmp_path / "result.json").stat().st_size > 1000
