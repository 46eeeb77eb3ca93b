"""Runs CleanRL's ppo.py, unmodified and with its own defaults, under the shared protocol.

    python cleanrl_ppo.py path/to/cleanrl/ppo.py --seed 0

The script has no hook, so its TensorBoard writer becomes one: the script logs `charts/SPS` last in every iteration, and that call plays the
evaluations. The writer still writes everything it is given, into a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import sys
import tempfile
import warnings
from typing import Any

import gymnasium as gym
import torch
from protocol import Progress, Solved, greedy_return
from torch.utils import tensorboard

ENV_ID = "CartPole-v1"


def make_writer(progress: Progress, script: dict[str, Any]) -> type:
    """A SummaryWriter that tells `progress` about the end of each iteration."""

    class Writer(tensorboard.SummaryWriter):
        def add_scalar(self, tag: str, value: Any, global_step: int = 0, *args: Any, **kwargs: Any) -> None:
            super().add_scalar(tag, value, global_step, *args, **kwargs)
            if tag == "charts/SPS":
                script.update(sys._getframe(1).f_globals)
                if progress.after_update(global_step):
                    raise Solved

    return Writer


def start_with_reset(progress: Progress) -> None:
    """Starts the clock at the script's own reset, the last call before its first collect."""
    original = gym.vector.SyncVectorEnv.reset

    def reset(self: Any, **kwargs: Any) -> Any:
        gym.vector.SyncVectorEnv.reset = original
        progress.start()
        return self.reset(**kwargs)

    gym.vector.SyncVectorEnv.reset = reset


def main() -> None:
    parser = argparse.ArgumentParser(description="CleanRL's ppo.py under the shared protocol.")
    parser.add_argument("script")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-steps", type=int, default=500_000)
    parser.add_argument("--until-return", type=float, default=475.0)
    args = parser.parse_args()
    path = os.path.abspath(args.script)
    script: dict[str, Any] = {}

    def act(observation: Any) -> Any:
        with torch.no_grad():
            return script["agent"].actor(torch.as_tensor(observation)).argmax(-1).numpy()

    progress = Progress(args.until_return, lambda seed: greedy_return(ENV_ID, act, seed, sync_vector))
    start_with_reset(progress)
    tensorboard.SummaryWriter = make_writer(progress, script)
    sys.argv = [path, "--seed", str(args.seed), "--total-timesteps", str(args.total_steps), "--no-cuda"]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as quiet:
        os.chdir(folder)
        with contextlib.suppress(Solved), contextlib.redirect_stdout(quiet):
            runpy.run_path(path, run_name="__main__")
        os.chdir("/")
    progress.report(seed=args.seed, system="cleanrl", task="cartpole")


def sync_vector(env_id: str, num_envs: int) -> Any:
    """CleanRL's Gymnasium is older than the vector registry that `protocol.make_vector` asks."""
    return gym.vector.SyncVectorEnv([lambda: gym.make(env_id)] * num_envs)


if __name__ == "__main__":
    main()
