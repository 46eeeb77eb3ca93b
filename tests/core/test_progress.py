"""What training in Python shows of itself: a line where somebody sees it, nothing elsewhere, and a state in one line."""

from __future__ import annotations

import io
import sys

import pytest

from tests.core.toy import Bandit, Pulls
from upslope import REINFORCE, Ascent, train
from upslope.run.report import Meter

ALGORITHM = REINFORCE(baseline=False, value_coef=0.0, update=Ascent(learning_rate=0.01))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_state_is_one_line():
    state = train(ALGORITHM, Bandit(), Pulls(), iterations=3)
    state.metrics["episode_return"] = 12.5
    head = f"RunState(REINFORCE, Bandit, Pulls, iteration=3, total_steps={state.total_steps}, 100% done"
    assert repr(state) == f"{head}, episode_return=12.5)"
    state.metrics.clear()
    assert repr(state) == f"{head})"


@pytest.mark.parametrize(
    "stream, options, shown",
    [
        (Terminal, {}, True),
        (Terminal, {"progress": False}, False),
        (Terminal, {"callbacks": [lambda state: None]}, False),  # which may print, too
        (Terminal, {"callbacks": [lambda state: None], "progress": True}, True),
        (io.StringIO, {}, False),
        (io.StringIO, {"progress": True}, True),
    ],
)
def test_a_line_is_drawn_where_somebody_sees_it(monkeypatch: pytest.MonkeyPatch, stream, options, shown):
    seen = stream()
    monkeypatch.setattr(sys, "stderr", seen)
    train(ALGORITHM, Bandit(), Pulls(), iterations=3, **options)
    lines = seen.getvalue()
    assert ("3 iterations, " in lines) is shown and (lines == "") is not shown
    if shown:
        assert lines.endswith("\n") and ("\r" in lines) is (stream is Terminal)


def test_a_line_ends_also_where_training_fails(monkeypatch: pytest.MonkeyPatch):
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)

    def fail(state):
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        train(ALGORITHM, Bandit(), Pulls(), iterations=3, callbacks=fail, progress=True)
    assert seen.getvalue().endswith("\n")


def test_a_reader_who_is_gone_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch):
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert train(ALGORITHM, Bandit(), Pulls(), iterations=3).iteration == 3


def test_no_time_is_promised_before_a_second_has_shown_a_pace(monkeypatch: pytest.MonkeyPatch):
    """The first iteration compiles: 3 seconds, of which 24 minutes would follow; the others take 0.01."""
    clock = iter([3.0, 3.01, 4.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = Meter({"total_steps": 1000})
    meter.update({"total_steps": 2})
    assert meter.left() == ""  # nobody asks the clock: no second iteration has been seen
    meter.update({"total_steps": 4})
    assert meter.left() == ""
    meter.update({"total_steps": 302})
    assert meter.left() == "0:03 left"  # 300 steps in 1.5 s, 698 remain
