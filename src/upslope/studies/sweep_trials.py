"""What a trial is worth: the evaluations of its runs as one curve to prune by, and one number to compare settings by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from upslope.run.config import RunConfig
from upslope.run.report import plural
from upslope.studies.sweep_runs import Result

Objective = Literal["steps", "return", "final"]
MAX_POINTS = 200  # at which a trial is compared with others
SLACK = 1.99  # budgets below which a number of steps is that of a solved run: its last iteration may end behind the budget


@dataclass(frozen=True)
class Measure:
    """How runs with one budget are judged; every number is of one run, and that of a trial is their mean.

    - ``steps``: those after which the run had reached its goal, minimized. A run that has not counts as 2 to 3 of its budgets, by how
      far its last evaluation falls short, so it lies behind all that have.
    - ``return``: the mean over all of the budget's evaluations, maximized; after its goal a run stands where it ended.
    - ``final``: the last evaluation, maximized.
    """

    objective: Objective
    budget: int
    interval: float
    """between evaluations, in the budget's unit"""
    goal: float | None = None

    @property
    def direction(self) -> str:
        """What Optuna does with it."""
        return "minimize" if self.objective == "steps" else "maximize"

    @property
    def points(self) -> int:
        """At how many points trials are compared."""
        return max(1, min(MAX_POINTS, int(self.budget / self.interval + 1e-9)))

    def index(self, share: float) -> int:
        """The point, from 0 on, of an evaluation after this share of the budget."""
        return min(self.points, int(share * self.budget / self.interval + 1e-9))

    def level(self, points: Mapping[float, float], index: int) -> float:
        """The last evaluation up to a point, or the first one behind it; NaN where there is none."""
        before = [share for share in points if self.index(share) <= index]
        return points[max(before)] if before else points[min(points)] if points else math.nan

    def progress(self, points: Mapping[float, float], index: int) -> float:
        """What a run is pruned by after its evaluation at a point: how far it falls short of the goal; its mean or its last return."""
        if self.objective == "return":
            return sum(self.level(points, each) for each in range(1, max(1, index) + 1)) / max(1, index)
        found = self.level(points, index)
        return max(0.0, (self.goal or 0.0) - found) if self.objective == "steps" else found

    def value(self, result: Result) -> float:
        """What a finished run is worth; NaN where nothing was evaluated."""
        points = result.points if result.final is None else {**result.points, 1.0: result.final}
        if self.objective != "steps":
            return self.progress(points, self.points)
        if result.solved:
            return float(result.spent)
        short = self.progress(points, self.points)
        return self.budget * (2 + short / (short + abs(self.goal or 0.0) + 1e-9))

    def text(self, values: Sequence[float], unit: str) -> str:
        """What the runs of a trial are worth: ``7,168 steps (6,144 to 8,192)``, ``solved by 1 of 2 runs``, ``183.2 (180 to 186.4)``."""
        mean = sum(values) / len(values)
        if self.objective != "steps":
            return f"{mean:.4g}" + (f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else "")
        solved = [value for value in values if value <= self.budget * SLACK]
        if len(solved) < len(values):
            return f"solved by {len(solved)} of {plural(len(values), 'run')}"
        return f"{mean:,.0f} {unit}" + (f" ({min(values):,.0f} to {max(values):,.0f})" if len(values) > 1 else "")


@dataclass
class Part:
    """One of a trial's runs."""

    seed: int
    config: RunConfig
    folder: Path
    points: dict[float, float] = field(default_factory=dict[float, float])
    result: Result | None = None
    running: bool = False


@dataclass
class Trial:
    """A trial while its runs are carried out: ``handle`` is Optuna's, ``values`` the settings under search."""

    handle: Any
    values: dict[str, Any]
    parts: list[Part]
    reported: int = 0
    """the last point that Optuna knows of"""
    final: bool = False
    """whether it has ended and is confirmed on further seeds"""
    pruned: bool = False
    faults: list[str] = field(default_factory=list[str])
    """why one of its runs came to no end; ``diverged`` of them are what the settings are to blame for"""
    diverged: bool = False

    @property
    def number(self) -> int:
        return int(self.handle.number)

    @property
    def waiting(self) -> list[Part]:
        """Runs that have not begun, where they are still wanted."""
        return [] if self.over else [part for part in self.parts if not part.running and part.result is None]

    @property
    def over(self) -> bool:
        """Whether no further run is to begin."""
        return self.pruned or bool(self.faults)

    @property
    def ended(self) -> bool:
        return not any(part.running for part in self.parts) and not self.waiting

    @property
    def finished(self) -> bool:
        return bool(self.parts) and all(part.result is not None for part in self.parts)

    def curve(self, measure: Measure) -> dict[int, float]:
        """What is new up to the point that all of its runs have got to: point → mean over those that have begun."""
        begun = [part for part in self.parts if part.points or part.result is not None]
        running = [part for part in self.parts if part.running]
        ends = [max(map(measure.index, part.points), default=0) for part in running]
        last = min(ends) if ends else measure.points if self.finished else 0
        means: dict[int, float] = {}
        for index in range(self.reported + 1, last + 1):
            found = [measure.progress(part.points, index) for part in begun]
            means[index] = sum(found) / len(found)
        return means
