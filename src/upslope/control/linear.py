"""Policies and critics that are linear in fixed features of an observation vector: the vector itself, tile coding, a Fourier basis.

Features map NumPy observations ``[N, d]`` to what a linear function takes: numbers ``[N, size]``, or for tile coding the indices
``[N, num_tilings]`` (int64) of the features that are 1 while all others are 0.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.control.actor_critic import ActorCritic
from upslope.control.images import ImageChoice
from upslope.control.kinds import Array, Box
from upslope.control.spaces import Encoder, Space, short, spaces_of
from upslope.errors import UsageError, require, unknown
from upslope.typed import from_numpy

FEATURES = ("linear", "tiles", "fourier")
MAX_FEATURES = 2**22  # larger tables of weights are refused: most likely a setting was mistyped


class Features(ABC):
    """``size`` features; see the module's first lines."""

    size: int

    @abstractmethod
    def __call__(self, observation: Array) -> Array: ...


class Linear(Features):
    """``x = observation``: a one-hot vector is a table; where there are real numbers, a constant 1 is added."""

    def __init__(self, encoder: Encoder) -> None:
        self.constant = bool(encoder.continuous.any())
        self.size = encoder.size + self.constant

    def __call__(self, observation: Array) -> Array:
        return np.concatenate([observation, np.ones((len(observation), 1), observation.dtype)], 1) if self.constant else observation


class Scaled(Features):
    """What needs limits: observations mapped to [0, 1] between ``low`` and ``high``, and clipped there."""

    def __init__(self, low: Array, high: Array) -> None:
        self.low, self.range = low, high - low

    def scaled(self, observation: Array) -> Array:
        return np.clip((observation - self.low) / self.range, 0.0, 1.0)


class Tiles(Scaled):
    """Tile coding (Sutton & Barto 9.5.4): ``num_tilings`` grids of width ``1/num_tiles``, each displaced by other fractions of a tile.

    Tiling i is moved by ``(i · (1, 3, 5, …) mod num_tilings) / num_tilings`` of a tile, the asymmetric offsets of the book.
    In each tiling exactly one tile holds the observation; its index is that tiling's one feature.
    """

    def __init__(self, low: Array, high: Array, num_tilings: int, num_tiles: int) -> None:
        super().__init__(low, high)
        dims = len(low)
        self.num_tiles = num_tiles
        odd = 2 * np.arange(dims) + 1
        self.shift = (np.arange(num_tilings)[:, None] * odd % num_tilings) / num_tilings  # [num_tilings, d]
        per_dimension = num_tiles + 1  # a displaced grid needs one tile more
        per_tiling = per_dimension**dims
        self.size = num_tilings * per_tiling
        check_num_features(self.size, f"{num_tilings} tilings of {per_dimension}^{dims} tiles", "num_tiles")
        self.strides = per_dimension ** np.arange(dims)
        self.first = np.arange(num_tilings) * per_tiling

    def __call__(self, observation: Array) -> Array:
        scaled = self.scaled(observation) * self.num_tiles
        # at the upper limit a grid that is not displaced would need one tile more than a displaced one: it has it
        tile = (scaled[:, None] + self.shift).astype(np.int64)
        return tile @ self.strides + self.first


class Fourier(Scaled):
    """``x_i = cos(π c_iᵀ s)`` for every ``c_i`` in ``{0, …, order}^d`` and s in [0, 1]^d (Sutton & Barto 9.5.2, eq. 9.18)."""

    def __init__(self, low: Array, high: Array, order: int) -> None:
        super().__init__(low, high)
        self.size = (order + 1) ** len(low)
        check_num_features(self.size, f"({order} + 1)^{len(low)} terms", "fourier_order")
        self.frequencies = math.pi * np.array(list(itertools.product(range(order + 1), repeat=len(low)))).T  # [d, size]

    def __call__(self, observation: Array) -> Array:
        return np.cos(self.scaled(observation) @ self.frequencies).astype(np.float32)


def features_for(
    space: Space,
    name: str,
    *,
    num_tilings: int = 8,
    num_tiles: int = 8,
    fourier_order: int = 3,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    image: ImageChoice = "auto",
) -> Features:
    """The features of this name for an observation space; ``low`` and ``high`` limit what is unbounded or hardly ever reached.

    Raises UsageError for images; a space that is no vector of real numbers, or has no limits, where limits are needed; too many features.
    """
    encoder = Encoder(space, image)
    require(not encoder.images, f"features: {short(space)} holds an image, which needs a network; use --features network, or --image no")
    if name == "linear":
        return Linear(encoder)
    if name not in FEATURES:
        raise unknown("features", name, FEATURES)
    for setting, count in (("num_tilings", num_tilings), ("num_tiles", num_tiles), ("fourier_order", fourier_order)):
        require(count >= 1, f"{setting}: expected an integer ≥ 1, found {count}")
    limits = limits_of(space, name, low, high)
    return Tiles(*limits, num_tilings, num_tiles) if name == "tiles" else Fourier(*limits, fourier_order)


def limits_of(space: Space, name: str, low: Sequence[float] | None, high: Sequence[float] | None) -> tuple[Array, Array]:
    """``(low, high)`` for each number of a Box, given or the space's."""
    if not isinstance(space, Box):
        raise UsageError(f"features: {name} need a Box of real numbers, found {short(space)}; use --features linear")
    found: list[Array] = []
    for setting, given, limits in (("feature_low", low, space.low), ("feature_high", high, space.high)):
        limit = limits.reshape(-1).astype(np.float64) if given is None else np.asarray(given, np.float64)
        size = limits.size
        require(limit.shape == (size,), f"{setting}: expected {size} numbers, one for each of {short(space)}, found {limit.size}")
        # CartPole says float32's largest number where others say infinity
        unbounded = np.flatnonzero(~np.isfinite(limit) | (np.abs(limit) > 1e30))
        if unbounded.size:
            what = f"number {unbounded[0]} of the observation has no limit"
            raise UsageError(f"{setting}: {name} need limits, and {what}; give {size} numbers with --{setting.replace('_', '-')}")
        found.append(limit)
    require(bool((found[0] < found[1]).all()), "feature_low: expected less than feature_high everywhere")
    return found[0], found[1]


def check_num_features(size: int, what: str, setting: str) -> None:
    require(size <= MAX_FEATURES, f"{setting}: {what} are {size:,} features, more than {MAX_FEATURES:,}; take fewer")


class LinearNetwork(nn.Module):
    """``(Θᵀx, wᵀx)`` with Θ ``[size, P]`` and w ``[size]``, zeros at first; x as numbers or as the indices of its ones."""

    def __init__(self, size: int, outputs: int, critic: bool) -> None:
        super().__init__()
        self.actor = nn.Parameter(torch.zeros(size, outputs))
        self.critic = nn.Parameter(torch.zeros(size)) if critic else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return product(x, self.actor), None if self.critic is None else product(x, self.critic)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``xᵀ weight``: where x is given by the indices of its ones, the sum of those rows."""
    return x.to(weight.dtype) @ weight if x.is_floating_point() else weight[x].sum(1)


class LinearPolicy(ActorCritic):
    """``softmax(Θᵀx)`` for discrete actions, ``N(Θᵀx, σ²)`` for a Box, and a critic ``wᵀx``, on fixed features x.

    ``features``: ``"linear"`` (the observation itself: for a Discrete space a table), ``"tiles"``, ``"fourier"``; see
    :mod:`upslope.control.linear`, and there for the errors. With ``epsilon`` the products are action values and the policy
    is ε-greedy in them. The recorded input ``observation`` holds the features, so each observation is encoded once.
    """

    def __init__(
        self,
        envs: Any,
        *,
        features: str = "tiles",
        num_tilings: int = 8,
        num_tiles: int = 8,
        fourier_order: int = 3,
        feature_low: Iterable[float] | None = None,
        feature_high: Iterable[float] | None = None,
        critic: bool = True,
        normalize_value: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        low, high = (None if limit is None else [float(x) for x in limit] for limit in (feature_low, feature_high))
        sizes = {"num_tilings": num_tilings, "num_tiles": num_tiles, "fourier_order": fourier_order}
        found = features_for(spaces_of(envs)[0], features, low=low, high=high, image=options.get("image", "auto"), **sizes)
        require(not normalize_value, "normalize_value: a linear critic is wᵀx in the rewards' units; leave it out, or scale the rewards")
        super().__init__(lambda _, outputs: LinearNetwork(found.size, outputs, critic), envs, seed=seed, normalize_value=False, **options)
        limits = {"feature_low": low, "feature_high": high}
        self.options = {"features": features, **sizes, **limits, "critic": critic, **self.options}
        self.features = found

    def _check_network(self, num_parameters: int) -> None:
        """Right by construction."""

    def inputs(self, observation: Any, **options: Any) -> dict[str, Tensor]:
        """A batch of raw observations as features; see :meth:`ActorCritic.inputs`."""
        tensors = super().inputs(observation, **options)
        vector = tensors["observation"]
        tensors["observation"] = from_numpy(self.features(vector.cpu().numpy())).to(vector.device)
        return tensors
