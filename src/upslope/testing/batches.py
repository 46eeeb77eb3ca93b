"""The checks of an estimator that take a batch apart: padding, order of rows, micro-batches, lengths, several episodes in a row, groups."""

from dataclasses import replace

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError
from upslope.records import Batch, concatenate, map_tensors
from upslope.tabular import flat_gradient
from upslope.testing import probes
from upslope.testing.case import EPS, Case, Log, separately
from upslope.testing.contract import factor, nearly_equal, norm_of, points_along, user_errors
from upslope.testing.mistakes import FORMS, by_length, target, weights
from upslope.testing.probes import Probe, probe, recording_of

TOGETHER = "groups side by side"  # the check's name, wherever it is said
SCALING = ("normalize_advantage", "scale_advantage")
"""Settings that scale advantages by what the batch holds."""


def alike(case: Case, log: Log) -> None:
    """Rows that are all alike have no spread; the estimate is finite none the less."""
    case.full.on(probe(probes.ARMS, case.gamma), (0, 0))
    if case.full.not_finite is not None:
        log.add("not finite", case.full.not_finite)


def padding(case: Case, log: Log) -> None:
    """Other things in masked columns, and more of them, change nothing."""
    p = probe(probes.RAGGED, case.gamma)
    clean = recording_of(p.rollout, (0, 1, 2, 0), case.group, max_steps=6)
    longer = map_tensors(clean, lambda x: torch.cat([x, x[..., -1:], x[..., -1:], x[..., -1:]], -1))
    hole = ~longer.mask | (torch.arange(longer.mask.shape[-1]) >= clean.mask.shape[-1])

    def filled(action: int) -> Tensor:
        inputs = {name: longer.inputs[name].masked_fill(hole, x) for name, x in (("observation", 3), ("action", action))}
        junk = ("value", "next_value", "behavior_log_prob", "reference_log_prob")
        dirty = {name: getattr(longer, name).masked_fill(hole, 0.37) for name in junk}
        empty = {name: getattr(longer, name).masked_fill(hole, 0) for name in ("mask", "reward", "terminated", "truncated")}
        return case.full(p.policy, replace(longer, inputs=inputs, **dirty, **empty)).gradient

    a, b, c = case.full(p.policy, clean).gradient, filled(0), filled(1)
    if nearly_equal(a, b) and nearly_equal(a, c):
        return
    leaked, leaked_by_other = (x.view(-1, 2)[3] for x in (b, c))
    of_actions = not nearly_equal(leaked, leaked_by_other) or norm_of(leaked) == 0  # an entropy does not ask for the action
    change = norm_of(a - b) / max(norm_of(a), 1e-12)
    mistake = "padding leaks" if of_actions else "entropy on masked steps"
    log.add(mistake, f"three masked columns more change it by {change:.2g} of its length")


def micro_batches(case: Case, log: Log) -> None:
    """An algorithm's objective on two halves of a batch adds up to that of the whole."""
    p = case.main
    sample = recording_of(p.rollout, (0, 1, 2, 3), False)
    if case.group:  # two groups, so that there is something to split
        sample = map_tensors(sample, lambda x: x.view(2, 2, *x.shape[1:]), unit="group")
    batch: Batch = case.full.given.estimate(p.policy, sample).by_unit()
    halves = [batch.select(half) for half in torch.arange(batch.num_units).tensor_split([batch.num_units // 2])]
    with user_errors(f"{case.full.name}.objective", " on a half of a batch"):
        whole, first, second = (flat_gradient(case.full.value(p.policy, x), p.policy.preferences) for x in (batch, *halves))
    if not nearly_equal(first + second, whole):
        mistake = "normalized per micro-batch" if factor(first + second, whole) is None else "mean of micro-batch means"
        log.add(mistake, "the halves of a batch do not add up to the whole")


def order(case: Case, log: Log) -> None:
    """Rows in another order give the same estimate, also where their lengths differ."""
    for mistake, p, index in (
        ("normalized per micro-batch", case.main, (0, 1, 2, 3)),
        ("mean of micro-batch means", probe(probes.RAGGED, case.gamma), (0, 0, 1, 2)),
    ):
        turned = [index[i] for i in (0, 2, 1, 3)]  # other halves, and other even and odd rows
        if not nearly_equal(case.full.on(p, index), case.full.on(p, turned)):
            return log.add(mistake, "the order of the rows changes the estimate")


def scaling(case: Case, log: Log) -> None:
    """Advantages scaled by the batch are ``(A − m) / s`` with one m and one s: the estimate is made of that without, and of Σ ∇log π.

    Where each row, or each step, has numbers of its own, it is not.
    """
    p, index = case.main, (0, 3, 5, 6)
    scaled, plain = (run.on(p, index) for run in (case.full.plain(SCALING), case.full.plain()))
    of_ones = [(weights(p, form)[1].unsqueeze(-1) * p.score)[list(index)].sum((0, 1)) for form in FORMS[:2]]

    def left(x: Tensor, y: Tensor) -> Tensor:
        """``x`` without its part along ``y``."""
        return x - x @ y / (y @ y).clamp(min=1e-300) * y

    rests = [norm_of(left(left(scaled, plain), left(ones, plain))) for ones in of_ones]
    if min(rests) > EPS * norm_of(scaled):
        log.add("normalized per micro-batch", "no mean and spread of the whole batch make these advantages")


def started_before(case: Case, log: Log) -> None:
    """An episode that began two steps before its recording counts γ² as much."""
    if case.form != "discounted" or case.gamma == 1.0:
        return
    fresh, late = (case.plain.on(case.main, (0, 3, 5), first_step=torch.full((3,), n)) for n in (0, 2))
    if not nearly_equal(late, case.gamma**2 * fresh):
        weight = norm_of(late) / norm_of(fresh)
        log.add("discount restarted", f"an episode with two steps behind it weighs {weight:.3g}, not γ² = {case.gamma**2:.3g}")


def several_in_a_row(case: Case, log: Log) -> None:
    """Two episodes one after the other are as good as two beside each other, also where the recording of the first is cut short."""
    cut = probe(probes.TRUNCATED, case.gamma)
    cut_rows = [int(i) for i in cut.rollout.truncated.any(-1).nonzero()]
    for p, index, kind in ((case.main, (1, 6), "episodes"), (cut, (cut_rows[0], cut_rows[-1]), "truncated episodes")):
        pair = recording_of(p.rollout, index, False)
        behind = map_tensors(pair, lambda x: x.reshape(1, -1), max_steps=pair.mask.numel())
        if not points_along(case.plain(p.policy, behind).gradient, case.plain(p.policy, pair).gradient):
            return log.add("ends do not cut", f"two {kind} in one row, against the same two in two rows")


def critic(case: Case, log: Log) -> None:
    """A function whose advantage is differentiated hands the critic ``−log π`` as a gradient."""
    p = case.main
    sample = recording_of(p.rollout, (1, 2), case.group)
    found = case.full(p.policy, sample).critic
    with torch.no_grad():
        log_prob = p.policy.evaluate(**sample.inputs).log_prob
    states = sample.inputs["observation"].reshape(-1)
    for weight in (1.0, case.gamma ** torch.arange(log_prob.shape[-1])):
        predicted = torch.zeros_like(found).index_add(0, states, -(weight * log_prob).reshape(-1))
        if factor(found, predicted) is not None:
            return log.add("advantage carries gradient", "the critic is moved by −log π")


# ------------------------------------------------------------------------------------------------------------ lengths


def lengths(case: Case, log: Log) -> None:
    """Rows of one step and of two: only a constant divisor leaves ∇J as it is."""
    assert case.form is not None
    p = probe(probes.RAGGED, case.gamma)
    average = averaged_rows(case, p, case.form) if case.independent else averaged_group(case, p, case.form)
    if average == "sequences":
        log.add("length bias", "rows of 1 and 2 steps weigh the same")
    elif average == "steps":
        log.notes.append("averaged over the batch's steps: where lengths differ a ratio, with a bias of the order 1 / batch")
    elif average is None:
        log.add("biased by no known mistake", "where episodes differ in length")


def averaged_rows(case: Case, p: Probe, form: str) -> F.AverageOver | None:
    """Of rows that do not see each other: how are they weighed, alone and in pairs, so that the expectation is what it ought to be?"""
    length = p.rollout.mask.sum(-1, keepdim=True)
    single = torch.stack([case.plain.on(p, (i,)) for i in range(len(length))])
    pairs = [torch.tensor(pair) for pair in ((0, 1), (1, 2))]
    both = [case.plain.on(p, [int(i) for i in pair]) for pair in pairs]

    def right(x: Tensor) -> bool:
        return points_along(case.sign * p.probability @ x, target(p, form), case.tolerance)

    if case.in_large_batch:  # every batch has as many steps
        return "constant" if right(single) else "sequences" if right(length * single) else None
    if right(single):
        return "constant" if all(separately(y, single[pair].sum(0)) for y, pair in zip(both, pairs, strict=True)) else None
    if not right(length * single):
        return None
    return "steps" if all(map(nearly_equal, both, ((length * single)[pair].sum(0) / length[pair].sum() for pair in pairs))) else "sequences"


def averaged_group(case: Case, p: Probe, form: str) -> F.AverageOver | None:
    """Of rows that are compared with each other: which average has this expectation?"""
    mean = case.mean(p, 2)
    if points_along(mean, target(p, form)):
        return "constant"
    averages: tuple[F.AverageOver, ...] = ("sequences", "steps")
    return next((average for average in averages if points_along(mean, by_length(p, average), case.tolerance)), None)


# ------------------------------------------------------------------------------------------------------------- groups


def group_scale(case: Case, log: Log) -> None:
    """Three rows of one decision: averaged or added up, an estimate is 1 or 3 times ∇J; with the mean of the group, 2/3 of that."""
    if case.scale_free or case.independent:
        return
    arms = probe(probes.BANDIT, 1.0)
    c = factor(case.mean(arms, 3), target(arms, "undiscounted"))
    if c is not None and any(abs(1.5 * c - whole) < 1e-7 for whole in (1.0, 3.0)):
        log.add("group mean without G/(G-1)", f"{c:.4g} × ∇J for G = 3")


def side_by_side(case: Case, log: Log) -> None:
    """Two groups beside each other are as good as each alone, also where one has the larger scores: rows are compared in their own group.

    Up to a factor: both groups spread alike, so that a spread of the whole batch is no fault, but its mean is.
    """
    p = probe(probes.SCORED, case.gamma)
    pair = [recording_of(p.rollout, rows, True) for rows in ((0, 1, 1), (3, 2, 2))]  # scores 1, 0, 0, and those of other rows
    pair[1] = replace(pair[1], reward=pair[1].reward + 3.0 * pair[1].terminated)
    first, second = (case.plain(p.policy, x).gradient for x in pair)
    try:
        both = case.plain(p.policy, concatenate(pair)).gradient
    except UsageError:
        both = first
    if points_along(both, first, case.tolerance):
        log.checked.remove(TOGETHER)
        log.left_out.append(f"{TOGETHER} (groups mixed): it takes one group only")
    elif not points_along(both, first + second, case.tolerance):
        log.add("groups mixed", "two groups in one batch, against each alone")


def comparison(case: Case, log: Log) -> None:
    """Three rows of one decision in three states, with scores that are not evenly spaced: what each row is credited with can be read.

    It has to grow in proportion with the score, and what is subtracted is the group's mean, or nothing that the group decides.
    """
    p = probe(probes.THREE, 1.0)
    chosen = 1.0 - p.policy.probabilities()[:3, 0].detach()

    def read(scores: Tensor) -> Tensor:
        return case.sign * case.plain.on(p, (0, 2, 4), reward=scores.view(1, 3, 1)).view(-1, 2)[:3, 0] / chosen

    def baseline(scores: Tensor) -> tuple[float, bool]:
        credit = read(scores)
        slope = (credit[2] - credit[0]) / (scores[2] - scores[0])
        even = nearly_equal(credit - credit[0], slope * (scores - scores[0]), EPS)
        return float(scores[0] - credit[0] / slope), even and bool(slope > 0)

    scores, others = (torch.tensor(x, dtype=torch.float64) for x in ((0.0, 1.0, 3.0), (0.0, 1.0, 7.0)))
    first, even = baseline(scores)
    if not even:
        seen = ", ".join(f"{x:.3g}" for x in read(scores))
        log.add("biased by no known mistake", f"rows with scores 0, 1, 3 are credited with {seen}: not in proportion")
    elif abs(first - float(scores.mean())) > 1e-3 and abs(first - baseline(others)[0]) > 1e-3:
        seen = f"from scores 0, 1, 3 it subtracts {first:.3g}, and their mean is {float(scores.mean()):.3g}"
        log.add("baseline depends on the action", seen)
