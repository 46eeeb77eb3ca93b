"""A run folder as a :class:`~upslope.run.history.History`, and what its rules find there. Nothing in the folder is run or imported."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from upslope.errors import UsageError, describe_error
from upslope.run.evaluations import Point
from upslope.run.health import Finding, findings, not_checked
from upslope.run.history import History
from upslope.run.load import Run, damaged, read_json
from upslope.run.report import plural
from upslope.run.settings import flat_config

MEANS = {"control": ("evaluation_return", "return_mean"), "language": ("evaluation_accuracy", "accuracy")}
"""What policies are compared by, in a row and in the summary."""
REWARDS = ("evaluation_reward", "reward_mean")
"""The same of a language task whose answers are not right or wrong."""
OF_EVALUATION = {"evaluation_std": math.inf, "evaluation_episodes": 20.0}
"""What a row says of its evaluation, and what stands for it in runs from before it did."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a run, and the rules that had nothing to look at."""

    run: Run
    history: History
    found: list[Finding]
    unchecked: list[str]

    def lines(self) -> list[str]:
        """The run in a line, then two for each finding."""
        summary, rows = self.run.summary, self.history.rows
        how = "no summary: it is still running, or was killed" if summary is None else summary.get("status", "finished")
        last: dict[str, Any] = dict(summary or (rows[-1] if rows else {}))
        last.setdefault("iterations", last.get("iteration"))
        steps = f"{int(last['total_steps']):,} steps in {int(last['iterations']):,} iterations" if last else "no iteration"
        lines = [f"{self.run.path}: {self.run.algorithm} on {self.run.env_id}, {steps} ({how})"]
        for finding in self.found:
            lines += [f"  {finding.rule}: {finding.seen}", f"    {finding.change}"]
        looked = plural(len(self.found), "finding") if self.found else "nothing to complain of"
        return [*lines, f"{looked}; not checked, for want of numbers: {', '.join(self.unchecked) or 'none'}"]

    def as_json(self) -> dict[str, Any]:
        return {"run": str(self.run.path), "findings": [asdict(finding) for finding in self.found], "not_checked": self.unchecked}


def diagnose(run: Run) -> Diagnosis:
    """Judge a run folder by the rules that the run itself is judged by.

    Raises:
        UsageError: the folder is damaged.
    """
    try:
        history = history_of(run)
        diagnosis = Diagnosis(run, history, findings(history), not_checked(history))
        diagnosis.lines()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise damaged(run.path, f"its numbers are not those of a run ({describe_error(error)})") from error
    return diagnosis


def history_of(run: Run) -> History:
    rows, summary = run.metrics(), run.summary or {}
    in_row, in_summary = MEANS[run.world]
    if run.world == "language" and summary.get(in_summary) is None and not any(in_row in row for row in rows):
        in_row, in_summary = REWARDS
    points = [point(row, row[in_row]) for row in rows if row.get(in_row) is not None]
    final, mean = points[-1] if points else None, summary.get(in_summary)
    if mean is not None:
        final = Point(int(summary["total_steps"]), mean, std_of(run, mean), int(summary["episodes"]))
        points.append(final)
    before = summary.get("accuracy_before")
    start = [] if before is None else [Point(0, before, std_of(run, before), int(run.config["settings"].get("eval_episodes", 256)))]
    error = summary.get("error") if summary.get("status") == "failed" else None
    return History(rows, [*start, *points], final, goal_of(run, final), action_dims(run), flat_config(run.config), error)


def point(row: dict[str, Any], mean: float) -> Point:
    said = OF_EVALUATION | {name: row[name] for name in OF_EVALUATION if row.get(name) is not None}
    return Point(int(row["total_steps"]), mean, said["evaluation_std"], int(said["evaluation_episodes"]))


def std_of(run: Run, mean: float) -> float:
    """Of the final evaluation's episodes."""
    if run.world == "language":  # of rewards it is not known
        return math.inf if (run.summary or {}).get("accuracy") is None else math.sqrt(mean * (1 - mean))
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
