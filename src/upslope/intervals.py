"""95 % intervals of what was measured a few times: of means by the bootstrap, of shares by Wilson's score."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def resample(count: int, resamples: int, generator: np.random.Generator) -> Array:
    """How often each value was drawn, ``[resamples, count]``; over ``count``, the weights of resampled means."""
    times = np.zeros((resamples, count))
    np.add.at(times, (np.arange(resamples)[:, None], generator.integers(count, size=(resamples, count))), 1.0)
    return times


def central(values: Array, estimate: float, *, level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of resampled values and the estimate itself, ``(low, high)``, without those that are not a number.

    Resampling adds noise, and of what noise only lowers, a cosine for one, the estimate may lie above nearly all of them.
    """
    if not np.isfinite(values).any():
        return math.nan, math.nan
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(min(low, estimate)), float(max(high, estimate))


def bootstrap_band(table: Array, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[Array, Array]:
    """``(low, high)`` of the mean over rows ``[runs, points]`` by the percentile bootstrap of whole rows, from a separate generator.

    With a handful of runs it is narrower than it should be, as every interval without an assumption about their distribution is;
    Student's t at two runs would hide the picture (± 12.7 standard errors). Source: Efron & Tibshirani 1993, 13.3.
    """
    means = resample(len(table), resamples, np.random.default_rng(seed)) @ table / len(table)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def bootstrap(values: Array, *, resamples: int = 2000) -> tuple[float, float]:
    """``(low, high)`` of the mean of some values, likewise; NaN of a single one, which says nothing of others."""
    if len(values) < 2:
        return math.nan, math.nan
    low, high = bootstrap_band(np.asarray(values, np.float64)[:, None], resamples=resamples)
    return float(low[0]), float(high[0])


def wilson(values: Sequence[float]) -> tuple[float, float]:
    """Of a share of ones (Wilson 1927): ``(p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)``; at 0 and 1 it is not empty."""
    n, p, z = len(values), float(np.mean(values)), 1.959964
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + side) / (1 + z * z / n) for side in (-half, half))
    return max(0.0, low), min(1.0, high)
