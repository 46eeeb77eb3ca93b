"""Rounding to bfloat16 up or down by chance, so that small steps are kept on average."""

from __future__ import annotations

import torch
from torch import Tensor


def stochastically_rounded(exact: Tensor, generator: torch.Generator) -> Tensor:
    """``exact`` (float32) as bfloat16: up with probability ``(x − ⌊x⌋) / (⌈x⌉ − ⌊x⌋)``, else down, so that ``E[result] = x``.

    A bfloat16 is the upper half of a float32: a random lower half is added, and the lower half cut off.
    (Gupta et al. 2015, *Deep Learning with Limited Numerical Precision*, section 3.)
    """
    noise = torch.randint(0, 1 << 16, exact.shape, generator=generator, device=exact.device, dtype=torch.int32)
    return (exact.float().view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()
