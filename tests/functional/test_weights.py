"""One weight per step: the three averages, their length bias, and parts that add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.functional.made import SEEDS, SHAPES, autograd, close, finite_difference, near, tensor
from upslope import functional as F
from upslope.reference import objective as reference

KINDS: tuple[F.AverageOver, ...] = ("steps", "sequences", "constant")


@given(SHAPES, SEEDS, st.sampled_from(KINDS))
def test_average_weight(shape: tuple[int, ...], seed: int, kind: F.AverageOver) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.6
    close(F.average_weight(tensor(mask), kind, 12, dtype=torch.float64), reference.average_weight(mask, kind, 12))


def test_length_bias_of_lengths_2_and_8() -> None:
    """Equal |A|: the hand table of what each step and each sequence weighs."""
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    table = {"steps": (1 / 10, 1 / 10), "sequences": (1 / 4, 1 / 16), "constant": (1 / 20, 1 / 20)}
    totals = {"steps": (0.2, 0.8), "sequences": (0.5, 0.5), "constant": (0.1, 0.4)}
    for kind in KINDS:
        weight = F.average_weight(mask, kind, 10, dtype=torch.float64)
        short, long = table[kind]
        close(weight, torch.where(mask, torch.tensor([[short], [long]], dtype=torch.float64), 0.0))
        close(weight.sum(-1), np.array(totals[kind]))


def test_empty_sequences_count_and_weigh_nothing() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    assert torch.equal(F.average_weight(mask, "steps"), torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    assert torch.equal(F.average_weight(mask, "sequences"), torch.tensor([[0.25, 0.25], [0.0, 0.0]]))
    assert torch.equal(F.average_weight(mask, "constant", 4), torch.tensor([[0.125, 0.125], [0.0, 0.0]]))
    for kind in KINDS:
        assert torch.equal(F.average_weight(torch.zeros(2, 3, dtype=torch.bool), kind, 4), torch.zeros(2, 3))


def test_bad_averages_are_refused() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="average_over: expected 'steps', 'sequences' or 'constant', found 'tokens'"):
        F.average_weight(mask, "tokens")  # type: ignore[arg-type]
    for wrong in (None, 0, -1):
        with pytest.raises(ValueError, match="max_steps"):
            F.average_weight(mask, "constant", wrong)
    with pytest.raises(ValueError, match=r"mask: expected dtype torch\.bool"):
        F.average_weight(mask.float())


@given(SEEDS, st.sampled_from(KINDS), st.integers(1, 6))
def test_micro_batches_of_unequal_sizes_add_to_the_whole(seed: int, kind: F.AverageOver, parts: int) -> None:
    generator = np.random.default_rng(seed)
    mask, value = generator.random((6, 5)) < 0.5, generator.standard_normal((6, 5))
    weight = F.average_weight(tensor(mask), kind, 5, dtype=torch.float64)
    pieces = zip(tensor(value).tensor_split(parts), weight.tensor_split(parts), strict=True)
    whole = reference.weighted_sum(value, reference.average_weight(mask, kind, 5))
    close(torch.stack([F.weighted_sum(v, w) for v, w in pieces]).sum(), np.array(whole))


def test_the_mean_of_means_is_another_number() -> None:
    """Two micro-batches of 2 and 8 tokens, each averaged by itself, would weigh the short one's four times as much."""
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    value = torch.where(torch.tensor([[True], [False]]), 1.0, 0.0).expand(2, 8)
    whole = F.weighted_sum(value, F.average_weight(mask))
    mean_of_means = sum(F.weighted_sum(value[i : i + 1], F.average_weight(mask[i : i + 1])) for i in range(2)) / 2
    assert (whole.item(), mean_of_means.item()) == pytest.approx((0.2, 0.5), abs=1e-6)


def test_minibatches_scaled_to_the_whole_average_to_it() -> None:
    generator = np.random.default_rng(0)
    value, mask = tensor(generator.standard_normal((6, 5))), tensor(generator.random((6, 5)) < 0.7)
    weight = F.average_weight(mask, dtype=torch.float64)
    scaled = [F.weighted_sum(value[units], weight[units] * 6 / len(units)) for units in torch.arange(6).tensor_split(3)]
    close(torch.stack(scaled).mean(), F.weighted_sum(value, weight))


def test_weighted_sum_hides_what_has_no_weight() -> None:
    weight = torch.tensor([0.5, 0.0, 0.25])
    value = torch.tensor([2.0, torch.nan, 4.0], requires_grad=True)
    total = F.weighted_sum(value, weight)
    total.backward()
    assert total.item() == 2.0
    assert value.grad is not None
    assert torch.equal(value.grad, weight)
    assert F.weighted_sum(torch.tensor([torch.inf]), torch.zeros(1)) == 0.0
    assert F.weighted_sum(torch.tensor([torch.nan]), torch.ones(1)).isnan()


@given(SHAPES, SEEDS)
def test_squared_errors(shape: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    returns, old_value = generator.standard_normal((2, *shape))
    value = old_value + generator.choice([-0.5, -0.1, 0.1, 0.5], shape) * generator.uniform(0.9, 1.1, shape)

    def plain(v: torch.Tensor) -> torch.Tensor:
        return F.squared_error(v, tensor(returns)).sum()

    def clipped(v: torch.Tensor) -> torch.Tensor:
        return F.clipped_squared_error(v, tensor(returns), tensor(old_value), 0.2).sum()

    for found, function, (error, derivative) in (
        (F.squared_error(tensor(value), tensor(returns)), plain, reference.squared_error(value, returns)),
        (
            F.clipped_squared_error(tensor(value), tensor(returns), tensor(old_value), 0.2),
            clipped,
            reference.clipped_squared_error(value, returns, old_value, 0.2),
        ),
    ):
        close(found, error)
        close(autograd(function, value)[0], derivative)
        near(finite_difference(function, value)[0], derivative)


def test_masked_errors_hold_no_nan() -> None:
    value = torch.tensor([1.0, torch.nan], requires_grad=True)
    returns, mask = torch.tensor([3.0, torch.nan]), torch.tensor([True, False])
    error = F.squared_error(value, returns, mask) + F.clipped_squared_error(value, returns, returns, 0.1, mask)
    error.sum().backward()
    assert torch.equal(error, torch.tensor([8.0, 0.0]))
    assert value.grad is not None
    assert value.grad[1] == 0.0
    with pytest.raises(ValueError, match="clip_range: expected a positive number, found 0"):
        F.clipped_squared_error(value, returns, returns, 0)
