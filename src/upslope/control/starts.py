"""Where episodes begin and how long they may be: a seed for each sub-environment of a vector environment, and its time limit."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from upslope.control import trees
from upslope.control.restore import time_limits
from upslope.errors import UsageError


def reset_each(vector: Any, seeds: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    """``vector.reset`` with a seed for each sub-environment: one with seed s starts as a single environment reset with s does.

    Raises UsageError where the vector environment takes one seed for all.
    """
    if isinstance(vector.unwrapped, SyncVectorEnv | AsyncVectorEnv):
        return vector.reset(seed=list(seeds))
    cartpole = sys.modules.get("gymnasium.envs.classic_control.cartpole")
    if cartpole is not None and type(vector) is cartpole.CartPoleVectorEnv:
        return _reset_cartpole(vector, seeds)
    try:
        return vector.reset(seed=list(seeds))
    except Exception as error:
        what = f"{type(vector.unwrapped).__name__} takes one seed for all of its environments, so no two of them can start alike"
        raise UsageError(f"envs: {what}; make them with vectorization='sync'") from error


def _reset_cartpole(vector: Any, seeds: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    """Gymnasium's vectorized CartPole takes one seed; its states are one array, drawn here as the single environments draw theirs."""
    _, info = vector.reset(seed=seeds[0])
    starts = {seed: seeding.np_random(seed)[0].uniform(vector.low, vector.high, 4) for seed in set(seeds)}
    vector.state = np.stack([starts[seed] for seed in seeds], 1)
    return vector.state.T.astype(np.float32), info


def alike(observation: Any, group_size: int) -> bool:
    """Whether the observations ``[groups · G, …]`` are the same within each group."""
    groups = (array.reshape(-1, group_size, *array.shape[1:]) for array in trees.leaves(observation))
    return all(bool((array == array[:, :1]).all()) for array in groups)


def time_limit(vector: Any) -> int | None:
    """Steps after which an episode is cut at the latest: the sub-environments' ``TimeLimit``, or what the vector environment says."""
    inner = vector.unwrapped
    if isinstance(inner, SyncVectorEnv):
        limits = [limit_of(env) for env in inner.envs]
        return None if None in limits else max(limit for limit in limits if limit is not None)
    spec = getattr(vector, "spec", None)
    return getattr(inner, "max_episode_steps", None) or getattr(spec, "max_episode_steps", None)


def limit_of(env: Any) -> int | None:
    return next((wrapper._max_episode_steps for wrapper in time_limits(env)), None)
