"""Preference objectives: equal to the plain loops in value and derivative; known values; nothing leaks from masked steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.made import SEEDS, autograd, close, finite_difference, near, tensor
from upslope import functional as F
from upslope.reference import preferences as reference

PAIRS = st.tuples(st.sampled_from([(), (1,), (3,), (2, 2)]), st.integers(1, 5)).map(lambda pair: (*pair[0], 2, pair[1]))
FORMS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (F.sigmoid_preference, reference.sigmoid_preference),
    (partial(F.sigmoid_preference, label_smoothing=0.2), partial(reference.sigmoid_preference, label_smoothing=0.2)),
    (F.ipo_preference, reference.ipo_preference),
    (F.hinge_preference, reference.hinge_preference),
]


def made(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    log_prob, other = -generator.exponential(1.0, shape), -generator.exponential(1.0, shape)
    mask = generator.random(shape) < 0.7
    log_prob[~mask] = generator.choice([np.nan, np.inf, -np.inf], (~mask).sum())
    other[~mask] = np.nan
    return log_prob, other, mask


@pytest.mark.parametrize("fast,slow", FORMS)
@given(PAIRS, SEEDS)
def test_pairs(fast: Callable[..., Any], slow: Callable[..., Any], shape: tuple[int, ...], seed: int) -> None:
    log_prob, other, mask = made(shape, seed)
    value, gradient = slow(log_prob, other, mask, 0.3)
    close(fast(tensor(log_prob), tensor(other), tensor(mask), 0.3), value)
    close(autograd(lambda x: fast(x, tensor(other), tensor(mask), 0.3).sum(), log_prob)[0], gradient)


@pytest.mark.parametrize("fast,slow", FORMS)
def test_derivatives_by_hand_are_derivatives(fast: Callable[..., Any], slow: Callable[..., Any]) -> None:
    generator = np.random.default_rng(0)
    log_prob, other = generator.standard_normal((3, 2, 4)), generator.standard_normal((3, 2, 4))
    _, gradient = slow(log_prob, other, None, 0.7)
    near(finite_difference(lambda x: fast(x, tensor(other), None, 0.7).sum(), log_prob)[0], gradient)


@given(PAIRS, SEEDS)
def test_kto(shape: tuple[int, ...], seed: int) -> None:
    log_prob, other, mask = made(shape, seed)
    generator = np.random.default_rng(seed)
    desirable, point = generator.random(shape[:-1]) < 0.5, np.full(shape[:-1], generator.exponential())
    options = {"desirable_coef": 0.8, "undesirable_coef": 1.3}
    value, gradient = reference.kto_value(log_prob, other, mask, 0.5, desirable=desirable, reference_point=point, **options)

    def fast(x: torch.Tensor) -> torch.Tensor:
        return F.kto_value(x, tensor(other), tensor(mask), 0.5, desirable=tensor(desirable), reference_point=tensor(point), **options)

    close(fast(tensor(log_prob)), value)
    close(autograd(lambda x: fast(x).sum(), log_prob)[0], gradient)
    if mask.all():
        near(finite_difference(lambda x: fast(x).sum(), log_prob)[0], gradient)


def test_the_reference_point_of_kto_takes_no_gradient() -> None:
    """Else the mean of all completions would be pushed away from what each of them is compared with."""
    log_prob = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    desirable = torch.tensor([True, False, True])
    slopes = []
    for point in (log_prob.sum(-1).mean().expand(3), log_prob.sum(-1).mean().detach().expand(3)):
        value = F.kto_value(log_prob, 0 * log_prob.detach(), None, 0.5, desirable=desirable, reference_point=point)
        slopes += torch.autograd.grad(value.sum(), log_prob)
    close(slopes[0], slopes[1], 0.0)


@given(PAIRS, SEEDS)
def test_bradley_terry(shape: tuple[int, ...], seed: int) -> None:
    score = np.random.default_rng(seed).standard_normal(shape[:-1])
    value, gradient = reference.bradley_terry(score)
    close(F.bradley_terry(tensor(score)), value)
    close(autograd(lambda x: F.bradley_terry(x).sum(), score)[0], gradient)


def test_at_the_reference_dpo_is_minus_log_two_with_half_the_slope() -> None:
    log_prob = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for smoothing in (0.0, 0.1):
        value = F.sigmoid_preference(log_prob, log_prob.detach(), None, 0.3, label_smoothing=smoothing)
        close(value, torch.full((3,), -math.log(2.0), dtype=torch.float64), 1e-14)
    (slope,) = torch.autograd.grad(F.sigmoid_preference(log_prob, log_prob.detach(), None, 0.3).sum(), log_prob)
    close(slope, torch.tensor([0.15, -0.15], dtype=torch.float64).view(1, 2, 1).expand(3, 2, 4))


def test_large_margins_stay_finite() -> None:
    log_prob = torch.tensor([[[2e3], [-2e3]], [[-2e3], [2e3]]], requires_grad=True)
    value = F.sigmoid_preference(log_prob, torch.zeros(2, 2, 1), None, 1.0)
    close(value, torch.tensor([0.0, -4e3]))
    assert torch.autograd.grad(value.sum(), log_prob)[0].isfinite().all()


def test_ipo_has_a_goal_and_the_hinge_stops() -> None:
    wanted = torch.tensor([[[2.5, 2.5], [0.0, 0.0]]], dtype=torch.float64)  # 1/(2β) per step at β = 0.2
    assert F.ipo_preference(wanted, torch.zeros_like(wanted), None, 0.2).item() == pytest.approx(0.0, abs=1e-12)
    assert F.hinge_preference(wanted, torch.zeros_like(wanted), None, 0.2).item() == pytest.approx(0.0, abs=1e-12)
    assert F.hinge_preference(wanted, torch.zeros_like(wanted), None, 0.1).item() == pytest.approx(-0.5, abs=1e-12)


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="pairs: expected two rows"):
        F.sigmoid_preference(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), None, 0.1)
    with pytest.raises(ValueError, match="other: expected shape"):
        F.sigmoid_preference(torch.zeros(4, 2, 2), torch.zeros(4, 2, 1), None, 0.1)
