"""Collectors: a policy plays in environments and the recording becomes a :class:`~upslope.records.Rollout`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from upslope.control.envs import Envs, Step
from upslope.control.recording import Recording, check_spaces, method
from upslope.errors import RunFault, require
from upslope.records import Rollout


class Collector:
    """What the collectors share: environments, and a generator of their own for the actions."""

    def __init__(self, envs: Envs, seed: int) -> None:
        require(isinstance(envs, Envs), f"envs: expected what control.make returns, found {type(envs).__name__}")
        self.envs = envs
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def num_envs(self) -> int:
        return self.envs.num_envs

    def _start(self, policy: Any) -> None:
        """New episodes everywhere."""
        check_spaces(policy, self.envs)
        self.envs.reset()
        if (normalizer := getattr(policy, "reward_normalizer", None)) is not None:
            normalizer.reset()


class Steps(Collector):
    """``num_steps`` steps of every environment, going on where the last recording stopped: a ``[num_envs, num_steps]`` rollout.

    Episodes may begin and end anywhere in a row; the value of what follows the last column is in ``next_value``. Reset steps
    are masked, so in ``NEXT_STEP`` mode a rollout holds ``num_envs · num_steps`` transitions less one for each reset.
    ``metrics`` speak of the episodes that ended in this recording.
    """

    def __init__(self, envs: Envs, num_steps: int, *, seed: int = 0) -> None:
        super().__init__(envs, seed)
        require(isinstance(num_steps, int) and num_steps >= 1, f"num_steps: expected an integer ≥ 1, found {num_steps!r}")
        self.num_steps = num_steps

    @property
    def transitions(self) -> int:
        """Rows of a rollout, reset steps included."""
        return self.num_envs * self.num_steps

    @torch.no_grad()
    def __call__(self, policy: Any) -> Rollout:
        if self.envs.observation is None:
            self._start(policy)
        make_tape = method(policy, "tape")
        tape = make_tape(self.num_envs, self.num_steps) if make_tape is not None and self.envs.action_mask is None else None
        recording = Recording(self.envs, policy, self.generator, tape)
        for _ in range(self.num_steps):
            recording.add(self.envs.step(recording.act()))
        return recording.rollout()


class Episodes(Collector):
    """``num_episodes`` whole episodes from fresh starts (one for each environment unless given): an ``[num_envs, T]`` rollout.

    Every environment plays its own share, all to the end, so that short episodes are not preferred (the first k to finish
    would be); T is the longest row, and shorter rows are masked behind their last episode. Episodes that do not divide
    evenly give the first environments one more.

    Raises:
        RunFault: an episode is longer than ``max_episode_steps``, which is there so that an environment without an end says so.
    """

    def __init__(self, envs: Envs, num_episodes: int | None = None, *, seed: int = 0, max_episode_steps: int = 100_000) -> None:
        super().__init__(envs, seed)
        count = envs.num_envs if num_episodes is None else num_episodes
        require(isinstance(count, int) and count >= 1, f"num_episodes: expected an integer ≥ 1, found {count!r}")
        require(
            count >= envs.num_envs,
            f"num_episodes: expected at least one for each of the {envs.num_envs} environments, found {count}; make fewer environments",
        )
        require(max_episode_steps >= 1, f"max_episode_steps: expected an integer ≥ 1, found {max_episode_steps}")
        self.num_episodes = count
        self.max_episode_steps = max_episode_steps

    @torch.no_grad()
    def __call__(self, policy: Any) -> Rollout:
        self._start(policy)
        recording = Recording(self.envs, policy, self.generator)
        share, rest = divmod(self.num_episodes, self.num_envs)
        left = np.full(self.num_envs, share) + (np.arange(self.num_envs) < rest)
        while left.any():
            live = left > 0
            if getattr(policy, "observation_normalizer", None) is not None and not live.all():
                recording.live = live
            recording.add(only(live, self.envs.step(recording.act())))
            left -= recording.terminated[-1] | recording.truncated[-1]
            if int(self.envs.first_step[live].max()) >= self.max_episode_steps:
                raise RunFault(
                    f"environment {self.envs.env_id!r}: an episode did not end within {self.max_episode_steps} steps; "
                    "give the environment a time limit, or collect with Steps"
                )
        return recording.rollout()


def only(live: np.ndarray[Any, Any], step: Step) -> Step:
    """The step with the other rows masked: their episodes are complete."""
    if live.all():
        return step
    ended = np.flatnonzero(step.terminated | step.truncated)
    return step._replace(
        reward=np.where(live, step.reward, 0.0),
        terminated=step.terminated & live,
        truncated=step.truncated & live,
        mask=step.mask & live,
        finished=[item for index, item in zip(ended, step.finished, strict=True) if live[index]],
    )
