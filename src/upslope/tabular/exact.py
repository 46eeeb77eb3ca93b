"""Exact values, visits and objective of a policy by linear algebra: episodic (γ = 1) and discounted.

``policy`` is a policy with ``probabilities()`` or a table ``π(a|s) [S, A]``; everything is float64 and differentiable in it.
A ``time_limit`` plays no part: it stops a recording, not the problem. Where it does end the problem, pass ``mdp.unrolled()``.
All functions raise UsageError for γ = 1 where the policy may go on for ever.
"""

from typing import Any

import torch
from torch import Tensor

from upslope.errors import require
from upslope.tabular.arguments import as_tensor, check_number
from upslope.tabular.chains import TabularPolicy, chain, check_ends, policy_table
from upslope.tabular.mdp import MDP, TOLERANCE
from upslope.typed import as_list, solve


def value(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """``V = (I − γ P_π)⁻¹ r_π``, ``[S]``; NaN for γ = 1 in states that no episode meets and from which it would never end.

    Source: SB eq. 4.4, solved.
    """
    transition, reward = chain(mdp, policy)
    lost = check_ends(mdp, transition, gamma)
    return solve(system(transition, gamma, lost), reward).masked_fill(lost, torch.nan)


def action_value(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """``Q(s, a) = r(s, a) + γ Σ_s' p(s'|s, a) V(s')``, ``[S, A]``. Source: SB eq. 4.6."""
    v = value(mdp, policy, gamma)
    unknown = ((mdp.transition > 0) & v.isnan()).any(-1)
    return (mdp.reward + gamma * mdp.transition @ v.nan_to_num()).masked_fill(unknown, torch.nan)


def advantage(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """``A(s, a) = Q(s, a) − V(s)``, ``[S, A]``."""
    return action_value(mdp, policy, gamma) - value(mdp, policy, gamma).unsqueeze(-1)


def objective(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """``J = Σ_s start(s) V(s)``, 0-d: the expected (discounted) return of an episode."""
    begins = mdp.start > 0
    return (mdp.start[begins] * value(mdp, policy, gamma)[begins]).sum()


def visitation(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """``η_γ = (I − γ P_πᵀ)⁻¹ start``, ``[S]``: expected visits, each step weighted by γ^t; 0 in terminal states.

    Source: SB section 9.2 (γ = 1), solved; with γ it is the weighting of the policy gradient theorem.
    """
    transition, _ = chain(mdp, policy)
    return solve(system(transition, gamma, check_ends(mdp, transition, gamma)).T, mdp.start) * ~mdp.terminal


def on_policy_distribution(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """``μ = η_γ / Σ_s η_γ(s)``, ``[S]``; for γ = 1 the divisor is the mean length of an episode. Source: SB eq. 9.3."""
    eta = visitation(mdp, policy, gamma)
    return eta / eta.sum()


def performance_difference(mdp: MDP, new: Any, old: Any, gamma: float) -> Tensor:
    """``J(new) − J(old) = Σ_s η_γ^new(s) Σ_a π_new(a|s) A^old(s, a)``, 0-d, computed as its right side.

    Source: Kakade & Langford 2002, Lemma 6.1.
    """
    gain = visitation(mdp, new, gamma).unsqueeze(-1) * policy_table(mdp, new)
    return (gain * torch.where(gain > 0, advantage(mdp, old, gamma), 0.0)).sum()


def regularized_optimum(reward: Any, reference: Any, kl_coef: float) -> Tensor:
    """The maximizer of ``E_π[r] − kl_coef · KL(π‖π_ref)`` for one decision, ``[..., A]``: ``π* ∝ π_ref exp(r / kl_coef)``.

    Source: Rafailov et al. 2023 (DPO), eq. 4. Raises UsageError for ``kl_coef`` ≤ 0, rewards that are
    not finite and a reference that is no distribution.
    """
    check_number("kl_coef", kl_coef)
    require(kl_coef > 0, f"kl_coef: expected a number > 0, found {kl_coef}")
    r, p = as_tensor("reward", reward), as_tensor("reference", reference)
    require(r.shape == p.shape, f"reference: expected shape {list(r.shape)} like reward, found {list(p.shape)}")
    require(bool(r.isfinite().all()), f"reward: expected finite numbers, found {as_list(r)}")
    proper = bool((p >= 0).all() and ((p.sum(-1) - 1.0).abs() <= TOLERANCE).all())
    require(proper, f"reference: expected probabilities ≥ 0 that sum to 1, found {as_list(p)}")
    return (p.log() + r / kl_coef).softmax(-1)


def system(transition: Tensor, gamma: float, lost: Tensor) -> Tensor:
    """``I − γ P_π`` without the rows of states whose value does not exist, so that it can be solved for the others."""
    return torch.eye(len(transition), dtype=transition.dtype) - gamma * transition.masked_fill(lost.unsqueeze(-1), 0.0)
