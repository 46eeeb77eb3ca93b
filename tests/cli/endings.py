"""Environments without a time limit, and one of which few may exist; named on the command line as ``endings:<name>``."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces


class Corridor(gymnasium.Env[Any, Any]):
    """Four places; left of the first is a wall, right of the last the end; −1 a step, and no time limit."""

    observation_space, action_space, limit = spaces.Discrete(4), spaces.Discrete(2), None

    def __init__(self) -> None:
        self.place = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = max(0, self.place + (1 if action == 1 else -1))
        return min(self.place, 3), -1.0, self.place == 4, False, {}


class Endless(Corridor):
    """It never ends; the second action pays 1."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return 0, float(action), False, False, {}


class Few(Corridor):
    """At most four in a process, and they keep their port for good."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Few.made += 1
        if Few.made > 4:
            raise RuntimeError(f"port already in use ({Few.made} instances)")

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, bool(self.np_random.random() < 0.1), info


class Ruled(Corridor):
    """Ten steps; what is legal it says in the infos of its steps alone."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 1
        return self.place % 4, 1.0, self.place == 10, False, {"action_mask": [True, self.place % 2 == 0]}
