"""What every peer driver shares: the solved rule, the evaluation, the clock, the report.

The rule is the one `upslope train --until-return R` follows. Whenever the number of collected transitions passes a multiple of 2,048, the
greedy policy plays 20 fresh, differently seeded episodes; two such means in a row of at least R end the run. `train_seconds` runs from the
first collect to the last update with the evaluations taken out. Nothing here imports a learning library: a driver pays only for its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EVALUATION_PERIOD = 2_048
EVALUATION_EPISODES = 20


class Solved(Exception):
    """Raised by a driver's hook to leave a training loop that offers no other way out."""


def process_seconds() -> float:
    """Seconds since this process was created, so that the interpreter's start and the imports count."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            started = int(file.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return time.perf_counter() - _IMPORTED


_IMPORTED = time.perf_counter()


@dataclass
class Progress:
    """Counts the evaluations of one run, and its training seconds without them."""

    until_return: float | None
    evaluate: Callable[[int], float]
    next_evaluation: int = EVALUATION_PERIOD
    above: int = 0
    solved: bool = False
    total_steps: int = 0
    evaluation_seconds: float = 0.0
    train_seconds: float = 0.0
    returns: list[tuple[int, float]] = field(default_factory=list)
    _started: float = 0.0

    def start(self) -> None:
        """Starts the training clock: call it right before the first collect."""
        self._started = time.perf_counter()

    def after_update(self, total_steps: int) -> bool:
        """Call after every iteration's last update; true when the run is solved and should end."""
        self.total_steps = total_steps
        self.train_seconds = time.perf_counter() - self._started - self.evaluation_seconds
        if self.until_return is None or total_steps < self.next_evaluation:
            return False
        self.next_evaluation = (total_steps // EVALUATION_PERIOD + 1) * EVALUATION_PERIOD
        before = time.perf_counter()
        # Seeds of separate evaluations lie 1,000 apart, and never meet those of training.
        mean = self.evaluate(1_000_000 + 1_000 * len(self.returns))
        self.returns.append((total_steps, mean))
        self.above = self.above + 1 if mean >= self.until_return else 0
        self.solved = self.above >= 2
        self.evaluation_seconds += time.perf_counter() - before
        return self.solved

    def report(self, **more: Any) -> None:
        """Prints the run as one JSON object on the last line of standard output."""
        record = {
            "total_steps": self.total_steps,
            "train_seconds": round(self.train_seconds, 4),
            "evaluation_seconds": round(self.evaluation_seconds, 4),
            "wall_seconds": round(process_seconds(), 3),
            "solved": None if self.until_return is None else self.solved,
            "returns": self.returns,
        }
        print(json.dumps(record | more), file=sys.__stdout__, flush=True)


def greedy_return(env_id: str, act: Callable[[Any], Any], seed: int, make: Callable[[str, int], Any] | None = None) -> float:
    """The mean return of one whole episode in each of 20 vector slots; `act` takes the batch of observations.

    All peers are evaluated in one batch, several times cheaper than their own one-environment evaluators: the comparison is about training.
    """
    import numpy as np

    envs = (make or make_vector)(env_id, EVALUATION_EPISODES)
    # One seed draws all starts of Gymnasium's own vector environments; SyncVectorEnv turns it into seed, seed + 1, …
    observation, _ = envs.reset(seed=seed)
    total, running = np.zeros(EVALUATION_EPISODES), np.ones(EVALUATION_EPISODES, dtype=bool)
    while running.any():
        observation, reward, terminated, truncated, _ = envs.step(act(observation))
        total += np.where(running, reward, 0.0)
        running &= ~(terminated | truncated)
    envs.close()
    return float(total.mean())


def make_vector(env_id: str, num_envs: int) -> Any:
    """Gymnasium's own vector environment where there is one, else one loop over single ones."""
    import gymnasium as gym

    if gym.spec(env_id).vector_entry_point is not None:
        return gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point")
    return gym.vector.SyncVectorEnv([lambda: gym.make(env_id)] * num_envs)
