"""What the tests of this folder share: recordings and scored steps made by hypothesis, and three ways to a derivative."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = st.tuples(st.sampled_from([(), (1,), (3,), (2, 2)]), st.integers(1, 9)).map(lambda pair: (*pair[0], pair[1]))
SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.sampled_from([0.0, 0.3, 0.9, 1.0])


def tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.array(x))


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    found = found.detach().numpy() if isinstance(found, Tensor) else found
    expected = expected.detach().numpy() if isinstance(expected, Tensor) else expected
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def autograd(f: Callable[..., Tensor], *inputs: Array) -> list[Array]:
    """Gradients of a scalar with respect to each input, by torch."""
    leaves = [tensor(x).clone().requires_grad_() for x in inputs]
    f(*leaves).backward()
    return [np.zeros(x.shape) if leaf.grad is None else leaf.grad.numpy() for x, leaf in zip(inputs, leaves, strict=True)]


def finite_difference(f: Callable[..., Tensor], *inputs: Array, step: float = 1e-4) -> list[Array]:
    """The same by the five-point rule, whose truncation error is of order step⁴ = 1e-16 and whose rounding is about 1e-12 · f."""
    gradients: list[Array] = []
    for k, x in enumerate(inputs):
        gradient = np.zeros(x.shape)
        for i in np.ndindex(*x.shape):
            for distance, share in ((1, 2 / 3), (2, -1 / 12)):
                for sign in (1, -1):
                    moved = x.copy()
                    moved[i] += sign * distance * step
                    end = f(*(tensor(moved if j == k else y) for j, y in enumerate(inputs)))
                    gradient[i] += sign * share * float(end) / step
        gradients.append(gradient)
    return gradients


def near(found: Array, expected: Array) -> None:
    """Finite differences against a derivative: 1e-7 of the largest entry, for rounding grows with the function."""
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    close(found / scale, expected / scale, 1e-7)


@dataclass(frozen=True)
class Recording:
    """A random recording; masked rows hold NaN and random flags, none of which may matter."""

    reward: Array
    value: Array
    next_value: Array
    terminated: Array
    truncated: Array
    mask: Array | None
    first_step: Array

    def tensors(self, *names: str) -> dict[str, Tensor]:
        return {name: tensor(getattr(self, name)) for name in names if getattr(self, name) is not None}

    def arrays(self, *names: str) -> dict[str, Array]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def consistent(self) -> Recording:
        """``next_value`` of a step inside an episode is the value of the next unmasked step, as in recorded data."""
        next_value = self.next_value.copy()
        mask = np.ones(self.reward.shape, dtype=bool) if self.mask is None else self.mask
        for row in np.ndindex(*self.reward.shape[:-1]):
            steps = np.flatnonzero(mask[row])
            for t, following in itertools.pairwise(steps):
                if not (self.terminated[row][t] or self.truncated[row][t]):
                    next_value[row][t] = self.value[row][following]
        return replace(self, next_value=next_value)


def record(shape: tuple[int, ...], seed: int, masked: bool, end_rate: float = 0.25) -> Recording:
    generator = np.random.default_rng(seed)
    reward, value, next_value = generator.standard_normal((3, *shape))
    terminated, truncated = generator.random((2, *shape)) < end_rate / 2
    mask = None
    if masked:
        mask = generator.random(shape) < generator.choice([0.3, 0.7, 1.0])
        for x in (reward, value, next_value):
            x[~mask] = np.nan
    return Recording(reward, value, next_value, terminated, truncated, mask, generator.integers(0, 5, shape[:-1]))


recordings = st.builds(record, SHAPES, SEEDS, st.booleans(), st.sampled_from([0.0, 0.3, 0.9]))


@dataclass(frozen=True)
class Steps:
    """Scored steps, kept away from the corners of the clip, where there is no derivative."""

    log_prob: Array
    behavior_log_prob: Array
    advantage: Array
    mask: Array | None

    @property
    def shown(self) -> Array:
        return np.ones(self.log_prob.shape, dtype=bool) if self.mask is None else self.mask

    @property
    def torch_mask(self) -> Tensor | None:
        return None if self.mask is None else tensor(self.mask)


def score(shape: tuple[int, ...], seed: int, masked: bool) -> Steps:
    generator = np.random.default_rng(seed)
    behavior = -generator.exponential(1.0, shape)
    log_prob = behavior + generator.choice([-1.5, -0.3, -0.05, 0.05, 0.3, 1.5], shape) * generator.uniform(0.9, 1.1, shape)
    advantage = generator.standard_normal(shape)
    mask = None
    if masked:
        mask = generator.random(shape) < 0.6
        log_prob[~mask] = generator.choice([np.nan, np.inf, -np.inf], (~mask).sum())
        behavior[~mask] = np.nan
        advantage[~mask] = np.nan
    return Steps(log_prob, behavior, advantage, mask)


scored_steps = st.builds(score, SHAPES, SEEDS, st.booleans())
