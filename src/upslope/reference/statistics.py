"""Centering, scaling and diagnostics, one element at a time. Standard deviations are the sample's (n − 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from upslope.reference.arrays import Array, as_mask, rows


def has_spread(numbers: Sequence[float]) -> bool:
    """At least two numbers, and ``max − min`` above ``1e-6 · max(1, |mean|)``."""
    if len(numbers) < 2:
        return False
    mean = math.fsum(numbers) / len(numbers)
    return max(numbers) - min(numbers) > 1e-6 * max(1.0, abs(mean))


def mean_and_std(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))


def normalize(x: Array, mask: Array | None = None) -> Array:
    """``(x − mean) / std`` over the unmasked entries; zeros without spread; 0 where masked."""
    shown = as_mask(mask, x.shape)
    numbers = [float(x[i]) for i in np.ndindex(*x.shape) if shown[i]]
    result = np.zeros(x.shape)
    if has_spread(numbers):
        mean, std = mean_and_std(numbers)
        for i in np.ndindex(*x.shape):
            if shown[i]:
                result[i] = (x[i] - mean) / std
    return result


def explained_variance(value: Array, returns: Array, mask: Array | None = None) -> float:
    """``1 − Var(R − V) / Var(R)``; NaN without spread in the returns."""
    shown = as_mask(mask, value.shape)
    targets = [float(returns[i]) for i in np.ndindex(*value.shape) if shown[i]]
    errors = [float(returns[i] - value[i]) for i in np.ndindex(*value.shape) if shown[i]]
    if not has_spread(targets):
        return math.nan
    return 1.0 - (mean_and_std(errors)[1] / mean_and_std(targets)[1]) ** 2


def effective_sample_size(weight: Array, mask: Array | None = None) -> float:
    """``(Σw)² / Σw²``."""
    shown = as_mask(mask, weight.shape)
    numbers = [float(weight[i]) for i in np.ndindex(*weight.shape) if shown[i]]
    squares = sum(w * w for w in numbers)
    return sum(numbers) ** 2 / squares if squares else 0.0


def group_relative(score: Array, scale: bool = True, eps: float = 1e-6) -> Array:
    """``(r_i − mean) / (std + eps)`` in each group ``[..., G]``; without ``scale`` the mean only; 0 without spread."""
    result = np.zeros(score.shape)
    for group in rows(score.shape):
        numbers = [float(r) for r in score[group]]
        if has_spread(numbers):
            mean, std = mean_and_std(numbers)
            result[group] = [(r - mean) / (std + eps if scale else 1.0) for r in numbers]
    return result


def leave_one_out(score: Array) -> Array:
    """``r_i − mean_{j≠i} r_j``, the others' mean taken over the others; 0 without spread."""
    result = np.zeros(score.shape)
    for group in rows(score.shape):
        numbers = [float(r) for r in score[group]]
        if has_spread(numbers):
            for i, r in enumerate(numbers):
                others = numbers[:i] + numbers[i + 1 :]
                result[group][i] = r - math.fsum(others) / len(others)
    return result


def batch_relative(score: Array) -> Array:
    """Centered in the group, divided by the standard deviation of all centered scores; 0 without spread."""
    centered = group_relative(score, scale=False)
    numbers = [float(x) for x in centered.flat]
    if not has_spread(numbers):
        return np.zeros(score.shape)
    return centered / mean_and_std(numbers)[1]
