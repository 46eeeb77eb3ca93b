"""Every surrogate: value against the plain loop, gradient against the derivative by hand and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.functional.made import SEEDS, SHAPES, Array, Steps, autograd, close, finite_difference, near, score, scored_steps, tensor
from upslope import functional as F
from upslope.reference import surrogates as reference

CLIPS = st.sampled_from([0.2, (0.2, 0.28), (0.1, 2.0), 0.0])
RATIOS: dict[str, F.Ratio] = {"token": F.token_ratio, "sequence": F.sequence_ratio, "sequence_mean": F.sequence_mean_ratio}
Surrogate = Callable[[Tensor, Tensor, Tensor, Tensor | None, Any], Tensor]


def check(
    surrogate: Surrogate, clip_range: Any, steps: Steps, expected: tuple[Array, Array], weight: Array, *, differences: bool = True
) -> None:
    """``expected`` is the value by the plain loop and the derivative by hand of the weighted sum."""

    def value(log_prob: Tensor) -> Tensor:
        return surrogate(log_prob, tensor(steps.behavior_log_prob), tensor(steps.advantage), steps.torch_mask, clip_range)

    def objective(log_prob: Tensor) -> Tensor:
        return F.weighted_sum(value(log_prob), tensor(weight))

    close(value(tensor(steps.log_prob)), expected[0])
    close(autograd(objective, steps.log_prob)[0], expected[1])
    if differences:
        visible = np.where(steps.shown, steps.log_prob, 0.0)  # a difference cannot be taken at NaN
        near(finite_difference(objective, visible)[0], expected[1])


def weights(steps: Steps) -> Array:
    return np.where(steps.shown, np.random.default_rng(0).uniform(0.1, 1.0, steps.log_prob.shape), 0.0)


@given(scored_steps)
def test_score_function(steps: Steps) -> None:
    weight = weights(steps)
    check(F.score_function, None, steps, reference.score_function(steps.log_prob, steps.advantage, steps.mask, weight=weight), weight)


@given(scored_steps, st.sampled_from(list(RATIOS)))
def test_importance_weighted(steps: Steps, kind: str) -> None:
    weight = weights(steps)
    arrays = (steps.log_prob, steps.behavior_log_prob, steps.advantage, steps.mask)
    expected = reference.importance_weighted(*arrays, ratio=kind, weight=weight)
    check(partial(F.importance_weighted, ratio=RATIOS[kind]), None, steps, expected, weight)


@given(scored_steps, CLIPS, st.sampled_from([None, 1.2, 3.0]), st.sampled_from(list(RATIOS)))
def test_clipped_surrogate(steps: Steps, clip_range: Any, dual_clip: float | None, kind: str) -> None:
    weight = weights(steps)
    arrays = (steps.log_prob, steps.behavior_log_prob, steps.advantage, steps.mask)
    expected = reference.clipped_surrogate(*arrays, clip_range, dual_clip=dual_clip, ratio=kind, weight=weight)
    check(partial(F.clipped_surrogate, dual_clip=dual_clip, ratio=RATIOS[kind]), clip_range, steps, expected, weight)


@given(scored_steps, CLIPS)
def test_sequence_mean_token_ratio(steps: Steps, clip_range: Any) -> None:
    """Its value is that of ``sequence_mean``, its gradient is not the value's derivative: no finite differences."""
    weight = weights(steps)
    arrays = (steps.log_prob, steps.behavior_log_prob, steps.advantage, steps.mask)
    expected = reference.clipped_surrogate(*arrays, clip_range, ratio="sequence_mean_token", weight=weight)
    surrogate = partial(F.clipped_surrogate, ratio=F.sequence_mean_token_ratio)
    check(surrogate, clip_range, steps, expected, weight, differences=False)
    close(expected[0], reference.clipped_surrogate(*arrays, clip_range, ratio="sequence_mean", weight=weight)[0])


@given(scored_steps)
def test_kl_penalized_surrogate(steps: Steps) -> None:
    weight = weights(steps)
    arrays = (steps.log_prob, steps.behavior_log_prob, steps.advantage, steps.mask)
    expected = reference.kl_penalized_surrogate(*arrays, beta=0.7, weight=weight)
    check(partial(F.kl_penalized_surrogate, beta=0.7), None, steps, expected, weight)


def test_kl_penalty_with_the_exact_divergence() -> None:
    steps = score((2, 4), 0, masked=True)
    kl = np.where(steps.shown, 0.3, np.nan)
    arrays = (steps.log_prob, steps.behavior_log_prob, steps.advantage, steps.mask)
    value, gradient = reference.importance_weighted(*arrays)
    expected = np.where(steps.shown, value - 0.5 * 0.3, 0.0), gradient
    surrogate = partial(F.kl_penalized_surrogate, beta=0.5, kl=tensor(kl))
    check(surrogate, None, steps, expected, np.where(steps.shown, 1.0, 0.0))


@given(scored_steps, CLIPS)
def test_truncated_score(steps: Steps, clip_range: Any) -> None:
    weight = weights(steps)
    arrays = (steps.log_prob, steps.behavior_log_prob, steps.advantage, steps.mask)
    expected = reference.truncated_score(*arrays, clip_range, weight=weight)
    check(F.truncated_score, clip_range, steps, expected, weight, differences=False)  # the importance weight does not move

    capped = np.minimum(np.exp(np.where(steps.shown, steps.log_prob - steps.behavior_log_prob, 0.0)), F.clip_bounds(clip_range)[1])
    factor = np.where(steps.shown, weight * capped * steps.advantage, 0.0)
    visible = np.where(steps.shown, steps.log_prob, 0.0)
    near(finite_difference(lambda log_prob: (log_prob * tensor(factor)).sum(), visible)[0], expected[1])


def test_an_action_that_the_policy_no_longer_takes_adds_nothing_to_a_truncated_score() -> None:
    old, new, advantage = np.array([-1.0, -1.0]), np.array([-0.9, -np.inf]), np.array([1.0, 2.0])
    value, gradient = reference.truncated_score(new, old, advantage, None, 0.2)
    assert value[1] == gradient[1] == 0.0
    close(F.truncated_score(tensor(new), tensor(old), tensor(advantage), None, 0.2), value)
    close(autograd(lambda x: F.truncated_score(x, tensor(old), tensor(advantage), None, 0.2).sum(), new)[0], gradient)


EVERY: dict[str, Surrogate] = {
    "score_function": F.score_function,
    "importance_weighted": F.importance_weighted,
    "clipped": F.clipped_surrogate,
    "dual clip": partial(F.clipped_surrogate, dual_clip=3.0),
    "kl_penalized": partial(F.kl_penalized_surrogate, beta=0.7),
    "truncated_score": F.truncated_score,
    "sequence_mean_token": partial(F.clipped_surrogate, ratio=F.sequence_mean_token_ratio),
}


@pytest.mark.parametrize("surrogate", EVERY.values(), ids=EVERY.keys())
@given(shape=SHAPES, seed=SEEDS)
def test_at_ratio_one_every_gradient_is_the_advantage(surrogate: Surrogate, shape: tuple[int, ...], seed: int) -> None:
    steps = score(shape, seed, masked=True)
    advantage, mask = tensor(np.nan_to_num(steps.advantage)), steps.torch_mask
    old = tensor(steps.behavior_log_prob)
    (gradient,) = autograd(lambda log_prob: surrogate(log_prob, old, advantage, mask, 0.2).sum(), steps.behavior_log_prob)
    close(gradient, np.where(steps.shown, advantage.numpy(), 0.0))


@pytest.mark.parametrize(("ratio", "share"), [(F.sequence_ratio, 1.0), (F.sequence_mean_ratio, 0.25)])
def test_at_ratio_one_a_sequence_moves_as_one(ratio: F.Ratio, share: float) -> None:
    """With weights that add to 1 in a row the gradient is A at every step (the mean ratio: A divided by the length)."""
    old, mask = np.full((2, 4), -1.0), torch.ones(2, 4, dtype=torch.bool)
    advantage = torch.tensor([[2.0], [-3.0]], dtype=torch.float64).expand(2, 4)
    weight = 2 * F.average_weight(mask, "sequences", dtype=torch.float64)

    def objective(log_prob: Tensor) -> Tensor:
        return F.weighted_sum(F.clipped_surrogate(log_prob, tensor(old), advantage, mask, 0.2, ratio=ratio), weight)

    close(autograd(objective, old)[0], share * advantage)


def test_the_clip_by_hand() -> None:
    """Eight cases at ε = 0.2: value, and whether the gradient lives."""
    ratio = torch.tensor([1.1, 1.5, 0.9, 0.5, 1.1, 1.5, 0.9, 0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    log_prob = ratio.log().requires_grad_()
    value = F.clipped_surrogate(log_prob, torch.zeros_like(ratio), advantage, None, 0.2)
    close(value, np.array([1.1, 1.2, 0.9, 0.5, -1.1, -1.5, -0.9, -0.8]))
    value.sum().backward()
    assert log_prob.grad is not None
    assert (log_prob.grad != 0).tolist() == [True, False, True, True, True, True, True, False]
    dual = F.clipped_surrogate(log_prob, torch.zeros_like(ratio), advantage, None, 0.2, dual_clip=1.3)
    close(dual, np.array([1.1, 1.2, 0.9, 0.5, -1.1, -1.3, -0.9, -0.8]))


@given(scored_steps, CLIPS, st.sampled_from([None, 1.2]), st.booleans())
def test_surrogate_metrics(steps: Steps, clip_range: Any, dual_clip: float | None, weighted: bool) -> None:
    arrays = (steps.log_prob, steps.behavior_log_prob, steps.advantage)
    weight = weights(steps) if weighted else None
    expected = reference.surrogate_metrics(*arrays, steps.mask, clip_range, weight, dual_clip=dual_clip)
    torch_weight = None if weight is None else tensor(weight)
    found = F.surrogate_metrics(*map(tensor, arrays), steps.torch_mask, clip_range, torch_weight, dual_clip=dual_clip)
    assert list(found) == list(expected)
    for name, number in found.items():
        close(number, np.array(expected[name]))


@given(SHAPES, SEEDS, CLIPS, st.sampled_from([None, 1.2]))
def test_dead_steps_are_those_without_a_gradient(shape: tuple[int, ...], seed: int, clip_range: Any, dual_clip: float | None) -> None:
    steps = score(shape, seed, masked=False)
    arrays = (tensor(steps.behavior_log_prob), tensor(steps.advantage), None, clip_range)
    (gradient,) = autograd(lambda log_prob: F.clipped_surrogate(log_prob, *arrays, dual_clip=dual_clip).sum(), steps.log_prob)
    found = F.surrogate_metrics(tensor(steps.log_prob), *arrays, dual_clip=dual_clip)["dead_fraction"]
    close(found, np.array((gradient == 0).mean()))


def test_metrics_of_parts_add_up() -> None:
    steps = score((6, 4), 3, masked=True)
    mask = tensor(steps.shown)
    arrays = [tensor(x) for x in (steps.log_prob, steps.behavior_log_prob, steps.advantage)]
    weight = F.average_weight(mask, dtype=torch.float64)
    whole = F.surrogate_metrics(*arrays, mask, 0.2)
    parts = [F.surrogate_metrics(*(x[s] for x in arrays), mask[s], 0.2, weight[s]) for s in (slice(0, 1), slice(1, 6))]
    for name, number in whole.items():
        close(parts[0][name] + parts[1][name], number)


@given(scored_steps, st.sampled_from([0.5, 1.0, 2.0]))
def test_truncated_importance_weight(steps: Steps, cap: float) -> None:
    trainer, sampler = tensor(steps.log_prob).requires_grad_(), tensor(steps.behavior_log_prob)
    weight = F.truncated_importance_weight(trainer, sampler, cap, steps.torch_mask)
    assert not weight.requires_grad
    close(weight, reference.truncated_importance_weight(steps.log_prob, steps.behavior_log_prob, cap, steps.mask))


def test_options_out_of_range_are_refused() -> None:
    x = torch.zeros(3)
    for wrong in (-0.1, (0.2, -0.1), float("nan")):
        with pytest.raises(ValueError, match="clip_range: expected numbers of at least 0"):
            F.clipped_surrogate(x, x, x, None, wrong)
    with pytest.raises(ValueError, match=r"dual_clip: expected a number above 1, found 1\.0"):
        F.clipped_surrogate(x, x, x, None, 0.2, dual_clip=1.0)
    with pytest.raises(ValueError, match="cap: expected a positive number, found 0"):
        F.truncated_importance_weight(x, x, 0)
    assert F.clip_bounds(0.25) == (0.75, 1.25)
    assert F.clip_bounds((0.25, 0.5)) == (0.75, 1.5)
