"""Tuned settings for well-known tasks; the command line starts from them, and flags override them.

A preset holds flat setting names, as on the command line. What a task is not listed for starts from its family
(:data:`FAMILIES`), else from the defaults of the dataclasses. ``result`` is what the preset was measured to reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """Settings of one algorithm on one task, and what they were measured to give."""

    settings: Values = field(default_factory=dict)
    result: str = ""


MUJOCO: Values = {
    "num_envs": 16,
    "num_steps": 128,
    "num_minibatches": 32,
    "num_epochs": 10,
    "learning_rate": 3e-4,
    "schedule": "linear",
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "normalize_observation": True,
    "normalize_reward": True,
    "total_steps": 1_000_000,
}

MEASURED = {"HalfCheetah": "return 1,797, 3 seeds"}
"""The MuJoCo tasks that were run; the others share the settings."""

ATARI: Values = {
    "num_envs": 8,
    "num_steps": 128,
    "num_minibatches": 4,
    "num_epochs": 4,
    "learning_rate": 2.5e-4,
    "schedule": "linear",
    "clip_range": 0.1,
    "entropy_coef": 0.01,
    "total_steps": 10_000_000,
}

CARTPOLE_TILES: Values = {
    "features": "tiles",
    "num_tilings": 8,
    "feature_low": (-2.4, -3.0, -0.21, -3.5),
    "feature_high": (2.4, 3.0, 0.21, 3.5),
    "gamma": 0.99,
    "total_steps": 100_000,
}
"""CartPole's velocities have no limits of their own."""

ACROBOT_TILES: Values = {"features": "tiles", "num_tilings": 8, "num_tiles": 3, "total_steps": 100_000}

NATURAL: Values = {
    "num_envs": 8,
    "num_steps": 128,
    "num_value_epochs": 20,
    "num_value_minibatches": 4,
    "value_learning_rate": 1e-3,
    "damping": 1e-3,
    "max_kl": 0.02,
    "gamma": 0.99,
    "gae_lambda": 0.98,
    "total_steps": 100_000,
}
"""TRPO and NPG on small tasks with discrete actions."""

TRPO_ACROBOT: Values = NATURAL | {
    "num_envs": 16,
    "num_value_epochs": 10,
    "num_value_minibatches": 16,
    "damping": 0.01,
    "gae_lambda": 0.95,
    "normalize_observation": True,
    "total_steps": 300_000,
}

TRPO_PENDULUM: Values = {
    "num_envs": 10,
    "num_steps": 200,
    "num_cg_steps": 15,
    "num_value_epochs": 20,
    "num_value_minibatches": 20,
    "value_learning_rate": 2e-3,
    "damping": 0.01,
    "max_kl": 0.03,
    "gamma": 0.95,
    "gae_lambda": 0.9,
    "activation": "relu",
    "reward_scale": 0.1,
    "total_steps": 200_000,
}

TRPO_CHEETAH: Values = {
    "num_envs": 16,
    "num_steps": 128,
    "num_cg_steps": 25,
    "num_value_epochs": 20,
    "num_value_minibatches": 16,
    "value_learning_rate": 1e-3,
    "damping": 0.1,
    "max_kl": 0.04,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "normalize_observation": True,
    "normalize_reward": True,
    "total_steps": 1_000_000,
}
"""As rl-baselines3-zoo has them, but for 16 environments × 128 steps in place of 2 × 1024."""
GROUPS_ON_ACROBOT: Values = {
    "group_size": 8,
    "num_groups": 4,
    "learning_rate": 1e-2,
    "normalize_observation": True,
    "total_steps": 300_000,
}
GROUPS_ON_PENDULUM: Values = {
    "group_size": 8,
    "num_groups": 4,
    "num_minibatches": 2,
    "num_epochs": 4,
    "learning_rate": 3e-3,
    "activation": "relu",
    "total_steps": 1_000_000,
}

CLIPPED_ON_PENDULUM: Values = {
    "num_envs": 10,
    "num_steps": 200,
    "num_minibatches": 20,
    "num_epochs": 20,
    "learning_rate": 1e-3,
    "gamma": 0.95,
    "activation": "relu",
    "reward_scale": 0.1,
}
"""PPO, and off-policy learning with PPO's clip."""

PRESETS: dict[str, dict[str, Preset]] = {
    "CartPole-v1": {
        "ppo": Preset(
            {
                "num_envs": 8,
                "num_steps": 32,
                "num_minibatches": 4,
                "num_epochs": 10,
                "learning_rate": 3e-3,
                "schedule": "linear",
                "gamma": 0.99,
                "gae_lambda": 0.95,
                "total_steps": 100_000,
            },
            "final 500 (500 to 500), 20 of 20 seeds at the goal",
        ),
        "a2c": Preset(
            {
                "num_envs": 8,
                "num_steps": 32,
                "learning_rate": 2e-3,
                "schedule": "linear",
                "gamma": 0.99,
                "gae_lambda": 1.0,
                "normalize_value": True,
                "total_steps": 200_000,
            },
            "final 500 (500 to 500), 20 of 20 seeds at the goal",
        ),
        "all-actions": Preset(
            {
                "num_envs": 32,
                "num_steps": 32,
                "learning_rate": 3e-3,
                "schedule": "linear",
                "gamma": 0.98,
                "gae_lambda": 0.5,
                "entropy_coef": 1.0,
                "total_steps": 1_000_000,
            },
            "final 500 (453 to 500), 9 of 10 seeds at the goal",
        ),
        "actor-critic": Preset(
            {
                **CARTPOLE_TILES,
                "num_tiles": 6,
                "learning_rate": 0.003,
                "value_learning_rate": 0.05,
                "trace_decay": 0.8,
                "value_trace_decay": 0.8,
                "discount_weight": False,
            },
            "final 497 (489 to 499), 20 of 20 seeds at the goal",
        ),
        "sarsa": Preset(
            {**CARTPOLE_TILES, "num_tiles": 4, "learning_rate": 0.03, "trace_decay": 0.8, "epsilon": 0.05},
            "final 485 (462 to 497), 18 of 20 seeds at the goal",
        ),
        "reinforce": Preset(
            {"num_envs": 8, "learning_rate": 5e-3, "gamma": 0.99, "total_steps": 300_000},
            "final 498 (494 to 500), 20 of 20 seeds at the goal",
        ),
        "off-policy": Preset(
            {
                "num_envs": 8,
                "num_steps": 128,
                "num_minibatches": 64,
                "learning_rate": 1e-3,
                "trace_lambda": 0.95,
                "total_steps": 1_500_000,
            },
            "final 500 (441 to 500), 9 of 10 seeds at the goal",
        ),
        "grpo": Preset(
            {"group_size": 8, "num_groups": 4, "learning_rate": 2e-2, "average_over": "constant", "total_steps": 200_000},
            "final 500 (500 to 500), 20 of 20 seeds at the goal",
        ),
        "rloo": Preset(
            {"group_size": 8, "num_groups": 2, "learning_rate": 1e-2, "total_steps": 200_000},
            "final 500 (500 to 500), 20 of 20 seeds at the goal",
        ),
        "trpo": Preset(NATURAL, "final 500 (496 to 500), 20 of 20 seeds at the goal"),
        "npg": Preset({**NATURAL, "max_kl": 0.005}, "final 500 (499 to 500), 20 of 20 seeds at the goal"),
    },
    "Acrobot-v1": {
        "a2c": Preset(
            {
                "num_envs": 16,
                "num_steps": 32,
                "learning_rate": 3e-3,
                "schedule": "linear",
                "gamma": 0.99,
                "gae_lambda": 0.95,
                "entropy_coef": 0.01,
                "normalize_observation": True,
                "normalize_value": True,
                "total_steps": 300_000,
            },
            "final −85 (−86 to −84), 20 of 20 seeds at the goal",
        ),
        "reinforce": Preset(
            {"num_envs": 16, "learning_rate": 1e-2, "gamma": 0.98, "normalize_observation": True, "total_steps": 300_000},
            "−100 in 171,476 steps (median), 2 of 3 seeds",
        ),
        "grpo": Preset({**GROUPS_ON_ACROBOT, "average_over": "constant"}, "−100 in 77,350 steps (median), 3 of 3 seeds"),
        "rloo": Preset(GROUPS_ON_ACROBOT, "−100 in 75,992 steps (median), 3 of 3 seeds"),
        "ppo": Preset(
            {
                "num_envs": 16,
                "num_steps": 256,
                "num_minibatches": 32,
                "num_epochs": 4,
                "learning_rate": 1e-3,
                "schedule": "constant",
                "gamma": 0.99,
                "gae_lambda": 0.94,
                "normalize_observation": True,
                "total_steps": 300_000,
            },
            "final −84 (−85 to −82), 20 of 20 seeds at the goal",
        ),
        "actor-critic": Preset(
            {
                **ACROBOT_TILES,
                "gamma": 0.99,
                "learning_rate": 3e-3,
                "value_learning_rate": 0.03,
                "trace_decay": 0.8,
                "value_trace_decay": 0.8,
                "discount_weight": False,
            },
            "−100 in 43,008 steps (median), 3 of 3 seeds",
        ),
        "sarsa": Preset({**ACROBOT_TILES, "gamma": 1.0, "learning_rate": 0.03, "trace_decay": 0.9, "epsilon": 0.0}, "return −114, 3 seeds"),
        "off-policy": Preset(
            {
                "num_envs": 16,
                "num_steps": 256,
                "num_minibatches": 32,
                "num_epochs": 4,
                "learning_rate": 1e-3,
                "trace_lambda": 0.95,
                "clip_range": 0.2,
                "normalize_observation": True,
                "total_steps": 300_000,
            },
            "−100 in 114,277 steps (median), 3 of 3 seeds",
        ),
        "trpo": Preset(TRPO_ACROBOT, "final −79 (−82 to −77), 20 of 20 seeds at the goal"),
        "npg": Preset({**TRPO_ACROBOT, "max_kl": 0.01}, "final −80 (−83 to −78), 20 of 20 seeds at the goal"),
    },
    "Pendulum-v1": {
        "grpo": Preset({**GROUPS_ON_PENDULUM, "average_over": "constant"}, "−200 in 448,000 steps (median), 3 of 3 seeds"),
        "rloo": Preset(GROUPS_ON_PENDULUM, "−200 in 505,600 steps (median), 3 of 3 seeds"),
        "ppo": Preset(
            {
                **CLIPPED_ON_PENDULUM,
                "schedule": "linear",
                "gae_lambda": 0.9,
                "normalize_value": True,
                "total_steps": 100_000,
            },
            "final −141 (−142 to −140), 20 of 20 seeds at the goal",
        ),
        "actor-critic": Preset(
            {
                "features": "tiles",
                "num_tilings": 16,
                "num_tiles": 8,
                "gamma": 0.97,
                "learning_rate": 1e-3,
                "value_learning_rate": 0.02,
                "trace_decay": 0.9,
                "value_trace_decay": 0.9,
                "discount_weight": False,
                "reward_scale": 0.1,
                "total_steps": 150_000,
            },
            "−200 in 98,304 steps (median), 3 of 3 seeds",
        ),
        "off-policy": Preset(
            {
                **CLIPPED_ON_PENDULUM,
                "schedule": "linear",
                "trace_lambda": 0.9,
                "clip_range": 0.2,
                "total_steps": 200_000,
            },
            "final −140 (−140 to −139), 20 of 20 seeds at the goal",
        ),
        "trpo": Preset(TRPO_PENDULUM, "final −144 (−148 to −142), 20 of 20 seeds at the goal"),
        "npg": Preset({**TRPO_PENDULUM, "max_kl": 0.01}, "final −143 (−144 to −141), 20 of 20 seeds at the goal"),
    },
    "LunarLander-v3": {
        "ppo": Preset(
            {
                "num_envs": 16,
                "num_steps": 256,
                "num_minibatches": 64,
                "num_epochs": 4,
                "learning_rate": 1e-3,
                "schedule": "linear",
                "gamma": 0.999,
                "gae_lambda": 0.98,
                "entropy_coef": 0.01,
                "reward_scale": 0.1,
                "total_steps": 1_000_000,
            },
            "final 277 (270 to 281), 5 of 5 seeds at the goal",
        ),
    },
    **{
        f"{name}-v5": {"ppo": Preset(MUJOCO, MEASURED.get(name, ""))}
        for name in (
            "Ant",
            "HalfCheetah",
            "Hopper",
            "Humanoid",
            "HumanoidStandup",
            "InvertedDoublePendulum",
            "InvertedPendulum",
            "Pusher",
            "Reacher",
            "Swimmer",
            "Walker2d",
        )
    },
}
PRESETS["Swimmer-v5"]["ppo"] = Preset(
    {**MUJOCO, "num_envs": 1, "num_steps": 2048, "schedule": "constant", "gamma": 0.9999},
)
"""A stroke pays off long after it: whole episodes, and next to no discounting."""
PRESETS["HalfCheetah-v5"]["trpo"] = Preset(TRPO_CHEETAH, "return 4,541, 3 seeds")

FAMILIES: dict[str, dict[str, Preset]] = {"ALE/": {"ppo": Preset(ATARI)}}
"""By the beginning of the environment's id."""

SAMPLED = ("upslope/ShortCorridor-v0",)
"""Tasks whose best policy is random: its most likely action alone never arrives, so evaluations sample."""

GOALS = {"Pendulum-v1": -200.0}
"""Mean returns at which a task counts as solved, where Gymnasium names none."""


MEASURED_WITH: Values = {"normalize_value": False}
"""What every preset was measured with unless it says otherwise: values in the task's own rewards, whose size the settings fit."""


def preset_for(algorithm: str, env_id: str) -> Preset | None:
    """The preset of an algorithm on a task, or of the task's family; an id without a version means the listed one."""
    found = listed(algorithm, env_id)
    return None if found is None else replace(found, settings={**MEASURED_WITH, **found.settings})


def listed(algorithm: str, env_id: str) -> Preset | None:
    """What the tables say."""
    for name, by_algorithm in PRESETS.items():
        if algorithm in by_algorithm and env_id in (name, name.rpartition("-v")[0]):
            return by_algorithm[algorithm]
    for beginning, by_algorithm in FAMILIES.items():
        if algorithm in by_algorithm and env_id.startswith(beginning):
            return by_algorithm[algorithm]
    return None
