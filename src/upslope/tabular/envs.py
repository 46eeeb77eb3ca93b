"""Finite problems as Gymnasium environments; importing this module registers the ids ``upslope/ShortCorridor-v0`` and so on."""

import inspect
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from upslope import environments
from upslope.errors import UsageError, unknown
from upslope.tabular import problems
from upslope.tabular.mdp import MDP

environments.register()

PROBLEMS = {item["problem"]: getattr(problems, item["problem"]) for item in environments.ENVIRONMENTS.values()}


class TabularEnv(gymnasium.Env[np.int64, np.int64]):
    """An :class:`~upslope.tabular.mdp.MDP` to act in. What is observed is what the state looks like; ``info["state"]`` is the state.

    ``terminated``: a terminal state was reached. ``truncated``: the problem's ``time_limit`` was, and it was not the end.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, mdp: MDP) -> None:
        self.mdp = mdp
        self.observation_space = spaces.Discrete(mdp.num_observations)
        self.action_space = spaces.Discrete(mdp.num_actions)
        self._start, self._transition = mdp.start.cumsum(0).numpy(), mdp.transition.cumsum(-1).numpy()
        self._reward, self._terminal, self._seen = mdp.reward.numpy(), mdp.terminal.numpy(), mdp.observation.numpy()
        self.state, self.time = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        """A first state from the problem's start distribution."""
        super().reset(seed=seed)
        self.state, self.time = self._draw(self._start), 0
        return self._seen[self.state], {"state": self.state}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """One step of the problem; raises UsageError for an action that there is not."""
        if not 0 <= action < self.mdp.num_actions:
            raise UsageError(f"action: expected an integer from 0 to {self.mdp.num_actions - 1}, found {action!r}")
        reward = float(self._reward[self.state, action])
        self.state = self._draw(self._transition[self.state, action])
        self.time += 1
        terminated = bool(self._terminal[self.state])
        truncated = not terminated and self.mdp.time_limit is not None and self.time >= self.mdp.time_limit
        return self._seen[self.state], reward, terminated, truncated, {"state": self.state}

    def _draw(self, cumulative: np.ndarray[Any, np.dtype[np.float64]]) -> int:
        """An index by inverting its cumulative distribution; never one of probability 0."""
        return min(int(cumulative.searchsorted(self.np_random.random() * float(cumulative[-1]), side="right")), len(cumulative) - 1)


def make(problem: str, **options: Any) -> TabularEnv:
    """The environment of a shipped problem: ``make("gridworld", height=5)``; raises UsageError with the nearest name, of an option too."""
    if problem not in PROBLEMS:
        raise unknown("problem", problem, PROBLEMS)
    known = inspect.signature(PROBLEMS[problem]).parameters
    for name in options:
        if name not in known:
            raise unknown(f"option of {problem}", name, known)
    return TabularEnv(PROBLEMS[problem](**options))
