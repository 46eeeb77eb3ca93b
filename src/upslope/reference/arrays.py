"""The few helpers that the plain loops share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def each_step(shape: tuple[int, ...], mask: Array, value: Callable[[tuple[int, ...], int], float]) -> Array:
    """``value(row, t)`` at every unmasked step, 0 elsewhere."""
    result = np.zeros(shape)
    for row in rows(shape):
        for t in range(shape[-1]):
            if mask[row][t]:
                result[row][t] = value(row, t)
    return result
