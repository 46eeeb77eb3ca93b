"""Running normalization of observations and rewards, and a critic's units: modules inside a policy, so that they are saved with it.

Moments live in float64 on the CPU, wherever the policy moves: environments produce their numbers there, and float32 would
lose the variance of an observation with a large mean.

A critic's network says how many standard deviations above the mean return a state is worth: rewards of a million, or of a million and
one each, would otherwise ask weights for numbers that steps of a thousandth never reach.
"""

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from upslope.control.kinds import Array
from upslope.errors import UsageError, require
from upslope.records import State

RATE = 0.1  # share of a new batch in the running moments of the returns; the first 1/RATE batches count alike
MIN_STD = 1e-5
"""Smallest standard deviation, as a fraction of the mean's size: below it float32 tells returns no longer apart."""


class Moments(nn.Module):
    """Buffers in float64 that moving or casting the policy leaves where and what they are."""

    def __init__(self, **first: Tensor) -> None:
        super().__init__()
        for name, tensor in first.items():
            self.register_buffer(name, tensor.double())

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        return self


class RunningMoments(Moments):
    """Mean and variance of all rows ever folded in: equal to ``numpy.mean`` and ``numpy.var`` (no correction) over all of them.

    Buffers ``mean``, ``var`` (of the shape given) and ``count``; 0, 1 and 0 before the first row. With ``frozen = True``
    nothing is folded in any more. Merging two sets of moments: Chan, Golub & LeVeque 1983, eq. 2.1.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__(mean=torch.zeros(shape), var=torch.ones(shape), count=torch.zeros(()))
        self.frozen = False

    def update(self, rows: Array) -> None:
        """Fold in ``rows [N, *shape]``."""
        rows = np.asarray(rows, np.float64)
        if rows.shape[1:] != tuple(self.mean.shape):
            raise UsageError(f"moments: expected rows of shape {tuple(self.mean.shape)}, found {rows.shape}")
        if len(rows):
            self.merge(rows.mean(0), rows.var(0), len(rows))

    def merge(self, mean: Array | float, var: Array | float, count: float) -> None:
        """Fold in the moments of another ``count`` rows, in place."""
        if self.frozen or count <= 0:
            return
        known_mean, known_var, known_count = self.mean.numpy(), self.var.numpy(), float(self.count)
        share = count / (known_count + count)
        delta = mean - known_mean
        known_var += share * (var - known_var) + share * (1 - share) * delta * delta
        known_mean += share * delta
        self.count += count


class ObservationNormalizer(nn.Module):
    """``clip((x − mean) / sqrt(var + eps))`` per number of an observation vector, with running moments of all seen.

    ``continuous [d]`` marks the numbers it applies to; one-hot and binary parts pass through.
    """

    def __init__(self, continuous: Array, *, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        require(clip > 0, f"clip: expected a positive number, found {clip}")
        self.clip, self.eps = clip, eps
        self.moments = RunningMoments((len(continuous),))
        self._applies = np.asarray(continuous, bool)
        self._everywhere = bool(self._applies.all())

    def update(self, observation: Array) -> None:
        """Fold in observations ``[N, d]``."""
        self.moments.update(observation)

    def forward(self, observation: Array) -> Array:
        """Normalized observations ``[N, d]``, float32."""
        mean, var = self.moments.mean.numpy(), self.moments.var.numpy()
        scaled = (observation - mean) / np.sqrt(var + self.eps)
        scaled = np.clip(scaled, -self.clip, self.clip, out=scaled)
        return (scaled if self._everywhere else np.where(self._applies, scaled, observation)).astype(np.float32)


class RewardNormalizer(nn.Module):
    """Rewards divided by the running standard deviation of the discounted return, and clipped; the sign and zero stay.

    Each environment's return ``R ← γ R + r`` starts at 0 after an episode's end; its variance over all steps gives the scale.
    ``returns`` (one per environment, between two calls) is part of what an exact continuation needs; it is not saved with
    the policy, whose number of environments may change.
    """

    def __init__(self, gamma: float = 0.99, *, clip: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        require(0 <= gamma <= 1, f"gamma: expected a number from 0 to 1, found {gamma}")
        require(clip > 0, f"clip: expected a positive number, found {clip}")
        self.gamma, self.clip, self.eps = gamma, clip, eps
        self.moments = RunningMoments()
        self.returns: Array | None = None

    def episode_state(self) -> State:
        return {"returns": self.returns}

    def load_episode_state(self, state: State) -> None:
        self.returns = state["returns"]

    def reset(self) -> None:
        self.returns = None

    def update(self, reward: Array, ended: Array, mask: Array | None = None) -> None:
        """Fold in one step of every environment: ``reward``, ``ended`` and ``mask`` (False: no decision there), each ``[N]``."""
        reward, ended = np.asarray(reward, np.float64), np.asarray(ended, bool)
        if reward.ndim != 1 or ended.shape != reward.shape:
            raise UsageError(f"reward: expected [N] like ended {ended.shape}, found {reward.shape}")
        real = np.ones(reward.shape, bool) if mask is None else np.asarray(mask, bool)
        if self.moments.frozen:
            return
        if self.returns is None or self.returns.shape != reward.shape:
            self.returns = np.zeros(reward.shape)
        self.returns = np.where(real, self.gamma * self.returns + reward, self.returns)
        self.moments.update(self.returns[real])
        self.returns = np.where(real & ended, 0.0, self.returns)

    def forward(self, reward: Array) -> Array:
        """Normalized rewards, float32, of any shape; before the first update only clipped."""
        scaled = np.asarray(reward, np.float64) / np.sqrt(float(self.moments.var) + self.eps)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


class ValueScale(Moments):
    """``V = mean + std · y`` for a network's output y, with running moments of the returns that the critic learns (PopArt).

    Until there is a return with a size or a spread, V is y itself (``count`` 0). When the moments move, the critic's last layer is
    changed the other way, so that V stays what it was: ``W ← W · std/std′``, ``b ← (std · b + mean − mean′)/std′``. A last layer of
    zeros has nothing to keep, and where the last layer is not known (a user's network) V moves with the moments.

    Source: van Hasselt et al. 2016, eq. 7 to 9.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(mean=torch.zeros(()), std=torch.ones(()), count=torch.zeros(()))

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
        if type(last) is nn.Linear and (bias := getattr(last, "bias", None)) is not None and (count > 1.0 or bool(last.weight.any())):
            last.weight.mul_(float(self.std) / std)
            bias.copy_((bias.double() * float(self.std) + float(self.mean) - mean) / std)
        for moment, number in ((self.count, count), (self.mean, mean), (self.std, std)):
            moment.fill_(number)
