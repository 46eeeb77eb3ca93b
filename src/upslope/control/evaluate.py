"""How good a policy is: whole episodes from fresh starts, one for each seed, and an honest interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv

from upslope.control.envs import Envs
from upslope.control.make import make
from upslope.control.recording import check_spaces, counts_from_0, encode, method, takes_observations_as_they_are, to_env
from upslope.control.trees import Array
from upslope.errors import RunFault, UsageError, require

MOST_ENVS = 32
"""Environments that an evaluation keeps open at most, unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Undiscounted returns of ``episodes`` whole episodes, and what they say about the policy's mean.

    ``return_std`` is the spread over episodes (sample standard deviation, 0 for one episode); ``return_interval`` the 95 %
    bootstrap interval ``(low, high)`` of the mean.
    """

    return_mean: float
    return_std: float
    return_interval: tuple[float, float]
    length_mean: float
    episodes: int
    returns: tuple[float, ...]


def bootstrap_interval(values: Array, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """``(low, high)`` of the mean by the percentile bootstrap (Efron & Tibshirani 1993, 13.3), from a generator of its own."""
    generator = np.random.default_rng(seed)
    means = np.asarray(values, np.float64)[generator.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class OneEpisode(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Stands still behind the end of an episode until a reset with a seed: nobody waits for what nobody counts."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._last: Any = None
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is None and self._last is not None:
            return self._last, {}
        self._last, info = self.env.reset(seed=seed, options=options)
        self._over = False
        return self._last, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._over:
            return self._last, 0.0, False, False, {}
        self._last, reward, terminated, truncated, info = self.env.step(action)
        self._over = bool(terminated or truncated)
        return self._last, reward, terminated, truncated, info


class Evaluator:
    """Plays ``episodes`` episodes at each call, always other ones, in environments that stay open between the calls.

    Call k starts its episodes from the seeds ``seed + k · episodes + i``; every seed gives exactly one episode, so that
    short ones are not preferred. (An environment with its own vectorized version draws the first states of a batch from one
    generator, seeded with the batch's first seed.) ``greedy=False`` samples actions. Normalization stays as it is.
    """

    def __init__(
        self,
        env: str | Callable[..., Any],
        *,
        episodes: int = 20,
        seed: int = 100,
        greedy: bool = True,
        num_envs: int | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int = 100_000,
    ) -> None:
        require(isinstance(episodes, int) and episodes >= 1, f"episodes: expected an integer ≥ 1, found {episodes!r}")
        require(num_envs is None or num_envs >= 1, f"num_envs: expected an integer ≥ 1, found {num_envs!r}")
        self.episodes, self.seed, self.greedy = episodes, seed, greedy
        self.max_episode_steps = max_episode_steps
        self.calls = 0
        self.envs: Envs = make(env, min(num_envs or MOST_ENVS, episodes), seed, env_kwargs=env_kwargs, training=False)
        if isinstance(self.envs.vector, SyncVectorEnv):
            self.envs.vector.envs = [OneEpisode(single) for single in self.envs.vector.envs]
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def __call__(self, policy: Any) -> EvaluationResult:
        if self.calls == 0:
            check_spaces(policy, self.envs)
        seed = self.seed + self.calls * self.episodes
        self.calls += 1
        played: list[tuple[float, int]] = []
        while len(played) < self.episodes:
            played += self._batch(policy, seed + len(played))
        returns = np.array([item[0] for item in played[: self.episodes]])
        return EvaluationResult(
            return_mean=float(returns.mean()),
            return_std=float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
            return_interval=bootstrap_interval(returns),
            length_mean=float(np.mean([item[1] for item in played[: self.episodes]])),
            episodes=self.episodes,
            returns=tuple(returns.tolist()),
        )

    def _batch(self, policy: Any, seed: int) -> list[tuple[float, int]]:
        """The first episode of every environment after a reset, in row order."""
        envs = self.envs
        envs.reset(seed)
        make_tape = method(policy, "tape") if self.greedy else None
        tape = make_tape(envs.num_envs, 1) if make_tape is not None and takes_observations_as_they_are(policy, envs) else None
        first: list[tuple[float, int] | None] = [None] * envs.num_envs
        missing = envs.num_envs
        for _ in range(self.max_episode_steps):
            step = envs.step(self._act(policy) if tape is None or envs.action_mask is not None else self._act_on_tape(policy, tape))
            if step.finished:
                for index, item in zip(np.flatnonzero(step.terminated | step.truncated), step.finished, strict=True):
                    if first[index] is None:
                        first[index] = item
                        missing -= 1
                if not missing:
                    return [item for item in first if item is not None]
        raise RunFault(f"environment {envs.env_id!r}: an episode did not end within {self.max_episode_steps} steps; give it a time limit")

    def _act_on_tape(self, policy: Any, tape: Any) -> Array:
        """What :meth:`_act` says, by a compiled policy's shortest way (:mod:`upslope.fast.tape`)."""
        tape.rows[0][:] = self.envs.observation.reshape(self.envs.num_envs, -1)
        action = tape.greedy()
        return action if counts_from_0(self.envs) else to_env(policy, self.envs, torch.from_numpy(action))

    def _act(self, policy: Any) -> Array:
        envs = self.envs
        if self.greedy and (act := method(policy, "act")) is not None:
            return act(envs.observation, greedy=True, action_mask=envs.action_mask)[0]
        inputs = encode(policy, envs, envs.observation, action_mask=envs.action_mask)
        if not self.greedy:
            return to_env(policy, envs, policy.sample(inputs, generator=self.generator).action)
        if (distribution := method(policy, "distribution")) is None:
            raise UsageError(f"policy: {type(policy).__name__} has neither act() nor distribution(), so evaluate with greedy=False")
        mode: Any = distribution(**inputs).mode
        action: Any = mode() if callable(mode) else mode  # torch.distributions have it as a property
        return to_env(policy, envs, action)

    def close(self) -> None:
        """Release the environments."""
        self.envs.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def evaluate(
    policy: Any,
    env: str | Callable[..., Any],
    *,
    episodes: int = 20,
    seed: int = 100,
    greedy: bool = True,
    num_envs: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Play ``episodes`` fresh episodes, each differently seeded, and summarize their returns; see :class:`Evaluator`.

    Raises:
        UsageError: an environment that cannot be made, or a policy that cannot act greedily.
        RunFault: the environment fails while running.
    """
    with Evaluator(env, episodes=episodes, seed=seed, greedy=greedy, num_envs=num_envs, env_kwargs=env_kwargs) as evaluator:
        return evaluator(policy)
