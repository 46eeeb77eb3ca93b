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


def group_relative(score: Array, mask: Array | None = None, *, scale: bool = True, eps: float = 1e-6) -> Array:
    """``(r_i − mean) / (std + eps)`` among the members of each group ``[..., G]`` that have a score; 0 without spread."""
    result, shown = np.zeros(score.shape), as_mask(mask, score.shape)
    for group in rows(score.shape):
        members = [i for i in range(score.shape[-1]) if shown[group][i]]
        numbers = [float(score[group][i]) for i in members]
        if has_spread(numbers):
            mean, std = mean_and_std(numbers)
            for i in members:
                result[group][i] = (score[group][i] - mean) / (std + eps if scale else 1.0)
    return result


def leave_one_out(score: Array, mask: Array | None = None) -> Array:
    """``r_i − mean_{j≠i} r_j``, the others' mean taken over the others that have a score; 0 without spread."""
    result, shown = np.zeros(score.shape), as_mask(mask, score.shape)
    for group in rows(score.shape):
        members = [i for i in range(score.shape[-1]) if shown[group][i]]
        if has_spread([float(score[group][i]) for i in members]):
            for i in members:
                others = [float(score[group][j]) for j in members if j != i]
                result[group][i] = score[group][i] - math.fsum(others) / len(others)
    return result


def batch_relative(score: Array, mask: Array | None = None) -> Array:
    """Centered in the group, divided by the standard deviation of all centered scores that there are; 0 without spread."""
    centered, shown = group_relative(score, mask, scale=False), as_mask(mask, score.shape)
    numbers = [float(centered[i]) for i in np.ndindex(*score.shape) if shown[i]]
    if not has_spread(numbers):
        return np.zeros(score.shape)
    return centered / mean_and_std(numbers)[1]
