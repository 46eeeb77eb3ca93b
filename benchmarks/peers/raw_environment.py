"""Steps per second of an environment alone: the vector environment that upslope uses, then one environment in a bare loop.

python raw_environment.py HalfCheetah-v5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

BLOCKS, STEPS = 7, 512


def rate(step: Callable[[int], Any], num_envs: int) -> float:
    """The median over blocks, the first of them dropped."""
    rates: list[float] = []
    for _ in range(BLOCKS):
        started = time.perf_counter()
        for index in range(STEPS):
            step(index)
        rates.append(STEPS * num_envs / (time.perf_counter() - started))
    return round(statistics.median(rates[1:]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps per second of an environment with prepared random actions.")
    parser.add_argument("env_id")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(args.env_id)] * args.num_envs)
    space = envs.single_action_space
    assert isinstance(space, gym.spaces.Box)
    shape = (STEPS, args.num_envs, *space.shape)
    actions = np.random.default_rng(args.seed).uniform(space.low, space.high, shape).astype(space.dtype)
    envs.reset(seed=args.seed)
    batched = rate(lambda index: envs.step(actions[index]), args.num_envs)
    single = gym.make(args.env_id)
    single.reset(seed=args.seed)

    def step_single(index: int) -> None:
        _, _, terminated, truncated, _ = single.step(actions[index, 0])
        if terminated or truncated:
            single.reset()

    print(json.dumps({"steps_per_second": batched, "single_steps_per_second": rate(step_single, 1), "num_envs": args.num_envs}))


if __name__ == "__main__":
    main()
