"""The few helpers that the plain loops share."""

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


def unmasked(shape: tuple[int, ...], mask: Array | None) -> Iterator[tuple[int, ...]]:
    """Indices of every unmasked entry."""
    return (i for i in np.ndindex(*shape) if mask is None or mask[i])


def episodes(terminated: Array, truncated: Array, mask: Array) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Each recorded episode: its row, and the columns of its steps: unmasked, up to and including the end or the last one recorded."""
    for row in rows(mask.shape):
        steps: list[int] = []
        for t in range(mask.shape[-1]):
            if mask[row][t]:
                steps.append(t)
                if terminated[row][t] or truncated[row][t]:
                    yield row, steps
                    steps = []
        if steps:
            yield row, steps
