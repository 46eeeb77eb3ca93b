"""A compiled policy's recordings against the policy's own: the same actions, observations and values, whatever the environment."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.control.worlds import Counting, Ruled, make_counting, side_by_side
from upslope import control
from upslope.fast.twins import fast_policy

pytest.importorskip("llvmlite", reason="llvmlite is not installed")


class Late(Ruled):
    """Speaks of masks at time 2 only."""

    def __init__(self):
        super().__init__(rule=lambda time: (np.arange(3) != 1) | (time != 2))

    def info(self):
        return super().info() if self.time == 2 else {}


class Shifted(Counting):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(2, start=3)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(action)


class Square(Counting):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(0, 100, (3, 1), np.float64)

    def seen(self):
        return super().seen().astype(np.float64)[:, None]


CASES = {
    "cartpole": (lambda: control.make("CartPole-v1", 8), {}),
    "one environment": (lambda: control.make("CartPole-v1", 1), {}),
    "acrobot": (lambda: control.make("Acrobot-v1", 3), {}),
    "gaussian": (lambda: control.make("Pendulum-v1", 3), {}),
    "gaussian, normalized": (lambda: control.make("Pendulum-v1", 20), {"normalize_observation": True, "normalize_reward": True}),
    "normalized": (make_counting, {"normalize_observation": True}),
    "no critic": (make_counting, {"critic": False}),
    "shifted actions": (lambda: side_by_side([Shifted] * 2), {}),
    "a square of float64": (lambda: side_by_side([Square] * 2), {}),
    "one-hot": (lambda: control.make("FrozenLake-v1", 4), {}),
    "masks": (lambda: side_by_side([lambda: Ruled(rule=lambda time: np.arange(3) != time % 3)] * 3), {}),
    "late masks": (lambda: side_by_side([Late] * 3), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_recordings(case):
    make, options = CASES[case]

    def play(acting):
        envs = make()
        policy = control.MLPPolicy.for_envs(envs, seed=1, **options)
        collect = control.Steps(envs, 25, seed=2)
        actor = acting(policy)
        rollouts = [collect(actor)]
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.1)  # training changes them
        rollouts.append(collect(actor))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.data = parameter.data.clone() * 1.1  # and moves them
        return [*rollouts, collect(actor)]

    for ours, theirs in zip(play(fast_policy), play(lambda policy: policy), strict=True):
        assert ours.inputs.keys() == theirs.inputs.keys()
        for name, tensor in theirs.inputs.items():
            # float32 rounding of an action reaches later observations
            torch.testing.assert_close(ours.inputs[name], tensor, rtol=0, atol=2e-4 if case.startswith("gaussian") else 0)
        for name in ("behavior_log_prob", "value", "next_value"):
            if getattr(theirs, name) is not None:
                # kernels and PyTorch add up in different orders; a pendulum's differences grow
                torch.testing.assert_close(
                    getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=5e-4 if case.startswith("gaussian") else 1e-5
                )
        for name in ("mask", "terminated", "truncated"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert ours.metrics.keys() == theirs.metrics.keys()


GREEDY = [
    ("CartPole-v1", {}),
    ("CartPole-v1", {"normalize_observation": True}),
    ("FrozenLake-v1", {}),
    ("Pendulum-v1", {}),
    (Shifted, {"critic": False}),
    (Square, {}),
    (Ruled, {}),
    (Late, {}),
]


@pytest.mark.parametrize("env, options", GREEDY)
@pytest.mark.parametrize("num_envs", [3, 7])
def test_the_same_greedy_episodes(env, options, num_envs):
    if env is Ruled:  # to choose from
        env = lambda: Ruled(rule=lambda time: np.arange(3) != time % 3)  # noqa: E731
    envs = control.make(env, 2)
    policy = control.MLPPolicy.for_envs(envs, seed=4, **options)
    control.Steps(envs, 3)(policy)
    ours, theirs = (control.evaluate(actor, env, episodes=7, num_envs=num_envs) for actor in (fast_policy(policy), policy))
    # a pendulum remembers float32's roundings
    np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-3 if env == "Pendulum-v1" else 0)


def test_a_recording_is_not_overwritten_by_the_next():
    envs = control.make("CartPole-v1", 8)
    actor, collect = fast_policy(control.MLPPolicy.for_envs(envs)), control.Steps(envs, 16)
    first = collect(actor)
    kept = {name: tensor.clone() for name, tensor in first.inputs.items()} | {"log_prob": first.behavior_log_prob.clone()}
    second = collect(actor)
    for name, tensor in first.inputs.items():
        assert torch.equal(tensor, kept[name])
        assert tensor.is_contiguous()
    assert torch.equal(first.behavior_log_prob, kept["log_prob"])
    assert not torch.equal(second.inputs["observation"], first.inputs["observation"])


def test_the_kernel_really_plays(monkeypatch):
    """Gymnasium's vectorized CartPole returns observations in Fortran order, which the kernel would leave to its twin."""
    envs = control.make("CartPole-v1", 8)
    policy = control.MLPPolicy.for_envs(envs)
    actor = fast_policy(policy)
    for name in ("sample", "value", "_actor"):
        monkeypatch.setattr(policy, name, None)
    control.Steps(envs, 3)(actor)
    control.Episodes(envs)(actor)
    control.evaluate(actor, "CartPole-v1", episodes=8)


def test_two_sizes_share_a_policy():
    envs, other = control.make("CartPole-v1", 8), control.make("CartPole-v1", 5, seed=9)
    actor = fast_policy(control.MLPPolicy.for_envs(envs))
    long, short = control.Steps(envs, 16), control.Steps(other, 3)
    shapes = [tuple(collect(actor).reward.shape) for collect in (long, short, long)]
    assert shapes == [(8, 16), (5, 3), (8, 16)]
