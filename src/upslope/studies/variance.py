"""How good a gradient estimator is at a fixed policy: several of them on the same samples, against one reference.

Every estimate is made by the code that trains, ``Algorithm.estimate`` and ``Algorithm.objective``. The samples are estimated once, all
together, as an update does it; then the objective of each unit (an episode, or a group of them) is differentiated alone, as an update
does with micro-batches: the gradients of the units add up to that of the batch. With ``g_k`` the gradient of unit k, of G episodes:

    mean = Σ_k g_k / K        variance = G · Σ_k ‖g_k − mean‖² / (K − 1)        bias = ‖mean − reference‖

**Scale.** Weights are multiplied by one number, so that a step's mean weight is 1/N: an episode counts by 1/N and its steps are summed,
as FORMULAS writes every estimator. How they are averaged (``average_over``) is kept beyond that.

**What looks at the whole batch** (normalized advantages) ties the units together, by an amount of order 1/N.

Left out: the variance of what an optimizer makes of a gradient.
"""

import math
import timeit
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import RunFault, UsageError, require
from upslope.intervals import central, resample
from upslope.records import Algorithm, Policy, Rollout, concatenate, map_tensors
from upslope.tabular import flat_gradient

RESAMPLES = 1000  # of the bootstrap
CHANCE = 0.99
"""Quantile of what a bias of 0 would show: many estimators are looked at, and few false alarms are wanted."""
BLOCKS = 64  # parts that a sampled reference is split into; its noise is known from how they differ
TIMINGS = 3
MAX_NUMBERS = 2**29  # numbers in the gradients of one estimator: 4 GiB
Array = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found about one estimator; intervals are 95 % of a bootstrap over units."""

    estimator: str
    variance: float
    """trace of the covariance of the gradient from one episode"""
    variance_interval: Interval
    relative_variance: float
    """variance over the squared length of the mean gradient: the number of episodes whose noise is as long as their signal"""
    bias: float
    """length of mean gradient − reference"""
    bias_by_chance: float
    """what an unbiased estimator's would exceed in 1 % of cases, because samples (and a sampled reference) are finite"""
    cosine: float
    """of the angle between mean gradient and reference"""
    cosine_interval: Interval
    effective_sample_size: float | None
    """share of the steps that the importance weights are worth, for estimators that have such weights"""
    seconds: float
    """of one estimate, objective and gradient on all samples, the best of three"""

    @property
    def biased(self) -> bool:
        """Whether the distance from the reference is more than chance explains."""
        return self.bias > self.bias_by_chance

    @property
    def direction_known(self) -> bool:
        """Whether these samples tell the cosine's sign; where the gradient has one free direction, the cosine is nothing else.

        An interval that holds 0 does not; nor does a negative cosine that chance explains.
        """
        low, high = self.cosine_interval
        return low > 0 or (high < 0 and self.biased)


@dataclass(frozen=True)
class Reference:
    """The gradient that estimators are compared with: ``parts [B, P]``, independent estimates of it, or the exact one as a single row."""

    parts: Tensor

    @classmethod
    def exact(cls, gradient: Tensor) -> Self:
        """A gradient ``[P]`` without noise."""
        return cls(gradient.detach().double().unsqueeze(0))

    @classmethod
    def sampled(cls, algorithm: Algorithm, policy: Policy, rollout: Rollout) -> Self:
        """The mean over a large batch of whole episodes, independent of the samples; its noise is taken into account."""
        count = len(rollout.mask) - len(rollout.mask) % min(BLOCKS, len(rollout.mask))
        return cls(unit_gradients(algorithm, policy, map_tensors(rollout, lambda x: x[:count]), units=min(BLOCKS, count)))

    @property
    def gradient(self) -> Tensor:
        """``[P]``."""
        return self.parts.mean(0)


def measure(estimators: Mapping[str, Any], policy: Policy, rollout: Rollout, reference: Reference, *, seed: int = 0) -> list[Measurement]:
    """Every estimator (name → algorithm) on the same whole episodes at the same policy, in the order given.

    ``rollout`` has one episode a row, ``[N, T]``, or groups of episodes, ``[groups, G, T]``, which share a start; then a unit is
    a group for all of them, and episodes are compared within it by those algorithms that do so. The policy is left as it is. With
    an off-policy ``rollout``, taken by another policy, estimators without importance weights are estimates of something else.

    Raises:
        UsageError: fewer than 2 units, rows that are no whole episodes, more numbers than fit, or an estimator that cannot work here.
        RunFault: a gradient that is not finite.
    """
    check_episodes(rollout)
    check_memory(policy, len(rollout.mask))
    rng = np.random.default_rng(seed)
    return [measure_one(name, algorithm, policy, rollout, reference, rng) for name, algorithm in estimators.items()]


def measure_one(
    name: str, algorithm: Algorithm, policy: Policy, rollout: Rollout, reference: Reference, rng: np.random.Generator
) -> Measurement:
    try:
        gradients = unit_gradients(algorithm, policy, rollout, units=len(rollout.mask))
    except UsageError as error:
        raise UsageError(f"estimator {name!r}: {error}") from error
    if not bool(gradients.isfinite().all()):
        raise RunFault(f"estimator {name!r}: its gradient is not finite on {int((~gradients.isfinite()).any(1).sum())} units")
    found = Moments(gradients, reference.parts)
    (plain, resampled), (of_parts, moved) = (resampled_weights(len(vectors), rng) for vectors in (gradients, reference.parts))
    away = (resampled - plain) * widening(len(gradients))
    moved = (moved - of_parts) * widening(len(reference.parts))  # of an exact reference: 0
    episodes = rollout.mask[..., 0].numel()
    scale = episodes / len(gradients)
    variance = float(found.variance(plain)[0]) * scale
    signal = float(found.length(plain)[0]) ** 2 - variance / episodes  # the squared length of a mean contains that of its noise
    size = algorithm.estimate(policy, rollout).metrics.get("effective_sample_size")
    measured: dict[str, Any] = {"variance": variance, "variance_interval": central(found.variance(resampled) * scale, variance)}
    measured["relative_variance"] = variance / signal if signal > 0 else math.inf
    measured["bias"] = float(found.distance(plain, of_parts)[0])
    measured["bias_by_chance"] = float(np.quantile(found.distance(away, moved), CHANCE))
    cosine = float(found.cosine(plain)[0])
    measured |= {"cosine": cosine, "cosine_interval": central(found.cosine(resampled), cosine)}
    measured["effective_sample_size"] = None if size is None else size / rollout.num_steps
    measured["seconds"] = min(timeit.repeat(lambda: unit_gradients(algorithm, policy, rollout, units=1), number=1, repeat=TIMINGS))
    return Measurement(estimator=name, **measured)


# ----------------------------------------------------------------------------------------------------------- gradients


def unit_gradients(algorithm: Algorithm, policy: Policy, rollout: Rollout, *, units: int) -> Tensor:
    """The gradient of each of ``units`` equal parts along the first axis, ``[units, P]``, float64; their mean is the whole batch's."""
    batch = algorithm.estimate(policy, rollout)
    steps, total = int(batch.mask.sum()), float(batch.weight.sum())
    scale = units * steps / (total * rollout.mask[..., 0].numel()) if total > 0 else 0.0
    batch = replace(batch, weight=batch.weight * scale)
    parts = torch.arange(len(batch.mask)).tensor_split(units)
    return torch.stack([flat_gradient(algorithm.objective(policy, batch.select(part))[0], policy).double() for part in parts])


# ------------------------------------------------------------------------------------------------------------ rollouts


def concatenated(rollouts: list[Rollout]) -> Rollout:
    """Rollouts below each other, shorter ones masked behind their end."""
    longest, axis = max(rollout.mask.shape[-1] for rollout in rollouts), rollouts[0].mask.dim() - 1

    def padded(tensor: Tensor) -> Tensor:
        if tensor.dim() <= axis:  # first_step
            return tensor
        shape = list(tensor.shape)
        shape[axis] = longest - shape[axis]
        return torch.cat([tensor, tensor.new_zeros(shape)], axis)

    return replace(concatenate([map_tensors(rollout, padded) for rollout in rollouts]), metrics={})


def check_episodes(rollout: Rollout) -> None:
    """Refuse what has no variance, and rows that are not one whole episode each."""
    units = len(rollout.mask)
    require(units >= 2, f"samples: expected at least 2 {'groups' if rollout.unit == 'group' else 'episodes'}, found {units}")
    ends = ((rollout.terminated | rollout.truncated) & rollout.mask).sum(-1)
    wrong = (ends != 1).nonzero()
    if len(wrong):
        row = tuple(int(i) for i in wrong[0])
        raise UsageError(f"rollout: row {row} holds {int(ends[row])} ends, expected 1: collect whole episodes, one in each row")


def check_memory(policy: Policy, units: int) -> None:
    """Refuse more gradients than memory holds: all of an estimator's are kept until their inner products are known."""
    count = sum(p.numel() for p in policy.parameters())
    most = MAX_NUMBERS // max(1, count)
    require(units <= most, f"samples: {units:,} gradients of {count:,} numbers each do not fit; take at most {most:,}, or a smaller policy")


# ---------------------------------------------------------------------------------------------------------- statistics


class Moments:
    """Lengths, angles and distances of resampled means, from inner products: vectors ``[K, P]`` may be long, K and B are small."""

    def __init__(self, vectors: Tensor, parts: Tensor) -> None:
        self.gram, self.cross, self.parts = ((x @ y.T).numpy() for x, y in ((vectors, vectors), (vectors, parts), (parts, parts)))

    def length(self, weight: Array) -> Array:
        """``‖Σ_k w_k g_k‖`` for each row of weights ``[R, K]``."""
        return root(quadratic(weight, self.gram))

    def variance(self, weight: Array) -> Array:
        """``K/(K − 1) · (Σ_k w_k ‖g_k‖² − ‖Σ_k w_k g_k‖²)``: for equal weights the trace of the sample covariance."""
        count = len(self.gram)
        return (weight @ np.diag(self.gram) - quadratic(weight, self.gram)) * count / (count - 1)

    def cosine(self, weight: Array) -> Array:
        """Between weighted mean and reference; NaN where one of them is 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weight @ self.cross.mean(1)) / (self.length(weight) * root(self.parts.mean()))

    def distance(self, weight: Array, of_parts: Array) -> Array:
        """``‖Σ_k w_k g_k − Σ_b u_b r_b‖`` for each row of both."""
        mixed = ((weight @ self.cross) * of_parts).sum(1)
        return root(quadratic(weight, self.gram) - 2.0 * mixed + quadratic(of_parts, self.parts))


def quadratic(weight: Array, gram: Array) -> Array:
    """``wᵀ S w`` for each row."""
    return ((weight @ gram) * weight).sum(1)


def root(x: Any) -> Any:
    """Of a number that rounding may have made negative."""
    return np.sqrt(np.maximum(x, 0.0))


def resampled_weights(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The weights of the plain mean, as one row, and those of resampled means."""
    return np.full((1, count), 1.0 / count), resample(count, RESAMPLES, rng) / count


def widening(count: int) -> float:
    """How much farther than a resample's the mean of a few samples may lie: n for n − 1, and Student's t for the normal distribution.

    ``t/z ≈ 1 + (z² + 1)/4ν + (5z⁴ + 16z² + 3)/96ν²`` at the quantile of :data:`CHANCE`, ν = n − 1 (Abramowitz & Stegun 26.7.5).
    """
    if count < 2:
        return 1.0
    z2, degrees = NormalDist().inv_cdf((1.0 + CHANCE) / 2.0) ** 2, count - 1
    return math.sqrt(count / degrees) * (1.0 + (z2 + 1.0) / (4.0 * degrees) + (5.0 * z2**2 + 16.0 * z2 + 3.0) / (96.0 * degrees**2))
