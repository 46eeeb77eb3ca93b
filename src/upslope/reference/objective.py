"""Weights, the weighted sum, and the critic's error with its derivative."""

import numpy as np

from upslope.reference.arrays import Array, rows, unmasked


def average_weight(mask: Array, average_over: str = "steps", max_steps: int | None = None) -> Array:
    """``steps`` 1/Σmask · ``sequences`` ``1/(N·|o_i|)`` · ``constant`` 1/(N·max_steps), 0 where masked."""
    result = np.zeros(mask.shape)
    sequences, steps = len(list(rows(mask.shape))), len(list(unmasked(mask.shape, mask)))
    for *row, t in unmasked(mask.shape, mask):
        length = sum(int(m) for m in mask[*row])
        divisor = {"steps": steps, "sequences": sequences * length, "constant": sequences * (max_steps or 0)}
        result[*row, t] = 1.0 / divisor[average_over]
    return result


def weighted_sum(value: Array, weight: Array) -> float:
    """``Σ weight · value`` over the entries whose weight is not 0."""
    return float(sum(weight[i] * value[i] for i in np.ndindex(*value.shape) if weight[i] != 0))


def squared_error(value: Array, returns: Array) -> tuple[Array, Array]:
    """``(V − R)²`` and its derivative ``2 (V − R)`` with respect to V."""
    error, derivative = np.zeros(value.shape), np.zeros(value.shape)
    for i in np.ndindex(*value.shape):
        error[i] = (value[i] - returns[i]) ** 2
        derivative[i] = 2.0 * (value[i] - returns[i])
    return error, derivative


def clipped_squared_error(value: Array, returns: Array, old_value: Array, clip_range: float) -> tuple[Array, Array]:
    """``max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)`` and its derivative with respect to V.

    The derivative is that of the larger of the two; the clipped one has none outside the range.
    """
    error, derivative = np.zeros(value.shape), np.zeros(value.shape)
    for i in np.ndindex(*value.shape):
        move = value[i] - old_value[i]
        free = value[i] - returns[i]
        clipped = old_value[i] + min(max(move, -clip_range), clip_range) - returns[i]
        inside = -clip_range <= move <= clip_range
        error[i] = max(free**2, clipped**2)
        derivative[i] = 2.0 * free if inside or free**2 > clipped**2 else 0.0
    return error, derivative
