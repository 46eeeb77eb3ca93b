"""Every example, every Python block of the README and every page of the documentation that holds some runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(page):
    """The Python code of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


BLOCKS = blocks(ROOT / "README.md")
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if blocks(page)]


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
    assert len(example.read_text().splitlines()) < 60
    assert run([str(example)], tmp_path).strip()


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_plain_example(name, tmp_path):
    """The whole of a method in one file; what it learns, it learns within its own number of iterations."""
    example = ROOT / "examples" / "plain" / f"{name}.py"
    assert len(example.read_text().splitlines()) <= 160
    lines = run([str(example)], tmp_path).splitlines()
    if name == "ppo":
        assert float(lines[-1].split()[-1]) >= 475
    else:
        before, after = (int(line.split("%")[0].split()[-1]) for line in lines if "%" in line)
        assert before < 80 and after >= before + 10


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block(number, tmp_path):
    run(["-c", BLOCKS[number]], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page_of_the_documentation(page, tmp_path):
    """A page is one program: its blocks go on where the last one stopped."""
    run(["-c", "\n".join(blocks(page))], tmp_path)
