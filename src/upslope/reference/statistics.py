"""Centering, scaling and diagnostics, one element at a time. Standard deviations are the sample's (n − 1)."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from upslope.reference.arrays import Array, as_mask, rows, unmasked


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
    numbers, result = [float(x[i]) for i in unmasked(x.shape, mask)], np.zeros(x.shape)
    if has_spread(numbers):
        mean, std = mean_and_std(numbers)
        for i in unmasked(x.shape, mask):
            result[i] = (x[i] - mean) / std
    return result


def explained_variance(value: Array, returns: Array, mask: Array | None = None) -> float:
    """``1 − Var(R − V) / Var(R)``; NaN without spread in the returns."""
    targets = [float(returns[i]) for i in unmasked(value.shape, mask)]
    errors = [float(returns[i] - value[i]) for i in unmasked(value.shape, mask)]
    if not has_spread(targets):
        return math.nan
    return 1.0 - (mean_and_std(errors)[1] / mean_and_std(targets)[1]) ** 2


def effective_sample_size(weight: Array, mask: Array | None = None) -> float:
    """``(Σw)² / Σw²``."""
    numbers = [float(weight[i]) for i in unmasked(weight.shape, mask)]
    squares = sum(w * w for w in numbers)
    return sum(numbers) ** 2 / squares if squares else 0.0


def groups(score: Array, mask: Array | None) -> Iterator[tuple[tuple[int, ...], dict[int, float]]]:
    """Each group ``[..., G]`` whose members' scores have spread: its place, and the scores of those that have one."""
    shown = as_mask(mask, score.shape)
    for group in rows(score.shape):
        scores = {i: float(score[group][i]) for i in range(score.shape[-1]) if shown[group][i]}
        if has_spread(list(scores.values())):
            yield group, scores


def group_relative(score: Array, mask: Array | None = None, *, scale: bool = True, eps: float = 1e-6) -> Array:
    """``(r_i − mean) / (std + eps)`` among the members of each group ``[..., G]`` that have a score; 0 without spread."""
    result = np.zeros(score.shape)
    for group, scores in groups(score, mask):
        mean, std = mean_and_std(list(scores.values()))
        for i, number in scores.items():
            result[group][i] = (number - mean) / (std + eps if scale else 1.0)
    return result


def leave_one_out(score: Array, mask: Array | None = None) -> Array:
    """``r_i − mean_{j≠i} r_j``, the others' mean taken over the others that have a score; 0 without spread."""
    result = np.zeros(score.shape)
    for group, scores in groups(score, mask):
        for i, number in scores.items():
            result[group][i] = number - math.fsum(x for j, x in scores.items() if j != i) / (len(scores) - 1)
    return result


def batch_relative(score: Array, mask: Array | None = None) -> Array:
    """Centered in the group, divided by the standard deviation of all centered scores that there are; 0 without spread."""
    centered = group_relative(score, mask, scale=False)
    numbers = [float(centered[i]) for i in unmasked(score.shape, mask)]
    return centered / mean_and_std(numbers)[1] if has_spread(numbers) else np.zeros(score.shape)
