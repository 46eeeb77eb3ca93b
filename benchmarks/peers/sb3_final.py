"""Stable-Baselines3 with the settings of rl-baselines3-zoo, to the end of a budget; the final policy, greedy, over fresh episodes.

python sb3_final.py ppo CartPole-v1 --seed 100 --total-steps 100000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from protocol import make_vector
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


def linear(initial: float) -> Callable[[float], float]:
    """The zoo's `lin_` schedule: from `initial` to 0 over the run's budget."""
    return lambda remaining: remaining * initial


# rl-baselines3-zoo, hyperparams/ppo.yml (commit 00128b5) and hyperparams/a2c.yml (02846e4): number of environments, normalized, the rest.
PPO_SETTINGS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "CartPole-v1": (8, False, {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
                               "learning_rate": linear(0.001), "clip_range": linear(0.2)}),
    "Acrobot-v1": (16, True, {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0}),
    "Pendulum-v1": (4, False, {"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0,
                               "learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4}),
    "LunarLander-v3": (16, False, {"n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01}),
}  # fmt: skip
A2C_SETTINGS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "CartPole-v1": (8, False, {"ent_coef": 0.0}),
    "Acrobot-v1": (16, True, {"ent_coef": 0.0}),
}


def final_returns(model: Any, env_id: str, normalizer: Any, episodes: int, seed: int) -> list[float]:
    """The return of one whole episode from each of `episodes` starts, greedy."""
    envs = make_vector(env_id, episodes)
    observation, _ = envs.reset(seed=seed)
    total, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        seen = observation if normalizer is None else normalizer.normalize_obs(observation)
        observation, reward, terminated, truncated, _ = envs.step(model.predict(seen, deterministic=True)[0])
        total += np.where(running, reward, 0.0)
        running &= ~(terminated | truncated)
    envs.close()
    return [float(x) for x in total]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("ppo", "a2c"))
    parser.add_argument("task", choices=sorted(PPO_SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-steps", type=int, required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--evaluation-seed", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kind, table = (PPO, PPO_SETTINGS) if args.method == "ppo" else (A2C, A2C_SETTINGS)
    num_envs, normalized, settings = table[args.task]
    gym.spec(args.task)
    envs: Any = make_vec_env(args.task, n_envs=num_envs, seed=args.seed)
    normalizer = envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99)) if normalized else envs
    model = kind("MlpPolicy", envs, seed=args.seed, device="cpu", **settings)
    started = time.perf_counter()
    model.learn(args.total_steps)
    seconds = time.perf_counter() - started
    returns = final_returns(model, args.task, normalizer if normalized else None, args.episodes, args.evaluation_seed)
    record = {"total_steps": model.num_timesteps, "train_seconds": round(seconds, 2), "return": round(float(np.mean(returns)), 2)}
    print(json.dumps(record | {"seed": args.seed, "method": args.method, "task": args.task}), flush=True)


if __name__ == "__main__":
    main()
