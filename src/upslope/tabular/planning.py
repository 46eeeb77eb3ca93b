"""Dynamic programming (SB chapter 4): the optimal policy of a problem whose transitions are known.

Planning knows the state, whatever it looks like to a policy: tables are by state, ``[S, A]``.
"""

import torch
from torch import Tensor

from upslope.errors import RunFault
from upslope.tabular import exact
from upslope.tabular.arguments import check_gamma, check_number, check_whole
from upslope.tabular.chains import TabularPolicy, chain, check_ends
from upslope.tabular.mdp import MDP


@torch.no_grad()
def policy_evaluation(mdp: MDP, policy: TabularPolicy, gamma: float, *, tolerance: float = 1e-12, max_sweeps: int = 100_000) -> Tensor:
    """``V ← r_π + γ P_π V`` until no state moves by more than ``tolerance``, ``[S]``. Source: SB section 4.1."""
    check_number("tolerance", tolerance, 0.0)
    check_whole("max_sweeps", max_sweeps)
    transition, reward = chain(mdp, policy)
    check_ends(mdp, transition, gamma)
    v = torch.zeros_like(reward)
    for _ in range(max_sweeps):
        previous, v = v, reward + gamma * transition @ v
        if float((v - previous).abs().max()) <= tolerance:
            return v
    raise RunFault(f"max_sweeps: values still moved after {max_sweeps} sweeps; give more, or a larger tolerance")


def value_iteration(mdp: MDP, gamma: float, *, tolerance: float = 1e-12, max_sweeps: int = 100_000) -> tuple[Tensor, Tensor]:
    """``V(s) ← max_a r(s, a) + γ Σ_s' p(s'|s, a) V(s')``; returns ``(greedy table [S, A], V [S])``. Source: SB section 4.4."""
    check_gamma(gamma)
    check_number("tolerance", tolerance, 0.0)
    check_whole("max_sweeps", max_sweeps)
    v = torch.zeros(mdp.num_states, dtype=torch.float64)
    for _ in range(max_sweeps):
        q = mdp.reward + gamma * mdp.transition @ v
        previous, v = v, q.amax(-1)
        if float((v - previous).abs().max()) <= tolerance:
            return greedy(q), v
    raise RunFault(f"max_sweeps: values still moved after {max_sweeps} sweeps; does the problem end? Else give gamma < 1")


def policy_iteration(mdp: MDP, gamma: float, *, max_rounds: int = 1000) -> tuple[Tensor, Tensor]:
    """Evaluate exactly, act greedily, until nothing improves; returns ``(table [S, A], V [S])``. Source: SB section 4.3.

    Begins with the uniform policy, which for γ = 1 must terminate.
    """
    check_whole("max_rounds", max_rounds)
    table = torch.full((mdp.num_states, mdp.num_actions), 1.0 / mdp.num_actions, dtype=torch.float64)
    for _ in range(max_rounds):
        v = exact.value(mdp, table, gamma)
        q = exact.action_value(mdp, table, gamma)
        if bool((q.amax(-1) - v <= 1e-10 * v.abs().clamp(min=1.0)).all()):
            return greedy(q), v
        table = greedy(q)
    raise RunFault(f"max_rounds: the policy still improved after {max_rounds} rounds; give more")


def greedy(q: Tensor) -> Tensor:
    """The table that takes the first best action, ``[S, A]``."""
    return torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)
