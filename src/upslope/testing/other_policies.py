"""The checks of an estimator that bring in a second policy: one that acted, one to stay near to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from upslope.testing import probes
from upslope.testing.contract import EXACT, factor, same
from upslope.testing.mistakes import of_another_policy, of_several_ratios, target
from upslope.testing.probes import probe, rows
from upslope.testing.stages import Case, Found

SEVERAL = "several steps of another policy (per-step ratio, past ratio missing, later ratios missing)"
NEARBY, FAR = 1e-4, 0.5
"""How far the log-probabilities of the policy that acted are from the policy's: so near that no clip acts, and far."""


def another_policy(case: Case, form: str | None) -> tuple[list[Found], list[str], list[str]]:
    """Steps that another policy took: findings, what could not be looked at, and what does not apply."""
    small, large = reaction(case, 0.5), reaction(case, 100.0)
    if large == 0.0:
        return [*one_decision(case), *clip_side(case)], [], [f"{SEVERAL}: its ratio is clipped, it is judged on steps of a policy nearby"]
    if small is not None and large is not None and abs(small - 0.5) < 1e-3 and large < 99.0:
        return (
            [("importance weights cut", f"a ratio of 100 weighs {large:.3g}")],
            [SEVERAL],
            [],
        )
    found = [*one_decision(case), *clip_side(case)]
    if found or form is None:
        return found, [SEVERAL], []
    return list(several_decisions(case, form)), [], []


def reaction(case: Case, ratio: float) -> float | None:
    """How much more a good action counts at this ratio than at 1; None where it never counts."""
    before, after = (float(moved(case, (x, 1.0))[0]) for x in (1.0, ratio))
    return after / before if before > 0 else None


def one_decision(case: Case) -> Iterator[Found]:
    """One decision that another policy took; near enough for no clip to act."""
    p = probe(probes.arms, case.gamma, drift=NEARBY)
    mean = case.mean(p, case.size)
    if (c := factor(mean, target(p, "undiscounted"))) is None or c < 0:
        for mistake, prediction in of_another_policy(p):
            if (c := factor(mean, prediction)) is not None and c > 0:
                yield mistake, "steps of another policy"
                break
        else:
            if c is None:
                yield "biased by no known mistake", "on steps of another policy"


def several_decisions(case: Case, form: str) -> Iterator[Found]:
    """Episodes of several decisions that quite another policy took."""
    problem = probes.scored if case.group and case.scale_free else probes.graded if case.group else probes.steps
    p = probe(problem, case.gamma, drift=FAR)
    mean = case.mean(p, case.size)
    if (c := factor(mean, target(probe(problem, case.gamma), form), case.tolerance)) is None or c < 0:
        yield of_several_ratios(p, form, mean, case.tolerance) or "biased by no known mistake", "on several steps of another policy"


def moved(case: Case, ratios: tuple[float, float]) -> Tensor:
    """How much a good and a bad decision are moved when their ratios are these, ``[2]``."""
    p = probe(probes.choices, 1.0)
    sample = rows(p.rollout, (0, 2), case.group)
    assert sample.value is not None
    sample = replace(sample, value=torch.zeros_like(sample.value), next_value=torch.zeros_like(sample.value))
    shift = torch.tensor(ratios, dtype=torch.float64).log().view_as(sample.behavior_log_prob)
    found = case.plain(p.policy, replace(sample, behavior_log_prob=sample.behavior_log_prob - shift))
    return found.gradient.view(-1, 2).norm(dim=-1)[:2]


def clip_side(case: Case) -> Iterator[Found]:
    """A good action that has become rarer, a bad one that has become more frequent: both must still be moved."""
    if bool((moved(case, (1.0, 1.0)) == 0).any()):
        return
    if bool((moved(case, (0.5, 2.0)) == 0).any()):
        yield "clip on the wrong side", "no gradient for A > 0 at ratio 0.5, or for A < 0 at ratio 2"


def reference(case: Case) -> Iterator[Found]:
    """Another reference policy that moves the objective's value has to move its gradient, too."""
    p = case.main
    sample = rows(p.rollout, (0, 1, 2), case.group)
    assert sample.reference_log_prob is not None
    noise = torch.cos(torch.arange(sample.reward.numel(), dtype=torch.float64)).view_as(sample.reward)
    near, far = (case.full(p.policy, replace(sample, reference_log_prob=sample.reference_log_prob - x * noise)) for x in (0.1, 0.4))
    moves = near.value is not None and far.value is not None and abs(near.value - far.value) > EXACT
    if moves and same(near.gradient, far.gradient):
        yield "k1 in the objective", "the reference moves the objective and not its gradient"
