"""Heads for continuous actions: diagonal Gaussian, tanh-squashed Gaussian, Beta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from upslope import functional as F
from upslope.control.head import Head

STANDS_FOR_INFINITY = 1e18
"""A bound of this size or more is taken for none: ``np.finfo(np.float32).max`` is how some environments write ∞."""


@dataclass(frozen=True)
class Gaussian(Head):
    """Diagonal Gaussian over actions in units of their range. Parameters: ``concat(mean, log_std)``.

    The environment gets ``middle + half_range · a``, clipped to its bounds: a = −1 is the lower bound, 0 the middle, 1 the upper
    one, so that a mean near 0 and a spread near 1 fit whatever the bounds are. A dimension without two finite bounds keeps the
    environment's own units (middle 0, half range 1), and with ``scaled=False`` every dimension does.

    What is stored and scored is a, unclipped: distribution, log-probability, entropy and KL are a's. Those of the environment's
    action differ by ``Σ log half_range``, a constant that no ratio and no gradient sees.
    """

    dim: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    scaled: bool = True

    @property
    def num_parameters(self) -> int:
        return 2 * self.dim

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @cached_property
    def _bounds(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.array(self.low, self.dtype), np.array(self.high, self.dtype)

    @cached_property
    def units(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(middle, half_range)`` of every dimension; (0, 1) where it keeps the environment's own units."""
        low, high = np.array(self.low, np.float64), np.array(self.high, np.float64)
        bounded = self.scaled & (low < high) & (np.maximum(abs(low), abs(high)) < STANDS_FOR_INFINITY)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        return (low + high) / 2, (high - low) / 2

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        return F.gaussian_sample(mean, log_std, generator)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return parameters[..., : self.dim]

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        return F.gaussian_log_prob(mean, log_std, action)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.gaussian_entropy(parameters[..., self.dim :])

    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.gaussian_kl(*p.chunk(2, -1), *q.chunk(2, -1))

    def to_env(self, action: Tensor) -> NDArray[Any]:
        middle, half_range = self.units  # float64, so that rounding cannot step over the bounds
        array = np.clip(middle + half_range * action.cpu().numpy(), *self._bounds).astype(self.dtype)
        return array if self.shape is None else array.reshape(len(array), *self.shape)

    def _stretch(self, unit: NDArray[Any]) -> NDArray[Any]:
        """From [0, 1] to the bounds, in float64 so that rounding cannot step over them."""
        low, high = (bound.astype(np.float64) for bound in self._bounds)
        array = np.clip(low + (high - low) * unit, low, high).astype(self.dtype)
        return array if self.shape is None else array.reshape(len(array), *self.shape)


@dataclass(frozen=True)
class SquashedGaussian(Gaussian):
    """``tanh`` of a diagonal Gaussian, stretched to the bounds. Parameters: ``concat(mean, log_std)`` of u; u is what is stored.

    ``log π(a) = log N(u) − Σ log(1 − tanh²u)`` is the density of a = tanh u in (−1, 1); stretching to the bounds adds a
    constant that no gradient and no ratio sees. The entropy ``H(N) + Σ E[log(1 − tanh²u)]`` has no closed form; the
    expectation is taken by the trapezoid rule over ±5.5 σ, right to 1e-6 for σ ≤ 2 and to 1e-4 for σ = 3: deterministic and
    differentiable, without a draw.
    """

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        return F.squashed_gaussian_log_prob(mean, log_std, action)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        nodes = torch.linspace(-5.5, 5.5, 32, dtype=parameters.dtype, device=parameters.device)
        u = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * nodes
        log_slope = 2.0 * (math.log(2.0) - u + logsigmoid(2.0 * u))
        return F.gaussian_entropy(log_std) + (log_slope @ (-0.5 * nodes.square()).softmax(-1)).sum(-1)

    def to_env(self, action: Tensor) -> NDArray[Any]:
        return self._stretch((np.tanh(action.cpu().numpy().astype(np.float64)) + 1) / 2)


@dataclass(frozen=True)
class Beta(Gaussian):
    """Independent Beta distributions on (0, 1), stretched to the bounds. Parameters: ``concat(a, b)``, ``[*, 2 dim]``.

    ``α = 1 + softplus(a)`` and ``β = 1 + softplus(b)`` keep the density unimodal and finite. Source: Chou et al. 2017, section 4.
    """

    @staticmethod
    def _logs(parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha, log_beta = softplus(parameters).log1p().chunk(2, -1)
        return log_alpha, log_beta

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        return F.beta_sample(*self._logs(parameters), generator)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        a, b = softplus(parameters).chunk(2, -1)  # α − 1 and β − 1
        return a / (a + b)

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.beta_log_prob(*self._logs(parameters), action)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.beta_entropy(*self._logs(parameters))

    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.beta_kl(*self._logs(p), *self._logs(q))

    def to_env(self, action: Tensor) -> NDArray[Any]:
        return self._stretch(action.cpu().numpy().astype(np.float64))
