"""Policies and batches for the twins: small, but far from their initial symmetry, so that every term of a gradient counts."""

from __future__ import annotations

import copy

import numpy as np
import torch
from gymnasium import spaces

from upslope import functional as F
from upslope.control import MLPPolicy
from upslope.records import Batch


def make_policy(head="categorical", *, inputs=4, outputs=3, hidden_sizes=(8, 8), activation="tanh", critic=True, seed=0, **options):
    observation = spaces.Box(-np.inf, np.inf, (inputs,), np.float32)
    action = spaces.Discrete(outputs) if head == "categorical" else spaces.Box(-1, 1, (outputs,), np.float32)
    options = {"log_std": 0.0, **options}  # ratios of narrow Gaussians would magnify rounding
    policy = MLPPolicy.for_envs(
        (observation, action), hidden_sizes=hidden_sizes, activation=activation, critic=critic, seed=seed, **options
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.4 * p.shape[-1] ** -0.5 * torch.randn(p.shape, generator=generator)
    return policy


def make_batch(policy, shape=(37,), *, action_mask=False, masked=0.1, zero_weight=0.1, unit="step", seed=0, average_over="steps"):
    """Recorded actions of the policy itself, with random advantages and returns; some rows masked, some with weight 0."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {"observation": torch.randn(*shape, policy.actor[0].in_features, generator=generator)}
    if action_mask:
        legal = torch.rand(*shape, policy.head.num_parameters, generator=generator) < 0.6
        legal[..., -1] |= ~legal.any(-1)
        inputs["action_mask"] = legal
    sample = policy.sample(inputs, generator=generator)
    mask = torch.rand(shape, generator=generator) >= masked
    weight = F.average_weight(mask, average_over)
    weight = weight.where(torch.rand(shape, generator=generator) >= zero_weight, 0.0)
    return Batch(
        inputs={**inputs, "action": sample.action},
        behavior_log_prob=sample.log_prob.where(mask, 0.0),
        mask=mask,
        weight=weight,
        unit=unit,
        advantage=torch.randn(shape, generator=generator).where(mask, 0.0),
        returns=torch.randn(shape, generator=generator).where(mask, 0.0),
        value=sample.value if sample.value is None else sample.value.where(mask, 0.0),
    )


def twice(policy):
    """The policy and an equal one."""
    return policy, copy.deepcopy(policy)


def vector(policy):
    return torch.cat([p.detach().reshape(-1) for p in policy.parameters()]).clone()


def close_to_rounding(a, b, tolerance=1e-5):
    """Float32 sums in another order: what differs is some units in the last place of the largest entry, whatever its size is."""
    return close(a, b, atol=tolerance * float(torch.as_tensor(b).abs().max()))


def close(a, b, atol=1e-6):
    """Equal up to float32 rounding in another order; NaN is never close."""
    return torch.allclose(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64), rtol=1e-6, atol=atol)
