"""The units of a critic: its network says how many standard deviations above the mean return a state is worth.

Rewards of a million, or of a million and one each, would otherwise ask weights for numbers that steps of a thousandth never reach.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

RATE = 0.1
"""Share of a new batch in the running moments; the first 1/RATE batches count alike."""
MIN_STD = 1e-5
"""Smallest standard deviation, as a fraction of the mean's size: below it float32 tells returns no longer apart."""


class ValueScale(nn.Module):
    """``V = mean + std · y`` for a network's output y, with running moments of the returns that the critic learns (PopArt).

    Until there is a return with a size or a spread, V is y itself (``count`` 0). When the moments move, the critic's last layer is
    changed the other way, so that V stays what it was: ``W ← W · std/std′``, ``b ← (std · b + mean − mean′)/std′``. A last layer of
    zeros has nothing to keep, and where the last layer is not known (a network of one's own) V moves with the moments.

    Source: van Hasselt et al. 2016, eq. 7 to 9.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> ValueScale:
        """Moving or casting the policy leaves the moments where and what they are."""
        return self

    def forward(self, y: Tensor) -> Tensor:
        """V from the network's output; y itself at first, when ``mean`` is 0 and ``std`` 1."""
        return y * self.std + self.mean

    @torch.no_grad()
    def follow(self, returns: Tensor, last: nn.Module | None = None) -> None:
        """Fold in what the critic is about to learn, ``[N]``; ``last`` is its last layer, kept to what it says if it is affine."""
        returns = returns.double()
        if not bool(returns.isfinite().all()):  # the update says so, and nothing has moved
            return
        count, mean, var = float(self.count) + 1.0, float(returns.mean()), float(returns.var(correction=0))
        if count > 1.0:
            share, old = max(1.0 / count, RATE), float(self.mean)
            var = (1.0 - share) * float(self.std) ** 2 + share * var + share * (1.0 - share) * (mean - old) ** 2
            mean = old + share * (mean - old)
        std = max(var**0.5, MIN_STD * abs(mean))
        if std == 0.0:  # nothing but zeros so far
            return
        if type(last) is nn.Linear and last.bias is not None and (count > 1.0 or bool(last.weight.any())):
            last.weight.mul_(float(self.std) / std)
            last.bias.copy_((last.bias.double() * float(self.std) + float(self.mean) - mean) / std)
        self.count.fill_(count)
        self.mean.fill_(mean)
        self.std.fill_(std)
