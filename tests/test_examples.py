"""Every example and every Python block of the README runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


ELSEWHERE = {"ppo_on_text"}
"""Examples that need a real model: tests/test_smollm2.py runs them."""


@pytest.mark.parametrize(
    "example", sorted(p for p in (ROOT / "examples").glob("*.py") if p.stem not in ELSEWHERE), ids=lambda path: path.stem
)
def test_example(example, tmp_path):
    assert len(example.read_text().splitlines()) <= 60
    assert run([str(example)], tmp_path).strip()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block(number, tmp_path):
    run(["-c", BLOCKS[number]], tmp_path)
