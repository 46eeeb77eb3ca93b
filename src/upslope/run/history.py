"""What a run leaves to be judged by: its metrics, its evaluations, its settings."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from upslope.run.evaluations import Point

Rows = Sequence[Mapping[str, Any]]
MEASURES = ("episode_return", "reward_per_step", "reward", "score_mean")
"""What training says of how well the policy does, the first that it says."""
LAST, MIN_ITERATIONS = 0.2, 5
"""The end of a run: this share of its iterations, at least so many."""
LOST = 0.2
"""Share of what was gained (best evaluation less the lowest) that the final policy may be below the best one."""
STANDARD_ERRORS = 4.0
"""Combined standard errors that a difference of two evaluations must have: the best of 20 noisy ones flatters."""


@dataclass(frozen=True)
class History:
    """A row of metrics for each iteration, the evaluations in order, and the final one where there was one.

    ``goal`` is the return that counts as solved, where it is known; ``action_dims`` the number of continuous actions, 0 where they
    are discrete; ``settings`` those of the run, flat; ``error`` what ended it, if something did.
    """

    rows: Rows
    evaluations: Sequence[Point] = ()
    final: Point | None = None
    goal: float | None = None
    action_dims: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None

    @property
    def reached_goal(self) -> bool:
        return self.goal is not None and self.final is not None and self.final.mean >= self.goal

    @property
    def learned(self) -> bool:
        """Whether the policy is clearly better than at the beginning, by evaluations or in training, and not far below the best."""
        if self.final is None or not self.evaluations or self.lost:
            return False
        first = self.evaluations[0]
        return self.final.mean - first.mean > STANDARD_ERRORS * standard_error(first, self.final) or self.rose

    @property
    def rose(self) -> bool:
        """Whether training did clearly better in its last iterations than in its first."""
        values = self.values(self.measure)
        early, late = self.begin(self.measure), self.end(self.measure)
        if len(values) < 2 * MIN_ITERATIONS:
            return False
        error = math.sqrt(statistics.variance(early) / len(early) + statistics.variance(late) / len(late))
        return statistics.mean(late) - statistics.mean(early) > STANDARD_ERRORS / 2 * error  # the first iterations already rise

    @property
    def lost(self) -> bool:
        """Whether the final policy is far below the best one."""
        final, goal = self.final, self.goal
        if final is None or not self.evaluations or self.reached_goal:
            return False
        best, early = self.best, self.begin("episode_return")  # evaluations may begin when most is learned
        lowest = min([point.mean for point in self.evaluations] + ([statistics.mean(early)] if early else []))
        gained, lost = best.mean - lowest, best.mean - final.mean
        if min(best.episodes, final.episodes) < MIN_ITERATIONS or (goal is not None and gained < LOST * (goal - lowest)):
            return False  # too little to tell
        return lost > max(LOST * gained, STANDARD_ERRORS * standard_error(best, final))

    @property
    def best(self) -> Point:
        return max(self.evaluations, key=mean_of)

    @property
    def measure(self) -> str:
        """The metric that says how well the policy does."""
        return next((name for name in MEASURES if any(name in row for row in self.rows)), MEASURES[0])

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if row.get(name) is not None]

    def begin(self, name: str) -> list[float]:
        """A metric in the first iterations."""
        values = self.values(name)
        return values[: max(MIN_ITERATIONS, len(values) // 20)]

    def end(self, name: str) -> list[float]:
        """The same in the last of them."""
        values = self.values(name)
        return values[-max(MIN_ITERATIONS, math.ceil(LAST * len(values))) :]

    def in_vain(self, name: str) -> list[float]:
        """The same of a run that neither reached its goal nor learned; empty of any other, or of too short a one."""
        late = self.end(name)
        return [] if len(late) < MIN_ITERATIONS or self.reached_goal or self.learned else late


def mean_of(point: Point) -> float:
    return point.mean


def standard_error(*points: Point) -> float:
    """Of the difference of the means."""
    return math.sqrt(sum(point.std**2 / point.episodes for point in points))
