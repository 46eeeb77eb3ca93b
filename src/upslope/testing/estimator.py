"""Hold an estimator of the policy gradient against the exact gradient, and name the mistake that it has."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.algorithms import GRPO, RLOO
from upslope.errors import require, unknown
from upslope.testing import batches, other_policies, probes
from upslope.testing.case import Bonus, Case, Log, bare, case_of, entropy_weight
from upslope.testing.contract import EXACT, cosine, factor, norm_of, points_along
from upslope.testing.estimates import Estimator, Moments
from upslope.testing.known_mistakes import MISTAKES, reason
from upslope.testing.mistakes import FORMS, explained, on_truncated_episodes, target, weights
from upslope.testing.probes import Probe, probe
from upslope.testing.report import EstimatorReport, Finding


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
    largest = max(norm_of(case.plain.on(case.main, index)) for index, _ in list(case.main.batches(case.size))[:4])
    return "baseline depends on the action" if norm_of(mean) <= EXACT * largest else None


def misjudged(p: Probe) -> Probe:
    """The same recordings with a critic that is off by another amount in each state."""
    off = 0.7 * torch.cos(1.9 * torch.arange(p.mdp.num_observations, dtype=torch.float64))
    seen = p.rollout.inputs["observation"]
    after = torch.cat([seen[:, 1:], seen[:, -1:]], -1)  # nobody may ask for what follows the last step: it has terminated
    assert p.rollout.value is not None and p.rollout.next_value is not None
    return replace(p, rollout=replace(p.rollout, value=p.rollout.value + off[seen], next_value=p.rollout.next_value + off[after]))


def entropy_bonus(case: Case, log: Log) -> None:
    """It is added; and a bonus of −log π of the action taken moves every estimate, and its expectation by nothing."""
    run, p = Bonus(case.full.plain(("entropy_coef",))), case.main
    left = run.moments(p, case.size)
    if (weight := entropy_weight(p, left.mean)) is not None and weight < 0:
        log.add("wrong sign", f"the entropy is subtracted: its weight in what is maximized is {weight:.3g}")
    if norm_of(left.mean) > EXACT * left.variance**0.5 or left.variance < EXACT**2:
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


SPOIL_LENGTHS = ("padding leaks", "entropy on masked steps", "mean of micro-batch means", "normalized per micro-batch")
"""What shows as a bias wherever lengths differ: looking there once more would tell nothing new."""
NOTHING = 1e-24  # size of an estimate that is 0 in every batch
LATER = {
    "lengths": "length bias",
    "truncation": "truncation taken for termination, termination taken for truncation",
    "episodes in a row": "ends do not cut",
    "episodes under way": "discount restarted",
    "micro-batches": "mean of micro-batch means, normalized per micro-batch",
    "another policy's steps": "importance weight missing, ratio inverted, per-step ratio, past ratio missing, later ratios missing, "
    "importance weights cut, clip on the wrong side",
}
"""What is tried on other recordings, and the mistakes that show there."""
ALWAYS = {
    "critic's gradient": batches.critic,
    "padding": batches.padding,
    "order of rows": batches.order,
    "rows all alike": batches.alike,
    "micro-batches": batches.micro_batches,
    "entropy bonus": entropy_bonus,
    "reference policy": other_policies.reference,
}
"""What is tried on every estimator; micro-batches on algorithms only."""
ON_OTHER_EPISODES = {
    "lengths": batches.lengths,
    "truncation": cut_short,
    "episodes in a row": batches.several_in_a_row,
    "episodes under way": batches.started_before,
}
"""What is tried where the expectation and the lengths of rows are as they should be."""


def check_estimator(
    estimator: Any,
    *,
    gamma: float | None = None,
    group: bool | None = None,
    off_policy: bool | None = None,
    whole_episodes: bool | None = None,
    by_design: Collection[str] = (),
) -> EstimatorReport:
    r"""Compare an estimator's exact expectation with ∇J on small problems, and name the mistake of :data:`MISTAKES` that it has.

    ``estimator`` is an algorithm, whose estimate is the gradient of ``objective(policy, estimate(policy, rollout))`` at the policy
    itself, or a function ``(policy, rollout)``, with ``gamma`` as a third parameter if it discounts. It returns a number to
    differentiate (to be maximized), one for each row, or a gradient for all of ``policy.parameters()``. Of a method that learns at
    every step (``learn``) the updates of an episode are kept apart and added up.

    :math:`E[\hat g] = \sum_{\tau_1 \ldots \tau_B} P(\tau_1) \cdots P(\tau_B)\, \hat g(\tau_1, \ldots, \tau_B)` is a finite sum here.
    It is compared with ∇J from the policy gradient theorem, undiscounted, with γ, and (γ = 1, with a critic) of the average reward of a
    task without end, up to a positive factor; where it differs, with the expectation that each known mistake would have. Other mistakes are
    tried directly: padding, the order of rows, micro-batches, another behavior policy, truncations. Advantages scaled by the batch,
    bonuses and KL terms of an algorithm are switched off for the expectations (their settings are fields) and on for the rest.

    Args:
        estimator: an instance of an algorithm, or a function.
        gamma: discount factor that a function uses (1, or 0.9 where it takes it as a parameter); an algorithm has a ``gamma`` itself.
        group: recordings are groups of rows from the same start, ``[1, G, T]`` (GRPO and RLOO unless given).
        off_policy: it corrects for another behavior policy (None: if it reacts to ``behavior_log_prob``).
        whole_episodes: it is for rows of one whole episode each, so neither truncations nor episodes in a row are tried
            (None: functions and group methods see one episode in a row).
        by_design: mistakes that are made on purpose.

    Raises:
        UsageError: it raises, returns another shape or something that does not depend on the policy, or a mistake's name is unknown.

    Source: Sutton et al. 2000, theorem 1; Nota & Thomas 2020 for γ^t; Pardo et al. 2018 for truncations.
    """
    for mistake in by_design:
        if mistake not in MISTAKES:
            raise unknown("mistake", mistake, MISTAKES)
    require(gamma is None or 0.0 <= gamma <= 1.0, f"gamma: expected a number in [0, 1], found {gamma}")
    group = isinstance(estimator, GRPO | RLOO) if group is None else group
    full = Estimator(estimator, gamma, group)
    if full.is_continuing:
        return continuing_report(full, by_design)
    given = case_of(full, off_policy)
    moments = given.plain.moments(given.main, given.size)
    log = Log(checked=["expectation"])
    if given.plain.not_finite is not None:
        log.add("not finite", given.plain.not_finite)
        log.not_checked.append("everything else")
    elif norm_of(moments.mean) + moments.variance < NOTHING:
        log.add("no gradient", "in every batch")
        log.not_checked.append("everything else")
    else:
        case = bare(given, log)
        case, found = main_expectation(case, moments.mean if case is given else case.mean(case.main))
        check_further(case, whole_episodes, log)
        log.found += found
    forms = ("undiscounted",) if given.gamma == 1.0 else ("undiscounted", "discounted")
    pairs = {form: (moments.mean, target(given.main, form)) for form in forms}
    if given.uses_critic and given.gamma == 1.0 and not given.group:
        p = probes.continuing()
        pairs["average reward"] = given.plain.moments(p, given.size).mean, p.gradients[1.0]
    method = f"by enumeration of {len(given.main.probability)} trajectories{f' in batches of {moments.size}' * (moments.size > 1)}"
    return report(full, moments, pairs, method, by_design, log)


SET_ASIDE = ("missing discount weight", "wrong sign", "group mean without G/(G-1)")
"""Mistakes that every further comparison allows for: what else is found beside them has another cause."""


def first_causes(found: list[tuple[str, str]], meant: Mapping[str, str | None]) -> dict[str, str]:
    """Each mistake once, without what another one explains; ``meant`` has the reason of each that is made on purpose, or None.

    A bias that no known mistake explains stays, beside what is made on purpose as well, which explains nothing but itself.
    """
    mistakes = dict(reversed(found))
    if "not finite" in mistakes:  # such an estimate has no expectation
        return {"not finite": mistakes["not finite"]}
    if "ratio inverted" in mistakes:
        mistakes.pop("wrong sign", None)
    if "k1 in the objective" in mistakes:  # off-policy it needs a weight, too; and beside a reference it is a bonus for rare actions
        mistakes.pop("importance weight missing", None)
        mistakes.pop("entropy of the action taken", None)
    unnamed = "biased by no known mistake"
    if any(meant[mistake] is None for mistake in mistakes if mistake not in (unnamed, *SET_ASIDE)):
        mistakes.pop(unnamed, None)
    return dict(reversed(mistakes.items()))


def check_further(case: Case, whole_episodes: bool | None, log: Log) -> None:
    if (leak := case.full.leak or case.plain.leak) is not None:
        log.add("advantage carries gradient", f"batch.{leak} requires grad")
    for name, check in ALWAYS.items():
        if name != "micro-batches" or case.full.is_algorithm:
            log.run(name, check, case)
    if case.group:
        log.run(batches.TOGETHER, batches.side_by_side, case)
    if any(getattr(case.full.given, name, False) for name in batches.SCALING) and not case.group:
        log.run("scaled advantages", batches.scaling, case)
    if case.scale_free:
        log.notes.append("divided by the spread of the group: the scale is lost, and the direction is what is compared")
    elif case.form is not None:
        log.run("group mean", batches.group_scale, case)
    if case.group and (case.scale_free or case.form is None):
        log.run("comparison of scores", batches.comparison, case)
    if case.uses_behavior:
        log.run("another policy's steps", other_policies.another_policy, case)
    reasons = out_of_place(case, whole_episodes)
    log.left_out += [f"{name} ({LATER[name]}): {why}" for name, why in reasons.items()]
    spoiled = case.form is None or any(mistake in SPOIL_LENGTHS for mistake, _ in log.found)
    for name, check in ON_OTHER_EPISODES.items():
        if name in reasons:
            continue
        if spoiled:
            log.not_checked.append(f"{name} ({LATER[name]})")
        else:
            log.run(name, check, case)
    if not (spoiled or whole_episodes or case.bootstraps):
        log.notes.append("it asks for no value of what follows: a truncated episode is scored as it stands")


def out_of_place(case: Case, whole_episodes: bool | None) -> dict[str, str]:
    """Which of :data:`LATER` do not belong to this estimator, and why."""
    one_in_a_row = "it is for whole episodes, one in a row"
    reasons: dict[str, str] = {}
    if whole_episodes or not case.bootstraps:
        reasons["truncation"] = one_in_a_row if whole_episodes else "it asks for no value of what follows"
    if not case.full.is_algorithm or case.group or whole_episodes:
        reasons |= {"episodes in a row": one_in_a_row, "episodes under way": one_in_a_row}
    if not case.full.is_algorithm:
        reasons["micro-batches"] = "it has no objective of a part"
    if not case.uses_behavior:
        reasons["another policy's steps"] = "it does not look at behavior_log_prob"
    return reasons


def continuing_report(full: Estimator, by_design: Collection[str]) -> EstimatorReport:
    """Of a method for tasks without end, whose one objective is the average reward."""
    p = probes.continuing()
    moments = full.moments(p, 1)
    c = factor(moments.mean, p.gradients[1.0])
    log = Log(checked=["expectation"], left_out=["everything else: it learns at every step of a task without end"])
    if c is None or c < 0:
        log.add("biased by no known mistake" if c is None else "wrong sign")
    method = f"by enumeration of {len(p.probability)} trajectories from the stationary distribution"
    return report(full, moments, {"average reward": (moments.mean, p.gradients[1.0])}, method, by_design, log)


def report(
    full: Estimator, moments: Moments, pairs: dict[str, tuple[Tensor, Tensor]], method: str, by_design: Collection[str], log: Log
) -> EstimatorReport:
    """A report from ``objective → (expectation, exact gradient)``; everything in units of the nearest objective's gradient."""
    scale = {form: float(mean @ g / (g @ g)) for form, (mean, g) in pairs.items()}
    scale = {form: c if abs(c) > 1e-9 else 0.0 for form, c in scale.items()}
    bias = {form: norm_of(mean / (scale[form] or 1.0) - g) for form, (mean, g) in pairs.items()}
    nearest = min((form for form in pairs if pairs[form][0] is moments.mean), key=lambda form: bias[form])
    unit = abs(scale[nearest]) or 1.0
    variance = moments.variance / unit**2
    error = float((moments.mean / unit - pairs[nearest][1]).square().sum())
    meant = {mistake: "as you said" if mistake in by_design else reason(full.given, mistake) for mistake, _ in log.found}
    findings = tuple(Finding(mistake, numbers, meant[mistake]) for mistake, numbers in first_causes(log.found, meant).items())
    setup: dict[str, Any] = {"name": full.name, "objective": nearest, "gamma": full.gamma, "batch_size": moments.size, "method": method}
    found: dict[str, Any] = {"scale": scale[nearest], "expectation": moments.mean, "gradient": {form: g for form, (_, g) in pairs.items()}}
    found |= {"bias": bias, "cosine": {form: cosine(mean, g) for form, (mean, g) in pairs.items()}, "variance": variance}
    said: dict[str, Any] = {name: tuple(getattr(log, name)) for name in ("notes", "checked", "not_checked", "left_out")}
    return EstimatorReport(**setup, **found, mean_squared_error=variance + error, findings=findings, **said)
