"""What the methods that learn from recorded preferences share: pairs, one weight per pair, and the numbers reported."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import require
from upslope.records import Batch, Rollout


def pair_batch(rollout: Rollout, **estimates: Any) -> Batch:
    """The batch of ``[..., 2, T]`` pairs, chosen before rejected; the weights of a pair's steps add up to 1/N, whatever their number."""
    mask = rollout.mask
    message = f"rollout: expected pairs [N, 2, T] of unit 'pair', found shape {tuple(mask.shape)} of unit {rollout.unit!r}"
    require(rollout.unit == "pair" and mask.dim() >= 2 and mask.shape[-2] == 2, message)
    steps = mask.sum((-2, -1), keepdim=True).clamp(min=1)
    weight = mask.to(rollout.behavior_log_prob.dtype) / (steps * mask[..., :1, :1].numel())
    return replace(Batch.of(rollout, **estimates), weight=weight)


def pair_sum(value: Tensor, batch: Batch) -> Tensor:
    """The objective, 0-d: each pair's value ``[...]`` times the sum of its weights ``[..., 2, T]``."""
    return F.weighted_sum(value, batch.weight.sum((-2, -1)))


@torch.no_grad()
def pair_metrics(reward: Tensor) -> dict[str, Tensor]:
    """Means over the pairs of their rewards ``[..., 2]``: each side's, the margin, and how often the chosen one wins (a tie counts ½)."""
    chosen, rejected = reward[..., 0], reward[..., 1]
    wins = 0.5 * (torch.sign(chosen - rejected) + 1.0)
    means = {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected, "accuracy": wins}
    return {name: x.mean() for name, x in means.items()}
