"""Environments with one defect each, named on the command line as ``faulty:<factory>``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

OBSERVATION = spaces.Box(-1.0, 1.0, (3,), np.float32)


class Walk(gymnasium.Env[Any, Any]):
    """Ten steps of nothing, reward 1; ``at`` is the step (counted over the whole life) at which ``fault`` strikes."""

    def __init__(self, fault: str = "", at: int = 20, observation_space: Any = OBSERVATION, action_space: Any = None) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.fault, self.at = fault, at
        self.clock = self.time = 0

    def observe(self, where: str) -> Any:
        observation = np.full(3, 0.1 * self.time, np.float32)
        if self.fault == f"{where}-nan":
            observation[1] = np.nan
        if self.fault == f"{where}-shape":
            return observation[:2]
        if self.fault == f"{where}-dtype":
            return np.array(["a", "b", "c"])
        if self.fault == f"{where}-raises":
            raise RuntimeError("the motor\nis on fire")
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        info = {"action_mask": np.zeros(2, np.int8)} if self.fault == "no-action" else {}
        if self.fault == "reset-alone":
            return self.observe("reset")
        return self.observe("reset" if self.clock == 0 else "later-reset"), info

    def step(self, action: Any) -> tuple[Any, Any, Any, bool, dict[str, Any]]:
        self.clock += 1
        if self.fault == "exits" and self.clock >= self.at:
            raise SystemExit(0)
        self.time += 1
        now = self.clock >= self.at
        wrong = {"reward-nan": np.nan, "reward-inf": np.inf, "reward-text": "one", "reward-array": np.ones(1)}
        reward: Any = wrong.get(self.fault, 1.0) if now else 1.0
        ended: Any = None if now and self.fault == "ended-none" else self.time >= 10
        info: Any = [] if now and self.fault == "info-list" else {}
        answer: Any = self.observe("step" if now else "fine"), reward, ended, False, info
        return answer[:4] if now and self.fault == "four-values" else answer


def walk(**options: Any) -> Walk:
    """Without a defect."""
    return Walk(**options)


class Screen(Walk):
    """Shows a small float image."""

    def observe(self, where: str) -> Any:
        return np.full((20, 20, 3), 0.1 * self.time, np.float32)


def screen() -> Walk:
    return Screen(observation_space=spaces.Box(0, 1, (20, 20, 3), np.float32))


def no_frames() -> Walk:
    """Takes no render_mode."""
    return Walk()


def text_observation() -> Walk:
    return Walk(observation_space=spaces.Text(5))


def sequence_observation() -> Walk:
    return Walk(observation_space=spaces.Dict(words=spaces.Sequence(spaces.Discrete(3))))


def dict_action() -> Walk:
    return Walk(action_space=spaces.Dict(a=spaces.Discrete(2)))


def discrete_observation() -> Walk:
    return Walk(observation_space=spaces.Discrete(4))


def unbounded_action() -> Walk:
    return Walk(action_space=spaces.Box(-np.inf, np.inf, (1,), np.float32))


def quits() -> Walk:
    raise SystemExit(0)


def broken() -> Walk:
    raise OSError("no such\nport")


def not_an_environment() -> dict[str, int]:
    return {"a": 1}


number = 3


def wrong_shape(log_prob: Any, behavior_log_prob: Any, advantage: Any, mask: Any, clip_range: Any) -> Any:
    """A surrogate that forgets that it answers per step."""
    return (log_prob * advantage).sum()


def ignoring(log_prob: Any, behavior_log_prob: Any, advantage: Any, mask: Any, clip_range: Any) -> Any:
    """A surrogate that the policy cannot change."""
    return advantage


def raising(log_prob: Any, behavior_log_prob: Any, advantage: Any, mask: Any, clip_range: Any) -> Any:
    """A surrogate with a mistake in it."""
    return log_prob * undefined_name  # type: ignore[name-defined]  # noqa: F821


class Drawn(Walk):
    """One that can be watched."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


def drawn(render_mode: str | None = None) -> Drawn:
    return Drawn(render_mode)


def ending() -> Walk:
    raise SystemExit(0)


def leaving(log_prob: Any, behavior_log_prob: Any, advantage: Any, mask: Any, clip_range: Any) -> Any:
    """A surrogate that ends Python."""
    raise SystemExit(0)
