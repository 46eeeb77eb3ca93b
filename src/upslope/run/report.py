"""What a run says while it goes on: progress from the fields of a world, and the texts that all worlds share.

On a terminal progress is one live line (rich); elsewhere, in a log file for one, a plain line every two seconds. :class:`Line` is what
:func:`upslope.train` draws in a terminal or a notebook.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from upslope.terminal import drawn_on, printable

if TYPE_CHECKING:
    from upslope.run.train import RunState


Row = Mapping[str, Any]
Samples = Callable[[], Sequence[str]]
SECONDS_BETWEEN_LINES = 2.0
RECENT = 10  # iterations over which the shown return is averaged
WIDE = 120  # terminal columns from which the live line has a bar and full names


@dataclass(frozen=True)
class Field:
    """A number that progress shows: its name in the row and how it is written (as it is, or as an :func:`amount`), also ``short``.

    ``recent``: the mean over the last iterations, weighted by their episodes. ``stays``: the newest one, whenever it was. ``instead_of``:
    only as long as that other field has nothing to show.
    """

    name: str
    text: str
    short: str = ""
    recent: bool = False
    stays: bool = False
    instead_of: str = ""


FIELDS = (
    Field("episode_return", "return {amount}", recent=True),
    Field("reward_per_step", "reward per step {:.3g}", instead_of="episode_return"),
    Field("speed", "{:,.0f} steps/s"),
    Field("kl", "KL {:.3f}"),
    Field("improvement", "improvement {:.3f}", "gain {:.3f}"),
    Field("line_search_steps", "line search steps {:.3f}", "tries {:.3f}"),
    Field("accepted", "accepted {:.3f}"),
    Field("approx_kl", "approx KL {:.3f}"),
    Field("clip_fraction", "clip fraction {:.3f}", "clip {:.3f}"),
    Field("explained_variance", "explained variance {:.3f}", "expl. var. {:.3f}"),
)
"""What is shown of a run that plays episodes; ``speed`` is that of all training so far."""


class Meter:
    """Recent numbers and the pace, from the rows of the iterations."""

    def __init__(self, budget: Mapping[str, int], fields: Sequence[Field] = FIELDS) -> None:
        (self.counts, self.total), *_ = budget.items()
        self.counter = "total_steps" if self.counts == "total_steps" else "iteration"
        self.fields = fields
        self.recent: dict[str, deque[tuple[float, float]]] = {field.name: deque(maxlen=RECENT) for field in fields if field.recent}
        self.newest: dict[str, Any] = {}
        self.started: float | None = None
        self.fraction, self.done_then = 0.0, 0.0
        self.row: Row = {}

    def update(self, row: Row, fraction: float | None = None) -> None:
        """Take an iteration's row, and how much of the run is done where the budget does not say it."""
        self.row = row
        self.fraction = min(1.0, self.done / self.total) if fraction is None else fraction
        if self.started is None:  # the first iteration also compiled, and is no measure of the others
            self.started, self.done_then = time.perf_counter(), self.fraction
        for name, values in self.recent.items():
            if name in row:
                values.append((row[name], row.get("num_episodes", 1.0)))
        self.newest |= {field.name: row[field.name] for field in self.fields if field.stays and row.get(field.name) is not None}

    @property
    def done(self) -> int:
        return self.row.get(self.counter, 0)

    def value(self, field: Field) -> float | None:
        if field.recent:
            episodes = sum(count for _, count in self.recent[field.name])
            return sum(mean * count for mean, count in self.recent[field.name]) / episodes if episodes else None
        if field.name == "speed":
            return self.row["total_steps"] / max(self.row["train_seconds"], 1e-9) if "train_seconds" in self.row else None
        return self.newest.get(field.name) if field.stays else self.row.get(field.name)

    def line(self, width: int = 1000, *, short: bool = False) -> str:
        """``return 212.3 · 61,000 steps/s · approx KL 0.008 · …``; what an iteration did not report, or does not fit, is left out."""
        found = [(field, value) for field in self.fields if (value := self.value(field)) is not None]
        shown = {field.name for field, _ in found}
        parts = [
            ((short and field.short) or field.text).format(value, amount=amount(value))
            for field, value in found
            if field.instead_of not in shown
        ]
        while parts and len(" · ".join(parts)) > width:
            parts.pop()
        return " · ".join(parts)

    def head(self) -> str:
        """How far it is: ``1,024 steps (1%)``, ``12 of 90``."""
        return f"{self.done:>10,} steps ({self.fraction:.0%})" if self.counter == "total_steps" else f"{self.done:>6,} of {self.total:,}"

    def left(self) -> str:
        """Time to the end at the pace so far, evaluation included; nothing before a second has shown a pace, and after the last step."""
        if self.started is None or not self.done_then < self.fraction < 1:
            return ""
        passed = time.perf_counter() - self.started
        if passed < 1.0:
            return ""
        seconds = passed * (1 - self.fraction) / (self.fraction - self.done_then)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


# ------------------------------------------------------------------------------------------------------------ progress


class Progress:
    """Shows how far a run is; this one shows nothing."""

    def update(self, row: Row) -> None:
        """Take an iteration's row."""

    def note(self, text: str) -> None:
        """Say something beside it."""

    def close(self) -> None:
        """The last line, where it was not shown yet."""


def progress_for(meter: Meter, quiet: bool, stream: TextIO | None = None, *, samples: Samples = list[str]) -> Progress:
    """A live line on a terminal, plain lines elsewhere, nothing where quiet is asked for; ``samples`` are lines beside them."""
    target: TextIO = sys.stdout if stream is None else stream
    if quiet:
        return Progress()
    return Live(meter, drawn_on(target), samples) if target.isatty() else Plain(meter, target, samples)


class Plain(Progress):
    """A line every two seconds, and one at the end."""

    def __init__(self, meter: Meter, stream: TextIO, samples: Samples = list[str]) -> None:
        self.meter, self.stream, self.samples = meter, stream, samples
        self.last, self.shown = time.perf_counter(), -1

    def update(self, row: Row) -> None:
        self.meter.update(row)
        if time.perf_counter() - self.last >= SECONDS_BETWEEN_LINES:
            self._print()

    def _print(self) -> None:
        iteration: int = self.meter.row["iteration"]
        if iteration == self.shown:
            return
        self.shown, self.last = iteration, time.perf_counter()
        parts = (self.meter.head(), self.meter.line(), self.meter.left())
        self.note("\n".join([" · ".join(part for part in parts if part), *self.samples()]))

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        if self.meter.row:
            self._print()


class Live(Progress):
    """rich's progress bar with the same numbers; notes and samples scroll by above it."""

    def __init__(self, meter: Meter, stream: TextIO, samples: Samples = list[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.meter, self.samples = meter, samples
        console = Console(file=stream)
        self.width = console.width
        bar = [BarColumn(bar_width=14)] if self.width >= WIDE else []
        unit = "steps" if meter.counter == "total_steps" else "iterations"
        done, line = TextColumn(f"{{task.completed:>9,.0f}} {unit}"), TextColumn("{task.fields[line]}")
        self.bar = Progress(done, *bar, line, console=console, refresh_per_second=8, transient=True)
        self.task = self.bar.add_task("", total=meter.total, line="starting")
        self.next, self.next_samples = 0.0, 0.0
        self.bar.start()

    def update(self, row: Row) -> None:
        self.meter.update(row)
        now = time.perf_counter()
        if now >= self.next:  # the text costs more than a small iteration
            self.next = now + 0.1
            self._show(now)

    def _show(self, now: float) -> None:
        wide, left = self.width >= WIDE, self.meter.left()
        line = self.meter.line(self.width - 21 - 15 * wide - len(left) - 4, short=not wide)
        self.bar.update(self.task, completed=self.meter.done, line=f"{left} · {line}" if left else line)
        if now >= self.next_samples and (lines := self.samples()):
            self.next_samples = now + SECONDS_BETWEEN_LINES
            self.note("\n".join(lines))

    def note(self, text: str) -> None:
        self.bar.console.print(printable(text), highlight=False, markup=False)

    def close(self) -> None:
        self.bar.stop()
        if self.meter.row:
            unit = "" if self.meter.counter == "total_steps" else " iterations"
            self.note(f"{self.meter.head().strip()}{unit} · {self.meter.line()}")


# --------------------------------------------------------------------------------------------------------------- texts


def amount(number: float, decimals: int = 1) -> str:
    """A return, whatever its size: ``-123.4``, ``1.95e-05``, ``2.002e+10``."""
    return f"{number:.{decimals}f}" if number == 0 or 0.1 <= abs(number) < 1e6 else f"{number:.4g}"


def plural(count: int, noun: str) -> str:
    """``1 epoch``, ``1,024 steps``, ``4 minibatches``."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('batch') else 's'}"


def epochs_line(epochs: int, minibatches: int, transitions: int | None = None) -> str:
    """``10 epochs of 4 minibatches of 64``; the size only where it is known."""
    size = "" if transitions is None else f" of {transitions // minibatches:,}"
    return f"{plural(epochs, 'epoch')} of {plural(minibatches, 'minibatch')}{size}"


def climbing(update: Any, transitions: int | None = None) -> str:
    """``10 epochs of 4 minibatches of 64, learning rate 0.003 (linear schedule)``."""
    size = epochs_line(getattr(update, "num_epochs", 1), getattr(update, "num_minibatches", 1), transitions)
    rate = f", learning rate {update.learning_rate:g}" if hasattr(update, "learning_rate") else ""
    schedule = getattr(getattr(update, "schedule", None), "__name__", "constant")
    return f"{size}{rate}{'' if schedule == 'constant' else f' ({schedule} schedule)'}"


STOPPED = "stopped on request: everything up to the last iteration is saved"


def closing_text(outcome: Sequence[str], warnings: Sequence[str], commands: Mapping[str, str], folder: Path) -> str:
    """What happened, what to try next, each with what it is for, and at the very end, where it is seen, what did not go well."""
    width = max(map(len, commands)) + 4
    lines = [*outcome, f"learning curve: {folder / 'curve.png'}", "", "try next:"]
    lines += [f"  {command:<{width}}{why}" for command, why in commands.items()]
    return "\n".join(lines) + "".join(f"\n\nwarning: {warning}" for warning in warnings)


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
        line = self.meter.line(width - len(head) - 3)
        text = f"{head} · {line}" if line else head
        self._write(f"\r{text:<{self.length}}" if self.drawn else f"{text}\n")
        self.length = len(text)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads it any more; the training matters more
            self.drawn, self.next = False, float("inf")
