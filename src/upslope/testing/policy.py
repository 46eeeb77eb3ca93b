"""The contract of a policy: it samples and scores with the same distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import UsageError, require
from upslope.records import Evaluation, HasDistribution, Sample, SamplingPolicy, offers
from upslope.testing.contract import expect
from upslope.testing.density import SIGMAS, check_density

GROUPS, PER_GROUP = 24, 64
"""Samples of one input whose mean score is looked at, in groups: the spread of the groups gives the interval."""


def check_policy(policy: SamplingPolicy, inputs: Mapping[str, Tensor], *, num_actions: int | None = None, seed: int = 0) -> None:
    r"""Hold a policy to the contract that the library relies on; returns None or raises :class:`ContractError`.

    ``inputs`` is what ``policy.sample(inputs)`` takes, each ``[B, T, *features]`` with at least two rows; ``policy.evaluate(**inputs,
    action=...)`` scores the actions. What must hold:

    1. ``sample`` returns a :class:`~upslope.records.Sample` with ``log_prob [B, T]`` and no gradient; the same generator gives the same
       actions, and torch's global random state is left alone;
    2. ``evaluate`` returns an :class:`~upslope.records.Evaluation` with ``log_prob``, ``entropy`` and ``value`` (where there is one)
       ``[B, T]``; its ``log_prob`` is that of ``sample``; twice the same call is twice the same result (dropout is off);
    3. it is differentiable, and a row does not depend on the other rows of a batch;
    4. neither changes inputs, parameters or buffers;
    5. with finitely many actions :math:`\sum_a \pi(a|s) = 1`, the entropy is :math:`-\sum_a \pi \log \pi`, actions that
       ``inputs["action_mask"]`` forbids have probability 0, and :math:`\sum_a \pi \nabla \log \pi = 0`; else, over samples and
       within intervals, the mean of :math:`\nabla \log \pi` is 0, that of :math:`-\log \pi` is the entropy, and
       :math:`\pi` is proportional to the density of the actions (in up to six dimensions).

    Args:
        policy: an object with ``sample``, ``evaluate`` and ``parameters``.
        inputs: what it sees, ``[B, T, *features]``.
        num_actions: how many actions there are (None: the size of ``distribution(...).parameters`` where actions are single integers).
        seed: of the samples.

    Raises:
        UsageError: ``inputs`` are no tensors of two rows or more, or the policy raises.

    Source: FORMULAS section 1.
    """
    for name in ("sample", "evaluate", "parameters"):
        expect(hasattr(policy, name), f"policy: {type(policy).__name__} has no {name}; a policy has sample, evaluate and parameters")
    shape = batch_shape(inputs)
    before = state(policy, inputs)
    sample = check_sample(policy, inputs, shape, seed)
    check_evaluation(policy, inputs, sample, shape)
    expect(before.keys() == state(policy, inputs).keys(), "policy: sample or evaluate added parameters or buffers")
    for name, value in state(policy, inputs).items():
        expect(torch.equal(before[name], value), f"policy: sample or evaluate changed {name}; running statistics belong into the collector")
    count = num_actions if num_actions is not None else number_of_actions(policy, inputs, sample, shape)
    if count is None:
        check_mean_score(policy, inputs, seed)
        check_density(policy, inputs, seed)
    else:
        check_table(policy, inputs, shape, count)


def batch_shape(inputs: Mapping[str, Tensor]) -> torch.Size:
    require(isinstance(inputs, Mapping), f"inputs: expected a dictionary such as {{'observation': …}}, found {type(inputs).__name__}")
    tensors = list(inputs.values())
    fits = bool(tensors) and all(isinstance(x, Tensor) and x.dim() >= 2 and x.shape[:2] == tensors[0].shape[:2] for x in tensors)
    require(fits and tensors[0].shape[0] >= 2, "inputs: expected tensors [B, T, *features] with B ≥ 2, such as {'observation': …}")
    return tensors[0].shape[:2]


def state(policy: SamplingPolicy, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of everything that must not change."""
    buffers = dict(policy.named_buffers()) if isinstance(policy, nn.Module) else {}
    parameters = {f"parameter {i}": p for i, p in enumerate(policy.parameters())}
    found = {**{f"inputs[{n!r}]": x for n, x in inputs.items()}, **{f"buffer {n}": x for n, x in buffers.items()}, **parameters}
    return {name: x.detach().clone() for name, x in found.items()}


def call(what: str, function: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return function(*arguments, **named)
    except Exception as error:
        raise UsageError(f"policy: {what} raised {type(error).__name__} ({' '.join(str(error).split())})") from error


def drawn(policy: SamplingPolicy, inputs: Mapping[str, Tensor], seed: int) -> Any:
    return call("sample", policy.sample, dict(inputs), generator=torch.Generator().manual_seed(seed))


def check_sample(policy: SamplingPolicy, inputs: Mapping[str, Tensor], shape: torch.Size, seed: int) -> Sample:
    """Property 1."""
    randomness = torch.get_rng_state()
    sample = drawn(policy, inputs, seed)
    kind = type(sample).__name__
    expect(isinstance(sample, Sample), f"policy: sample returned an object of type {kind}; return Sample(action=…, log_prob=…)")
    for name in ("log_prob", "value"):
        x = getattr(sample, name)
        if x is not None:
            expect(x.shape == shape, f"policy: sample's {name} has shape {list(x.shape)}; expected {list(shape)}")
            expect(not x.requires_grad, f"policy: sample's {name} carries gradient; sample under torch.no_grad()")
    leading = sample.action.shape[:2] == shape
    expect(leading, f"policy: sample's action has shape {list(sample.action.shape)}; it begins with {list(shape)}")
    expect(bool(sample.log_prob.isfinite().all()), "policy: a sampled action has a log_prob that is not finite")
    repeated = torch.equal(sample.action, drawn(policy, inputs, seed).action)
    expect(repeated, "policy: the same generator gave other actions; draw from the generator that sample is given")
    expect(torch.equal(randomness, torch.get_rng_state()), "policy: sample moved torch's global random state; draw from the generator only")
    return sample


def check_evaluation(policy: SamplingPolicy, inputs: Mapping[str, Tensor], sample: Sample, shape: torch.Size) -> None:
    """Properties 2 and 3."""
    found, again = (call("evaluate", policy.evaluate, **inputs, action=sample.action) for _ in range(2))
    expect(isinstance(found, Evaluation), f"policy: evaluate returned an object of type {type(found).__name__}; return Evaluation(…)")
    tolerance = 1e-9 if found.log_prob.dtype == torch.float64 else 1e-4  # single precision, summed over dimensions of an action
    alone = call("evaluate", policy.evaluate, **{n: x[:1] for n, x in inputs.items()}, action=sample.action[:1])
    for name in ("log_prob", "entropy", "value"):
        x, y, z = (getattr(e, name) for e in (found, again, alone))
        if x is None:
            expect(name == "value", f"policy: evaluate returned no {name}")
            continue
        expect(x.shape == shape, f"policy: evaluate's {name} has shape {list(x.shape)}; expected {list(shape)}")
        expect(x.is_floating_point() and bool(x.isfinite().all()), f"policy: evaluate's {name} is not finite, or no floating-point number")
        expect(torch.equal(x, y), f"policy: two evaluations of the same actions differ in {name}; turn dropout off in sample and evaluate")
        close = torch.allclose(x[:1], z, rtol=tolerance, atol=tolerance)
        expect(close, f"policy: a row's {name} depends on the other rows of the batch; batch statistics belong into the collector")
    agree = torch.allclose(found.log_prob, sample.log_prob.to(found.log_prob.dtype), rtol=tolerance, atol=tolerance)
    expect(agree, "policy: sample and evaluate disagree on log_prob; both use the same temperature, masks and dropout")
    expect(found.log_prob.requires_grad, "policy: evaluate's log_prob does not depend on the parameters; do not detach it")


def number_of_actions(policy: SamplingPolicy, inputs: Mapping[str, Tensor], sample: Sample, shape: torch.Size) -> int | None:
    """Where actions are single integers and the policy shows its distribution."""
    if sample.action.is_floating_point() or sample.action.shape != shape or not offers(policy, HasDistribution):
        return None
    distribution = call("distribution", policy.distribution, **inputs)
    return int(distribution.parameters.shape[-1]) if hasattr(distribution, "parameters") else None


def check_table(policy: SamplingPolicy, inputs: Mapping[str, Tensor], shape: torch.Size, count: int) -> None:
    """Property 5 where actions can be listed."""
    evaluations = [call("evaluate", policy.evaluate, **inputs, action=torch.full(shape, a)) for a in range(count)]
    log_prob = torch.stack([e.log_prob for e in evaluations], -1)
    tolerance = 1e-9 if log_prob.dtype == torch.float64 else 1e-5
    probability = log_prob.exp()
    wrong = float((probability.detach().sum(-1) - 1.0).abs().max())
    expect(wrong <= tolerance, f"policy: probabilities of the {count} actions sum to 1 ± {wrong:.3g}")
    legal = inputs.get("action_mask")
    if legal is not None and legal.shape == log_prob.shape:
        expect(not bool(probability[~legal.bool()].any()), "policy: an action that action_mask forbids has a probability above 0")
    entropy = -(probability * log_prob.where(probability > 0, 0.0)).sum(-1)
    off = float((entropy - evaluations[0].entropy).detach().abs().max())
    expect(off <= 100 * tolerance, f"policy: the entropy is off by {off:.3g}; it is −Σ π log π over legal actions")
    parameters = [p for p in policy.parameters() if p.requires_grad]
    weight = probability.detach()
    score = torch.autograd.grad((weight * log_prob.where(weight > 0, 0.0)).sum(), parameters, allow_unused=True)
    size = max((float(g.abs().max()) for g in score if g is not None), default=0.0)
    message = f"policy: the mean of ∇log π is {size:.3g}, not 0; log_prob is not that of a distribution, or is detached in part"
    expect(size <= 1e3 * tolerance, message)


def check_mean_score(policy: SamplingPolicy, inputs: Mapping[str, Tensor], seed: int) -> None:
    """Property 5 by samples of the first input."""
    generator = torch.Generator().manual_seed(seed)
    repeated = {n: x[:1, :1].expand(PER_GROUP, 1, *x.shape[2:]) for n, x in inputs.items()}
    parameters = [p for p in policy.parameters() if p.requires_grad]
    found: list[Tensor] = []
    for _ in range(GROUPS):
        sample = policy.sample(dict(repeated), generator=generator)
        log_prob = policy.evaluate(**repeated, action=sample.action).log_prob
        gradients = torch.autograd.grad(log_prob.mean(), parameters, allow_unused=True)
        found.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(gradients, parameters, strict=True)]))
    score = torch.stack(found).double()
    error = score.std(0) / math.sqrt(GROUPS)
    far = score.mean(0).abs() > SIGMAS * error + 1e-6
    samples = f"{GROUPS * PER_GROUP} samples"
    expect(not bool(far.any()), f"policy: the mean of ∇log π over {samples} is not 0; sample and log_prob are of different distributions")
