"""The checks of an estimator that bring in a second policy: one that acted, or a reference to stay near to."""

from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from upslope import functional as F
from upslope.tabular import flat_gradient
from upslope.testing import probes
from upslope.testing.case import Case, Log
from upslope.testing.contract import EXACT, NARROW, clipped_on_the_wrong_side, factor, nearly_equal, norm_of, points_along
from upslope.testing.estimates import Estimator
from upslope.testing.mistakes import of_another_policy, of_several_ratios, target
from upslope.testing.probes import Probe, probe, recording_of, wave

SEVERAL = "several steps of another policy (per-step ratio, past ratio missing, later ratios missing)"
NEARBY, FAR = 1e-4, 0.5
"""How far the log-probabilities of the policy that acted are from the policy's: so near that no clip acts, and far."""
KEPT = ("kl_coef", "reference_kl_coef")
SCALED = "KL in a reward that is scaled (k2 or k3 in the reward, k3 with swapped arguments)"
NOTHING = 1e-12  # length of a gradient that is 0


def another_policy(case: Case, log: Log) -> None:
    small, large = reaction(case, 0.5), reaction(case, 100.0)
    if small is not None and large is not None and abs(small - 0.5) < 1e-3 and large != 0.0 and large < 99.0:
        log.not_checked.append(SEVERAL)
        return log.add("importance weights cut", f"a ratio of 100 weighs {large:.3g}")
    before = len(log.found)
    one_decision(case, log)
    clip_side(case, log)
    if large == 0.0:
        log.left_out.append(f"{SEVERAL}: its ratio is clipped, it is judged on steps of a policy nearby")
    elif len(log.found) > before or case.form is None:
        log.not_checked.append(SEVERAL)
    else:
        several_decisions(case, log)


def reaction(case: Case, ratio: float) -> float | None:
    """How much more a good action counts at this ratio than at 1; None where it never counts."""
    before, after = (float(moved(case, (x, 1.0))[0]) for x in (1.0, ratio))
    return after / before if before > 0 else None


def one_decision(case: Case, log: Log) -> None:
    """One decision that another policy took; near enough for no clip to act."""
    p = probe(probes.ARMS, case.gamma, drift=NEARBY)
    mean = case.mean(p)
    c = factor(mean, target(p, "undiscounted"))
    if c is not None and c > 0:
        return
    mistake = next((mistake for mistake, prediction in of_another_policy(p) if points_along(mean, prediction)), None)
    if mistake is not None or c is None:
        log.add(mistake or "biased by no known mistake", "steps of another policy" if mistake else "on steps of another policy")


def several_decisions(case: Case, log: Log) -> None:
    """Episodes of several decisions that quite another policy took."""
    assert case.form is not None
    problem = probes.SCORED if case.group and case.scale_free else probes.GRADED if case.group else probes.STEPS
    p = probe(problem, case.gamma, drift=FAR)
    mean = case.mean(p)
    if not points_along(mean, target(probe(problem, case.gamma), case.form), case.tolerance):
        mistake = of_several_ratios(p, case.form, mean, case.tolerance)
        log.add(mistake or "biased by no known mistake", "on several steps of another policy")


def moved(case: Case, ratios: tuple[float, float]) -> Tensor:
    """How much a good and a bad decision are moved when their ratios are these, ``[2]``."""
    p = probe(probes.CHOICES, 1.0)
    before = recording_of(p.rollout, (0, 2), case.group).behavior_log_prob
    shift, nothing = torch.tensor(ratios, dtype=torch.float64).log().view_as(before), torch.zeros_like(before)
    found = case.plain.on(p, (0, 2), value=nothing, next_value=nothing, behavior_log_prob=before - shift)
    return found.view(-1, 2).abs().amax(-1)[:2]


def clip_side(case: Case, log: Log) -> None:
    """A good action that has become rarer, a bad one that has become more frequent: both must still be moved."""
    if bool((moved(case, (1.0, 1.0)) == 0).any()):
        return

    def moves(case: Case, sign: float, ratio: float) -> bool:
        good, bad = moved(case, (ratio, 1.0) if sign > 0 else (1.0, ratio))
        return bool(good if sign > 0 else bad)

    given: Any = case.full.plain().given
    narrow = None
    if is_dataclass(given) and not isinstance(given, type) and getattr(given, "clip_range", None) is not None:
        narrow = partial(moves, replace(case, plain=Estimator(replace(given, clip_range=NARROW), case.gamma, case.group)))
    if (where := clipped_on_the_wrong_side(partial(moves, case), narrow)) is not None:
        log.add("clip on the wrong side", f"no gradient for {where}")


# --------------------------------------------------------------------------------------------------------- references


def reference(case: Case, log: Log) -> None:
    """Another reference policy that moves the objective's value has to move its gradient, too, and as a KL does."""
    p = case.main
    sample = recording_of(p.rollout, (0, 1, 2), case.group)
    before = sample.reference_log_prob
    assert before is not None
    near, far = (case.full(p.policy, replace(sample, reference_log_prob=before - x * wave(before))) for x in (0.1, 0.4))
    moves = near.value is not None and far.value is not None and abs(near.value - far.value) > EXACT
    if moves and nearly_equal(near.gradient, far.gradient):
        log.add("k1 in the objective", "the reference moves the objective and not its gradient")
    kl_term(case, log)


def kl_term(case: Case, log: Log) -> None:
    """What the KL term adds to the expectation, one decision in three states: of which divergence is it the gradient?

    Of whole episodes the estimates by step and by sequence differ (FORMULAS section 10); of one decision they do not.
    """
    run = case.full.plain(KEPT)
    plain, unlike = (with_reference(case.gamma, drift) for drift in (0.0, 0.6))
    paid = [pays(p, scale) for scale in (1.0, 3.0) for p in (plain, unlike)]
    near, far = (run.on(p, (0, 1, 2, 4)) for p in paid[:2])
    if nearly_equal(near, far):
        return
    size = 1 if case.independent and not case.in_large_batch else 2
    before, after, before_more, after_more = (case.sign * run.moments(p, size).mean for p in paid)
    term = after - before
    # where the reward that it stands in is divided by a spread, it does not simply add
    if norm_of(term) <= NOTHING or not nearly_equal(term, after_more - before_more):
        log.not_checked.append(SCALED)
    else:
        name_kl(unlike, term, log)


def name_kl(p: Probe, term: Tensor, log: Log) -> None:
    """The mistake behind a KL term that is the gradient of no KL, or that pushes away from the reference."""
    other = reference_of(p, 0.6)
    start = p.mdp.start[: len(p.table)]
    for kl in (F.categorical_kl(p.table, other), F.categorical_kl(other, p.table)):
        if (c := factor(-term, flat_gradient((start * kl).sum(), p.policy.preferences))) is not None:
            if c < 0:
                log.add("wrong sign", "the KL term pushes away from the reference")
            return
    r = p.rollout
    assert r.reference_log_prob is not None
    gap = r.behavior_log_prob - r.reference_log_prob
    k2, k3, swapped = 0.5 * gap.square(), torch.expm1(-gap) + gap, torch.expm1(gap) - gap
    # the score-function gradient of each in the reward, and in the objective the slope of k3 with its arguments swapped
    in_reward = [("k2 or k3 in the reward", estimate) for estimate in (k2, k3, swapped)]
    for mistake, credit in (*in_reward, ("k3 with swapped arguments", torch.expm1(gap))):
        if points_along(-term, p.expectation(credit)):
            return log.add(mistake, "the KL term's expectation is exactly that mistake's")
    log.add("biased by no known mistake", "the KL term is the gradient of no KL")


def reference_of(p: Probe, drift: float) -> Tensor:
    """Preferences of the reference policy ``[S, A]``; at a drift of 0 the policy's."""
    return p.table.detach() + drift * wave(p.table, 2.3, 0.5)


def with_reference(gamma: float, drift: float) -> Probe:
    """One decision in one of three states, and a reference that far away."""
    p = probe(probes.THREE, gamma)
    log_prob = F.categorical_log_prob(reference_of(p, drift)[p.rollout.inputs["observation"]], p.rollout.inputs["action"])
    return replace(p, rollout=replace(p.rollout, reference_log_prob=log_prob))


def pays(p: Probe, scale: float) -> Probe:
    r = p.rollout
    noise = torch.sin(1.3 * torch.arange(r.reward.numel(), dtype=torch.float64) + 1.0).view_as(r.reward)
    return replace(p, rollout=replace(r, reward=(scale * noise).where(r.mask, 0.0)))
