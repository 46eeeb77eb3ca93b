"""A run folder as a :class:`~upslope.run.history.History`, and what its rules find there. Nothing in the folder is run or imported."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from upslope.run.evaluations import Point
from upslope.run.health import Finding, findings, flat, not_checked
from upslope.run.history import History
from upslope.run.load import Run, read_json

MEANS = {"control": ("evaluation_return", "return_mean"), "language": ("evaluation_accuracy", "accuracy")}
"""What policies are compared by, in a row and in the summary."""
REWARDS = ("evaluation_reward", "reward_mean")
"""The same of a language task whose answers are not right or wrong."""
OF_EVALUATION = {"evaluation_std": 0.0, "evaluation_episodes": 20.0}
"""What a row says of its evaluation, and what stands for it in runs from before it did."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a run, and the rules that had nothing to look at."""

    run: Run
    history: History
    found: list[Finding]
    unchecked: list[str]

    def words(self) -> list[str]:
        """The run in a line, then two for each finding."""
        summary, rows = self.run.summary, self.history.rows
        how = "no summary: it is still running, or was killed" if summary is None else summary.get("status", "finished")
        steps = f"{int(rows[-1].get('total_steps', 0)):,} steps in {len(rows):,} iterations" if rows else "no iteration"
        lines = [f"{self.run.path}: {self.run.algorithm} on {self.run.env_id}, {steps} ({how})"]
        for finding in self.found:
            lines += [f"  {finding.rule}: {finding.seen}", f"    {finding.change}"]
        looked = "nothing to complain of" if not self.found else "1 finding" if len(self.found) == 1 else f"{len(self.found)} findings"
        return [*lines, f"{looked}; not checked, for want of a metric: {', '.join(self.unchecked) or 'none'}"]

    def as_json(self) -> dict[str, Any]:
        return {"run": str(self.run.path), "findings": [asdict(finding) for finding in self.found], "not_checked": self.unchecked}


def diagnose(run: Run) -> Diagnosis:
    """Judge a run folder by the rules that the run itself is judged by.

    Raises:
        UsageError: the folder is damaged.
    """
    history = history_of(run)
    return Diagnosis(run, history, findings(history, live=run.summary is None), not_checked(history))


def history_of(run: Run) -> History:
    rows, summary = run.metrics(), run.summary or {}
    in_row, in_summary = MEANS[run.world]
    if run.world == "language" and summary.get(in_summary) is None and not any(in_row in row for row in rows):
        in_row, in_summary = REWARDS
    points = [point(row, row[in_row], **OF_EVALUATION | row) for row in rows if row.get(in_row) is not None]
    final, mean = points[-1] if points and not summary else None, summary.get(in_summary)
    if mean is not None:
        final = Point(int(summary["total_steps"]), mean, std_of(run, mean), int(summary["episodes"]))
        points.append(final)
    before = summary.get("accuracy_before")
    start = [] if before is None else [Point(0, before, std_of(run, before), int(run.config["settings"].get("eval_episodes", 256)))]
    error = summary.get("error") if summary.get("status") == "failed" else None
    return History(rows, [*start, *points], final, goal_of(run, final), action_dims(run), flat(run.config), error)


def point(row: dict[str, Any], mean: float, *, evaluation_std: float, evaluation_episodes: float, **_: Any) -> Point:
    return Point(int(row.get("total_steps", 0)), mean, evaluation_std, int(evaluation_episodes))


def std_of(run: Run, mean: float) -> float:
    """Of the final evaluation's episodes."""
    if run.world == "language":
        return math.sqrt(max(mean * (1 - mean), 0.0))
    return float((run.summary or {}).get("return_std") or 0.0)


def goal_of(run: Run, final: Point | None) -> float | None:
    """From where on nobody minds that a policy has become certain, where that is known."""
    goal: float | None = run.config.get("goal")
    if (run.summary or {}).get("solved") and final is not None and goal is not None:  # as the evaluations that ended it have said
        return min(goal, final.mean)
    return goal


def action_dims(run: Run) -> int:
    """Continuous actions, 0 where they are discrete."""
    path = run.path / "policy.json"
    described = read_json(path) if run.world == "control" and path.exists() else {}
    space: dict[str, Any] = described.get("action_space") or {}
    return math.prod(space.get("shape") or ()) if space.get("type") == "Box" else 0
