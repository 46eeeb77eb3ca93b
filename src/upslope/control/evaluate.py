"""How good a policy is: whole episodes from fresh starts, one for each seed, and an honest interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv

from upslope import intervals
from upslope.control.envs import Envs
from upslope.control.kinds import Array
from upslope.control.make import STEP_TIMEOUT, VECTOR_PAYS_FROM, Vectorization, is_made, make, vector_envs
from upslope.control.recording import Player, check_spaces, counts_from_0, takes_observations_as_they_are
from upslope.errors import UsageError, is_kind, require
from upslope.records import SamplingPolicy, State
from upslope.typed import from_numpy

MAX_ENVS, MAX_ROWS = 8, 32
"""Environments that an evaluation makes at most unless given, and rows of one that is natively vectorized."""
CUT_AFTER = 27_000
"""Steps after which an episode without a time limit is cut off, unless given: as long as an Atari game may be."""


class Played(NamedTuple):
    """What came of one episode; one that was cut off before its end has the return and the length that it had by then."""

    returned: float
    length: int
    ended: bool


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Undiscounted returns of ``episodes`` episodes, and what they say about the policy's mean.

    ``return_std`` is the spread over episodes (sample standard deviation, 0 for one episode); ``return_interval`` the 95 %
    bootstrap interval ``(low, high)`` of the mean, NaN for one episode, and empty where all returned the same. Where ``ended`` is
    False an episode was cut off, and its return is what had been collected by then; ``episodes_ended`` counts the others.
    ``reward_per_step`` is over all steps of all episodes.
    """

    return_mean: float
    return_std: float
    return_interval: tuple[float, float]
    length_mean: float
    reward_per_step: float
    episodes: int
    episodes_ended: int
    returns: tuple[float, ...]
    ended: tuple[bool, ...]

    @classmethod
    def of(cls, played: Sequence[Played]) -> Self:
        returns = np.array([item.returned for item in played])
        ended = tuple(item.ended for item in played)
        steps = sum(item.length for item in played)
        spread, interval = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0, intervals.bootstrap(returns)
        found: dict[str, Any] = {"return_mean": float(returns.mean()), "return_std": spread, "return_interval": interval}
        found |= {"length_mean": steps / len(played), "reward_per_step": float(returns.sum()) / steps, "returns": tuple(returns.tolist())}
        return cls(**found, episodes=len(played), episodes_ended=sum(ended), ended=ended)


class OneEpisode(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Does nothing behind the end of an episode until a reset with a seed: steps that do not count take no time."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._last: Any = None
        self.over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is None and self._last is not None:
            return self._last, {}
        self._last, info = self.env.reset(seed=seed, options=options)
        self.over = False
        return self._last, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.over:
            return self._last, 0.0, False, False, {}
        self._last, reward, terminated, truncated, info = self.env.step(action)
        self.over = bool(terminated or truncated)
        return self._last, reward, terminated, truncated, info


class Evaluator:
    """Plays ``episodes`` episodes at each call, always other ones, in environments that stay open between the calls.

    Call k starts its episodes from the seeds ``seed + k · episodes + i``; every seed gives exactly one episode, so that
    short ones are not preferred. (An environment with a vectorized version draws the first states of a batch from one
    generator, seeded with the batch's first seed.) ``greedy=False`` samples actions. Normalization stays as it is.

    ``env`` as in :func:`make`, or :class:`Envs`; environments that exist already are reset, played and left open. At most
    ``num_envs`` environments are made (8 unless given); rows of a natively vectorized one cost nothing and are not counted.
    ``max_episode_steps`` truncates, as in :func:`make`; an episode without a time limit is cut off after ``cut_after`` steps.
    After a call ``steps`` says how many steps of all environments it took.

    Raises:
        UsageError: an environment that cannot be made, or a policy that cannot act greedily.
        RunFault: the environment fails while running.
    """

    def __init__(
        self,
        env: str | Callable[..., Any] | Envs | gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any],
        *,
        episodes: int = 20,
        seed: int = 100,
        greedy: bool = True,
        num_envs: int | None = None,
        vectorization: Vectorization = "auto",
        env_kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        step_timeout: float | None = STEP_TIMEOUT,
        cut_after: int = CUT_AFTER,
    ) -> None:
        require(is_kind(episodes, int) and episodes >= 1, f"episodes: expected an integer ≥ 1, found {episodes!r}")
        require(num_envs is None or num_envs >= 1, f"num_envs: expected an integer ≥ 1, found {num_envs!r}")
        require(is_kind(cut_after, int) and cut_after >= 1, f"cut_after: expected an integer ≥ 1, found {cut_after!r}")
        self.episodes, self.seed, self.greedy, self.cut_after = episodes, seed, greedy, cut_after
        self.calls, self.steps, self.native = 0, 0, False
        self.generator = torch.Generator().manual_seed(seed)
        self._owned = not (isinstance(env, Envs) or is_made(env))
        self._single: list[OneEpisode] = []
        if isinstance(env, Envs):
            self.envs = env
            return
        options: Any = {"env_kwargs": dict(env_kwargs or {}), "max_episode_steps": max_episode_steps}
        rows = min(MAX_ROWS, episodes)
        native = vector_envs(env, rows, seed, **options) if vectorization == "auto" and rows >= VECTOR_PAYS_FROM else None
        count = None if is_made(env) else min(num_envs or MAX_ENVS, episodes)
        self.native = native is not None
        self.envs = native or make(env, count, seed, vectorization=vectorization, step_timeout=step_timeout, training=False, **options)
        if isinstance(self.envs.vector, SyncVectorEnv):
            self._single = [OneEpisode(single) for single in self.envs.vector.envs]
            self.envs.vector.envs = list(self._single)

    @torch.no_grad()
    def __call__(self, policy: SamplingPolicy, episodes: int | None = None) -> EvaluationResult:
        """Play, ``episodes`` other than usual where given (at most as many as usual)."""
        if self.calls == 0:
            check_spaces(policy, self.envs)
        wanted = self.episodes if episodes is None else min(episodes, self.episodes)
        seed = self.seed + self.calls * self.episodes
        self.calls, self.steps = self.calls + 1, 0
        played: list[Played] = []
        while len(played) < wanted:
            played += self._batch(policy, seed + len(played), min(wanted - len(played), self.envs.num_envs))
        return EvaluationResult.of(played)

    def _batch(self, policy: SamplingPolicy, seed: int, wanted: int) -> list[Played]:
        """The first episode of the first ``wanted`` environments after a reset, in row order."""
        envs, player = self.envs, Player(policy, self.envs)
        envs.reset(None if envs.seeded else seed)
        for single in self._single[wanted:]:
            single.over = True
        make_tape = player.methods.get("tape") if self.greedy else None
        plain = make_tape is not None and takes_observations_as_they_are(policy, envs)
        finite = plain and all(bool(p.isfinite().all()) for p in policy.parameters() if p.requires_grad)  # else act() says what is wrong
        tape = make_tape(envs.num_envs, 1) if make_tape is not None and finite else None
        first: dict[int, Played] = {}
        for _ in range(envs.max_episode_steps or self.cut_after):
            self.steps += 1
            step = envs.step(self._act(player) if tape is None or envs.action_mask is not None else self._act_on_tape(player, tape))
            if step.finished:
                for index, item in zip(np.flatnonzero(step.terminated | step.truncated).tolist(), step.finished, strict=True):
                    if index < wanted and item[0] == item[0]:  # one that was cut off, for its process was lost, begins again
                        first.setdefault(index, Played(*item, ended=True))
                if len(first) == wanted:
                    break
        return [first.get(index) or Played(*envs.running(index), ended=False) for index in range(wanted)]

    def _act_on_tape(self, player: Player, tape: Any) -> Array:
        """What :meth:`_act` says, by a compiled policy's shortest way (:mod:`upslope.fast.step`)."""
        tape.rows[0][:] = self.envs.observation.reshape(self.envs.num_envs, -1)
        action = tape.greedy()
        return action if counts_from_0(self.envs) else player.to_env(from_numpy(action))

    def _act(self, player: Player) -> Array:
        envs, policy = self.envs, player.policy
        if self.greedy and (act := player.methods.get("act")) is not None:
            return act(envs.observation, greedy=True, action_mask=envs.action_mask)[0]
        inputs = player.encode(envs.observation, action_mask=envs.action_mask)
        if not self.greedy:
            return player.to_env(policy.sample(inputs, generator=self.generator).action)
        if (distribution := player.methods.get("distribution")) is None:
            raise UsageError(f"policy: {type(policy).__name__} has neither act() nor distribution(), so evaluate with greedy=False")
        mode: Any = distribution(**inputs).mode
        action: Any = mode() if callable(mode) else mode  # torch.distributions have it as a property
        return player.to_env(action)

    def state_dict(self) -> State:
        return {"calls": self.calls, "generator": self.generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self.calls = int(state["calls"])
        self.generator.set_state(state["generator"])

    def close(self) -> None:
        """Release the environments, unless they were given."""
        if self._owned:
            self.envs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def evaluate(policy: SamplingPolicy, env: Any, **options: Any) -> EvaluationResult:
    """Play 20 fresh episodes (``episodes=…``), each differently seeded, and summarize their returns.

    ``env`` and ``options`` as for :class:`Evaluator`, and there for the errors.
    """
    with Evaluator(env, **options) as evaluator:
        return evaluator(policy)
