"""Tokens from uniform random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512


def inverse_cdf(log_p: Tensor, uniform: Tensor) -> Tensor:
    """The token whose stretch of [0, 1) holds the uniform number ``[rows]``: first which block of tokens, then which in it.

    Two short cumulative sums round less than one over the whole vocabulary. A token of probability 0 is never chosen.
    """
    p = log_p.exp()
    size = min(BLOCK, p.shape[1])
    if p.shape[1] % size:
        p = torch.nn.functional.pad(p, (0, size - p.shape[1] % size))
    blocks = p.view(len(p), -1, size)
    block, rest = locate_in_cdf(blocks.sum(-1), uniform.to(torch.float64))
    inside, _ = locate_in_cdf(blocks[torch.arange(len(p), device=p.device), block], rest)
    return block * size + inside


def locate_in_cdf(mass: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Which entry of ``mass [rows, n]`` holds ``share`` (in [0, 1) of the total), and which share of that entry is left."""
    total = mass.to(torch.float64).cumsum(-1)
    wanted = (share * total[:, -1])[:, None]
    index = torch.searchsorted(total, wanted, right=True)
    last = (mass > 0).to(torch.int8).cumsum(-1).argmax(-1, keepdim=True)  # rounding must not lead past the last possible entry
    index = torch.minimum(index, last)
    before = torch.where(index > 0, total.gather(1, (index - 1).clamp(min=0)), 0.0)
    left = (wanted - before) / mass.to(torch.float64).gather(1, index)
    return index.squeeze(1), left.clamp(0.0, 1.0 - 1e-12).squeeze(1)
