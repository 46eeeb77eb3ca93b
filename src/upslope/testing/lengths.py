"""The check of an estimator on rows that differ in length: how does it average their steps?"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope import functional as F
from upslope.testing import probes
from upslope.testing.contract import factor, same
from upslope.testing.mistakes import by_length, target
from upslope.testing.probes import Probe, probe, rows
from upslope.testing.stages import Case, Found, separately


def lengths(case: Case, form: str) -> tuple[list[Found], list[str]]:
    """Rows of one step and of two: only a constant divisor leaves ∇J as it is."""
    p = probe(probes.ragged, case.gamma)
    average = averaged_rows(case, p, form) if case.independent else averaged_group(case, p, form)
    if average == "constant":
        return [], []
    if average == "sequences":
        return [("length bias", "rows of 1 and 2 steps weigh the same")], []
    if average == "steps":
        return [], ["averaged over the batch's steps: where lengths differ a ratio, with a bias of the order 1 / batch"]
    return [("biased by no known mistake", "where episodes differ in length")], []


def averaged_rows(case: Case, p: Probe, form: str) -> F.AverageOver | None:
    """Of rows that do not see each other: how are they weighed, alone and in pairs, so that the expectation is what it ought to be?"""
    length = p.rollout.mask.sum(-1, keepdim=True)
    single = torch.stack([case.plain(p.policy, rows(p.rollout, (i,), False)).gradient for i in range(len(length))])
    pairs = [torch.tensor(pair) for pair in ((0, 1), (1, 2))]
    both = [case.plain(p.policy, rows(p.rollout, pair.tolist(), False)).gradient for pair in pairs]

    def right(x: Tensor) -> bool:
        c = factor(case.sign * p.probability @ x, target(p, form), case.tolerance)
        return c is not None and c > 0

    if case.in_large_batch:  # every batch has as many steps
        return "constant" if right(single) else "sequences" if right(length * single) else None
    if right(single):
        return "constant" if all(separately(y, single[pair].sum(0)) for y, pair in zip(both, pairs, strict=True)) else None
    if not right(length * single):
        return None
    by_steps = [(length * single)[pair].sum(0) / length[pair].sum() for pair in pairs]
    return "steps" if all(map(same, both, by_steps)) else "sequences"


def averaged_group(case: Case, p: Probe, form: str) -> F.AverageOver | None:
    """Of rows that are compared with each other: which average has this expectation?"""
    mean = case.mean(p, 2)
    if (c := factor(mean, target(p, form))) is not None and c > 0:
        return "constant"
    for average in ("sequences", "steps"):
        c = factor(mean, by_length(p, average), case.tolerance)
        if c is not None and c > 0:
            return average
    return None
