"""The checks of a policy whose actions cannot be listed: is log π the density of what it draws, and is the entropy that of log π?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from upslope.records import SamplingPolicy
from upslope.testing.contract import expect

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
    if len(action.unique(dim=0)) < 0.9 * len(action):
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
