"""The few helpers that the plain loops share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def rows(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Indices of everything before the last axis."""
    return np.ndindex(*shape[:-1])


def as_mask(mask: Array | None, shape: tuple[int, ...]) -> Array:
    """``mask``, or True everywhere."""
    return np.ones(shape, dtype=bool) if mask is None else mask
