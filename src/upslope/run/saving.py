"""When the policy is saved while a run goes on, and how far the saved one is."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Mapping
from typing import Any

SAVE_EVERY = 10.0
"""Seconds of finished iterations that a killed process may lose."""
SAVE_SHARE = 0.05
"""Share of the time that saving may take; a policy whose saving is dear is saved less often than every ``every`` seconds."""


class SavePace:
    """Saved after the first iteration, then so that at most ``max(every, cost / share)`` seconds are lost.

    The cost is that of the last save. What is lost is counted in finished iterations: one is saved if another as long as it would be
    too late.
    """

    def __init__(self, share: float = SAVE_SHARE, every: float = SAVE_EVERY) -> None:
        self.share, self.every = share, every
        self.saved_at, self.cost, self.seen_at = -math.inf, 0.0, time.perf_counter()

    def due(self) -> bool:
        """Whether to save now; asked once after each iteration."""
        now = time.perf_counter()
        iteration, self.seen_at = now - self.seen_at, now
        return now + iteration - self.saved_at > max(self.every, self.cost / self.share)

    @contextlib.contextmanager
    def saving(self) -> Generator[None]:
        """Around a save, which it times."""
        started = time.perf_counter()
        yield
        self.saved_at = self.seen_at = time.perf_counter()
        self.cost = self.saved_at - started


def progress_words(progress: Mapping[str, int], summary: Mapping[str, Any] | None) -> str:
    """``policy after 12,288 of 100,000 steps (the run was interrupted)``."""
    unit = "iterations" if "planned_iterations" in progress else "steps"
    done, planned = progress["iteration" if unit == "iterations" else "total_steps"], progress.get(f"planned_{unit}")
    status = "killed, or is still going on" if summary is None else str(summary.get("status"))
    how = "the run failed" if status == "failed" else f"the run was {status}"
    if progress["iteration"] == 0 and progress.get("warm_start_iterations"):
        return f"policy after {progress['warm_start_iterations']:,} steps of its warm start ({how} before the first iteration ended)"
    if progress["iteration"] == 0:
        return f"untrained policy ({how} before the first iteration ended)"
    return f"policy after {done:,}{'' if planned is None else f' of {planned:,}'} {unit}{'' if status == 'finished' else f' ({how})'}"
