"""Five tiny environments with known answers: a learner that fails one of them has a bug, and which one says where.

They form a ladder; each adds one thing to the one before it. Pass the class itself: ``control.make(ConstantReward)``.
After Andy Jones, "Debugging RL, without the agonizing pain" (2021), as rejax and others use them.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = NDArray[np.float32]


class Probe(gymnasium.Env[Observation, np.int64]):
    """One observation in [−1, 1], ``num_actions`` actions, ``length`` steps; subclasses say what is seen and what is paid."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]
    num_actions = 1
    length = 1

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(self.num_actions)
        self.shown, self.time = 0.0, 0

    def show(self) -> float:
        """The next observation."""
        return 0.0

    def pay(self, action: int) -> float:
        """The reward of the action in the state that ``shown`` and ``time`` describe."""
        raise TypeError("a probe says what it pays")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.shown = self.show()
        return np.array([self.shown], np.float32), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = self.pay(int(action))
        self.time += 1
        self.shown = self.show()
        return np.array([self.shown], np.float32), reward, self.time >= self.length, False, {}

    def coin(self) -> float:
        return float(self.np_random.integers(2) * 2 - 1)


class ConstantReward(Probe):
    """One step, reward 1. Answer: V = 1. Fails: the value's loss, its target, or the optimizer."""

    def pay(self, action: int) -> float:
        return 1.0


class ObservationReward(Probe):
    """One step, the reward is the observation, −1 or 1. Answer: V(s) = s. Fails: the observation does not reach the critic."""

    show = Probe.coin

    def pay(self, action: int) -> float:
        return self.shown


class DelayedReward(Probe):
    """Two steps, seen as 0 and 1, and reward 1 with the second. Answer: V(0) = γ, V(1) = 1. Fails: discount or bootstrap."""

    length = 2

    def show(self) -> float:
        return float(min(self.time, 1))

    def pay(self, action: int) -> float:
        return float(self.time)


class ActionReward(Probe):
    """One step, reward −1 for action 0 and 1 for action 1. Answer: π(1) → 1. Fails: the policy's gradient, its sign for one."""

    num_actions = 2

    def pay(self, action: int) -> float:
        return float(2 * action - 1)


class MatchingReward(Probe):
    """One step, reward 1 where the action matches the observation (−1 → 0, 1 → 1), else −1.

    Answer: π(match) → 1, V → 1. Fails: observations, actions and advantages are out of step with each other.
    """

    num_actions = 2

    show = Probe.coin

    def pay(self, action: int) -> float:
        return 1.0 if (action == 1) == (self.shown > 0) else -1.0
