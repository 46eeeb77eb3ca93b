"""What makes a run sick in one way each: environments, a method and rewards for doctor.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import gymnasium

from upslope import PPO


class Indifferent(gymnasium.RewardWrapper[Any, Any]):
    """Pays the same whatever is done."""

    def reward(self, reward: Any) -> float:
        return 1.0


class Growing(gymnasium.RewardWrapper[Any, Any]):
    """Rewards grow tenfold every 500 steps, up to 1e12."""

    steps = 0

    def reward(self, reward: Any) -> float:
        self.steps += 1
        return float(reward) * math.pow(10.0, min(12.0, self.steps / 500))


class Turning(gymnasium.ActionWrapper[Any, Any, Any]):
    """Actions change places after 5,000 steps, which an evaluation in an environment of its own never sees."""

    steps = 0

    def action(self, action: Any) -> Any:
        self.steps += 1
        return 1 - action if self.steps > 5000 else action


def turning() -> gymnasium.Env[Any, Any]:
    return Turning(gymnasium.make("CartPole-v1"))


def indifferent() -> gymnasium.Env[Any, Any]:
    """Fifty steps of Pendulum, each paid 1."""
    env = gymnasium.make("Pendulum-v1").unwrapped
    return Indifferent(gymnasium.wrappers.TimeLimit(env, 50))


def growing() -> gymnasium.Env[Any, Any]:
    return Growing(gymnasium.make("Pendulum-v1"))


@dataclass(frozen=True, kw_only=True)
class StalePPO(PPO):
    """Scores the actions against probabilities that are not those of the policy that acted."""

    def estimate(self, policy: Any, rollout: Any) -> Any:
        batch = super().estimate(policy, rollout)
        return replace(batch, behavior_log_prob=batch.behavior_log_prob - 0.05)


def of_no_use(*, prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that depends on nothing that can be learned: a coin for each completion."""
    return [float(hash((prompt, completion)) % 2) for prompt, completion in zip(prompts, completions, strict=True)]
