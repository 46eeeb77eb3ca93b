"""The defaults learn where actions or rewards have unusual scales."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from upslope import PPO, control, train
from upslope.control import Envs, MLPPolicy, evaluate
from upslope.updates import Ascent


class Follow(gymnasium.Env):
    """20 steps; the best action is 0.6 of the half range from the middle, in the direction and size of what is seen; 0 is best."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, low: float, high: float) -> None:
        self.action_space = spaces.Box(low, high, (1,))
        self.middle, self.half_range = (low + high) / 2, (high - low) / 2

    def see(self):
        self.seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def step(self, action):
        self.time += 1
        error = (float(action[0]) - self.middle) / self.half_range - 0.6 * float(self.seen[0])
        return self.see(), -abs(error), False, self.time >= 20, {}


@pytest.mark.parametrize("bounds", [(-1, 1), (100, 200), (-1e-3, 1e-3), (-5e6, -4e6)], ids=str)
@pytest.mark.parametrize("fast", [True, False])
def test_actions_of_any_range_are_learned_alike(bounds: tuple[float, float], fast: bool) -> None:
    """Random actions return −10, the middle −6."""
    low, high = bounds
    with Envs(SyncVectorEnv([lambda: Follow(low, high)] * 8), env_id="Follow") as envs:
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(16,), seed=0)
        algorithm = PPO(gamma=0.9, update=Ascent(learning_rate=1e-2, num_epochs=4, num_minibatches=4))
        train(algorithm, policy, control.Steps(envs, 64, seed=0), iterations=12, seed=0, fast=fast)
    assert evaluate(policy, lambda: Follow(low, high), episodes=10).return_mean > -3.5
