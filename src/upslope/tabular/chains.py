"""What a policy makes of a Markov decision process: a Markov chain, ``P_π`` and ``r_π``, and where it can go."""

from typing import Protocol

import torch
from torch import Tensor

from upslope.errors import UsageError, require
from upslope.records import offers
from upslope.tabular.arguments import attached, check_gamma
from upslope.tabular.mdp import MDP, TOLERANCE


class HasProbabilities(Protocol):
    """A policy that lists its probabilities by what each state looks like, ``[observations, A]``."""

    def probabilities(self) -> Tensor: ...


TabularPolicy = HasProbabilities | Tensor  # a policy with probabilities, or a table of them by state


def policy_table(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """``π(a|s)``, ``[S, A]``, of a policy (by what each state looks like, differentiable) or of a table by state.

    Raises UsageError for a table of another shape, or whose rows are no distributions.
    """
    if not isinstance(policy, Tensor) and offers(policy, HasProbabilities):
        table = policy.probabilities().double()
        fits = table.dim() == 2 and table.shape[0] >= mdp.num_observations and table.shape[1] == mdp.num_actions
        expected = [mdp.num_observations, mdp.num_actions]
        require(fits, f"policy: expected probabilities of shape {expected} for this mdp, found {list(table.shape)}")
        table = table[mdp.observation]
    else:
        table = attached("policy", policy)
        expected = [mdp.num_states, mdp.num_actions]
        require(list(table.shape) == expected, f"policy: expected a table {expected} by state, found {list(table.shape)}")
    total = table.sum(-1, keepdim=True)
    wrong = (table < 0).any(-1) | ~((total - 1.0).abs() <= TOLERANCE).squeeze(-1)
    if bool(wrong.any()):
        s = int(wrong.nonzero()[0])
        raise UsageError(f"policy: the probabilities in state {s} are {[*map(float, table[s].detach())]}; they must be ≥ 0 and sum to 1")
    return table / total


def chain(mdp: MDP, policy: TabularPolicy) -> tuple[Tensor, Tensor]:
    """``P_π(s, s') = Σ_a π(a|s) p(s'|s, a)``, ``[S, S]``, and ``r_π(s) = Σ_a π(a|s) r(s, a)``, ``[S]``. Source: SB section 4.1."""
    table = policy_table(mdp, policy)
    return torch.einsum("sa,sat->st", table, mdp.transition), (table * mdp.reward).sum(-1)


def reachable(transition: Tensor) -> Tensor:
    """``[S, S]`` bool: whether a path of any length, zero included, leads from s to s'."""
    steps = (transition > 0) | torch.eye(len(transition), dtype=torch.bool)
    for _ in range(len(transition).bit_length()):  # each squaring doubles the length of the paths
        steps = (steps.double() @ steps.double()) > 0
    return steps


def leading_to(transition: Tensor, goal: Tensor) -> Tensor:
    """``[S]`` bool: states from which a path of any length, zero included, leads to one of ``goal [S]``."""
    steps, found = (transition > 0).double(), goal
    while True:
        more = found | (steps @ found.double() > 0)
        if torch.equal(more, found):
            return found
        found = more


def endless(mdp: MDP, transition: Tensor) -> Tensor:
    """``[S]`` bool: states from which the chain may come to a place where it never terminates."""
    return leading_to(transition, ~leading_to(transition, mdp.terminal))


def endless_start(mdp: MDP, transition: Tensor) -> int | None:
    """The first state that episodes begin in and the chain may never end from; None where every episode ends."""
    lost = (mdp.start > 0) & endless(mdp, transition)
    return int(lost.nonzero()[0]) if bool(lost.any()) else None


def check_ends(mdp: MDP, transition: Tensor, gamma: float) -> Tensor:
    """``[S]`` bool: states whose value does not exist, which for γ = 1 are the endless ones; UsageError if one may come first."""
    check_gamma(gamma)
    if gamma < 1.0:
        return torch.zeros_like(mdp.terminal)
    if (s := endless_start(mdp, transition)) is not None:
        limit = "" if mdp.time_limit is None else ", or take mdp.unrolled() if the time limit ends the problem"
        hint = f"give gamma < 1, or take the average-reward functions{limit}"
        raise UsageError(f"gamma: 1 without termination: from state {s} this policy may go on for ever; {hint}")
    return endless(mdp, transition)
