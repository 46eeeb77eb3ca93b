"""Normalization, group advantages and diagnostics, with the cases in which there is nothing to normalize."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.functional.made import SEEDS, SHAPES, close, record, tensor
from upslope import functional as F
from upslope.reference import statistics as reference


@given(SHAPES, SEEDS)
def test_normalize(shape: tuple[int, ...], seed: int) -> None:
    for masked in (False, True):
        made = record(shape, seed, masked)
        found = F.normalize(tensor(made.reward), None if made.mask is None else tensor(made.mask))
        close(found, reference.normalize(made.reward, made.mask))


def test_normalized_is_centered_and_scaled() -> None:
    mask = torch.arange(20) < 13
    x = F.normalize(torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 3, mask)
    assert x[mask].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert x[mask].std().item() == pytest.approx(1.0, abs=1e-12)
    assert (x[~mask] == 0).all()


@pytest.mark.parametrize(
    "x",
    [
        torch.full((10,), 0.1),  # float32 gives it a standard deviation of 8e-9
        torch.full((10,), 1e4) + 1e-3 * torch.arange(10),  # less than 1e-6 of the mean
        torch.tensor([3.0]),
        torch.zeros(4, 0),
    ],
)
def test_without_spread_an_advantage_is_exactly_zero(x: Tensor) -> None:
    assert not F.has_spread(x)
    assert torch.equal(F.normalize(x), torch.zeros_like(x))


def test_a_single_unmasked_entry_is_zero_and_none_is_too() -> None:
    x = torch.tensor([1.0, torch.nan, 5.0])
    for mask in (torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.bool)):
        assert not F.has_spread(x, mask)
        assert torch.equal(F.normalize(x, mask), torch.zeros(3))


def test_small_but_real_spread_is_kept() -> None:
    x = torch.tensor([0.0, 3e-6], dtype=torch.float64)
    assert F.has_spread(x)
    close(F.normalize(x), torch.tensor([-math.sqrt(0.5), math.sqrt(0.5)], dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    x = torch.tensor([1.0, bad, 1.0])
    assert F.has_spread(x)
    assert not F.normalize(x).isfinite().all()


@given(SHAPES, SEEDS)
def test_spread_along_an_axis(shape: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 2, shape).astype(float)
    found = F.has_spread(tensor(x), dim=-1)
    assert found.shape == shape[:-1]
    assert all(bool(found[row]) == reference.has_spread(list(x[row])) for row in np.ndindex(*shape[:-1]))


@given(SHAPES, SEEDS)
def test_explained_variance(shape: tuple[int, ...], seed: int) -> None:
    for masked in (False, True):
        made = record(shape, seed, masked)
        mask = None if made.mask is None else tensor(made.mask)
        found = F.explained_variance(tensor(made.value), tensor(made.reward), mask)
        close(found, np.array(reference.explained_variance(made.value, made.reward, made.mask)))


def test_explained_variance_of_known_critics() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert F.explained_variance(returns, returns) == 1.0
    assert F.explained_variance(torch.full((4,), 9.0), returns) == 0.0
    assert F.explained_variance(-returns, returns) == -3.0
    assert F.explained_variance(returns, torch.ones(4)).isnan()


@given(SHAPES, SEEDS)
def test_effective_sample_size(shape: tuple[int, ...], seed: int) -> None:
    for masked in (False, True):
        made = record(shape, seed, masked)
        weight = np.exp(made.reward)
        found = F.effective_sample_size(tensor(weight), None if made.mask is None else tensor(made.mask))
        close(found, np.array(reference.effective_sample_size(weight, made.mask)))


def test_effective_sample_size_of_known_weights() -> None:
    assert F.effective_sample_size(torch.full((7,), 0.2)).item() == pytest.approx(7.0, abs=1e-5)
    assert F.effective_sample_size(torch.tensor([0.0, 5.0, 0.0])) == 1.0
    assert F.effective_sample_size(torch.zeros(3)) == 0.0
    assert F.effective_sample_size(torch.tensor([1e30, 1e30])) == 2.0  # whose squares overflow


@given(SHAPES, SEEDS)
def test_group_advantages(shape: tuple[int, ...], seed: int) -> None:
    score = np.random.default_rng(seed).integers(0, 3, shape).astype(float)  # groups without spread are common
    close(F.group_relative(tensor(score)), reference.group_relative(score))
    close(F.group_relative(tensor(score), eps=0.5), reference.group_relative(score, eps=0.5))
    close(F.group_relative(tensor(score), scale=False), reference.group_relative(score, scale=False))
    close(F.batch_relative(tensor(score)), reference.batch_relative(score))
    if shape[-1] > 1:
        close(F.leave_one_out(tensor(score)), reference.leave_one_out(score))


@given(SHAPES, SEEDS)
def test_members_without_a_score_are_in_no_statistic(shape: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    score = generator.integers(0, 3, shape).astype(float)
    mask = generator.random(shape) < 0.6
    score[~mask] = generator.choice([np.nan, np.inf, 1e6], (~mask).sum())
    forms = [(F.group_relative, reference.group_relative), (F.batch_relative, reference.batch_relative)]
    forms += [(partial(F.group_relative, scale=False), partial(reference.group_relative, scale=False))]
    forms += [(F.leave_one_out, reference.leave_one_out)] * (shape[-1] > 1)
    for fast, slow in forms:
        found = fast(tensor(score), tensor(mask))
        close(found, slow(score, mask))
        assert (found[~tensor(mask)] == 0).all()


def test_a_group_with_members_missing_is_the_smaller_group() -> None:
    score = torch.tensor([[1.0, 9.0, 4.0, 2.0], [5.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True], [True, False, False, False], [False] * 4])
    left = torch.tensor([0, 2, 3])
    for form in (F.group_relative, partial(F.group_relative, scale=False), F.leave_one_out):
        found = form(score, mask)
        close(found[0, left], form(score[0, left]))
        assert (found[1:] == 0).all()


def test_groups_without_spread_are_exactly_zero() -> None:
    score = torch.tensor([[0.1] * 10, [0.1] * 9 + [0.2]])  # float32
    for advantage in (F.group_relative(score), F.group_relative(score, scale=False), F.leave_one_out(score), F.batch_relative(score)):
        assert torch.equal(advantage[0], torch.zeros(10))
        assert (advantage[1] != 0).all()
    assert torch.equal(F.group_relative(torch.ones(4, 1)), torch.zeros(4, 1))
    assert torch.equal(F.batch_relative(torch.ones(1, 1)), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="groups of at least 2, found 1"):
        F.leave_one_out(torch.ones(4, 1))


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks(size: int) -> None:
    """By enumeration of all groups of a three-armed bandit: E Σ A_i ∇log π(a_i) / G against ∇ E r."""
    logits = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)
    p = logits.softmax(-1)
    exact = p * (reward - p @ reward)
    score = torch.eye(3, dtype=torch.float64) - p  # row a: ∇ log π_a
    expected = {"leave_one_out": torch.zeros(3, dtype=torch.float64), "group_mean": torch.zeros(3, dtype=torch.float64)}
    for group in itertools.product(range(3), repeat=size):
        actions = torch.tensor(group)
        share = p[actions].prod()
        for name, advantage in (
            ("leave_one_out", F.leave_one_out(reward[actions])),
            ("group_mean", F.group_relative(reward[actions], scale=False)),
        ):
            expected[name] += share * (advantage.unsqueeze(-1) * score[actions]).mean(0)
    close(expected["leave_one_out"], exact)
    close(expected["group_mean"], exact * (size - 1) / size)
