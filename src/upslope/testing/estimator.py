"""Hold an estimator of the policy gradient against the exact gradient, and name the mistake that it has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from upslope.algorithms import GRPO, RLOO
from upslope.errors import require, unknown
from upslope.testing import batches, divergence, groups, other_policies, probes, stages
from upslope.testing.contract import cosine, factor
from upslope.testing.estimates import Estimator, Moments
from upslope.testing.known_mistakes import MISTAKES, reason
from upslope.testing.lengths import lengths
from upslope.testing.mistakes import target
from upslope.testing.report import EstimatorReport, Finding
from upslope.testing.stages import Case, Found, case_of

SPOIL_LENGTHS = ("padding leaks", "entropy on masked steps", "mean of micro-batch means", "normalized per micro-batch")
"""What shows as a bias wherever lengths differ: looking there once more would tell nothing new."""
NOTHING = 1e-24
"""Size of an estimate that is 0 in every batch."""
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


@dataclass
class Log:
    """What happened while one estimator was checked."""

    found: list[Found] = field(default_factory=list[Found])
    notes: list[str] = field(default_factory=list[str])
    checked: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    """what could not be checked, each with its mistakes"""
    left_out: list[str] = field(default_factory=list[str])
    """what does not apply, each with its mistakes and the reason"""

    def run(self, name: str, results: Iterable[Found]) -> None:
        """One more check."""
        self.checked.append(name)
        self.found.extend(results)


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
        gamma: discount factor that a function uses (1, or 0.9 where it takes it as a parameter); an algorithm has its own.
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
        log.found.append(("not finite", given.plain.not_finite))
        log.skipped.append("everything else")
    elif float(moments.mean.norm()) + moments.variance < NOTHING:
        log.found.append(("no gradient", "in every batch"))
        log.skipped.append("everything else")
    else:
        case, notes = stages.bare(given)
        log.notes += notes
        form, found = stages.main_expectation(case, moments.mean if case is given else case.mean(case.main, case.size))
        if any(mistake == "wrong sign" for mistake, _ in found):
            case = replace(case, sign=-1.0)
        further(case, form, whole_episodes, log)
        log.found += found
    findings = [
        Finding(mistake, numbers, "as you said" if mistake in by_design else reason(estimator, mistake))
        for mistake, numbers in first_causes(log.found).items()
    ]
    return report(given, moments, tuple(findings), log)


def first_causes(found: list[Found]) -> dict[str, str]:
    """Each mistake once, without what another one explains."""
    mistakes = dict(reversed(found))
    if "not finite" in mistakes:  # such an estimate has no expectation
        return {"not finite": mistakes["not finite"]}
    if "ratio inverted" in mistakes:
        mistakes.pop("wrong sign", None)
    if "k1 in the objective" in mistakes:  # off-policy it needs a weight, too; and beside a reference it is a bonus for rare actions
        mistakes.pop("importance weight missing", None)
        mistakes.pop("entropy of the action taken", None)
    if len(mistakes) > 1:
        mistakes.pop("biased by no known mistake", None)
    return dict(reversed(mistakes.items()))


def further(case: Case, form: str | None, whole_episodes: bool | None, log: Log) -> None:
    """Every check beyond the first expectation."""
    if (leak := case.full.leak or case.plain.leak) is not None:
        log.found.append(("advantage carries gradient", f"batch.{leak} requires grad"))
    log.run("critic's gradient", batches.critic(case))
    log.run("padding", stages.padding(case))
    log.run("order of rows", batches.order(case))
    log.run("rows all alike", stages.alike(case))
    if case.full.is_algorithm:
        log.run("micro-batches", batches.micro_batches(case))
    log.run("entropy bonus", stages.bonus_of_the_action(case))
    results, skipped = divergence.kl_term(case)
    log.run("reference policy", [*other_policies.reference(case), *results])
    log.skipped += skipped
    if case.scale_free:
        log.notes.append("divided by the spread of the group: the scale is lost, and the direction is what is compared")
    elif form is not None:
        log.run("group mean", groups.group_scale(case))
    if case.group and (case.scale_free or form is None):
        log.run("comparison of scores", groups.comparison(case))
    if case.uses_behavior:
        results, skipped, left_out = other_policies.another_policy(case, form)
        log.run("another policy's steps", results)
        log.skipped += skipped
        log.left_out += left_out
    log.left_out += out_of_place(case, whole_episodes)
    if form is None or any(mistake in SPOIL_LENGTHS for mistake, _ in log.found):
        log.skipped += [f"{name} ({LATER[name]})" for name in later(case, whole_episodes)]
        return
    for name in later(case, whole_episodes):
        if name == "lengths":
            results, notes = lengths(case, form)
            log.notes += notes
        elif name == "truncation":
            results = stages.cut_short(case, form)
        else:
            results = batches.several_in_a_row(case) if name == "episodes in a row" else batches.started_before(case, form)
        log.run(name, results)
    if not (whole_episodes or case.bootstraps):
        log.notes.append("it asks for no value of what follows: a truncated episode is scored as it stands")


def out_of_place(case: Case, whole_episodes: bool | None) -> list[str]:
    """Which of :data:`LATER` do not belong to this estimator, and why."""
    asked = later(case, whole_episodes)
    one_in_a_row = "it is for whole episodes, one in a row"
    reasons = {
        "truncation": one_in_a_row if whole_episodes else "it asks for no value of what follows",
        "episodes in a row": one_in_a_row,
        "episodes under way": one_in_a_row,
    }
    reasons = {name: why for name, why in reasons.items() if name not in asked}
    if not case.full.is_algorithm:
        reasons["micro-batches"] = "it has no objective of a part"
    if not case.uses_behavior:
        reasons["another policy's steps"] = "it does not look at behavior_log_prob"
    return [f"{name} ({LATER[name]}): {why}" for name, why in reasons.items()]


def later(case: Case, whole_episodes: bool | None) -> list[str]:
    """Which of the checks on other episodes belong to this estimator."""
    names = ["lengths"]
    if case.bootstraps and not whole_episodes:
        names.append("truncation")
    if case.full.is_algorithm and not (case.group or whole_episodes):
        names += ["episodes in a row", "episodes under way"]
    return names


def report(case: Case, moments: Moments, findings: tuple[Finding, ...], log: Log) -> EstimatorReport:
    """Numbers and findings together."""
    forms = ("undiscounted",) if case.gamma == 1.0 else ("undiscounted", "discounted")
    pairs = {form: (moments.mean, target(case.main, form)) for form in forms}
    if case.uses_critic and case.gamma == 1.0 and not case.group:
        pairs["average reward"] = stages.average_reward(case.plain, case.size)
    method = f"by enumeration of {len(case.main.probability)} trajectories" + (f" in batches of {moments.size}" if moments.size > 1 else "")
    return compared(case.full, moments, pairs, method, findings, log)


def continuing_report(full: Estimator, by_design: Collection[str]) -> EstimatorReport:
    """Of a method for tasks without end, whose one objective is the average reward."""
    p = probes.continuing()
    moments = full.moments(p, 1)
    c = factor(moments.mean, p.gradients[1.0])
    mistake = "biased by no known mistake" if c is None else "wrong sign"
    findings = () if c is not None and c > 0 else (Finding(mistake, "", "as you said" if mistake in by_design else None),)
    method = f"by enumeration of {len(p.probability)} trajectories from the stationary distribution"
    log = Log(checked=["expectation"], left_out=["everything else: it learns at every step of a task without end"])
    return compared(full, moments, {"average reward": (moments.mean, p.gradients[1.0])}, method, findings, log)


def compared(
    full: Estimator,
    moments: Moments,
    pairs: dict[str, tuple[Tensor, Tensor]],
    method: str,
    findings: tuple[Finding, ...],
    log: Log,
) -> EstimatorReport:
    """A report from ``objective → (expectation, exact gradient)``; everything in units of the nearest objective's gradient."""
    scale = {form: float(mean @ g / (g @ g)) for form, (mean, g) in pairs.items()}
    scale = {form: c if abs(c) > 1e-9 else 0.0 for form, c in scale.items()}
    bias = {form: float((mean / (scale[form] or 1.0) - g).norm()) for form, (mean, g) in pairs.items()}
    nearest = min((form for form in pairs if pairs[form][0] is moments.mean), key=lambda form: bias[form])
    unit = abs(scale[nearest]) or 1.0
    variance = moments.variance / unit**2
    error = float((moments.mean / unit - pairs[nearest][1]).square().sum())
    return EstimatorReport(
        name=full.name,
        objective=nearest,
        gamma=full.gamma,
        batch_size=moments.size,
        method=method,
        scale=scale[nearest],
        expectation=moments.mean,
        gradient={form: g for form, (_, g) in pairs.items()},
        bias=bias,
        cosine={form: cosine(mean, g) for form, (mean, g) in pairs.items()},
        variance=variance,
        mean_squared_error=variance + error,
        findings=findings,
        notes=tuple(log.notes),
        checked=tuple(log.checked),
        not_checked=tuple(log.skipped),
        left_out=tuple(log.left_out),
    )
