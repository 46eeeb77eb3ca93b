"""A finite Markov decision process as arrays, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from upslope.errors import UsageError, require
from upslope.tabular.arguments import as_tensor, check_whole

TOLERANCE = 1e-6
"""How far probabilities may sum from one: what rounding to single precision explains. Within it they are divided by their sum."""


@dataclass(frozen=True, eq=False, init=False)
class MDP:
    """``p(s'|s, a) = transition[s, a, s']``, ``r(s, a) = reward[s, a]``, first states drawn from ``start``.

    Tensors, NumPy arrays and lists are taken, whatever their precision; all are kept as float64. Nothing happens in a
    ``terminal`` state: its rows are zero (a self-loop without pay is taken for that). ``time_limit`` stops the *recording* of
    an episode after that many steps (``truncated``); where it is an end of the problem, take :meth:`unrolled`.
    ``observation [S]`` says what a state looks like to a policy, the state's number unless given: two states with the
    same observation cannot be distinguished.

    Raises:
        UsageError: shapes, probabilities or rewards that are none, and a start from which nothing can happen.
    """

    transition: Tensor
    reward: Tensor
    start: Tensor
    terminal: Tensor
    time_limit: int | None
    observation: Tensor

    def __init__(
        self, transition: Any, reward: Any, start: Any, terminal: Any, time_limit: int | None = None, observation: Any = None
    ) -> None:
        transition, reward, start = (as_tensor(*item) for item in (("transition", transition), ("reward", reward), ("start", start)))
        terminal = as_tensor("terminal", terminal, torch.bool)
        shape = list(transition.shape)
        require(len(shape) == 3 and shape[0] == shape[2] and 0 not in shape, f"transition: expected shape [S, A, S], found {shape}")
        states, actions, _ = shape
        observation = torch.arange(states) if observation is None else as_tensor("observation", observation, torch.int64)
        for name, tensor in {"reward": reward, "start": start, "terminal": terminal, "observation": observation}.items():
            expected, found = [states, actions] if name == "reward" else [states], list(tensor.shape)
            require(found == expected, f"{name}: expected shape {expected} to go with transition {shape}, found {found}")
        check_rows(transition, terminal)
        check_reward(reward, terminal)
        check_start(start, terminal, transition, reward)
        require(int(observation.min()) >= 0, f"observation: expected numbers ≥ 0, found {int(observation.min())}")
        check_whole("time_limit", time_limit, optional=True)
        transition = (transition / transition.sum(-1, keepdim=True)).masked_fill(terminal[:, None, None], 0.0)
        values = (transition, reward, start / start.sum(), terminal, time_limit, observation)
        for item, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, item.name, value)

    @property
    def num_states(self) -> int:
        """S, terminal states included."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.transition.shape[1]

    @property
    def num_observations(self) -> int:
        """How many different looks there may be: one more than the largest."""
        return int(self.observation.max()) + 1

    def unrolled(self, horizon: int | None = None) -> MDP:
        """The same problem with time in the state, ending for good after ``horizon`` steps (``time_limit`` unless given).

        State ``t · S + s`` is s with t steps done. It looks like s, so a policy for this problem is one for that, and does not see
        the time; replace ``observation`` by ``arange`` for one that does. Raises UsageError where neither gives a horizon.

        Source: Pardo et al. 2018, section 3 (time-awareness).
        """
        length = self.time_limit if horizon is None else horizon
        if length is None:
            raise UsageError("horizon: expected an integer ≥ 1 for a problem without time_limit, found None")
        check_whole("horizon", length)
        n, layers = self.num_states, length + 1
        transition = torch.zeros(layers, n, self.num_actions, layers, n, dtype=torch.float64)
        for t in range(length):
            transition[t, :, :, t + 1] = self.transition
        reward = self.reward.repeat(layers, 1)
        reward[length * n :] = 0.0
        terminal = self.terminal.repeat(layers)
        terminal[length * n :] = True
        start = torch.cat([self.start, torch.zeros(length * n, dtype=torch.float64)])
        return MDP(transition.reshape(layers * n, -1, layers * n), reward, start, terminal, observation=self.observation.repeat(layers))


def check_rows(transition: Tensor, terminal: Tensor) -> None:
    """Every row of a living state is a distribution; a terminal one is zero, or stays where it is."""
    bad = ~(transition.isfinite() & (transition >= 0))
    if bool(bad.any()):
        s, a, to = (int(i) for i in bad.nonzero()[0])
        where = f"from state {s} by action {a} to state {to}"
        raise UsageError(f"transition: expected probabilities ≥ 0, found {transition[s, a, to]:.6g} {where}")
    total = transition.sum(-1)
    wrong = ((total - 1.0).abs() > TOLERANCE) & ~terminal[:, None]
    if bool(wrong.any()):
        s, a = (int(i) for i in wrong.nonzero()[0])
        found = f"the row of state {s}, action {a} sums to {total[s, a]:.10g}"
        raise UsageError(f"transition: {found}; it must sum to 1 unless the state is terminal")
    leaving = terminal & ((total - transition.diagonal(dim1=0, dim2=2).T).abs() > TOLERANCE).any(-1)
    if bool(leaving.any()):
        s = int(leaving.nonzero()[0])
        raise UsageError(f"transition: terminal state {s} leads to other states; leave its rows zero, or call it not terminal")


def check_reward(reward: Tensor, terminal: Tensor) -> None:
    """Rewards are finite, and terminal states pay nothing."""
    for wrong, problem in (
        (~reward.isfinite(), "pays {}; rewards must be finite"),
        ((reward != 0) & terminal[:, None], "is terminal and pays {}; pay it with the action that leads there"),
    ):
        if bool(wrong.any()):
            s, a = (int(i) for i in wrong.nonzero()[0])
            raise UsageError(f"reward: state {s}, action {a} {problem.format(float(reward[s, a]))}")


def check_start(start: Tensor, terminal: Tensor, transition: Tensor, reward: Tensor) -> None:
    """First states are drawn from a distribution over states in which something can happen."""
    total = float(start.sum())
    proper = bool((start.isfinite() & (start >= 0)).all()) and abs(total - 1.0) <= TOLERANCE
    require(proper, f"start: expected probabilities ≥ 0 that sum to 1, found {[round(float(x), 6) for x in start]} (sum {total:.10g})")
    stays = (transition.diagonal(dim1=0, dim2=2).T >= 1.0 - TOLERANCE).all(-1) & (reward == 0).all(-1)
    for wrong, problem in (
        (terminal, "is terminal, so an episode would end before it began"),
        (stays, "is absorbing: every action stays there and pays 0"),
    ):
        if bool((wrong & (start > 0)).any()):
            raise UsageError(f"start: state {int((wrong & (start > 0)).nonzero()[0])} {problem}; start in a state that can be left")
