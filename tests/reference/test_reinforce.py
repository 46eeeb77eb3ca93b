"""The bare-metal trainers: expectations by enumeration and by formula, the bandit as a special case, and the PyTorch twin."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from upslope.reference import Bandit, FlooredPolicy, GradientBandit, Reinforce, ShortCorridor, SoftmaxPolicy, Step, play
from upslope.reference.arrays import Array
from upslope.reference.problems import LEFT, RIGHT, Problem

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIRST, SECOND = np.array([1.0, 0.2]), np.array([-0.3, 1.0])
REWARDS = np.random.default_rng(5).normal(size=(2, 2))


def trajectories(policy: SoftmaxPolicy) -> list[tuple[float, list[Step]]]:
    """All four episodes of two decisions, each with its probability."""
    p, q = policy.get_probs(FIRST), policy.get_probs(SECOND)
    return [
        (p[a] * q[b], [Step(FIRST, a, p, REWARDS[0, a]), Step(SECOND, b, q, REWARDS[1, b] + a)])
        for a, b in itertools.product(range(2), range(2))
    ]


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_the_expected_update_is_the_gradient(gamma: float) -> None:
    """Over all episodes, whatever the baseline: the mean step is α ∇J of the discounted J, that by finite differences."""

    def value(theta: Array) -> float:
        policy = SoftmaxPolicy(2, 2)
        policy.theta = theta
        return sum(p * (steps[0].reward + gamma * steps[1].reward) for p, steps in trajectories(policy))

    start = SoftmaxPolicy(2, 2, seed=4).theta
    slope = np.zeros((2, 2))
    for index in np.ndindex(2, 2):
        small = np.zeros((2, 2))
        small[index] = 1e-5
        slope[index] = (value(start + small) - value(start - small)) / 2e-5
    for w in (np.zeros(2), np.array([0.8, -1.3])):
        mean_step, mean_error = np.zeros((2, 2)), np.zeros(2)
        policy = SoftmaxPolicy(2, 2)
        policy.theta = start
        for probability, steps in trajectories(policy):
            policy.theta = start
            trainer = Reinforce(policy, learning_rate=0.5, gamma=gamma, baseline_rate=0.25)
            trainer.w = w
            trainer.learn(steps)
            mean_step += probability * (policy.theta - start)
            mean_error += probability * (trainer.w - w)
        np.testing.assert_allclose(mean_step, 0.5 * slope, rtol=0, atol=1e-9)  # central differences: 1e-10 of truncation
        expected = sum(
            p * ((s[0].reward + gamma * s[1].reward - w @ FIRST) * FIRST + (s[1].reward - w @ SECOND) * SECOND)
            for p, s in trajectories(_policy(start))
        )
        np.testing.assert_allclose(mean_error, 0.25 * expected, rtol=0, atol=1e-12)


def _policy(theta: Array) -> SoftmaxPolicy:
    policy = SoftmaxPolicy(*theta.shape)
    policy.theta = theta
    return policy


def test_the_corridor_by_its_formula() -> None:
    """Sampled returns and gradients lie in their intervals around V(p) and V'(p) p (1 − p), p = p(right)."""
    policy = _policy(np.array([[0.3, -0.2]]))
    policy.generator = np.random.default_rng(0)
    p = policy.get_probs(np.ones(1))[RIGHT]

    def value(p: float) -> float:
        return -2 * (2 - p) / (p * (1 - p))

    returns, slopes, corridor = [], [], ShortCorridor()
    for _ in range(800):
        start = policy.theta
        steps = play(policy, corridor)
        Reinforce(policy, learning_rate=1.0).learn(steps)
        slopes.append((policy.theta - start)[0, RIGHT])
        returns.append(sum(step.reward for step in steps))
        policy.theta = start
    for found, expected in ((returns, value(p)), (slopes, (value(p + 1e-6) - value(p - 1e-6)) / 2e-6 * p * (1 - p))):
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(800)


def test_the_corridor_is_switched_in_the_middle() -> None:
    corridor = ShortCorridor()
    corridor.reset()
    path = [(action, corridor.step(action)[1:], corridor.state) for action in (LEFT, RIGHT, RIGHT, RIGHT, LEFT, LEFT, RIGHT, LEFT, RIGHT)]
    assert [state for *_, state in path] == [0, 1, 0, 1, 2, 1, 0, 0, 1]
    corridor.state = 2
    assert corridor.step(RIGHT)[1:] == (-1.0, True)
    assert all(outcome == (-1.0, False) for _, outcome, _ in path)


def test_the_floor_holds_on_both_sides() -> None:
    for h, expected in ((9.0, [0.95, 0.05]), (-9.0, [0.05, 0.95])):
        policy = FlooredPolicy(1, floor=0.05)
        policy.theta = np.array([[h, -h]])
        policy.generator = np.random.default_rng(0)
        np.testing.assert_allclose(policy.get_probs(np.ones(1)), expected, rtol=0, atol=1e-15)
        share = np.mean([policy.sample_action(np.ones(1))[0] for _ in range(4000)])
        assert abs(share - expected[1]) < 4 * np.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("baseline", [True, False])
def test_the_gradient_bandit_is_reinforce(baseline: bool) -> None:
    """One constant feature, one decision: the same preferences at each step, given the same draws."""
    bandit, other = Bandit.testbed(6, shift=4.0, seed=1), Bandit.testbed(6, shift=4.0, seed=1)
    learner, policy = GradientBandit(6, learning_rate=0.2, baseline=baseline, seed=7), SoftmaxPolicy(1, 6)
    policy.theta, policy.generator = np.zeros((1, 6)), np.random.default_rng(7)
    rewards: list[float] = []
    for _ in range(60):
        learner.train(bandit, 1)
        (step,) = play(policy, other)
        policy.ascend(step.x, step.action, step.reward - (np.mean(rewards or [step.reward]) if baseline else 0.0), 0.2)
        rewards.append(step.reward)
        np.testing.assert_allclose(policy.theta[0], learner.preferences, rtol=0, atol=1e-12)
    assert np.abs(learner.preferences).max() > 0.1


def test_the_first_reward_moves_nothing_with_a_baseline() -> None:
    for baseline in (True, False):
        learner = GradientBandit(3, learning_rate=0.1, baseline=baseline)
        learner.learn(1, 5.0)
        assert learner.preferences.any() != baseline
    learner = GradientBandit(2, learning_rate=0.1)
    for action, reward in ((0, 1.0), (1, 4.0)):
        learner.learn(action, reward)
    assert learner.preferences[1] == pytest.approx(0.1 * (4.0 - 1.0) * 0.5)  # against the mean without the reward itself
    assert learner.mean_reward == 2.5


def test_trainers_learn() -> None:
    policy = SoftmaxPolicy(1, 4, seed=0)
    returns = Reinforce(policy, learning_rate=0.1, baseline_rate=0.1).train(Bandit(np.array([0.0, 1.0, 3.0, 2.0]), seed=0), 400)
    assert policy.get_probs(np.ones(1)).argmax() == 2 and returns[-50:].mean() > returns[:50].mean() + 0.3
    corridor = FlooredPolicy(1, floor=0.05, seed=0)
    corridor.theta = np.array([[1.47, -1.47]])
    returns = Reinforce(corridor, learning_rate=2.0**-9, baseline_rate=2.0**-6).train(ShortCorridor(), 200)
    assert 0.4 < corridor.get_probs(np.ones(1))[RIGHT] < 0.75 and returns[100:].mean() > -16


@pytest.mark.parametrize("name, gamma", [("bandit", 1.0), ("corridor", 1.0), ("corridor", 0.9)])
def test_the_pytorch_twin_is_equal_step_by_step(name: str, gamma: float) -> None:
    """From the same draws both see the same episodes and keep the same parameters, float64, to 1e-12."""
    twin = example("02_bandit_torch")
    problem: Problem = Bandit.testbed(5, shift=1.0, seed=3) if name == "bandit" else ShortCorridor()
    policy = SoftmaxPolicy(1, 5 if name == "bandit" else 2, seed=0)
    settings = {"learning_rate": 0.1 if name == "bandit" else 0.002, "gamma": gamma, "baseline_rate": 0.03}
    by_hand, torch_policy = Reinforce(policy, **settings), twin.TorchPolicy(policy.theta)
    by_autograd, first = twin.TorchReinforce(torch_policy, **settings), policy.theta
    for _ in range(60):
        steps = play(policy, problem)
        by_hand.learn(steps)
        by_autograd.learn(steps)
        distribution = torch_policy(np.ones(1))
        np.testing.assert_allclose(torch_policy.theta.detach().numpy(), policy.theta, rtol=0, atol=1e-12)
        np.testing.assert_allclose(by_autograd.w.detach().numpy(), by_hand.w, rtol=0, atol=1e-12)
        np.testing.assert_allclose(distribution.probs.detach().numpy(), policy.get_probs(np.ones(1)), rtol=0, atol=1e-12)
    assert np.abs(policy.theta - first).max() > 0.03 and np.abs(by_hand.w).max() > 0.05


def test_the_twin_samples_the_same_distribution() -> None:
    twin = example("02_bandit_torch")
    policy = SoftmaxPolicy(2, 3, seed=0)
    x = np.array([1.0, -0.5])
    torch.manual_seed(0)
    counts = torch.bincount(twin.TorchPolicy(policy.theta)(x).sample((20_000,)), minlength=3).numpy()
    probs = policy.get_probs(x)
    assert (np.abs(counts / 20_000 - probs) < 4.5 * np.sqrt(probs * (1 - probs) / 20_000)).all()
