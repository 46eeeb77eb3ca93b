"""What is printed: nothing that a terminal obeys, and nothing that ends the work because nobody reads it."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SHORT, Command
from upslope import Run
from upslope.cli.main import main
from upslope.terminal import Output, OutputClosed, drawn_on, printable

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\rc\x9b31m\x7f\u202eevil\u2066"
SHOWN = r"a\u001b[2J\u001b]0;title\u0007b\u000dc\u009b31m\u007f\u202eevil\u2066"


def test_control_characters_are_shown():
    assert printable(HOSTILE) == SHOWN
    assert printable("größer → 1.5 ± 0.1\tδ\n") == "größer → 1.5 ± 0.1\tδ\n"
    assert json.loads(printable(json.dumps({"a": "\x9b\u202e\x1b"}, ensure_ascii=False))) == {
        "a": "\x9b\u202e\x1b"
    }  # a line of JSON stays one


@pytest.mark.parametrize(
    "words",
    [
        [HOSTILE],
        ["train", HOSTILE, "CartPole-v1"],
        ["train", "ppo", HOSTILE],
        ["train", "ppo", f"nowhere{HOSTILE}:make"],
        ["train", "ppo", "CartPole-v1", f"--{HOSTILE}"],
        ["train", "ppo", "CartPole-v1", "--surrogate", HOSTILE],
        ["train", "ppo", "CartPole-v1", "--env-kwargs", json.dumps({HOSTILE: 1})],
        ["train", "ppo", "CartPole-v1", "--out", f"nowhere/{HOSTILE}", "--config", HOSTILE],
        ["evaluate", HOSTILE],
        ["plot", HOSTILE],
        ["check", f"{HOSTILE}:f"],
        ["list", HOSTILE],
    ],
)
def test_no_error_message_reaches_the_terminal_raw(cli: Command, words: list[str]):
    answer = cli(*words)
    assert answer.code == 2 and not any(character in answer.err for character in "\x1b\x07\r\x9b\x7f\u202e\u2066"), answer
    assert "u001b" in answer.err or "x1b" in answer.err


def test_names_in_a_run_are_shown(cli: Command, copied: Path):
    for name in ("config.json", "summary.json"):
        content = json.loads((copied / name).read_text())
        if name == "config.json":
            content["algorithm"]["name"] = HOSTILE
        (copied / name).write_text(json.dumps(content))
    answer = cli("evaluate", copied, "--episodes", "1")
    assert answer.code == 0 and SHOWN in answer.out and "\x1b" not in answer.out


class Leaving(io.StringIO):
    """A pipe whose reader goes after some lines."""

    def __init__(self, lines: int, number: int = errno.EPIPE) -> None:
        super().__init__()
        self.left, self.number = lines, number

    def write(self, text: str) -> int:
        if self.left <= 0:
            raise OSError(self.number, "gone")
        self.left -= text.count("\n")
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_training_goes_on_when_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    monkeypatch.chdir(tmp_path)
    stream = Leaving(1, number)
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["train", "ppo", "CartPole-v1", "--total-steps", "96", "--out", "run", *SHORT]) == 0
    run = Run.load("run")
    assert run.summary is not None and run.summary["status"] == "finished" and run.summary["total_steps"] >= 96
    assert stream.getvalue().count("\n") <= 5  # the plan, which is one print


def test_other_faults_of_the_output_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout", Leaving(0, errno.ENOSPC))
    assert main(["list"]) == 1
    assert "gone" in capsys.readouterr().err


def test_what_only_speaks_ends_when_nobody_listens():
    with pytest.raises(OutputClosed):
        print("hello", file=Output(Leaving(0), lasting=False))
    print("hello", file=Output(Leaving(0)))
    print("hello", file=Output(None), flush=True)


def test_a_locale_without_the_characters():
    raw = io.BytesIO()
    stream: Any = Output(io.TextIOWrapper(raw, encoding="ascii"))
    print("± \udcff", file=stream, flush=True)
    assert raw.getvalue() == b"\\xb1 \\udcff\n"


def test_what_draws_may_draw():
    stream = io.StringIO()
    drawn_on(Output(stream)).write("\x1b[2K\x1b[1A")
    assert stream.getvalue() == "\x1b[2K\x1b[1A"
    assert drawn_on(stream) is stream


def test_a_list_of_which_one_line_is_read(tmp_path: Path):
    command = f"set -o pipefail; {sys.executable} -m upslope list | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Algorithms")
