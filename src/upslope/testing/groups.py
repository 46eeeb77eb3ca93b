"""The checks of an estimator that compares the rows of a group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from upslope.testing import probes
from upslope.testing.contract import factor, same
from upslope.testing.mistakes import target
from upslope.testing.probes import probe, rows
from upslope.testing.stages import SCALED, Case, Found


def group_scale(case: Case) -> Iterator[Found]:
    """Three rows of one decision: averaged or added up, an estimate is 1 or 3 times ∇J; with the group's own mean, 2/3 of that."""
    if case.scale_free or case.independent:
        return
    arms = probe(probes.bandit, 1.0)
    c = factor(case.mean(arms, 3), target(arms, "undiscounted"))
    if c is not None and any(abs(1.5 * c - whole) < 1e-7 for whole in (1.0, 3.0)):
        yield "group mean without G/(G-1)", f"{c:.4g} × ∇J for G = 3"


def comparison(case: Case) -> Iterator[Found]:
    """Three rows of one decision in three states, with scores that are not evenly spaced: what each row is credited with can be read.

    It has to grow in proportion with the score, and what is subtracted is the group's mean, or nothing that the group decides.
    """
    p = probe(probes.three, 1.0)
    sample = rows(p.rollout, (0, 2, 4), True)
    chosen = 1.0 - p.policy.probabilities()[:3, 0].detach()

    def read(scores: Tensor) -> Tensor:
        gradient = case.plain(p.policy, replace(sample, reward=scores.view_as(sample.reward))).gradient
        return case.sign * gradient.view(-1, 2)[:3, 0] / chosen

    def baseline(scores: Tensor) -> tuple[float, bool]:
        credit = read(scores)
        slope = (credit[2] - credit[0]) / (scores[2] - scores[0])
        even = same(credit - credit[0], slope * (scores - scores[0]), SCALED)
        return float(scores[0] - credit[0] / slope), even and bool(slope > 0)

    scores, others = (torch.tensor(x, dtype=torch.float64) for x in ((0.0, 1.0, 3.0), (0.0, 1.0, 7.0)))
    first, even = baseline(scores)
    if not even:
        seen = ", ".join(f"{x:.3g}" for x in read(scores))
        yield "biased by no known mistake", f"rows with scores 0, 1, 3 are credited with {seen}: not in proportion"
    elif abs(first - float(scores.mean())) > 1e-3 and abs(first - baseline(others)[0]) > 1e-3:
        yield (
            "baseline depends on the action",
            f"from scores 0, 1, 3 it subtracts {first:.3g}, and their mean is {float(scores.mean()):.3g}",
        )
