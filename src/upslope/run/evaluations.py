"""When a run evaluates, on how many episodes, and what is remembered of it. Everything here depends on steps, nothing on time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from upslope.errors import RunFault, UsageError, describe_error, require

if TYPE_CHECKING:
    from upslope.records import State
    from upslope.run.load import Run

POINTS = 20  # evaluations of a run for which nothing was chosen
SHARE = 0.2
"""Steps of those evaluations for each step of training, about: they have no update, so it is less of the time."""
NATIVE_STEP = 2  # steps of training that take about as long as one of all rows of CartPole's vectorized version
MIN_EPISODES = 5  # episodes of one of them at least
UNTIL_EVERY = 2048  # steps between the evaluations that decide whether a goal is reached
CUT_AFTER = 1000
"""Steps after which an episode without a time limit is cut off, unless training has seen longer ones end."""
TRIES = 3  # evaluations in a row that fail before no more are tried
UNTIL = ("until_solved", "until_return", "until_accuracy")  # settings with which evaluations decide when a run ends


@dataclass(frozen=True)
class Point:
    """One evaluation: after how many steps of training, and what it found; ``complete`` says that no episode was cut off."""

    total_steps: int
    mean: float
    std: float
    episodes: int
    complete: bool = True


class Points:
    """The evaluations of a run: ``first`` of the policy that training began with, where there was one, ``later`` all others."""

    def __init__(self) -> None:
        self.first: list[Point] = []
        self.later: list[Point] = []
        self.kept: Point | None = None
        """that of the best policy in a stopped run's folder, which may be newer than the run's checkpoint"""

    @property
    def known(self) -> list[Point]:
        more = [] if self.kept is None or self.kept in self.later else [self.kept]
        return sorted([*self.later, *more], key=lambda point: point.total_steps)

    @property
    def last(self) -> Point | None:
        return self.later[-1] if self.later else None

    def is_best(self, point: Point) -> bool:
        return not self.known or point.mean > max(earlier.mean for earlier in self.known)

    def until(self, final: Point | None) -> list[Point]:
        """In order, with the final one."""
        return [*self.first, *self.known, *([final] if final is not None and final not in self.later else [])]

    def state_dict(self) -> State:
        return {"start": [asdict(point) for point in self.first], "points": [asdict(point) for point in self.later]}

    def load_state_dict(self, state: State) -> None:
        self.first, self.later = ([Point(**point) for point in state[name]] for name in ("start", "points"))

    def keep(self, run: Run) -> list[str]:
        """Take the evaluation of a stopped run's best policy; a sentence where it cannot be read, and the next best takes its place."""
        path = run.path / ("best_policy" if run.world == "language" else "best_policy.safetensors")
        try:
            found: Any = run.written_with("best")
            if "evaluation" in found:
                self.kept = Point(**found["evaluation"])
                numbers: tuple[Any, ...] = (self.kept.total_steps, self.kept.episodes, self.kept.mean, self.kept.std)
                require(all(isinstance(number, int | float) and math.isfinite(number) for number in numbers), "no numbers")
            require(bool(found) or not path.exists(), "no header")
        except (UsageError, TypeError) as error:
            self.kept = None
            return [f"{path} is damaged ({describe_error(error)}); the next policy that is evaluated takes its place"]
        return []


class Schedule:
    """Which iterations end with an evaluation, and on how many episodes.

    With ``eval_every`` every so many steps, on ``eval_episodes``; with a goal to stop at every 2,048 steps. Else at 20 points of
    the budget, on as many of ``eval_episodes`` as cost a fifth of the steps in between, yet at least 5; while evaluations have
    taken more than a fifth of the steps so far, a point is passed over. (Of a natively vectorized environment, a step of all rows
    counts as two.) The last point is left to the final evaluation.
    """

    def __init__(self, settings: Any) -> None:
        self.total_steps, self.episodes = settings.total_steps, settings.eval_episodes
        self.bounded = settings.eval_every is None
        self.every: int = max(1, self.total_steps // POINTS) if self.bounded else settings.eval_every
        self.spent, self.length, self.longest = 0.0, 0.0, 0.0

    def watch(self, row: Mapping[str, Any]) -> None:
        self.longest = max(self.longest, row.get("episode_length", 0.0))

    def due(self, before: int, now: int) -> int:
        """Episodes to play after the iteration that went from ``before`` to ``now`` steps; 0 where it is not time."""
        if not self.every or now // self.every == before // self.every:
            return 0
        if not self.bounded:
            return self.episodes
        if now >= self.total_steps or self.spent > SHARE * now:
            return 0
        affordable = SHARE * self.every / self.length if self.length else self.episodes
        return int(min(self.episodes, max(MIN_EPISODES, affordable)))

    def played(self, result: Any, evaluator: Any) -> None:
        native = evaluator.native  # its cost does not depend on the number of episodes
        self.length = 0.0 if native else result.length_mean
        self.spent += NATIVE_STEP * evaluator.steps if native else result.length_mean * result.episodes

    def state_dict(self) -> State:
        return {"spent": self.spent, "length": self.length, "longest": self.longest}

    def load_state_dict(self, state: State) -> None:
        self.spent, self.length, self.longest = (float(state[name]) for name in ("spent", "length", "longest"))

    @property
    def cut_after(self) -> int:
        """Steps after which an episode without a time limit is cut off: twice as long as training has seen them, at least 1,000."""
        return max(CUT_AFTER, round(2 * self.longest))


class Failures:
    """Evaluations that failed: the next one is tried in environments made anew, until three in a row have failed."""

    def __init__(self, settings: Any) -> None:
        waits = [name for name in UNTIL if (value := getattr(settings, name, None)) is not None and value is not False]
        self.cannot = "".join(f", so --{name.replace('_', '-')} cannot end this run early" for name in waits)
        self.faults: list[tuple[int, Exception]] = []
        self.in_a_row = 0

    def state_dict(self) -> State:
        return {"faults": [[steps, str(fault)] for steps, fault in self.faults], "in_a_row": self.in_a_row}

    def load_state_dict(self, state: State) -> None:
        faults: list[tuple[int, str]] = state["faults"]
        self.faults += [(steps, RunFault(text)) for steps, text in faults]
        self.in_a_row = int(state["in_a_row"])

    @property
    def gave_up(self) -> bool:
        return self.in_a_row >= TRIES

    def failed(self, steps: int, fault: Exception) -> str:
        self.faults.append((steps, fault))
        self.in_a_row += 1
        now = self._no_more() if self.gave_up else "the next one is tried"
        return f"an evaluation after {steps:,} steps failed, {now}: {fault}"

    def _no_more(self) -> str:
        return f"no more are made after {TRIES} in a row{self.cannot}"

    def warnings(self) -> list[str]:
        if not self.faults:
            return []
        (steps, fault), count = self.faults[0], len(self.faults)
        what = f"an evaluation after {steps:,} steps failed"
        if count > 1:
            what = f"{count} evaluations failed, the first after {steps:,} steps"
        return [f"{what}{f'; {self._no_more()}' if self.gave_up else ''}: {fault}"]
