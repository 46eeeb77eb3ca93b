"""Commands run in-process through ``main(argv)`` from an empty folder; one short run serves every test that reads one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from upslope.cli.main import main

HERE = Path(__file__).parent
SHORT = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "2", "--num-epochs", "1", "--eval-episodes", "2", "--no-fast"]
"""Flags that make a PPO run small."""
TRAIN = ["train", "ppo", "CartPole-v1", *SHORT]


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str


def good(answer: Answer) -> Answer:
    assert answer.code == 0 and answer.err == "", answer
    return answer


Command = Callable[..., Answer]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``cli("train", "ppo", …)`` in a fresh current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)

    def command(*words: object) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", "ppo", "CartPole-v1", "--total-steps", "128", "--eval-every", "64", "--quiet", *SHORT]) == 0
    finally:
        os.chdir(before)
    return folder / "runs" / "ppo-CartPole-v1-0"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))
