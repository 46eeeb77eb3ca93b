"""SB3-contrib's TRPO on HalfCheetah-v5 with the settings of rl-baselines3-zoo, under the shared protocol.

python sb3_trpo.py --seed 0 --total-steps 61440             # speed
python sb3_trpo.py --seed 0 --total-steps 1000000 --episodes 100   # and what the final policy returns
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from protocol import EVALUATION_EPISODES, Progress, greedy_return
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

ENV_ID = "HalfCheetah-v5"
# rl-baselines3-zoo, hyperparams/trpo.yml, commit 13a3fe7: HalfCheetah-v4, with `normalize: true` (observations and rewards).
NUM_ENVS, BATCH = 2, 2048
SETTINGS: dict[str, Any] = {
    "batch_size": 128, "gamma": 0.99, "gae_lambda": 0.95, "sub_sampling_factor": 1, "cg_max_steps": 25,
    "cg_damping": 0.1, "n_critic_updates": 20, "learning_rate": 1e-3, "target_kl": 0.04,
}  # fmt: skip


class TimedTRPO(TRPO):
    """TRPO that reports to a `Progress` around its own `train`; the algorithm itself is untouched."""

    progress: Progress
    cpu_started = 0.0
    cpu_seconds = 0.0

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        if self.num_timesteps == 0:
            self.progress.start()
            self.cpu_started = time.process_time()
        return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        super().train()
        self.progress.after_update(self.num_timesteps)
        self.cpu_seconds = time.process_time() - self.cpu_started


def main() -> None:
    parser = argparse.ArgumentParser(description="SB3-contrib TRPO under the shared protocol.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-steps", type=int, default=61_440)
    parser.add_argument("--episodes", type=int, default=0, help="fresh episodes of the final greedy policy, in steps of 20")
    parser.add_argument("--num-envs", type=int, default=NUM_ENVS, help="the batch stays at 2,048")
    args = parser.parse_args()
    envs: Any = VecNormalize(make_vec_env(ENV_ID, n_envs=args.num_envs, seed=args.seed), gamma=SETTINGS["gamma"])
    model = TimedTRPO("MlpPolicy", envs, n_steps=BATCH // args.num_envs, seed=args.seed, device="cpu", **SETTINGS)
    model.progress = Progress(None, lambda seed: 0.0)
    model.learn(args.total_steps)

    def act(observation: Any) -> Any:
        return model.predict(envs.normalize_obs(observation), deterministic=True)[0]

    found = [greedy_return(ENV_ID, act, 1_000_000 + 1_000 * i) for i in range(args.episodes // EVALUATION_EPISODES)]
    more: dict[str, Any] = {"train_cpu_seconds": round(model.cpu_seconds, 4), "return_mean": statistics.mean(found) if found else None}
    model.progress.report(seed=args.seed, system="sb3-contrib", task="halfcheetah", **more)


if __name__ == "__main__":
    main()
