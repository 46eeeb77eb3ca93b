"""When the policy is saved while a run goes on, and how far the saved one is."""

import contextlib
import math
import time
from collections.abc import Generator, Mapping
from typing import Any

SAVE_EVERY = 8.0
"""Seconds of finished iterations that a killed process may lose: ten, with two in hand for an iteration that is longer than any before."""
SAVE_SHARE = 0.01
"""Share of the time that saving may take; a policy whose saving is dear is saved less often than every ``every`` seconds."""
CHECKPOINT_SHARE = 0.01
"""The same of checkpoints."""


class SavePace:
    """Saved after the first iteration, then so that at most ``max(every, cost / share)`` seconds are lost.

    The cost is that of the last save. What is saved is as old as its save's beginning, until the next one has ended: one iteration is
    saved if, behind another as long as the longest so far, a save would end too late.
    """

    def __init__(self, share: float = SAVE_SHARE, every: float = SAVE_EVERY) -> None:
        self.share, self.every = share, every
        self.saved_at, self.cost, self.longest, self.seen_at = -math.inf, 0.0, 0.0, time.perf_counter()

    def due(self) -> bool:
        """Whether to save now; asked once after each iteration."""
        now = time.perf_counter()
        iteration, age, self.seen_at = now - self.seen_at, now - self.saved_at, now
        self.longest = max(self.longest, iteration) if age < math.inf else 0.0  # what comes before the first one, comes once
        return age + self.longest + self.cost > self.every and age + iteration > self.cost / self.share

    @contextlib.contextmanager
    def saving(self) -> Generator[None]:
        self.saved_at = time.perf_counter()
        yield
        self.seen_at = time.perf_counter()
        self.cost = self.seen_at - self.saved_at


def progress_line(progress: Mapping[str, int], summary: Mapping[str, Any] | None, last: Mapping[str, Any]) -> str:
    """``policy after 12,288 of 100,000 steps (the run was interrupted)``; ``last`` is the run's last row of metrics."""
    unit = "iterations" if "planned_iterations" in progress else "steps"
    counted = "iteration" if unit == "iterations" else "total_steps"
    done, planned, reached = progress[counted], progress.get(f"planned_{unit}"), last.get(counted, 0)
    where = f" after {reached:,.0f}" if reached > done > 0 else ""
    status = f"killed{where}, or is still going on" if summary is None else str(summary.get("status"))
    how = "the run failed" if status == "failed" else f"the run was {status}"
    if progress["iteration"] == 0 and progress.get("warm_start_iterations"):
        return f"policy after {progress['warm_start_iterations']:,} steps of its warm start ({how} before the first iteration ended)"
    if progress["iteration"] == 0:
        return f"untrained policy ({how} before the first iteration ended)"
    return f"policy after {done:,}{'' if planned is None else f' of {planned:,}'} {unit}{'' if status == 'finished' else f' ({how})'}"
