"""Stable-Baselines3's PPO, with the settings of rl-baselines3-zoo where it has them, under the shared protocol.

python sb3_ppo.py cartpole  --seed 0     # CartPole-v1 until 475
python sb3_ppo.py pendulum  --seed 0     # Pendulum-v1 until -200
python sb3_ppo.py halfcheetah --seed 0 --total-steps 61440 --batch-size 64
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any

from protocol import Progress, Solved, greedy_return
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


def linear(initial: float) -> Callable[[float], float]:
    """The zoo's `lin_` schedule: from `initial` to 0 over the run's budget."""
    return lambda remaining: remaining * initial


# rl-baselines3-zoo, hyperparams/ppo.yml, commit 22e3ff2. HalfCheetah: SB3's defaults at 8 × 256 (the zoo's 1 × 512 is far slower).
TASKS: dict[str, dict[str, Any]] = {
    "cartpole": {
        "env_id": "CartPole-v1", "num_envs": 8, "total_steps": 100_000, "until_return": 475.0,
        "ppo": {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
                "learning_rate": linear(0.001), "clip_range": linear(0.2)},
    },
    "pendulum": {
        "env_id": "Pendulum-v1", "num_envs": 4, "total_steps": 100_000, "until_return": -200.0,
        "ppo": {"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "learning_rate": 1e-3,
                "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4},
    },
    "halfcheetah": {
        "env_id": "HalfCheetah-v5", "num_envs": 8, "total_steps": 61_440, "until_return": None,
        "ppo": {"n_steps": 256, "n_epochs": 10},
    },
}  # fmt: skip


class TimedPPO(PPO):
    """PPO that reports to a `Progress` around its own `train`; the algorithm itself is untouched."""

    progress: Progress

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        if self.num_timesteps == 0:
            self.progress.start()
        return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        super().train()
        if self.progress.after_update(self.num_timesteps):
            raise Solved


def main() -> None:
    parser = argparse.ArgumentParser(description="Stable-Baselines3 PPO under the shared protocol.")
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-steps", type=int)
    parser.add_argument("--batch-size", type=int)
    args = parser.parse_args()
    task = TASKS[args.task]
    settings = dict(task["ppo"])
    if args.batch_size is not None:
        settings["batch_size"] = args.batch_size
    envs: Any = make_vec_env(task["env_id"], n_envs=task["num_envs"], seed=args.seed)
    if args.task == "halfcheetah":
        envs = VecNormalize(envs, norm_obs=True, norm_reward=False)
    model = TimedPPO("MlpPolicy", envs, seed=args.seed, device="cpu", **settings)

    def evaluate(seed: int) -> float:
        return greedy_return(task["env_id"], lambda observation: model.predict(observation, deterministic=True)[0], seed)

    model.progress = Progress(task["until_return"], evaluate)
    with contextlib.suppress(Solved):
        model.learn(args.total_steps or task["total_steps"])
    model.progress.report(seed=args.seed, system="sb3", task=args.task)


if __name__ == "__main__":
    main()
