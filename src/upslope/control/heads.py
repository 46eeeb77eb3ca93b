"""What a head is: the meaning of a network's numbers as a distribution over actions.

A head is a small frozen object without parameters: every method takes the parameter tensor ``[*, P]``. The
*stored* action is the one that ``log_prob`` takes (int64 or float32); :meth:`Head.to_env` turns it into what the
environment takes. They differ where the environment's action is a function of the sampled one: a Gaussian's clipped
action has no density, and a squashed action near ±1 has lost the digits that its density needs; so the sampled one is stored.

Masks are boolean, True = legal: ``[*, n]`` for a categorical head, the factors' masks side by side ``[*, Σ nvec]`` for a
multi-categorical one.

The categorical head and the Gaussian one have compiled twins in ``upslope.fast.formulas``, which serve as long as they say the same: behind
an edit here, or of their functions, everything runs as it is written (:mod:`upslope.fast.agreement`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from upslope import functional as F
from upslope.control.kinds import Array, Box, MultiDiscrete
from upslope.control.spaces import Space, short
from upslope.errors import UsageError, require, unknown

BoxDistribution = Literal["gaussian", "squashed", "beta"]
"""Distributions over a Box: diagonal Gaussian (scaled to the bounds and clipped by them), tanh-squashed Gaussian, Beta."""

SUPPORTED = "Discrete, MultiDiscrete, MultiBinary and Box of floats"
static: Any = staticmethod
STANDS_FOR_INFINITY = 1e18
"""A bound of this size or more is taken for none: ``np.finfo(np.float32).max`` is how some environments write ∞."""


class Functions(NamedTuple):
    """A distribution's in :mod:`upslope.functional`."""

    sample: Callable[..., Tensor]
    log_prob: Callable[..., Tensor]
    entropy: Callable[..., Tensor]
    kl: Callable[..., Tensor]


class Head(ABC):
    """What every head has. ``num_parameters`` is P. A head gives the ``functions`` of its distribution, or their four methods itself."""

    masked = False
    """Whether the head can take an action mask."""
    functions: ClassVar[Functions]

    @property
    @abstractmethod
    def num_parameters(self) -> int: ...

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The stored action's shape per decision."""
        return tuple(self.mode(torch.zeros(1, self.num_parameters)).shape[1:])

    def parts(self, parameters: Tensor) -> tuple[Tensor, ...]:
        """What the ``functions`` take in place of the parameters."""
        return (parameters,)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        """A stored action ``[*, *stored_shape]`` for each row of parameters."""
        return self.functions.sample(*self.parts(parameters), generator)

    @abstractmethod
    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        """The greedy stored action."""

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """log π of stored actions, ``[*]``."""
        return self.functions.log_prob(*self.parts(parameters), action)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        """Entropy in nats, ``[*]``; differential for continuous actions."""
        return self.functions.entropy(*self.parts(parameters))

    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        """Exact KL(p‖q) of two parameter tensors, ``[*]``."""
        return self.functions.kl(*self.parts(p), *self.parts(q))

    @abstractmethod
    def to_env(self, action: Tensor) -> Array:
        """Stored actions ``[N, …]`` as the environment's, a new NumPy array."""


def shaped(array: Array, shape: tuple[int, ...] | None) -> Array:
    return array if shape is None else array.reshape(len(array), *shape)


@dataclass(frozen=True)
class Distribution:
    """A head with its parameters ``[*, P]`` and mask: the policy's distribution in each state."""

    head: Head
    parameters: Tensor
    mask: Tensor | None = None

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.head.sample(self.parameters, generator, self.mask)

    def mode(self) -> Tensor:
        return self.head.mode(self.parameters, self.mask)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.head.log_prob(self.parameters, action, self.mask)

    def entropy(self) -> Tensor:
        return self.head.entropy(self.parameters, self.mask)

    def kl(self, other: Distribution) -> Tensor:
        return self.head.kl(self.parameters, other.parameters, self.mask)


# ------------------------------------------------------------------------------------------------------------------------- discrete actions


@dataclass(frozen=True)
class Categorical(Head):
    """Softmax over ``n`` actions; the environment counts them from ``start``. Parameters: logits ``[*, n]``."""

    n: int
    start: int = 0
    masked = True

    @property
    def num_parameters(self) -> int:
        return self.n

    sample, log_prob = static(F.categorical_sample), static(F.categorical_log_prob)
    entropy, kl = static(F.categorical_entropy), static(F.categorical_kl)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return (parameters if mask is None else parameters.masked_fill(~mask, -math.inf)).argmax(-1)

    def to_env(self, action: Tensor) -> Array:
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

    @cached_property
    def _offset(self) -> Array:
        return np.array(self.start or (0,) * len(self.nvec))

    def _factors(self, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
        """For each factor its part of each tensor (None stays None)."""
        parts = [[None] * len(self.nvec) if t is None else t.split_with_sizes(self.nvec, -1) for t in tensors]
        return list(zip(*parts, strict=True))

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        return torch.stack([F.categorical_sample(z, generator, m) for z, m in self._factors(parameters, mask)], -1)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([Categorical(z.shape[-1]).mode(z, m) for z, m in self._factors(parameters, mask)], -1)

    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        factors = zip(self._factors(parameters, mask), action.unbind(-1), strict=True)
        return torch.stack([F.categorical_log_prob(z, a, m) for (z, m), a in factors]).sum(0)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([F.categorical_entropy(z, m) for z, m in self._factors(parameters, mask)]).sum(0)

    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([Categorical(x.shape[-1]).kl(x, y, m) for x, y, m in self._factors(p, q, mask)]).sum(0)

    def to_env(self, action: Tensor) -> Array:
        return shaped(action.cpu().numpy() + self._offset, self.shape)


@dataclass(frozen=True)
class Bernoulli(Head):
    """``n`` independent switches. Parameters: logits of "on", ``[*, n]``."""

    functions = Functions(F.bernoulli_sample, F.bernoulli_log_prob, F.bernoulli_entropy, F.bernoulli_kl)

    n: int
    shape: tuple[int, ...] | None = None

    @property
    def num_parameters(self) -> int:
        return self.n

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return (parameters > 0).long()

    def to_env(self, action: Tensor) -> Array:
        return shaped(action.cpu().numpy().astype(np.int8), self.shape)


# ----------------------------------------------------------------------------------------------------------------------- continuous actions


def of_spread(mean: Tensor, log_std: Tensor) -> Tensor:
    return F.gaussian_entropy(log_std)


@dataclass(frozen=True)
class Gaussian(Head):
    """Diagonal Gaussian over actions in units of their range. Parameters: ``concat(mean, log_std)``.

    The environment gets ``middle + half_range · a``, clipped to its bounds: a = −1 is the lower bound, 0 the middle, 1 the upper
    one, so that a mean near 0 and a spread near 1 fit whatever the bounds are. A dimension without two finite bounds keeps the
    environment's units (half range 1): around 0, or where there is one bound so that a = ∓1 is that bound. With ``scaled=False``
    every dimension keeps them, around 0.

    What is stored and scored is a, unclipped: distribution, log-probability, entropy and KL are a's. Those of the environment's
    action differ by ``Σ log half_range``, a constant that no ratio and no gradient sees.
    """

    functions = Functions(F.gaussian_sample, F.gaussian_log_prob, of_spread, F.gaussian_kl)

    dim: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    scaled: bool = True

    @property
    def num_parameters(self) -> int:
        return 2 * self.dim

    @cached_property
    def _bounds(self) -> tuple[Array, Array]:
        return np.array(self.low, self.dtype), np.array(self.high, self.dtype)

    @cached_property
    def units(self) -> tuple[Array, Array]:
        """``(middle, half_range)`` of every dimension."""
        low, high = np.array(self.low, np.float64), np.array(self.high, np.float64)
        wide, below, above = self.scaled & (low < high), low > -STANDS_FOR_INFINITY, high < STANDS_FOR_INFINITY
        low = np.select([wide & below, wide & above], [low, high - 2.0], -1.0)
        high = np.where(wide & above, high, low + 2.0)
        return (low + high) / 2, (high - low) / 2

    def parts(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return parameters.chunk(2, -1)

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        return parameters[..., : self.dim]

    def to_env(self, action: Tensor) -> Array:
        middle, half_range = self.units  # float64, so that rounding cannot step over the bounds
        return shaped(np.clip(middle + half_range * action.cpu().numpy(), *self._bounds).astype(self.dtype), self.shape)

    def _stretch(self, unit: Array) -> Array:
        """From [0, 1] to the bounds, in float64 so that rounding cannot step over them."""
        low, high = (bound.astype(np.float64) for bound in self._bounds)
        return shaped(np.clip(low + (high - low) * unit, low, high).astype(self.dtype), self.shape)


@dataclass(frozen=True)
class SquashedGaussian(Gaussian):
    """``tanh`` of a diagonal Gaussian, stretched to the bounds. Parameters: ``concat(mean, log_std)`` of u; u is what is stored.

    ``log π(a) = log N(u) − Σ log(1 − tanh²u)`` is the density of a = tanh u in (−1, 1); stretching to the bounds adds a
    constant that no gradient and no ratio sees. The entropy ``H(N) + Σ E[log(1 − tanh²u)]`` has no closed form; the
    expectation is taken by the trapezoid rule over ±5.5 σ, right to 1e-6 for σ ≤ 2 and to 1e-4 for σ = 3: deterministic and
    differentiable, without a draw.
    """

    functions = Gaussian.functions._replace(log_prob=F.squashed_gaussian_log_prob)

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        nodes = torch.linspace(-5.5, 5.5, 32, dtype=parameters.dtype, device=parameters.device)
        u = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * nodes
        log_slope = 2.0 * (math.log(2.0) - u + logsigmoid(2.0 * u))
        return F.gaussian_entropy(log_std) + (log_slope @ (-0.5 * nodes.square()).softmax(-1)).sum(-1)

    def to_env(self, action: Tensor) -> Array:
        return self._stretch((np.tanh(action.cpu().numpy().astype(np.float64)) + 1) / 2)


@dataclass(frozen=True)
class Beta(Gaussian):
    """Independent Beta distributions on (0, 1), stretched to the bounds. Parameters: ``concat(a, b)``, ``[*, 2 dim]``.

    ``α = 1 + softplus(a)`` and ``β = 1 + softplus(b)`` keep the density unimodal and finite. Source: Chou et al. 2017, section 4.
    """

    functions = Functions(F.beta_sample, F.beta_log_prob, F.beta_entropy, F.beta_kl)

    def parts(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return softplus(parameters).log1p().chunk(2, -1)  # log α and log β

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        a, b = softplus(parameters).chunk(2, -1)  # α − 1 and β − 1
        return a / (a + b)

    def to_env(self, action: Tensor) -> Array:
        return self._stretch(action.cpu().numpy().astype(np.float64))


# ------------------------------------------------------------------------------------------------------------------------------- the choice


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
    if isinstance(space, MultiDiscrete):
        nvec, start = (tuple(int(x) for x in array.reshape(-1)) for array in (space.nvec, space.start))
        return MultiCategorical(nvec, start, space.shape)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(math.prod(space.shape), space.shape)
    if not isinstance(space, Box):
        raise UsageError(f"action space {short(space)}: not supported; supported are {SUPPORTED}")
    if not np.issubdtype(space.dtype, np.floating):
        raise UsageError(f"action space {short(space)}: a Box of {space.dtype} is not supported; use MultiDiscrete or a Box of floats")
    dim = math.prod(space.shape)
    require(dim > 0, f"action space {short(space)}: holds no action")
    if distribution != "gaussian" and not space.is_bounded():
        raise UsageError(f"distribution {distribution!r} needs bounds on both sides, found {short(space)}: use 'gaussian'")
    kind = {"gaussian": Gaussian, "squashed": SquashedGaussian, "beta": Beta}[distribution]
    low, high = (tuple(float(x) for x in bound.reshape(-1)) for bound in (space.low, space.high))
    return kind(dim, low, high, space.shape, str(space.dtype), scaled)
