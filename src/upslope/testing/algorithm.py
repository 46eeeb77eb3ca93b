"""The contract of an algorithm: what the update rule, micro-batches and collectors rely on."""

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from upslope.algorithms import GRPO, RLOO
from upslope.errors import is_kind, require
from upslope.records import Algorithm, Batch, Rollout, map_tensors
from upslope.tabular import flat_gradient
from upslope.testing import probes
from upslope.testing.contract import expect, nearly_equal, user_errors
from upslope.testing.estimates import Estimator, describe_result, nothing
from upslope.testing.probes import Probe, probe, recording_of


def check_algorithm(algorithm: Algorithm, *, group: bool | None = None) -> None:
    r"""Hold an algorithm to the contract that the library relies on; returns None or raises :class:`ContractError`.

    What must hold, checked in float64 on a batch with rows of different length:

    1. ``estimate`` returns a :class:`~upslope.records.Batch` without gradient, finite, with weights that are 0 on masked steps, never
       negative and at most 1 in sum; it changes neither the rollout nor the policy;
    2. ``objective`` returns ``(value, metrics)``: a 0-d value that moves with the policy, metrics that are 0-d tensors, and
       ``log_ratio``, where it is given, one value per step, 0 before the first step (the ratio is 1);
    3. it is linear in the weights, :math:`\sum_i w_i v_i`: twice the weight is twice the gradient, halves of a batch add up to the whole,
       and so do minibatches, each scaled to the whole batch's size;
    4. what stands in masked steps changes nothing;
    5. rewards that are all alike leave everything finite.

    Args:
        algorithm: an instance with ``estimate``, ``objective`` and ``update``.
        group: recordings are groups of rows from the same start (GRPO and RLOO unless given).

    Raises:
        UsageError: a class, or one of its members raises.

    Source: FORMULAS sections 3, 6 and 8.
    """
    require(not isinstance(algorithm, type), f"algorithm: found {describe_result(algorithm)}")
    for name in ("estimate", "objective", "update"):
        message = f"algorithm: {type(algorithm).__name__} has no {name}; an algorithm has estimate, objective and update"
        expect(hasattr(algorithm, name), message)
    group = isinstance(algorithm, GRPO | RLOO) if group is None else group
    with user_errors(type(algorithm).__name__):
        p = probe(probes.RAGGED, getattr(algorithm, "gamma", 1.0))
        rollout = recording(p, group)
        run = Estimator(algorithm, group=group)
        batch = check_estimate(run, p, rollout)
        check_objective(run, p, batch)
        check_weights(run, p, batch.by_unit())
        run(p.policy, map_tensors(rollout, lambda x: x))  # one line for what raises
        hint = "hide them with torch.where before anything is multiplied or exponentiated"
        for other in masked_otherwise(rollout):
            hidden = nearly_equal(run(p.policy, other).gradient, run(p.policy, rollout).gradient)
            expect(hidden, f"algorithm: masked steps leak into the gradient; {hint}")
        run(p.policy, replace(rollout, reward=torch.ones_like(rollout.reward) * rollout.mask))
        expect(run.not_finite is None, f"algorithm: the gradient is not finite {run.not_finite}; advantages without spread are 0")


def recording(p: Probe, group: bool) -> Rollout:
    """Four rows, the first shorter than the others; or two groups of two, no group's scores all alike."""
    plain = recording_of(p.rollout, (0, 1, 1, 2), False)
    return map_tensors(plain, lambda x: x.view(2, 2, *x.shape[1:]), unit="group") if group else plain


def masked_otherwise(rollout: Rollout) -> Iterator[Rollout]:
    """The recording with other numbers, large ones among them, where nothing was decided."""
    names = ("value", "next_value", "behavior_log_prob", "reference_log_prob")
    for junk in (0.37, -40.0):
        changes = {name: x.masked_fill(~rollout.mask, junk) for name in names if (x := getattr(rollout, name)) is not None}
        yield replace(rollout, inputs={**rollout.inputs, "action": rollout.inputs["action"].masked_fill(~rollout.mask, 1)}, **changes)


def check_estimate(run: Estimator, p: Probe, rollout: Rollout) -> Batch:
    """Property 1."""
    before, parameters = map_tensors(rollout, torch.clone), [x.detach().clone() for x in p.policy.parameters()]
    batch = run.given.estimate(p.policy, rollout)
    expect(isinstance(batch, Batch), f"algorithm: estimate returned an object of type {type(batch).__name__}; return Batch.of(rollout, …)")
    for item in fields(rollout):
        old, new = getattr(before, item.name), getattr(rollout, item.name)
        changed = isinstance(new, Tensor) and not torch.equal(old, new)
        expect(not changed, f"algorithm: estimate changed rollout.{item.name} in place; work on new tensors")
    moved = any(not torch.equal(a, b) for a, b in zip(parameters, p.policy.parameters(), strict=True))
    expect(not moved, "algorithm: estimate changed the policy's parameters; the update rule moves them")
    for item in fields(batch):
        x = getattr(batch, item.name)
        if isinstance(x, Tensor):
            expect(not x.requires_grad, f"algorithm: batch.{item.name} carries gradient; detach it, or estimate under torch.no_grad()")
            finite = x.dim() < batch.mask.dim() or x.shape[: batch.mask.dim()] != batch.mask.shape or bool(x[batch.mask].isfinite().all())
            expect(finite, f"algorithm: batch.{item.name} is not finite at an unmasked step")
    total = float(batch.weight.sum())
    expect(bool((batch.weight[~batch.mask] == 0).all()), "algorithm: batch.weight is not 0 on masked steps; take F.average_weight")
    sound = bool((batch.weight >= 0).all()) and total <= 1.0 + 1e-6
    expect(sound, f"algorithm: batch.weight sums to {total:.6g}; weights are shares of the whole batch, ≥ 0 and at most 1 in sum")
    return batch


def check_objective(run: Estimator, p: Probe, batch: Batch) -> None:
    """Property 2."""
    units = batch.by_unit()
    found = run.given.objective(p.policy, units)
    pair = is_kind(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor) and isinstance(found[1], dict)
    expect(pair, "algorithm: objective returns (value, metrics), a 0-d tensor and a dict")
    value, metrics = found
    expect(value.dim() == 0, f"algorithm: the objective has shape {list(value.shape)}; return F.weighted_sum(…, batch.weight)")
    expect(value.requires_grad, "algorithm: the objective does not depend on the policy's parameters; nothing would be learned")
    expect(bool(value.isfinite()), "algorithm: the objective is not finite")
    for name, metric in metrics.items():
        expected = units.mask.shape if name == "log_ratio" else torch.Size()
        fits = isinstance(metric, Tensor) and metric.shape == expected
        shape = list(metric.shape) if isinstance(metric, Tensor) else type(metric).__name__
        expect(fits, f"algorithm: metrics[{name!r}] is {shape}; expected a tensor of shape {list(expected)}")
    if "log_ratio" in metrics:
        largest = float(metrics["log_ratio"].detach()[units.mask].abs().max())
        expect(largest <= 1e-6, f"algorithm: before the first step the ratio is exp(±{largest:.2g}); π_old is the policy itself there")


def check_weights(run: Estimator, p: Probe, batch: Batch) -> None:
    """Property 3; ``batch`` is by unit."""

    def of(piece: Batch) -> Tensor:
        return flat_gradient(run.value(p.policy, piece) if piece.num_units else nothing(p.policy), p.policy.preferences)

    whole, middle = of(batch), batch.num_units // 2
    double = of(replace(batch, weight=2 * batch.weight))
    expect(nearly_equal(double, 2 * whole), "algorithm: the objective ignores batch.weight; it is Σ weight · value, F.weighted_sum")
    halves = of(batch.select(torch.arange(middle))) + of(batch.select(torch.arange(middle, batch.num_units)))
    expect(nearly_equal(halves, whole), "algorithm: micro-batches do not add up to the batch; statistics of a batch belong into estimate")
    if batch.num_units < 2:
        return
    first, second = (of(x) * (x.num_units / batch.num_units) for x in batch.minibatches(torch.arange(batch.num_units), 2))
    expect(nearly_equal(first + second, whole), "algorithm: minibatches, scaled to the batch's size, do not average to the batch")
