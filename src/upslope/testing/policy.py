"""The contract of a policy: it samples and scores with the same distribution."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import UsageError, is_kind, require
from upslope.records import Evaluation, HasDistribution, Sample, SamplingPolicy, offers
from upslope.testing.contract import expect
from upslope.typed import as_list

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
    require(is_kind(inputs, Mapping), f"inputs: expected a dictionary such as {{'observation': …}}, found {type(inputs).__name__}")
    tensors = list(inputs.values())
    fits = bool(tensors) and all(is_kind(x, Tensor) and x.dim() >= 2 and x.shape[:2] == tensors[0].shape[:2] for x in tensors)
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


def draw_actions(policy: SamplingPolicy, inputs: Mapping[str, Tensor], seed: int) -> Any:
    return call("sample", policy.sample, dict(inputs), generator=torch.Generator().manual_seed(seed))


def check_sample(policy: SamplingPolicy, inputs: Mapping[str, Tensor], shape: torch.Size, seed: int) -> Sample:
    """Property 1."""
    randomness = torch.get_rng_state()
    sample = draw_actions(policy, inputs, seed)
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
    repeated = torch.equal(sample.action, draw_actions(policy, inputs, seed).action)
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
    off = float(((probability * log_prob.where(probability > 0, 0.0)).sum(-1) + evaluations[0].entropy).detach().abs().max())
    expect(off <= 100 * tolerance, f"policy: the entropy is off by {off:.3g}; it is −Σ π log π over legal actions")
    parameters = [p for p in policy.parameters() if p.requires_grad]
    weight = probability.detach()
    score = torch.autograd.grad((weight * log_prob.where(weight > 0, 0.0)).sum(), parameters, allow_unused=True, materialize_grads=True)
    size = max((float(g.detach().abs().max()) for g in score), default=0.0)
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
        gradients = torch.autograd.grad(log_prob.mean(), parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([g.detach().reshape(-1) for g in gradients]))
    score = torch.stack(found).double()
    far = score.mean(0).abs() > SIGMAS * score.std(0) / math.sqrt(GROUPS) + 1e-6
    samples = f"{GROUPS * PER_GROUP} samples"
    expect(not bool(far.any()), f"policy: the mean of ∇log π over {samples} is not 0; sample and log_prob are of different distributions")


SAMPLES = 1 << 14  # actions that are drawn
SIGMAS = 7.0
"""A difference of more than this many standard errors is no chance: one in 10¹¹, for thousands of parameters and a t distribution."""
MAX_DIMENSIONS = 6
"""Dimensions of an action that are looked at: in more, a box around the middle holds too few of the samples."""
INSIDE = 0.05  # what is cut off at either end of each dimension, for the density there may be next to nothing


@torch.no_grad()
def check_density(policy: SamplingPolicy, inputs: Mapping[str, Tensor], seed: int) -> None:
    """The entropy is ``E[−log π]``, and ``exp log π`` is proportional to the density of the actions, or of their tanh, within intervals.

    A policy may keep the Gaussian number u of an action ``tanh u``; its log π is then the density of either, and a constant (the
    stretch to the bounds) may be missing from it.
    """
    repeated = {n: x[:1, :1].expand(SAMPLES, 1, *x.shape[2:]) for n, x in inputs.items()}
    action = policy.sample(dict(repeated), generator=torch.Generator().manual_seed(seed)).action
    scored = policy.evaluate(**repeated, action=action)
    log_prob, entropies = scored.log_prob.double().flatten(), scored.entropy.double().flatten()
    entropy = float(entropies.mean())
    one = float((entropies - entropy).abs().max()) <= 1e-3 * max(1.0, abs(entropy))
    why = "−log π of that action has gradient 0 in expectation"
    expect(one, f"policy: the entropy of one state differs with the action that is scored; {why}")
    error = float(log_prob.std()) / math.sqrt(SAMPLES)
    off = abs(float(-log_prob.mean()) - entropy)
    found = f"the entropy is {entropy:.4g}, the mean of −log π over {SAMPLES} samples {float(-log_prob.mean()):.4g}"
    right = "it is −E[log π], the change of variables of a squashed action (tanh) included"
    expect(off <= SIGMAS * error + 1e-3, f"policy: {found}; {right}")
    if not action.is_floating_point():
        return
    flat = action.double().reshape(SAMPLES, -1)
    if flat.shape[1] > MAX_DIMENSIONS or not spread_out(flat):
        return
    squashed = log_prob + 2.0 * (math.log(2.0) - flat - torch.nn.functional.softplus(-2.0 * flat)).sum(-1)
    worst = min(uneven(flat, log_prob), uneven(flat, squashed))
    found = f"log_prob is not the density of the actions that sample draws ({worst:.0f} standard errors off)"
    expect(worst <= SIGMAS, f"policy: {found}; of a squashed action a = tanh u it is log N(u) − Σ log(1 − tanh² u)")


def spread_out(action: Tensor) -> bool:
    """Whether actions seldom repeat and their dimensions ``[N, d]`` are not tied to each other: else a box says little."""
    if len({tuple(row) for row in as_list(action)}) < 0.9 * len(action):
        return False
    correlation = torch.corrcoef(action.T).view(action.shape[1], -1)
    return bool((correlation - torch.eye(len(correlation), dtype=correlation.dtype)).abs().max() < 0.2)


def uneven(action: Tensor, log_density: Tensor) -> float:
    """By how many standard errors ``E[1(a in box) / density] / volume``, a constant for a density up to a constant, differs among boxes.

    Each dimension is cut into five slabs of the box that holds the middle of all; the other dimensions are left whole.
    """
    edges = torch.quantile(action, torch.tensor([INSIDE, 0.2, 0.4, 0.6, 0.8, 1.0 - INSIDE], dtype=torch.float64), dim=0)  # [6, d]
    inside = ((action >= edges[0]) & (action < edges[-1])).all(-1)
    inverse = (log_density.mean() - log_density).exp().where(inside, 0.0)
    worst = 0.0
    for i in range(action.shape[1]):
        slab = torch.bucketize(action[:, i].contiguous(), edges[1:-1, i].contiguous())
        share = (edges[1:, i] - edges[:-1, i]) / (edges[-1, i] - edges[0, i])
        for k in range(len(share)):
            # the sum over this slab less its share of the whole box
            difference = inverse * ((slab == k).double() - share[k])
            worst = max(worst, abs(float(difference.mean())) / (float(difference.std()) / math.sqrt(len(action)) + 1e-12))
    return worst
