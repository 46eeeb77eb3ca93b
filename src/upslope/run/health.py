"""What did not go well in a run, in plain words: pure functions of its metrics and of its evaluations.

A run that reached its goal is told nothing about entropies and groups: a deterministic policy and groups without spread are what
success looks like, too. Every sentence says what was seen and what to try.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from upslope.run.evaluations import Point

Rows = Sequence[Mapping[str, float]]
MEASURES = ("episode_return", "reward_per_step", "reward", "score_mean")
"""What training says of how well the policy does, the first that it says."""
WATCHED = ("approx_kl", "kl", "improvement", "accepted", "entropy", "dead_groups", *MEASURES)
"""The metrics that are looked at."""

LOST = 0.2
"""Share of what was gained (best evaluation less the lowest) that the final policy may be below the best one."""
STANDARD_ERRORS = 4.0
"""Combined standard errors that a difference of two evaluations must have: the best of 20 noisy ones flatters."""
LARGE_KL = 0.3
"""KL(π_old‖π) of one update, in nats a step, that a surrogate around π_old no longer describes."""
OFTEN = 0.05
"""Share of the iterations in which it is no accident."""
LAST, MIN_ITERATIONS = 0.2, 5
"""The end of a run: this share of its iterations, at least so many."""
COLLAPSED = 0.02
"""Entropy of discrete actions, as a share of the beginning's, that explores nothing."""
LONG = (50_000, 20)
"""Steps and iterations after which something should have been learned: hundreds of episodes, tens of updates."""
NATS = 3.0
"""Change of the entropy of continuous actions, for each dimension, that is a change of the standard deviation by a factor of 20."""


@dataclass(frozen=True)
class History:
    """What a run leaves: a row of metrics for each iteration, its evaluations in order, and the final one where there was one.

    ``goal`` is the return that counts as solved, where it is known; ``action_dims`` the number of continuous actions, 0 where they
    are discrete.
    """

    rows: Rows
    evaluations: Sequence[Point] = ()
    final: Point | None = None
    goal: float | None = None
    action_dims: int = 0

    @property
    def reached_goal(self) -> bool:
        return self.goal is not None and self.final is not None and self.final.mean >= self.goal

    @property
    def learned(self) -> bool:
        """Whether the policy is clearly better than at the beginning, by evaluations or in training, and not far below the best."""
        if self.final is None or not self.evaluations or far_below_best(self):
            return False
        first = self.evaluations[0]
        return self.final.mean - first.mean > STANDARD_ERRORS * standard_error(first, self.final) or self.rose

    @property
    def rose(self) -> bool:
        """Whether training did clearly better in its last iterations than in its first."""
        name = next((name for name in MEASURES if any(name in row for row in self.rows)), MEASURES[0])
        values = self.values(name)
        early, late = values[: max(MIN_ITERATIONS, len(values) // 20)], self.end(name)
        if len(values) < 2 * MIN_ITERATIONS:
            return False
        error = math.sqrt(statistics.variance(early) / len(early) + statistics.variance(late) / len(late))
        return statistics.mean(late) - statistics.mean(early) > STANDARD_ERRORS / 2 * error  # the first iterations already rise

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if row.get(name) is not None]

    def end(self, name: str) -> list[float]:
        """The same in the last of them."""
        values = self.values(name)
        return values[-max(MIN_ITERATIONS, math.ceil(LAST * len(values))) :]


def warnings_of(history: History) -> list[str]:
    """One sentence for each thing that went wrong; none where a run went well."""
    checks: tuple[Callable[[History], str | None], ...] = (far_below_best, kl_ran_away, entropy_ran_away, groups_died, nothing_accepted)
    said = [words for check in checks if (words := check(history)) is not None]
    return said or [words for words in [nothing_learned(history)] if words is not None]


def standard_error(*points: Point) -> float:
    """Of the difference of the means."""
    return math.sqrt(sum(point.std**2 / point.episodes for point in points))


def far_below_best(history: History) -> str | None:
    final, goal = history.final, history.goal
    if final is None or not history.evaluations or history.reached_goal:
        return None
    best, lowest = (choose(history.evaluations, key=lambda point: point.mean) for choose in (max, min))
    gained, lost = best.mean - lowest.mean, best.mean - final.mean
    if min(best.episodes, final.episodes) < MIN_ITERATIONS or (goal is not None and gained < LOST * (goal - lowest.mean)):
        return None  # too little to tell
    if lost <= max(LOST * gained, STANDARD_ERRORS * standard_error(best, final)):
        return None
    seen = f"the final policy has {final.mean:.4g}, far below the {best.mean:.4g}"
    seen += f" after {best.total_steps:,} steps, which --policy best takes" if best.total_steps else " before training"
    wanted = "" if goal is None else f" (the goal is {goal:g})"
    return f"{seen}{wanted}; try a smaller --learning-rate or a decreasing --schedule"


def kl_ran_away(history: History) -> str | None:
    values = [kl for row in history.rows if (kl := kl_of(row)) is not None]
    large = [kl for kl in values if not kl <= LARGE_KL]
    if len(large) < max(3, OFTEN * len(values)):
        return None
    seen = f"an update moved the policy by more than {LARGE_KL:g} nats of KL in {len(large):,} of {len(values):,} iterations"
    seen += f" (up to {max(large):.3g}; 0.01 to 0.05 is usual): the data no longer speaks of such a policy"
    return f"{seen}; try a smaller --learning-rate, fewer epochs or --target-kl 0.03"


def kl_of(row: Mapping[str, float]) -> float | None:
    """KL of the update in a row; ``kl`` is that of a natural-gradient step where it has an improvement, else one to a reference."""
    return row["kl"] if "improvement" in row and "kl" in row else row.get("approx_kl")


def entropy_ran_away(history: History) -> str | None:
    values = history.values("entropy")
    if len(values) < 2 * MIN_ITERATIONS or history.reached_goal:
        return None
    start, late = max(values[:MIN_ITERATIONS]), statistics.median(history.end("entropy"))
    if history.action_dims:
        change = (late - start) / history.action_dims
        if change > NATS:
            seen = f"the entropy of the actions rose from {start:.2f} to {late:.2f}, so they are noise"
            return f"{seen}; try a smaller --entropy-coef or --learning-rate, or --distribution squashed"
        if change < -NATS and not history.learned:
            seen = f"the entropy of the actions fell from {start:.2f} to {late:.2f}: the policy hardly varies them any more"
            return f"{seen} and the return is no better for it; try a larger --entropy-coef or a smaller --learning-rate"
        return None
    if start <= 0 or late > COLLAPSED * start or history.learned:
        return None
    seen = f"the entropy fell from {start:.3g} to {late:.2g}, so the policy does the same whatever happens and finds nothing new"
    return f"{seen}, and the return is no better for it; try a smaller --learning-rate or a larger --entropy-coef"


def in_vain(history: History, name: str) -> list[float]:
    """A metric in the last iterations of a run that neither reached its goal nor learned; empty of any other, or of too short a one."""
    late = history.end(name)
    return [] if len(late) < MIN_ITERATIONS or history.reached_goal or history.learned else late


def groups_died(history: History) -> str | None:
    late = in_vain(history, "dead_groups")
    if min(late, default=0.0) < 1.0:
        return None
    seen = f"in the last {len(late):,} iterations the members of every group had the same score, so their advantages are all 0"
    hint = "try a larger --group-size, a reward with more levels, and for texts easier tasks or a higher --temperature"
    return f"{seen} and nothing is learned; {hint}"


def nothing_accepted(history: History) -> str | None:
    late = in_vain(history, "accepted")
    if max(late, default=1.0) > 0.0:
        return None
    seen = f"the trust region accepted no step in the last {len(late):,} iterations, so the policy stood still"
    return f"{seen}; try a larger --max-kl, more --damping, more --num-cg-steps or a larger batch"


def nothing_learned(history: History) -> str | None:
    """A long run that knows its goal has come no nearer to it, neither in its evaluations nor in training, and nothing else says why."""
    final, goal, (steps, iterations) = history.final, history.goal, LONG
    if final is None or goal is None or not history.evaluations or history.reached_goal or history.learned:
        return None
    first = history.evaluations[0]
    if final.total_steps < steps or len(history.rows) < iterations or final.mean - first.mean >= LOST * (goal - first.mean):
        return None
    early = f"after {first.total_steps:,} steps" if first.total_steps else "before training"
    seen = f"nothing was learned in {final.total_steps:,} steps: the final policy has {final.mean:.4g}, no better than the {first.mean:.4g}"
    hint = "try a smaller --learning-rate, a larger --entropy-coef or more steps"
    return f"{seen} {early}, and training ended as it had begun (the goal is {goal:g}); {hint}"
