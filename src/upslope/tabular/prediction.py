"""Learning values from experience (SB chapters 5, 6 and 12): Monte Carlo, TD(0) and TD(λ), as in the boxes of the book.

Each takes episodes and values by observation, and returns new values, ``[O]``. A truncated episode goes on with the value of what it
last saw; a terminated one is worth nothing more. TD begins with the values it is given (zeros otherwise); Monte Carlo asks them for what
came after a truncation, and for nothing else.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import UsageError, is_kind, require
from upslope.records import SamplingPolicy
from upslope.tabular.arguments import as_tensor, check_gamma, check_number, check_whole
from upslope.tabular.collect import Episodes
from upslope.tabular.mdp import MDP
from upslope.typed import as_list


@dataclass(frozen=True)
class Episode:
    """``S_0, R_1, S_1, …, R_T, S_T``: T + 1 observations and T rewards; checked when it is made."""

    observations: list[int]
    rewards: list[float]
    terminated: bool

    def __post_init__(self) -> None:
        seen, pay = as_tensor("observations", self.observations, torch.int64), as_tensor("rewards", self.rewards)
        fits = seen.dim() == pay.dim() == 1 and len(seen) == len(pay) + 1
        shapes = f"{list(pay.shape)} rewards with {list(seen.shape)} observations"
        require(fits, f"rewards: expected one less than observations, found {shapes}")
        require(bool(pay.isfinite().all()), f"rewards: expected finite numbers, found {self.rewards}")
        require(is_kind(self.terminated, bool, np.bool_), f"terminated: expected True or False, found {self.terminated!r}")
        object.__setattr__(self, "observations", as_list(seen))
        object.__setattr__(self, "rewards", as_list(pay))
        object.__setattr__(self, "terminated", bool(self.terminated))


def episodes(mdp: MDP, policy: SamplingPolicy, num_episodes: int, *, seed: int = 0) -> list[Episode]:
    """Sampled episodes, each to its end or to the time limit."""
    collect = Episodes(mdp, num_episodes, seed=seed)
    rollout = collect(policy)
    last, lengths = as_list(mdp.observation[collect.state]), as_list(rollout.mask.sum(-1))
    columns = (as_list(rollout.inputs["observation"]), as_list(rollout.reward), as_list(rollout.terminated.any(-1)))
    return [Episode([*seen[:n], end], pay[:n], over) for seen, pay, over, end, n in zip(*columns, last, lengths, strict=True)]


def monte_carlo(data: Iterable[Episode], num_observations: int, gamma: float, *, first_visit: bool = True, value: Any = None) -> Tensor:
    """Mean return after each observation's first visit in an episode, or after every visit; NaN where there was none.

    ``G_t = R_{t+1} + γ G_{t+1}``, with ``G_T = 0`` where the episode terminated and ``G_T = value(S_T)`` where it was truncated.
    Raises UsageError for a truncated episode without ``value``: what it would have earned is not known, and leaving out such
    episodes would prefer short ones. Source: SB section 5.1; Pardo et al. 2018 (partial-episode bootstrapping).
    """
    v = begin(num_observations, gamma, value)
    total, count = np.zeros(num_observations), np.zeros(num_observations)
    for number, episode in enumerate(checked(data, num_observations)):
        if not episode.terminated and value is None:
            raise UsageError(f"data: episode {number} was truncated, so its return is not known; give value, with which it goes on")
        credit = 0.0 if episode.terminated else v[episode.observations[-1]]
        for t in reversed(range(len(episode.rewards))):
            credit = episode.rewards[t] + gamma * credit
            state = episode.observations[t]
            if not first_visit or state not in episode.observations[:t]:
                total[state] += credit
                count[state] += 1
    return torch.as_tensor(np.divide(total, count, out=np.full(num_observations, np.nan), where=count > 0))


def td(
    data: Iterable[Episode], num_observations: int, gamma: float, *, trace_lambda: float = 0.0, learning_rate: float, value: Any = None
) -> Tensor:
    """TD(λ) with accumulating traces, on-line: ``δ = R + γ V(S′) − V(S)``, ``z ← γλ z + 1_S``, ``V ← V + α δ z``.

    λ = 0 is TD(0). Source: SB section 6.1 and the box of section 12.2 on a table.
    """
    v = begin(num_observations, gamma, value, trace_lambda, learning_rate)
    for episode in checked(data, num_observations):
        trace, last = np.zeros(num_observations), len(episode.rewards) - 1
        for t, reward in enumerate(episode.rewards):
            state, after = episode.observations[t : t + 2]
            trace *= gamma * trace_lambda
            trace[state] += 1.0
            td_error = reward + gamma * (0.0 if episode.terminated and t == last else v[after]) - v[state]
            v += learning_rate * td_error * trace
    return torch.as_tensor(v)


def td_offline(
    data: Iterable[Episode], num_observations: int, gamma: float, *, trace_lambda: float, learning_rate: float, value: Any = None
) -> Tensor:
    """The off-line λ-return algorithm: ``V(S_t) ← V(S_t) + α (G^λ_t − V(S_t))`` for all t, once the episode is over.

    ``G^λ_t = R + γ ((1 − λ) V(S′) + λ G^λ_{t+1})`` with V fixed; λ = 1 is constant-α every-visit Monte Carlo.
    Source: SB eq. 12.3 and 12.4.
    """
    v = begin(num_observations, gamma, value, trace_lambda, learning_rate)
    for episode in checked(data, num_observations):
        change, credit = np.zeros(num_observations), 0.0 if episode.terminated else v[episode.observations[-1]]
        for t in reversed(range(len(episode.rewards))):
            state, after = episode.observations[t : t + 2]
            following = credit if t == len(episode.rewards) - 1 else (1.0 - trace_lambda) * v[after] + trace_lambda * credit
            credit = episode.rewards[t] + gamma * following
            change[state] += learning_rate * (credit - v[state])
        v += change
    return torch.as_tensor(v)


def begin(num_observations: int, gamma: float, value: Any, trace_lambda: float = 0.0, rate: float = 0.0) -> np.ndarray[Any, Any]:
    """A copy of the values to begin with, finite numbers ``[O]``, once all settings are checked."""
    check_number("trace_lambda", trace_lambda, 0.0, 1.0)
    check_number("learning_rate", rate, 0.0)
    check_whole("num_observations", num_observations)
    check_gamma(gamma)
    if value is None:
        return np.zeros(num_observations)
    v = as_tensor("value", value)
    expected, shape = [num_observations], list(v.shape)
    require(shape == expected, f"value: expected shape {expected}, a number by observation, found {shape}")
    require(bool(v.isfinite().all()), f"value: expected finite numbers, found {as_list(v)}")
    return v.numpy()


def checked(data: Iterable[Episode], num_observations: int) -> Iterator[Episode]:
    """The episodes, refused if what they saw has no value; where one terminated does not matter."""
    require(is_kind(data, Iterable), f"data: expected episodes, found {type(data).__name__}")
    for number, episode in enumerate(data):
        require(is_kind(episode, Episode), f"data: expected episodes, found {type(episode).__name__} at index {number}")
        seen = episode.observations[:-1] if episode.terminated else episode.observations
        if wrong := [o for o in seen if not 0 <= o < num_observations]:
            raise UsageError(f"data: episode {number} saw {wrong[0]}, expected observations from 0 to {num_observations - 1}")
        yield episode
