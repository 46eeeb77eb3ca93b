"""The line that :func:`upslope.train` draws in a terminal or a notebook; the commands have their own displays."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from upslope.run.report import FIELDS, SECONDS_BETWEEN_LINES, Field, Meter

if TYPE_CHECKING:
    from upslope.run.train import RunState

SHOWN = (*FIELDS[:3], Field("reward", "reward {:.3f}"), *FIELDS[3:])
"""Return and speed first, then what the method reports."""
SECONDS_BETWEEN_DRAWINGS = 0.2


def in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "ipykernel" in sys.modules


def watched() -> bool:
    """Whether somebody sees what is drawn: a terminal or a notebook."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


class Line:
    """One line, drawn over itself; where nobody sees it drawn, a new one every two seconds.

    >>> line = Line()
    >>> train(PPO(), policy, collect, iterations=100, callbacks=line.update, progress=False)  # doctest: +SKIP
    """

    def __init__(self, stream: TextIO | None = None, *, drawn: bool | None = None) -> None:
        self.stream = stream or (sys.stdout if in_notebook() else sys.stderr)
        self.drawn = watched() if drawn is None else drawn
        self.meter = Meter({"iterations": 1}, SHOWN)
        self.next, self.length = time.perf_counter() + (0.0 if self.drawn else SECONDS_BETWEEN_LINES), 0

    def update(self, state: RunState) -> None:
        self.meter.update(state.metrics, state.fraction)
        now = time.perf_counter()
        if now >= self.next:
            self.next = now + (SECONDS_BETWEEN_DRAWINGS if self.drawn else SECONDS_BETWEEN_LINES)
            self._show(state)

    def close(self, state: RunState) -> None:
        if state.iteration:
            self._show(state)
        if self.drawn and self.length:
            self._write("\n")

    def _show(self, state: RunState) -> None:
        left = self.meter.left()
        head = f"{state.iteration:,} iterations, {state.total_steps:,} steps ({state.fraction:.0%})" + (f" · {left}" if left else "")
        width = shutil.get_terminal_size((120, 24)).columns - 1 if self.drawn else 1000
        words = self.meter.words(width - len(head) - 3)
        text = f"{head} · {words}" if words else head
        self._write(f"\r{text:<{self.length}}" if self.drawn else f"{text}\n")
        self.length = len(text)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads it any more; the training matters more
            self.drawn, self.next = False, float("inf")
