"""Returns and advantages against their definitions, their identities, and the traps they are famous for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given

from tests.functional.made import FRACTIONS, SEEDS, SHAPES, Array, Recording, close, record, recordings
from upslope import functional as F
from upslope.reference import returns as reference

ENDS = ("terminated", "truncated")


def both(name: str, recording: Recording, names: tuple[str, ...], **options: float) -> None:
    found = getattr(F, name)(**recording.tensors(*names), **options)
    expected = getattr(reference, name)(**recording.arrays(*names), **options)
    assert found.dtype is torch.float64
    close(found, expected)


@given(recordings, FRACTIONS)
def test_returns_to_go(recording: Recording, gamma: float) -> None:
    both("returns_to_go", recording, ("reward", *ENDS, "mask"), gamma=gamma)
    both("returns_to_go", recording, ("reward", "next_value", *ENDS, "mask"), gamma=gamma)


@given(recordings, FRACTIONS)
def test_episode_returns(recording: Recording, gamma: float) -> None:
    both("episode_returns", recording, ("reward", *ENDS, "mask"), gamma=gamma)
    both("episode_returns", recording, ("reward", "next_value", *ENDS, "mask"), gamma=gamma)


@given(recordings, FRACTIONS)
def test_discount_weight(recording: Recording, gamma: float) -> None:
    for names in ((*ENDS, "mask"), (*ENDS, "mask", "first_step")):
        expected = reference.discount_weight(**recording.arrays(*names), gamma=gamma)
        close(F.discount_weight(**recording.tensors(*names), gamma=gamma, dtype=torch.float64), expected)


@given(recordings, FRACTIONS)
def test_td_error(recording: Recording, gamma: float) -> None:
    both("td_error", recording, ("reward", "value", "next_value", "terminated", "mask"), gamma=gamma)


@given(recordings, FRACTIONS, FRACTIONS)
def test_gae_is_the_closed_double_sum(recording: Recording, gamma: float, gae_lambda: float) -> None:
    both("gae", recording, ("reward", "value", "next_value", *ENDS, "mask"), gamma=gamma, gae_lambda=gae_lambda)


@given(recordings, FRACTIONS, FRACTIONS)
def test_lambda_returns_are_the_weighted_n_step_returns(recording: Recording, gamma: float, trace_lambda: float) -> None:
    recording = recording.consistent()
    options = {"gamma": gamma, "trace_lambda": trace_lambda}
    found = F.lambda_returns(**recording.tensors("reward", "value", "next_value", *ENDS, "mask"), **options)
    close(found, reference.lambda_returns(**recording.arrays("reward", "next_value", *ENDS, "mask"), **options))


@given(recordings, FRACTIONS)
def test_n_step_returns(recording: Recording, gamma: float) -> None:
    for n in (1, 2, 3, 20):
        both("n_step_returns", recording, ("reward", "next_value", *ENDS, "mask"), gamma=gamma, n=n)


@given(recordings)
def test_gae_at_lambda_0_and_1(recording: Recording) -> None:
    recording = recording.consistent()
    x = recording.tensors("reward", "value", "next_value", *ENDS, "mask")
    mask = x.get("mask")
    close(F.gae(**x, gamma=0.9, gae_lambda=0.0), F.td_error(**{k: x[k] for k in x if k != "truncated"}, gamma=0.9))
    returns = F.returns_to_go(**{k: x[k] for k in x if k != "value"}, gamma=0.9)
    value = x["value"] if mask is None else x["value"].masked_fill(~mask, 0.0)
    close(F.gae(**x, gamma=0.9, gae_lambda=1.0), returns - value)


@given(recordings)
def test_many_steps_are_the_return_and_one_step_is_lambda_0(recording: Recording) -> None:
    x = recording.tensors("reward", "next_value", *ENDS, "mask")
    length = recording.reward.shape[-1]
    close(F.n_step_returns(**x, gamma=0.9, n=length), F.returns_to_go(**x, gamma=0.9))
    value = recording.tensors("value")
    close(F.n_step_returns(**x, gamma=0.9, n=1), F.lambda_returns(**x, **value, gamma=0.9, trace_lambda=0.0))


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65, 200])
def test_long_rows(length: int) -> None:
    recording = record((2, length), length, masked=True, end_rate=0.05)
    both("gae", recording, ("reward", "value", "next_value", *ENDS, "mask"), gamma=0.99, gae_lambda=0.95)
    both("returns_to_go", recording, ("reward", *ENDS, "mask"), gamma=1.0)


def test_no_steps_at_all() -> None:
    empty, none = torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)
    assert F.gae(empty, empty, empty, none, none, 0.9, 0.9).shape == (3, 0)
    assert F.returns_to_go(empty, none, none, 0.9, none, empty).shape == (3, 0)
    assert F.n_step_returns(empty, empty, none, none, 0.9, 2, none).shape == (3, 0)


def test_terminated_wins_over_truncated() -> None:
    one, both_flags = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    assert F.gae(one, one, 7 * one, both_flags, both_flags, 0.9, 0.9).item() == 0.0
    assert F.returns_to_go(one, both_flags, both_flags, 0.9, next_value=7 * one).item() == 1.0
    assert F.n_step_returns(one, 7 * one, both_flags, both_flags, 0.9, 3).item() == 1.0


@given(SHAPES, SEEDS)
def test_masked_rows_are_transparent(shape: tuple[int, ...], seed: int) -> None:
    """A tool's tokens inside an episode, or a reset step, change nothing for the steps around them."""
    where = [2 * t + (t % 2) for t in range(shape[-1])]  # real steps in a row twice as long

    def spread(x: Array, filler: float) -> Array:
        wide = np.full((*shape[:-1], 2 * shape[-1]), filler, dtype=x.dtype)
        wide[..., where] = x
        return wide

    dense = record(shape, seed, masked=False).consistent()
    wide = Recording(
        *(spread(getattr(dense, name), np.nan) for name in ("reward", "value", "next_value")),
        *(spread(getattr(dense, name), False) for name in ENDS),
        mask=spread(np.ones(shape, dtype=bool), False),
        first_step=dense.first_step,
    )
    for name, names, options in (
        ("gae", ("reward", "value", "next_value", *ENDS), {"gamma": 0.9, "gae_lambda": 0.8}),
        ("returns_to_go", ("reward", "next_value", *ENDS), {"gamma": 0.9}),
        ("n_step_returns", ("reward", "next_value", *ENDS), {"gamma": 0.9, "n": 2}),
        ("episode_returns", ("reward", "next_value", *ENDS), {"gamma": 0.9}),
        ("discount_weight", (*ENDS, "first_step"), {"gamma": 0.9}),
    ):
        plain = getattr(F, name)(**dense.tensors(*names), **options)
        close(getattr(F, name)(**wide.tensors(*names, "mask"), **options)[..., where], plain)


def test_nothing_leaks_from_masked_rows_into_gradients() -> None:
    recording = record((3, 8), 3, masked=True)
    x = recording.tensors("reward", "value", "next_value", *ENDS, "mask")
    x["value"].requires_grad_()
    F.gae(**x, gamma=0.9, gae_lambda=0.8).sum().backward()
    assert x["value"].grad is not None
    assert x["value"].grad.isfinite().all()
    assert (x["value"].grad[~x["mask"]] == 0).all()


def test_gradients_of_gae() -> None:
    recording = record((2, 6), 1, masked=False)
    x = recording.tensors("reward", "value", "next_value", *ENDS)
    names = ("reward", "value", "next_value")

    def advantage(*values: torch.Tensor) -> torch.Tensor:
        return F.gae(**dict(zip(names, values, strict=True)), **{k: x[k] for k in ENDS}, gamma=0.9, gae_lambda=0.8)

    assert torch.autograd.gradcheck(advantage, tuple(x[name].requires_grad_() for name in names))


def fixed_point(*, bootstrap: bool, gae_lambda: float) -> float:
    """The value to which a one-state critic tends in a loop with reward 1 and γ = 0.9, cut after 5 steps."""
    reward = torch.ones(1, 5, dtype=torch.float64)
    cut = torch.tensor([[False] * 4 + [True]])
    never = torch.zeros_like(cut)
    ends = (never, cut) if bootstrap else (cut, never)
    value = torch.zeros(1, 5, dtype=torch.float64)
    for _ in range(400):
        value = torch.full_like(value, float((F.gae(reward, value, value, *ends, 0.9, gae_lambda) + value).mean()))
    return value[0, 0].item()


def test_truncation_is_not_termination() -> None:
    reward = torch.ones(1, 5, dtype=torch.float64)
    cut = torch.tensor([[False] * 4 + [True]])
    never, ten = torch.zeros_like(cut), torch.full((1, 5), 10.0, dtype=torch.float64)
    close(F.returns_to_go(reward, never, cut, 0.9, next_value=ten), ten)
    assert F.returns_to_go(reward, cut, never, 0.9, next_value=ten)[0, 0].item() == pytest.approx(4.0951, abs=1e-12)
    for gae_lambda in (0.0, 0.5, 1.0):
        assert fixed_point(bootstrap=True, gae_lambda=gae_lambda) == pytest.approx(10.0, abs=1e-9)
    mean_return = sum((1 - 0.9**k) / 0.1 for k in range(1, 6)) / 5
    assert round(mean_return, 4) == 2.6288
    assert fixed_point(bootstrap=False, gae_lambda=1.0) == pytest.approx(mean_return, abs=1e-9)
    assert fixed_point(bootstrap=False, gae_lambda=0.0) == pytest.approx(1 / (1 - 0.9 * 4 / 5), abs=1e-9)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("cut", [None, 0, 1])
def test_with_the_exact_value_gae_is_unbiased_for_every_lambda_and_cut(gae_lambda: float, cut: int | None) -> None:
    """E[Â_0 | s_0, a_0] = A by enumeration of all trajectories of three steps in a random two-state problem."""
    generator = np.random.default_rng(0)
    gamma, policy = 0.9, generator.dirichlet([1.0, 1.0], 2)
    transition, reward = generator.dirichlet([1.0, 1.0], (2, 2)), generator.standard_normal((2, 2))
    chain, mean_reward = np.einsum("sa,sap->sp", policy, transition), (policy * reward).sum(1)
    value = np.linalg.solve(np.eye(2) - gamma * chain, mean_reward)
    exact = reward + gamma * transition @ value - value[:, None]
    total = np.zeros((2, 2))
    for path in itertools.product(range(2), repeat=7):
        states, actions = path[::2], path[1::2]
        share = 1.0
        for t in range(3):
            share *= transition[states[t], actions[t], states[t + 1]] * (policy[states[t], actions[t]] if t else 1.0)
        row = [reward[s, a] for s, a in zip(states, actions, strict=False)], value[list(states[:3])], value[list(states[1:])]
        truncated = torch.tensor([t == cut for t in range(3)])
        arrays = [torch.tensor(np.array(x)) for x in row]
        advantage = F.gae(*arrays, torch.zeros(3, dtype=torch.bool), truncated, gamma, gae_lambda)
        total[states[0], actions[0]] += share * advantage[0].item()
    close(total, exact)


def test_rewards_and_flags_on_masked_rows_are_refused() -> None:
    reward, flag, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    mask[1, 2] = False
    F.check_masked_rows(reward, flag, flag, mask)
    wrong_reward, wrong_flag = reward.clone(), flag.clone()
    wrong_reward[1, 2], wrong_flag[1, 2] = 0.5, True
    with pytest.raises(ValueError, match=r"reward: found 0.5 at masked row \(1, 2\)"):
        F.check_masked_rows(wrong_reward, flag, flag, mask)
    with pytest.raises(ValueError, match=r"terminated: found True at masked row \(1, 2\)"):
        F.check_masked_rows(reward, wrong_flag, flag, mask)
    with pytest.raises(ValueError, match=r"truncated: found True at masked row \(1, 2\)"):
        F.check_masked_rows(reward, flag, wrong_flag, mask)
    wrong_reward[1, 2] = torch.nan
    with pytest.raises(ValueError, match="reward: found nan"):
        F.check_masked_rows(wrong_reward, flag, flag, mask)


def test_the_wrong_kind_of_flag_is_refused() -> None:
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"terminated: expected dtype torch\.bool, found torch\.float32"):
        F.gae(one, one, one, one, one.bool(), 0.9, 0.9)
    with pytest.raises(ValueError, match=r"truncated: expected dtype torch\.bool"):
        F.gae(one, one, one, one.bool(), one, 0.9, 0.9)
    with pytest.raises(ValueError, match="n: expected at least 1, found 0"):
        F.n_step_returns(one, one, one.bool(), one.bool(), 0.9, 0)


def test_inputs_are_left_alone() -> None:
    recording = record((3, 8), 5, masked=True)
    x = recording.tensors("reward", "value", "next_value", *ENDS, "mask")
    before = {name: value.clone() for name, value in x.items()}
    F.gae(**x, gamma=0.9, gae_lambda=0.8)
    F.returns_to_go(**{k: x[k] for k in x if k != "value"}, gamma=0.9)
    for name, value in x.items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy())
