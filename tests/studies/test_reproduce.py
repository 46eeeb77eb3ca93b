"""``upslope reproduce``: files, verdicts, exit codes, and what cannot be asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Command, good
from upslope.studies import reproduce
from upslope.studies.reproduce import Check, sentence

FIELDS = {"figure", "source", "protocol", "runs", "seed", "within_bounds", "checks", "seconds", "versions"}


def test_within_bounds(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "NUM_EPISODES", 200)
    words = good(cli("reproduce", "sb-13.2", "--runs", "10")).out
    assert "10 runs: within its bounds" in words and "gain of the baseline" in words and words.count("\n") == 2
    folder = Path("runs/sb-13.2-0")
    assert sorted(path.name for path in folder.iterdir()) == ["figure.png", "verdict.json"]
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict.keys() == FIELDS and verdict["within_bounds"] is True
    baseline, plain, gain = verdict["checks"]
    assert gain["found"] == pytest.approx(baseline["found"] - plain["found"]) and gain["low"] == 6.0
    with Image.open(folder / "figure.png") as picture:
        assert picture.size == (1500, 900)
    again = json.loads(good(cli("reproduce", "sb-13.2", "--runs", "10", "--json")).out)
    assert again["checks"] == verdict["checks"] and Path("runs/sb-13.2-0-2/verdict.json").exists()


def test_outside_its_bounds(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 200 of the 1000 episodes, or 50 of the 1000 pulls, nobody is there yet."""
    monkeypatch.setattr(reproduce, "NUM_EPISODES", 200)
    monkeypatch.setattr(reproduce, "NUM_PULLS", 50)
    answer = cli("reproduce", "sb-13.1", "--runs", "1", "--seed", "3", "--out", "a/b")
    assert answer.code == 1 and answer.err == "" and "1 run: OUTSIDE its bounds" in answer.out and "not kept" in answer.out
    verdict = json.loads(Path("a/b/verdict.json").read_text())
    assert verdict["within_bounds"] is False and [check["within"] for check in verdict["checks"]] == [True, False, True]
    assert verdict["checks"][1]["standard_error"] is None and verdict["checks"][1]["found"] < -13.2
    answer = cli("reproduce", "sb-2.5", "--runs", "100", "--json")
    assert answer.code == 1 and json.loads(answer.out)["within_bounds"] is False


def test_the_gradient_bandit_within_its_bounds(cli: Command) -> None:
    verdict = json.loads(good(cli("reproduce", "sb-2.5", "--runs", "600", "--json")).out)
    assert [check["within"] for check in verdict["checks"]] == [True] * 4
    assert verdict["checks"][0]["found"] > verdict["checks"][2]["found"] + 25


@pytest.mark.parametrize(
    "low, high, within", [(1.0, None, True), (None, 1.0, False), (1.0, 3.0, True), (2.5, 3.0, False), (None, None, True)]
)
def test_bounds(low: float | None, high: float | None, within: bool) -> None:
    check = Check("thing", 2.0, None, low, high, "")
    assert check.within is within and ("not kept" in sentence(check)) is not within
    assert sentence(Check("thing", 2.0, 0.25, None, None, "")) == "Thing: 2.00 ± 0.25."


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "reproduce: expected FIGURE, one of sb-2.5, sb-13.1, sb-13.2"),
        (["sb-13.3"], "unknown figure 'sb-13.3': did you mean 'sb-13.2'?"),
        (["figure-9"], "unknown figure 'figure-9': choose one of sb-13.1, sb-13.2, sb-2.5"),
        (["sb-13.1", "sb-13.2"], "unexpected 'sb-13.2'"),
        (["sb-13.1", "--runs", "0"], "--runs: expected an integer from 1 to 10000, found 0"),
        (["sb-13.1", "--runs", "10001"], "--runs: expected an integer from 1 to 10000, found 10001"),
        (["sb-13.1", "--runs", "many"], "--runs: expected an integer, found 'many'"),
        (["sb-13.1", "--seed", "-1"], "--seed: expected an integer ≥ 0, found -1"),
        (["sb-13.1", "--out", "full"], "--out: full exists and is not empty"),
        (["sb-13.1", "--out", "full/file"], "--out: full/file is a file, not a folder"),
        (["sb-13.1", "--out", "full/file/deep"], "--out: "),
        (["sb-13.1", "--episodes", "3"], "unknown flag '--episodes'"),
    ],
)
def test_bad_input(cli: Command, words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    answer = cli("reproduce", *words)
    assert answer.code == 2 and answer.out == "" and answer.err.startswith(f"upslope: {message}") and answer.err.count("\n") == 1
    assert not Path("runs").exists()


def test_help_names_every_figure(cli: Command) -> None:
    out = good(cli("reproduce", "--help")).out
    assert all(name in out for name in reproduce.FIGURES) and "--runs" in out
