"""Adam (Kingma & Ba 2015, algorithm 1) as one function on tensors: no hidden state, half the overhead of an optimizer object.

The state is two tensors per parameter and a step count, so a run can be saved without pickling anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.updates.rounding import stochastically_rounded

BETAS = (0.9, 0.999)
"""Decay rates of the two moments."""


def exact(tensor: Tensor) -> torch.dtype:
    """The precision to compute in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


@torch.no_grad()
def adam_descend(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    num_updates: int,
    learning_rate: float,
    eps: float,
    rounding: torch.Generator | None = None,
) -> None:
    """One descent step in place, ``parameter −= α · m̂ / (√v̂ + eps)``; all four tensors have one shape.

    A parameter in bfloat16 is rounded stochastically where there is a generator for it.

    ``m ← β₁m + (1−β₁)g``, ``v ← β₂v + (1−β₂)g²``, ``m̂ = m/(1−β₁ⁿ)``, ``v̂ = v/(1−β₂ⁿ)`` with n = ``num_updates``, this step included.
    """
    beta1, beta2 = BETAS
    exp_avg.lerp_(gradient, 1.0 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    denominator = exp_avg_sq.sqrt().mul_((1.0 - beta2**num_updates) ** -0.5).add_(eps)
    moved = parameter if parameter.dtype == exp_avg.dtype else parameter.to(exp_avg.dtype)
    moved.addcdiv_(exp_avg, denominator, value=-learning_rate / (1.0 - beta1**num_updates))
    if moved is not parameter:
        parameter.copy_(moved if rounding is None else stochastically_rounded(moved, rounding))
