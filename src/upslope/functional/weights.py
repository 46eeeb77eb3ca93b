"""One weight tensor over the whole batch says how steps are averaged; an objective is ``(weight · value).sum()``.

Because it is a plain sum, parts of a batch add up to the whole exactly: micro-batches and ranks cannot change a result.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from upslope.functional.recursion import zero_masked
from upslope.functional.shapes import check_shapes

AverageOver = Literal["steps", "sequences", "constant"]
"""``steps``: every step counts the same. ``sequences``: every sequence does. ``constant``: a fixed divisor, whatever the lengths."""


def average_weight(
    mask: Tensor, average_over: AverageOver = "steps", max_steps: int | None = None, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Each step's share of the batch's objective, ``[..., T]`` like ``mask``; 0 on masked rows.

    ``steps`` ``1/Σmask`` · ``sequences`` ``1/(N·|o_i|)`` · ``constant`` ``1/(N·max_steps)``, with N all sequences, empty ones too, and
    ``max_steps`` the longest that one may be. Where lengths differ only ``constant`` is proportional to the policy gradient.
    Source: Yu et al. 2025 (DAPO), eq. 8; Shao et al. 2024 (GRPO), eq. 3; Liu et al. 2025 (Dr. GRPO), section 3.2.
    """
    check_shapes("mask", mask.shape, mask=mask)
    weight = mask.to(dtype or torch.get_default_dtype())
    sequences = mask[..., :1].numel()
    if average_over == "steps":
        return weight / weight.sum().clamp(min=1.0)
    if average_over == "sequences":
        return weight / (sequences * weight.sum(-1, keepdim=True).clamp(min=1.0))
    if average_over != "constant":
        raise ValueError(f"average_over: expected 'steps', 'sequences' or 'constant', found {average_over!r}")
    if max_steps is None or max_steps < 1:
        raise ValueError(f"max_steps: average_over='constant' divides by the longest a sequence may be, found {max_steps}")
    return weight / (sequences * max_steps)


def weighted_sum(value: Tensor, weight: Tensor) -> Tensor:
    """The objective, 0-d: ``Σ weight · value`` of two ``[..., T]``, where a weight of 0 hides even NaN; ValueError when shapes differ."""
    check_shapes("weight", weight.shape, value=value)
    return (value.masked_fill(weight == 0, 0.0) * weight).sum()


def squared_error(value: Tensor, returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """The critic's error per step, ``[..., T]``: ``(V − R)²``, without the ½ that is common. Source: Schulman et al. 2017 (PPO), eq. 9."""
    check_shapes("value", value.shape, returns=returns, mask=mask)
    return mse_loss(zero_masked(value, mask), zero_masked(returns, mask), reduction="none")


def clipped_squared_error(value: Tensor, returns: Tensor, old_value: Tensor, clip_range: float, mask: Tensor | None = None) -> Tensor:
    """The critic's error with moves beyond ``clip_range`` given no credit, ``[..., T]``.

    ``max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²)``.

    Raises ValueError when shapes differ or ``clip_range`` is not positive. Source: the released code of PPO (baselines ppo2), in no paper.
    """
    check_shapes("value", value.shape, returns=returns, old_value=old_value, mask=mask)
    if not clip_range > 0:
        raise ValueError(f"clip_range: expected a positive number, found {clip_range}")
    moved = old_value + (value - old_value).clamp(-clip_range, clip_range)
    return torch.maximum(squared_error(value, returns, mask), squared_error(moved, returns, mask))
