"""The checks of an estimator's expectation: of what is it the gradient, and which known mistake explains it if of nothing?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from upslope.testing import probes
from upslope.testing.bare import Bonus
from upslope.testing.case import Case, Log
from upslope.testing.contract import EXACT, factor, points_along
from upslope.testing.mistakes import FORMS, explained, on_truncated_episodes, target, weights
from upslope.testing.probes import Probe, probe


def main_expectation(case: Case, mean: Tensor) -> tuple[Case, list[tuple[str, str]]]:
    """The case with what its expectation on whole episodes of equal length is the gradient of, and what is wrong with that."""
    for form in FORMS:
        c = factor(mean, target(case.main, form), case.tolerance)
        if c is None:
            continue
        found = [("wrong sign", f"expectation {c:.4g} × the gradient")] if c < 0 else []
        if form == "unweighted":
            found.append(("missing discount weight", f"gamma = {case.gamma:g}"))
        return replace(case, form=form, sign=-1.0 if c < 0 else 1.0), found
    if (mistake := explanation(case, mean)) is not None:
        return case, [(mistake, "its expectation is exactly that mistake's")]
    return case, [("biased by no known mistake", "")]


def explanation(case: Case, mean: Tensor) -> str | None:
    """The mistake behind a biased expectation. With exact values several look alike, so the critic is made wrong first."""
    mistake = explained(case.main, mean, case.tolerance)
    if case.uses_critic and not case.full.is_online:
        wrong = misjudged(case.main)
        mistake = explained(wrong, case.mean(wrong), case.tolerance) or mistake
    if mistake is not None:
        return mistake
    largest = max(float(case.plain.on(case.main, index).norm()) for index, _ in list(case.main.batches(case.size))[:4])
    return "baseline depends on the action" if float(mean.norm()) <= EXACT * largest else None


def misjudged(p: Probe) -> Probe:
    """The same recordings with a critic that is off by another amount in each state."""
    off = 0.7 * torch.cos(1.9 * torch.arange(p.mdp.num_observations, dtype=torch.float64))
    seen = p.rollout.inputs["observation"]
    after = torch.cat([seen[:, 1:], seen[:, -1:]], -1)  # nobody may ask for what follows the last step: it has terminated
    assert p.rollout.value is not None and p.rollout.next_value is not None
    return replace(p, rollout=replace(p.rollout, value=p.rollout.value + off[seen], next_value=p.rollout.next_value + off[after]))


def bonus_of_the_action(case: Case, log: Log) -> None:
    """A bonus of −log π of the action taken moves every estimate, and its expectation by nothing."""
    run, p = Bonus(case.full.plain(("entropy_coef",))), case.main
    left = run.moments(p, case.size)
    if float(left.mean.norm()) > EXACT * left.variance**0.5 or left.variance < EXACT**2:
        return
    index = range(1, 1 + case.size)
    found = run.on(p, index)
    for form in FORMS[:2]:
        c = factor(found, -(weights(p, form)[1].unsqueeze(-1) * p.score)[list(index)].sum((0, 1)))
        if c is not None and c > 0:
            return log.add("entropy of the action taken", f"with no reward at all it is −{c:.3g} ∇log π, and 0 in expectation")


def cut_short(case: Case, log: Log) -> None:
    assert case.form is not None
    p = probe(probes.TRUNCATED, case.gamma)
    mean = case.mean(p)
    if not points_along(mean, target(p, case.form), case.tolerance):
        mistake = on_truncated_episodes(p, case.form, mean, case.tolerance)
        log.add(mistake or "biased by no known mistake", "where a recording stops before its episode")
