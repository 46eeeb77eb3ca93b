"""Normalizers: moments equal NumPy's over all data, saved with the policy, frozen in evaluation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from upslope.control.normalize import ObservationNormalizer, RewardNormalizer, RunningMoments
from upslope.control.policy import MLPPolicy
from upslope.errors import UsageError

VECTOR = (spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(2))


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
)
def test_merged_moments_equal_numpy_over_all_data(sizes: list[int], seed: int, offset: float) -> None:
    random = np.random.default_rng(seed)
    parts = [random.normal(offset, random.uniform(0.1, 3), (size, 3)) for size in sizes]
    moments = RunningMoments((3,))
    for part in parts:
        moments.update(part)
    data = np.concatenate(parts)
    assert float(moments.count) == len(data)
    if len(data):
        np.testing.assert_allclose(moments.mean.numpy(), data.mean(0), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(moments.var.numpy(), data.var(0), rtol=1e-8, atol=1e-10)
    else:
        assert moments.mean.tolist() == [0] * 3 and moments.var.tolist() == [1] * 3


def test_moments_of_moments() -> None:
    random = np.random.default_rng(0)
    one, other, both = RunningMoments((2,)), RunningMoments((2,)), RunningMoments((2,))
    first, second = random.normal(3, 2, (7, 2)), random.normal(-1, 1, (30, 2))
    one.update(first)
    other.update(second)
    both.update(np.concatenate([first, second]))
    one.merge(other.mean.numpy(), other.var.numpy(), float(other.count))
    for name in ("mean", "var", "count"):
        torch.testing.assert_close(getattr(one, name), getattr(both, name), rtol=1e-12, atol=1e-12)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected rows of shape \(3,\), found \(4, 2\)"):
        RunningMoments((3,)).update(np.zeros((4, 2)))


def test_moments_stay_in_float64_wherever_the_policy_goes() -> None:
    policy = MLPPolicy.for_envs(VECTOR, normalize_observation=True, normalize_reward=True)
    policy.to(torch.float16).to("meta")
    for moments in (policy.observation_normalizer.moments, policy.reward_normalizer.moments):  # pyright: ignore[reportOptionalMemberAccess]
        assert moments.mean.dtype == moments.var.dtype == torch.float64
        assert moments.mean.device.type == "cpu"


def test_observations_are_normalized_by_all_that_was_seen() -> None:
    random = np.random.default_rng(1)
    policy = MLPPolicy.for_envs(VECTOR, normalize_observation=True)
    batches = [random.normal([5, -2, 1e6], [1, 10, 0.5], (8, 3)) for _ in range(30)]
    for batch in batches:
        made = policy.inputs(batch, update=True)["observation"]
    data = np.concatenate(batches)
    np.testing.assert_allclose(made.numpy(), (batches[-1] - data.mean(0)) / data.std(0), rtol=1e-6, atol=1e-6)
    assert made.dtype == torch.float32


def test_a_large_offset_keeps_its_digits() -> None:
    """float32 holds 1e7 ± 0.5 in steps of 1: normalized after a cast, the observation would be noise."""
    normalizer = ObservationNormalizer(np.array([True]))
    data = 1e7 + np.linspace(-0.5, 0.5, 11)[:, None]
    normalizer.update(data)
    np.testing.assert_allclose(normalizer(data)[:, 0], (data[:, 0] - 1e7) / data.std(), atol=1e-6)


def test_before_anything_is_seen_observations_are_clipped_only() -> None:
    policy = MLPPolicy.for_envs(VECTOR, normalize_observation=True)
    made = policy.inputs(np.float32([[0.5, -30, 4]]))["observation"]
    np.testing.assert_allclose(made.numpy(), [[0.5, -10, 4]], rtol=1e-6)


def test_a_constant_observation_becomes_zero() -> None:
    policy = MLPPolicy.for_envs(VECTOR, normalize_observation=True)
    made = policy.inputs(np.full((4, 3), 7.0), update=True)["observation"]
    assert (made == 0).all()


def test_one_hot_parts_pass_through() -> None:
    space = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-9, 9, (1,)))
    policy = MLPPolicy.for_envs((space, spaces.Discrete(2)), normalize_observation=True)
    batch = {"a": np.array([0, 1, 1]), "b": np.array([[1.0], [2.0], [6.0]])}
    made = policy.inputs(batch, update=True)["observation"].numpy()
    np.testing.assert_array_equal(made[:, :2], [[1, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(made[:, 2], (batch["b"][:, 0] - 3) / batch["b"].std(), rtol=1e-6)


def test_only_update_moves_the_moments() -> None:
    policy = MLPPolicy.for_envs(VECTOR, normalize_observation=True)
    rows = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)
    policy.inputs(rows, update=True)
    before = copy.deepcopy(policy.state_dict())
    inputs = policy.inputs(rows + 5)
    sample = policy.sample(inputs)
    policy.evaluate(**inputs, action=sample.action)
    policy.act(rows + 5)
    policy.act(rows[0])
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_frozen_policy_takes_in_nothing_and_the_original_goes_on() -> None:
    policy = MLPPolicy.for_envs(VECTOR, normalize_observation=True, normalize_reward=True)
    rows = np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32)
    policy.inputs(rows, update=True)
    frozen = policy.frozen()
    wanted = frozen.inputs(rows)["observation"]
    policy.inputs(rows + 9, update=True)
    assert torch.equal(frozen.inputs(rows + 9, update=True)["observation"], frozen.inputs(rows + 9)["observation"])
    assert torch.equal(frozen.inputs(rows)["observation"], wanted)
    assert frozen.reward_normalizer is not None and policy.reward_normalizer is not None
    frozen.reward_normalizer.update(np.ones(4), np.zeros(4))
    assert float(frozen.reward_normalizer.moments.count) == 0
    assert policy.observation_normalizer is not None and float(policy.observation_normalizer.moments.count) == 16


def test_moments_are_saved_with_the_policy() -> None:
    policy = MLPPolicy.for_envs(VECTOR, normalize_observation=True, normalize_reward=True)
    rows = np.random.default_rng(4).normal(3, 2, (50, 3))
    policy.inputs(rows, update=True)
    assert policy.reward_normalizer is not None
    policy.reward_normalizer.update(rows[:, 0], np.zeros(50))
    other = MLPPolicy.for_envs(VECTOR, normalize_observation=True, normalize_reward=True, seed=9)
    other.load_state_dict(policy.state_dict())
    assert other.reward_normalizer is not None
    assert torch.equal(other.inputs(rows)["observation"], policy.inputs(rows)["observation"])
    np.testing.assert_array_equal(other.reward_normalizer(rows), policy.reward_normalizer(rows))
    assert not np.allclose(other.reward_normalizer(rows), np.clip(rows, -10, 10))


# ------------------------------------------------------------------------------------------------------------------ rewards


def test_the_scale_is_the_spread_of_the_running_returns() -> None:
    """Against plain loops: R ← γR + r per environment, 0 after an end; masked rows are not there."""
    random = np.random.default_rng(5)
    gamma, num_envs, num_steps = 0.9, 3, 40
    reward = random.normal(1, 2, (num_steps, num_envs))
    ended = random.random((num_steps, num_envs)) < 0.2
    mask = random.random((num_steps, num_envs)) < 0.8
    normalizer = RewardNormalizer(gamma)
    seen: list[float] = []
    running = [0.0] * num_envs
    for t in range(num_steps):
        normalizer.update(np.where(mask[t], reward[t], np.nan), ended[t], mask[t])
        for env in range(num_envs):
            if mask[t, env]:
                running[env] = gamma * running[env] + reward[t, env]
                seen.append(running[env])
                if ended[t, env]:
                    running[env] = 0.0
        np.testing.assert_allclose(normalizer.returns, running, rtol=1e-12)
    assert float(normalizer.moments.count) == len(seen)
    scaled = normalizer(reward[0])
    np.testing.assert_allclose(scaled, np.clip(reward[0] / np.std(seen), -10, 10), rtol=1e-6)
    assert scaled.dtype == np.float32 and scaled.shape == (num_envs,)


def test_rewards_keep_their_sign_and_zero_and_are_clipped() -> None:
    normalizer = RewardNormalizer(0.99, clip=2)
    for value in (1.0, 1.5, -1.0, 0.5):
        normalizer.update(np.array([value, value + 1]), np.array([True, True]))
    scaled = normalizer(np.array([-100.0, -0.1, 0.0, 0.1, 100.0]))
    assert scaled[0] == -2 and scaled[1] < 0 and scaled[2] == 0 and scaled[3] == -scaled[1] and scaled[4] == 2


def test_reset_forgets_the_returns_under_way() -> None:
    normalizer = RewardNormalizer(0.5)
    normalizer.update(np.array([4.0, 2.0]), np.array([False, False]))
    normalizer.reset()
    normalizer.update(np.array([1.0, 1.0]), np.array([False, False]))
    assert normalizer.returns is not None and normalizer.returns.tolist() == [1, 1]


def test_a_stray_axis_is_refused() -> None:
    normalizer = RewardNormalizer()
    with pytest.raises(UsageError, match="expected"):
        normalizer.update(np.zeros((4, 1)), np.zeros((4, 1), bool))
    with pytest.raises(UsageError, match="expected"):
        normalizer.update(np.zeros(4), np.zeros((4, 1), bool))


def test_wrong_settings_are_refused() -> None:
    for make in (lambda: RewardNormalizer(1.5), lambda: RewardNormalizer(clip=0), lambda: ObservationNormalizer(np.ones(1), clip=-1)):
        with pytest.raises(UsageError, match="expected a"):
            make()
    with pytest.raises(UsageError, match="normalize_observation"):
        MLPPolicy.for_envs((spaces.Discrete(3), spaces.Discrete(2)), normalize_observation=True)
