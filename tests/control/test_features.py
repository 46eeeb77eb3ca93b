"""Fixed features and the policies linear in them; gradients against their formulas."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from upslope import PPO, Ascent, UsageError, control, train
from upslope.algorithms.online import gradients
from upslope.control.heads import EpsilonGreedy
from upslope.control.linear import Fourier, Tiles, features_for
from upslope.control.policy import LinearPolicy, policy_from_description

SQUARE = spaces.Box(np.float32([-1, 0]), np.float32([1, 10]))
TABLE = spaces.Discrete(5)
TWO, LINE = spaces.Discrete(2), spaces.Box(-1, 1, (1,))
LIMITS = {"feature_low": (-2.4, -3, -0.21, -3.5), "feature_high": (2.4, 3, 0.21, 3.5)}


def points(count: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-1, 0], [1, 10], (count, 2)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- features


def test_each_tiling_has_one_tile_for_a_point_and_displaced_grids_cut_elsewhere():
    """By the definition: tiling i is a grid of side 1/n, moved by (i · (1, 3) mod tilings) / tilings of a tile."""
    tiles = Tiles(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), num_tilings=4, num_tiles=3)
    observations = points()
    found = tiles(observations)
    assert found.shape == (50, 4) and found.dtype == np.int64
    for point, indices in zip(observations.astype(np.float64) - [-1, 0], found, strict=True):
        for tiling in range(4):
            cells = [np.floor(point[j] / width * 3 + (tiling * odd % 4) / 4) for j, width, odd in ((0, 2, 1), (1, 10, 3))]
            row, column = map(int, cells)
            assert indices[tiling] == tiling * 16 + row + 4 * column


def test_corners_and_what_lies_beyond_them_have_tiles_of_their_own_tiling():
    tiles = Tiles(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), num_tilings=8, num_tiles=5)
    corners = np.float32([[-1, 0], [1, 10], [-1, 10], [1, 0], [-99, 99], [99, -99]])
    found = tiles(corners)
    assert (found // 36 == np.arange(8)).all() and found.max() < tiles.size == 8 * 36
    assert np.array_equal(found[4], found[2]) and np.array_equal(found[5], found[3])


def test_the_fourier_basis_is_its_formula():
    fourier = Fourier(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), order=2)
    x = fourier(points(3))
    s = (points(3).astype(np.float64) - [-1, 0]) / [2, 10]
    wanted = [[np.cos(np.pi * (a * s[n, 0] + b * s[n, 1])) for a in range(3) for b in range(3)] for n in range(3)]
    np.testing.assert_allclose(x, wanted, atol=1e-6)  # float32


def test_linear_features_are_a_table_for_a_discrete_space_and_have_a_constant_for_numbers():
    assert features_for(TABLE, "linear").size == 5
    assert features_for(SQUARE, "linear")(np.float32([[0.5, 3]])).tolist() == [[0.5, 3, 1]]


@pytest.mark.parametrize(
    "space, options, message",
    [
        (TABLE, {"name": "tiles"}, "features: tiles need a Box of real numbers, found Discrete"),
        (spaces.Box(0, 255, (32, 32, 3), np.uint8), {"name": "linear"}, "holds an image"),
        (spaces.Box(-np.inf, np.inf, (2,)), {"name": "tiles"}, "feature_low: tiles need limits, and number 0 of the observation has no"),
        (SQUARE, {"name": "tiles", "low": [0.0]}, "feature_low: expected 2 numbers, one for each of .*, found 1"),
        (SQUARE, {"name": "fourier", "low": [1.0, 0.0], "high": [1.0, 2.0]}, "feature_low: expected less than feature_high everywhere"),
        (SQUARE, {"name": "tiles", "num_tiles": 0}, "num_tiles: expected an integer ≥ 1, found 0"),
        (spaces.Box(-1, 1, (8,)), {"name": "tiles"}, "num_tiles: .* more than .*; take fewer"),
        (spaces.Box(-1, 1, (12,)), {"name": "fourier"}, "fourier_order: .* take fewer"),
        (SQUARE, {"name": "tile"}, "did you mean 'tiles'"),
    ],
)
def test_bad_features_are_named(space, options, message):
    with pytest.raises(UsageError, match=message):
        features_for(space, **options)


# ------------------------------------------------------------------------------------------------------------- policies


def filled(space, action_space, **options) -> LinearPolicy:
    """A linear policy in float64 with weights drawn at random."""
    policy = LinearPolicy.for_envs((space, action_space), **options).double()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return policy


@pytest.mark.parametrize("features", ["linear", "tiles", "fourier"])
def test_gradients_of_one_state_are_their_formulas(features):
    """``∇w v̂ = x``, ``∇Θ log π_a = x (e_a − p)ᵀ``; the fast twin's are compared in tests/fast/test_linear.py."""
    policy = filled(SQUARE, spaces.Discrete(3), features=features, num_tiles=3)
    parameters = tuple(policy.parameters())
    for point in points(5):
        inputs = policy.inputs(point[None])
        x = inputs["observation"][0]
        x = x.double() if x.is_floating_point() else torch.zeros(policy.features.size, dtype=torch.float64).index_fill(0, x, 1.0)
        probabilities = (x @ policy.network.actor).softmax(-1)
        for number in range(3):
            value, value_gradient, score = gradients(policy, inputs, torch.tensor([number]), parameters)
            assert value == pytest.approx((x @ policy.network.critic).item(), abs=1e-12)
            direction = nn.functional.one_hot(torch.tensor(number), 3) - probabilities
            for mine, wanted in ((value_gradient, (None, x)), (score, (torch.outer(x, direction), None))):
                for a, b in zip(mine, wanted, strict=True):
                    assert (a is None) == (b is None)
                    assert a is None or torch.allclose(a, b, rtol=0, atol=1e-12)


def test_other_heads_are_left_to_autograd():
    policy = filled(SQUARE, LINE, features="tiles", num_tiles=3)
    parameters = tuple(policy.parameters())
    inputs, action = policy.inputs(points(1)), torch.tensor([[0.3]], dtype=torch.float64)
    _, value_gradient, score = gradients(policy, inputs, action, parameters)
    assert [g is None for g in value_gradient] == [True, False, True] and [g is None for g in score] == [False, True, False]


@pytest.mark.parametrize("space, options", [(SQUARE, {"num_tiles": 3}), (SQUARE, {"features": "fourier"}), (TABLE, {"features": "linear"})])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3, start=1), LINE])
def test_a_linear_policy_is_described_and_acts_like_any_other(space, options, action_space):
    policy = LinearPolicy.for_envs((space, action_space), **options)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    again = policy_from_description(json.loads(json.dumps(policy.describe())))
    again.load_state_dict(policy.state_dict())
    batch = points(6) if space is SQUARE else np.arange(6) % 5
    inputs = policy.inputs(batch)
    drawn = policy.sample(inputs, generator=torch.Generator().manual_seed(0))
    scored = again.evaluate(**inputs, action=drawn.action)
    assert torch.equal(drawn.log_prob, scored.log_prob) and torch.equal(drawn.value, scored.value)
    assert torch.equal(policy.value(inputs), drawn.value)
    recorded = {name: tensor.unflatten(0, (2, 3)) for name, tensor in inputs.items()}  # [N, T, …], as a rollout holds them
    assert torch.equal(policy.value(recorded).flatten(), drawn.value)
    single, _ = policy.act(batch[0], greedy=True)
    assert np.allclose(np.asarray(single), again.act(batch, greedy=True)[0][0], rtol=0, atol=1e-6)  # float32, one row or six


def test_ppo_trains_a_linear_policy():
    envs = control.make("CartPole-v1", 4, 0)
    policy = LinearPolicy.for_envs(envs, num_tiles=4, **LIMITS)
    state = train(PPO(update=Ascent(num_minibatches=2)), policy, control.Steps(envs, 16), iterations=2)
    assert state.total_steps > 0 and bool(policy.network.actor.any())


# -------------------------------------------------------------------------------------------------------- action values


def test_epsilon_greedy_shares_epsilon_among_all_and_the_rest_among_the_best():
    head, values = EpsilonGreedy(4, epsilon=0.2), torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(head.probabilities(values), torch.tensor([[0.05, 0.45, 0.45, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    legal = torch.tensor([[True, False, False, True], [False, True, True, True]])
    assert torch.allclose(head.probabilities(values, legal), torch.tensor([[0.1, 0, 0, 0.9], [0, 1 / 3, 1 / 3, 1 / 3]]))
    assert head.mode(values).tolist()[1] == 0 and head.mode(values, legal).tolist()[0] == 3
    probabilities, random = head.probabilities(values), torch.Generator().manual_seed(0)
    drawn = head.sample(values[:1].expand(20_000, 4), random).bincount(minlength=4) / 20_000
    assert torch.allclose(drawn, probabilities[0], atol=0.015)  # four standard errors
    assert torch.allclose(head.log_prob(values, torch.tensor([1, 0])).exp(), torch.tensor([0.45, 0.85]))
    assert torch.allclose(head.entropy(values), -(probabilities * probabilities.log()).sum(-1))
    assert head.kl(values, values).abs().max() == 0


def test_action_values_need_a_head_of_their_own():
    with pytest.raises(UsageError, match="policy: it has preferences and no action values"):
        LinearPolicy.for_envs((TABLE, TWO), features="linear").action_values(observation=torch.eye(5))
    with pytest.raises(UsageError, match=r"^action space Box.*: action values need a Discrete space"):
        LinearPolicy.for_envs((TABLE, LINE), features="linear", epsilon=0.1)
    with pytest.raises(UsageError, match=r"^epsilon: expected a number in \[0, 1\], found 2"):
        LinearPolicy.for_envs((TABLE, TWO), features="linear", epsilon=2)


def test_limits_of_a_preset_go_with_its_tiles():
    from upslope.run.config import RunConfig

    assert RunConfig.of("actor-critic", "CartPole-v1").policy.feature_low is not None
    assert RunConfig.of("actor-critic", "CartPole-v1", features="linear").policy.feature_low is None
