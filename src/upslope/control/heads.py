"""Heads for discrete actions, and the choice of a head for an action space; see :mod:`upslope.control.head`.

The categorical head has a compiled twin (``upslope.fast.formulas``), which does not see an edit here: train with ``--no-fast`` then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from upslope import functional as F
from upslope.control.box_heads import Beta, Gaussian, SquashedGaussian
from upslope.control.head import Distribution, Head
from upslope.control.spaces import Space, short
from upslope.errors import UsageError, require, unknown

__all__ = [
    "Bernoulli",
    "Beta",
    "BoxDistribution",
    "Categorical",
    "Distribution",
    "EpsilonGreedy",
    "Gaussian",
    "Head",
    "MultiCategorical",
    "SquashedGaussian",
    "head_for",
]

BoxDistribution = Literal["gaussian", "squashed", "beta"]
"""Distributions over a Box: diagonal Gaussian (scaled to the bounds and clipped by them), tanh-squashed Gaussian, Beta."""

SUPPORTED = "Discrete, MultiDiscrete, MultiBinary and Box of floats"


@dataclass(frozen=True)
class Categorical(Head):
    """Softmax over ``n`` actions; the environment counts them from ``start``. Parameters: logits ``[*, n]``."""

    n: int
    start: int = 0
    masked = True

    @property
    def num_parameters(self) -> int:
        return self.n

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return ()

    sample: ClassVar[Any] = staticmethod(F.categorical_sample)
    log_prob: ClassVar[Any] = staticmethod(F.categorical_log_prob)
    entropy: ClassVar[Any] = staticmethod(F.categorical_entropy)
    kl: ClassVar[Any] = staticmethod(F.categorical_kl)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return (parameters if mask is None else parameters.masked_fill(~mask, -math.inf)).argmax(-1)

    def score(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if mask is not None:
            return super().score(parameters, action, mask)
        log_p = parameters.log_softmax(-1)  # once for both
        entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
        return log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1), entropy

    def to_env(self, action: Tensor) -> NDArray[Any]:
        return action.cpu().numpy() + self.start


@dataclass(frozen=True)
class EpsilonGreedy(Categorical):
    """With probability ε any legal action, else one of the best: Parameters: action values ``[*, n]`` (Sutton & Barto 2.2).

    Where several are best they share. As a function of the values its log-probability is a step: it has no gradient.
    """

    epsilon: float = 0.1

    def probabilities(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """``ε / n + (1 − ε) [a is best] / (number of best)``, over the n legal actions."""
        legal = torch.ones_like(values) if mask is None else mask.to(values.dtype)
        values = values if mask is None else values.masked_fill(~mask, -math.inf)
        best = (values == values.amax(-1, keepdim=True)).to(values.dtype)
        return self.epsilon * legal / legal.sum(-1, keepdim=True) + (1.0 - self.epsilon) * best / best.sum(-1, keepdim=True)

    def _logits(self, values: Tensor, mask: Tensor | None) -> Tensor:
        return self.probabilities(values.detach(), mask).log()

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        return super().sample(self._logits(parameters, mask), generator)

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().log_prob(self._logits(parameters, mask), action)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().entropy(self._logits(parameters, mask))

    def score(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().score(self._logits(parameters, mask), action)

    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().kl(self._logits(p, mask), self._logits(q, mask))


@dataclass(frozen=True)
class MultiCategorical(Head):
    """Independent softmax factors with ``nvec`` actions each. Parameters and mask: the factors' side by side, ``[*, Σ nvec]``."""

    nvec: tuple[int, ...]
    start: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None  # of the environment's action; (len(nvec),) unless given
    masked = True

    @property
    def num_parameters(self) -> int:
        return sum(self.nvec)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)

    @cached_property
    def _offset(self) -> NDArray[np.int64]:
        return np.array(self.start or (0,) * len(self.nvec))

    def _factors(self, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
        """For each factor its part of each tensor (None stays None)."""
        parts = [[None] * len(self.nvec) if t is None else t.split(self.nvec, -1) for t in tensors]
        return list(zip(*parts, strict=True))

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        return torch.stack([F.categorical_sample(z, generator, m) for z, m in self._factors(parameters, mask)], -1)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([Categorical(z.shape[-1]).mode(z, m) for z, m in self._factors(parameters, mask)], -1)

    def score(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        actions = action.unbind(-1)
        pairs = [Categorical(n).score(z, a, m) for n, a, (z, m) in zip(self.nvec, actions, self._factors(parameters, mask), strict=True)]
        return torch.stack([p[0] for p in pairs]).sum(0), torch.stack([p[1] for p in pairs]).sum(0)

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        factors = zip(self._factors(parameters, mask), action.unbind(-1), strict=True)
        return torch.stack([F.categorical_log_prob(z, a, m) for (z, m), a in factors]).sum(0)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([F.categorical_entropy(z, m) for z, m in self._factors(parameters, mask)]).sum(0)

    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([Categorical(x.shape[-1]).kl(x, y, m) for x, y, m in self._factors(p, q, mask)]).sum(0)

    def to_env(self, action: Tensor) -> NDArray[Any]:
        array = action.cpu().numpy() + self._offset
        return array if self.shape is None else array.reshape(len(array), *self.shape)


@dataclass(frozen=True)
class Bernoulli(Head):
    """``n`` independent switches. Parameters: logits of "on", ``[*, n]``."""

    n: int
    shape: tuple[int, ...] | None = None

    @property
    def num_parameters(self) -> int:
        return self.n

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (self.n,)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        return F.bernoulli_sample(parameters, generator)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return (parameters > 0).long()

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.bernoulli_log_prob(parameters, action)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.bernoulli_entropy(parameters)

    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.bernoulli_kl(p, q)

    def to_env(self, action: Tensor) -> NDArray[Any]:
        array = action.cpu().numpy().astype(np.int8)
        return array if self.shape is None else array.reshape(len(array), *self.shape)


def head_for(space: Space, distribution: BoxDistribution = "gaussian", epsilon: float | None = None, *, scaled: bool = True) -> Head:
    """The head for an action space; ``distribution`` matters for Box only, ``scaled`` for a Gaussian (see there).

    :class:`UsageError` if there is none.

    With ``epsilon`` the network gives action values, and the head is ε-greedy in them: Discrete only.
    """
    if epsilon is not None:
        if not isinstance(space, spaces.Discrete):
            raise UsageError(f"action space {short(space)}: action values need a Discrete space; take a policy-gradient method")
        require(0.0 <= epsilon <= 1.0, f"epsilon: expected a number in [0, 1], found {epsilon}")
        return EpsilonGreedy(int(space.n), int(space.start), epsilon)
    if distribution not in get_args(BoxDistribution):
        raise unknown("distribution", str(distribution), get_args(BoxDistribution))
    if isinstance(space, spaces.Discrete):
        return Categorical(int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = (tuple(int(x) for x in array.reshape(-1)) for array in (space.nvec, space.start))
        return MultiCategorical(nvec, start, space.shape)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(math.prod(space.shape), space.shape)
    if not isinstance(space, spaces.Box):
        raise UsageError(f"action space {short(space)}: not supported; supported are {SUPPORTED}")
    if not np.issubdtype(space.dtype, np.floating):
        raise UsageError(f"action space {short(space)}: a Box of {space.dtype} is not supported; use MultiDiscrete or a Box of floats")
    dim = math.prod(space.shape)
    if dim == 0:
        raise UsageError(f"action space {short(space)}: holds no action")
    if distribution != "gaussian" and not space.is_bounded():
        raise UsageError(f"distribution {distribution!r} needs bounds on both sides, found {short(space)}: use 'gaussian'")
    kind = {"gaussian": Gaussian, "squashed": SquashedGaussian, "beta": Beta}[distribution]
    low, high = (tuple(float(x) for x in bound.reshape(-1)) for bound in (space.low, space.high))
    return kind(dim, low, high, space.shape, str(space.dtype), scaled)
