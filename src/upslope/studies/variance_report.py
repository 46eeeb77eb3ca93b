"""What ``upslope variance`` found: a table for the terminal, ``variance.png`` and ``variance.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upslope.run.drawing import Dots, draw_dots, save
from upslope.run.folder import RunFolder, default_path, versions
from upslope.run.report import plural
from upslope.studies.variance import Measurement

MIN_ESS = 0.2
"""Share of the steps below which importance weights are too uneven to judge by a bootstrap: what it never saw it cannot resample."""


def mark(row: Measurement) -> str:
    """What to think of a bias: unknown (?) where the weights rest on few of the samples, or there (*)."""
    return " ?" if row.effective_sample_size is not None and row.effective_sample_size < MIN_ESS else " *" if row.biased else ""


def cells(row: Measurement) -> tuple[str, ...]:
    """A row of the table but for what the estimator is unbiased for."""
    (low, high), (from_, to), size = row.variance_interval, row.cosine_interval, row.effective_sample_size
    return (
        row.estimator,
        f"{row.variance:.4g} ({low:.4g} to {high:.4g})",
        f"{row.relative_variance:.3g}",
        f"{row.bias:.3g} ({row.bias_by_chance:.3g}){mark(row)}",
        f"{f'{row.cosine:.3f}' if row.direction_known else '?'} ({from_:.3f} to {to:.3f})",
        "" if size is None else f"{size:.1%}",
        f"{1000 * row.seconds:.1f}",
    )


@dataclass(frozen=True)
class Comparison:
    """The table: a row for each estimator, and what they were compared with."""

    run: Any
    rows: tuple[Measurement, ...]
    targets: tuple[str, ...]  # for whose gradient each is unbiased
    reference: str
    reference_length: float
    num_steps: int
    seconds: float

    def text(self) -> str:
        run = self.run
        taker = f", weighted ones on samples of {run.behavior}" if run.behavior else ""
        lines = [
            f"{run.env_id}, {run.policy} policy, γ = {run.gamma:g}: {plural(len(self.rows), 'estimator')} on the same "
            f"{run.samples:,} episodes ({self.num_steps:,} steps{taker})",
            f"reference: gradient of the {run.objective} J, {self.reference}, length {self.reference_length:.4g}",
            "",
        ]
        table = [("estimator", "variance (95 %)", "relative", "bias (by chance)", "cosine (95 %)", "ESS", "ms", "unbiased for")]
        table += [(*cells(row), target) for row, target in zip(self.rows, self.targets, strict=True)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        lines += [
            "",
            "variance: of one episode, trace of the covariance. relative: over the squared length of the mean: so many episodes hold as",
            "much noise as signal. bias: distance from the reference; by chance: 1 % of unbiased ones would show more; *: this one does.",
        ]
        if not all(row.direction_known for row in self.rows):
            lines.append("cosine ?: so few samples do not tell whether the gradient points along the reference or against it; take more.")
        if any("?" in mark(row) for row in self.rows):
            seen = f"at an ESS below {MIN_ESS:.0%} the episodes that count are hardly among the samples"
            lines.append(f"bias ?: {seen}: variance is more, bias unknown.")
        return "\n".join(lines)

    def fields(self) -> dict[str, Any]:
        rows = [
            asdict(row) | {"biased": row.biased, "direction_known": row.direction_known, "unbiased_for": target}
            for row, target in zip(self.rows, self.targets, strict=True)
        ]
        return {
            **asdict(self.run),
            "reference": self.reference,
            "reference_length": self.reference_length,
            "num_steps": self.num_steps,
            "rows": rows,
            "seconds": round(self.seconds, 3),
            "versions": versions(),
        }

    def write(self, out: Path | None) -> Path:
        """``variance.png`` and ``variance.json`` in ``out`` (none: ``runs/variance-TASK-SEED``); returns the folder."""
        names = [row.estimator for row in self.rows]
        variance = Dots("variance of one episode", [(row.variance, *row.variance_interval) for row in self.rows], logarithmic=True)
        relative = Dots("relative variance", [(x, x, x) for x in (row.relative_variance for row in self.rows)], logarithmic=True)
        bias = Dots("bias (line: by chance)", [(row.bias, 0.0, row.bias_by_chance) for row in self.rows])
        cosines = [(row.cosine if row.direction_known else math.nan, *row.cosine_interval) for row in self.rows]
        cosine = Dots("cosine with the reference", cosines)
        title = f"{self.run.env_id}, {self.run.policy} policy, {self.run.samples:,} episodes, γ = {self.run.gamma:g}"
        with RunFolder.create(out, default_path("variance", self.run.env_id, self.run.seed)) as folder:
            save(draw_dots(title, names, [variance, relative, bias, cosine]), folder.path / "variance.png")
            folder.write_json("variance.json", self.fields())
        return folder.path
