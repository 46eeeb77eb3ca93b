"""The checks of an estimator that take a batch apart: micro-batches, order of rows, several episodes in a row, critics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from upslope.records import Batch
from upslope.testing import probes
from upslope.testing.contract import factor, one_line, same
from upslope.testing.probes import mapped, probe, rows
from upslope.testing.stages import Case, Found


def micro_batches(case: Case) -> Iterator[Found]:
    """An algorithm's objective on two halves of a batch adds up to that of the whole."""
    p = case.main
    policy = p.policy
    sample = rows(p.rollout, (0, 1, 2, 3), case.group)
    if case.group:  # two groups, so that there is something to split
        sample = mapped(rows(p.rollout, (0, 1, 2, 3), False), lambda x: x.view(2, 2, *x.shape[1:]), unit="group")
    batch: Batch = case.full.given.estimate(policy, sample).by_unit()
    middle = batch.num_units // 2
    halves = [batch.select(torch.arange(middle)), batch.select(torch.arange(middle, batch.num_units))]
    with one_line(f"{case.full.name}.objective", " on a half of a batch"):
        whole, *parts = (gradient(case.full.value(policy, piece), policy) for piece in (batch, *halves))
    total = parts[0] + parts[1]
    if not same(total, whole):
        mistake = "normalized per micro-batch" if factor(total, whole) is None else "mean of micro-batch means"
        yield mistake, "the halves of a batch do not add up to the whole"


def gradient(value: Tensor, policy: torch.nn.Module) -> Tensor:
    """Of a number, for the policy's preferences."""
    table = next(policy.preferences.parameters())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    (found,) = torch.autograd.grad(value, table, allow_unused=True)
    return torch.zeros_like(table).reshape(-1) if found is None else found.reshape(-1)


def order(case: Case) -> Iterator[Found]:
    """Rows in another order give the same estimate, also where their lengths differ."""
    for mistake, p, index in (
        ("normalized per micro-batch", case.main, (0, 1, 2, 3)),
        ("mean of micro-batch means", probe(probes.ragged, case.gamma), (0, 0, 1, 2)),
    ):
        a = case.full(p.policy, rows(p.rollout, index, case.group)).gradient
        turned = rows(p.rollout, [index[i] for i in (0, 2, 1, 3)], case.group)  # other halves, and other even and odd rows
        if not same(a, case.full(p.policy, turned).gradient):
            yield mistake, "the order of the rows changes the estimate"
            return


def started_before(case: Case, form: str) -> Iterator[Found]:
    """An episode that began two steps before its recording counts γ² as much."""
    if form != "discounted" or case.gamma == 1.0:
        return
    p = case.main
    sample = rows(p.rollout, (0, 3, 5), False)
    fresh, late = (case.plain(p.policy, replace(sample, first_step=torch.full((3,), n))).gradient for n in (0, 2))
    if not same(late, case.gamma**2 * fresh):
        yield (
            "discount restarted",
            f"an episode with two steps behind it weighs {float(late.norm() / fresh.norm()):.3g}, not γ² = {case.gamma**2:.3g}",
        )


def several_in_a_row(case: Case) -> Iterator[Found]:
    """Two episodes one after the other are as good as two beside each other, also where the recording of the first is cut short."""
    cut = probe(probes.truncated, case.gamma)
    cut_rows = [int(i) for i in cut.rollout.truncated.any(-1).nonzero()]
    for p, index, kind in ((case.main, (1, 6), "episodes"), (cut, (cut_rows[0], cut_rows[-1]), "truncated episodes")):
        pair = rows(p.rollout, index, False)
        beside = case.plain(p.policy, pair).gradient
        behind = case.plain(p.policy, mapped(pair, lambda x: x.reshape(1, -1), max_steps=pair.mask.numel())).gradient
        c = factor(behind, beside)
        if c is None or c < 0:
            yield "ends do not cut", f"two {kind} in one row, against the same two in two rows"
            return


def critic(case: Case) -> Iterator[Found]:
    """A function whose advantage is differentiated hands the critic ``−log π`` as a gradient."""
    p = case.main
    sample = rows(p.rollout, (1, 2), case.group)
    found = case.full(p.policy, sample).critic
    with torch.no_grad():
        log_prob = p.policy.evaluate(**sample.inputs).log_prob
    states = sample.inputs["observation"]
    for weight in (1.0, case.gamma ** torch.arange(log_prob.shape[-1])):
        predicted = torch.zeros_like(found).index_add(0, states.reshape(-1), -(weight * log_prob).reshape(-1))
        if factor(found, predicted) is not None:
            yield "advantage carries gradient", "the critic is moved by −log π"
            return
