"""Rewards of other sizes and offsets: what PPO and A2C with the library's defaults (no preset) reach on CartPole-v1 and Pendulum-v1.

python benchmarks/scale_invariance.py --seeds 100 101     # --steps, --out; in the environment that has upslope
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.vector import SyncVectorEnv
from harness import RESULTS

from upslope import A2C, PPO, Ascent, __version__, control, train
from upslope.control import Envs, MLPPolicy, evaluate

METHODS: dict[str, Any] = {
    "ppo": PPO(update=Ascent(learning_rate=1e-3, num_epochs=10, num_minibatches=16)),
    "a2c": A2C(update=Ascent(learning_rate=3e-3)),
}
NUM_STEPS = {"ppo": 128, "a2c": 16}
REWARDS = {"x 0.001": (1e-3, 0.0), "x 1": (1.0, 0.0), "x 1000": (1e3, 0.0), "x 1000000": (1e6, 0.0), "+ 10000": (1.0, 1e4)}
PROTOCOL = (
    "8 environments; PPO 128 steps, 10 epochs of 16 minibatches at 1e-3; A2C 16 steps at 3e-3; everything else the dataclasses' defaults. "
    "The learner sees scale · reward + offset; the returns are the task's own, of the final greedy policy over 20 episodes. On CartPole "
    "an offset is another task's reward only in size, on Pendulum nothing but a constant."
)


def returns(method: str, env_id: str, scale: float, offset: float, seed: int, steps: int) -> float:
    """The final policy's mean return in the task's own rewards."""

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TransformReward(gymnasium.make(env_id), lambda r: scale * float(r) + offset)

    torch.set_num_threads(1)
    with Envs(SyncVectorEnv([make] * 8), env_id=env_id, seed=seed) as envs:
        policy = MLPPolicy.for_envs(envs, seed=seed)
        train(METHODS[method], policy, control.Steps(envs, NUM_STEPS[method], seed=seed), total_steps=steps, seed=seed)
    return evaluate(policy, env_id, episodes=20, seed=10_000 * seed).return_mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--tasks", nargs="+", default=["CartPole-v1", "Pendulum-v1"])
    parser.add_argument("--out", type=Path, default=RESULTS / "scale_invariance.json")
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    for env_id in given.tasks:
        for method in METHODS:
            for name, (scale, offset) in REWARDS.items():
                reached = [returns(method, env_id, scale, offset, seed, given.steps) for seed in given.seeds]
                found.append({"task": env_id, "method": method, "rewards": name, "median": statistics.median(reached), "returns": reached})
                print(json.dumps(found[-1]), flush=True)
    versions = {"upslope": __version__, "torch": torch.__version__}
    about = {"protocol": PROTOCOL, "versions": versions, "seeds": given.seeds, "steps": given.steps}
    given.out.write_text(json.dumps({**about, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
