"""What several algorithms share: checks of their arguments and rollouts, and the numbers that every objective reports."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError, require
from upslope.records import Batch, Evaluation, Rollout


def check_fraction(name: str, value: float) -> None:
    """Refuse what is not in [0, 1]: discount factors and trace decays."""
    require(0.0 <= value <= 1.0, f"{name}: expected a number in [0, 1], found {value}")


def check_not_negative(**values: float | None) -> None:
    """Refuse negative weights of terms."""
    for name, value in values.items():
        require(value is None or value >= 0.0, f"{name}: expected a number ≥ 0, found {value}")


def critic_values(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """``value`` and ``next_value`` of a rollout whose policy has a critic."""
    if rollout.value is None or rollout.next_value is None:
        raise UsageError("policy: this algorithm needs a critic, and sample() returned no value; use a policy with a value head")
    return rollout.value, rollout.next_value


def evaluated_value(value: Tensor | None) -> Tensor:
    """The critic's value in an evaluation."""
    if value is None:
        raise UsageError("policy: evaluate() returned no value; use a policy with a value head or set value_coef to 0")
    return value


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """``Σ weight · value / Σ weight``, detached: for reporting."""
    return F.weighted_sum(value.detach(), weight) / weight.sum()


@torch.no_grad()
def policy_metrics(
    new: Evaluation, batch: Batch, clip_range: F.ClipRange = (1.0, math.inf), dual_clip: float | None = None
) -> dict[str, Tensor]:
    """What every objective reports, as weighted means over the minibatch; ``max_log_ratio`` is 0 before the first step.

    ``approx_kl`` is KL(π_old‖π) by k3; ``clip_fraction`` counts ratios outside the range; ``dead_fraction`` counts the
    steps whose gradient the clip really kills.
    """
    advantage = torch.zeros_like(new.log_prob) if batch.advantage is None else batch.advantage
    metrics = F.surrogate_metrics(new.log_prob, batch.behavior_log_prob, advantage, batch.mask, clip_range, dual_clip=dual_clip)
    metrics["entropy"] = weighted_mean(new.entropy, batch.weight)
    metrics["max_log_ratio"] = (new.log_prob - batch.behavior_log_prob).abs().masked_fill(~batch.mask, 0.0).max()
    return metrics
