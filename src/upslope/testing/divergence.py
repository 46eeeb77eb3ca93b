"""The check of an estimator that keeps the policy near a reference: of which divergence is its KL term the gradient?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from upslope import functional as F
from upslope.testing import probes
from upslope.testing.contract import factor, same
from upslope.testing.probes import Probe, probe, rows
from upslope.testing.stages import Case, Found

KEPT = ("kl_coef", "reference_kl_coef")
SCALED = "KL in a reward that is scaled (k2 or k3 in the reward, k3 with swapped arguments)"
NOTHING = 1e-12
"""Length of a gradient that is 0."""


def kl_term(case: Case) -> tuple[list[Found], list[str]]:
    """What the KL term adds to the expectation, one decision in three states: findings, and what could not be looked at.

    Of whole episodes the estimates by step and by sequence differ (FORMULAS section 10); of one decision they do not.
    """
    run = case.full.plain(KEPT)
    plain, unlike = (with_reference(case.gamma, drift) for drift in (0.0, 0.6))
    paid = [pays(p, scale) for scale in (1.0, 3.0) for p in (plain, unlike)]
    near, far = (run(p.policy, rows(p.rollout, (0, 1, 2, 4), case.group)).gradient for p in paid[:2])
    if same(near, far):
        return [], []
    size = 1 if case.independent and not case.in_large_batch else 2
    before, after, before_more, after_more = (case.sign * run.moments(p, size).mean for p in paid)
    term = after - before
    # where the reward that it stands in is divided by a spread, it does not simply add
    if float(term.norm()) <= NOTHING or not same(term, after_more - before_more):
        return [], [SCALED]
    return list(named(unlike, term)), []


def named(p: Probe, term: Tensor) -> Iterator[Found]:
    """The mistake behind a KL term that is the gradient of no KL, or that pushes away from the reference."""
    table = next(p.policy.preferences.parameters())
    other = reference_of(p, 0.6)
    start = torch.as_tensor(p.mdp.start, dtype=torch.float64)[: len(table)]

    def gradient_of(kl: Tensor) -> Tensor:
        (found,) = torch.autograd.grad((start * kl).sum(), table)
        return found.reshape(-1)

    for kl in (F.categorical_kl(table, other), F.categorical_kl(other, table)):
        if (c := factor(-term, gradient_of(kl))) is not None:
            if c < 0:
                yield "wrong sign", "the KL term pushes away from the reference"
            return
    r = p.rollout
    assert r.reference_log_prob is not None
    gap = r.behavior_log_prob - r.reference_log_prob
    k2, k3, swapped = 0.5 * gap.square(), torch.expm1(-gap) + gap, torch.expm1(gap) - gap
    # the score-function gradient of each in the reward, and in the objective the slope of k3 with its arguments swapped
    for mistake, credit in (
        *(("k2 or k3 in the reward", estimate) for estimate in (k2, k3, swapped)),
        ("k3 with swapped arguments", torch.expm1(gap)),
    ):
        c = factor(-term, p.expectation(credit))
        if c is not None and c > 0:
            yield mistake, "the KL term's expectation is exactly that mistake's"
            return
    yield "biased by no known mistake", "the KL term is the gradient of no KL"


def reference_of(p: Probe, drift: float) -> Tensor:
    """Preferences of the reference policy ``[S, A]``; at a drift of 0 the policy's own."""
    table = next(p.policy.preferences.parameters()).detach()
    return table + drift * torch.cos(2.3 * torch.arange(table.numel(), dtype=torch.float64) + 0.5).view_as(table)


def with_reference(gamma: float, drift: float) -> Probe:
    """One decision in one of three states, and a reference that far away."""
    p = probe(probes.three, gamma)
    log_prob = F.categorical_log_prob(reference_of(p, drift)[p.rollout.inputs["observation"]], p.rollout.inputs["action"])
    return replace(p, rollout=replace(p.rollout, reference_log_prob=log_prob))


def pays(p: Probe, scale: float) -> Probe:
    """The same with a reward that depends on state and action."""
    r = p.rollout
    noise = torch.sin(1.3 * torch.arange(r.reward.numel(), dtype=torch.float64) + 1.0).view_as(r.reward)
    return replace(p, rollout=replace(r, reward=(scale * noise).where(r.mask, 0.0)))
