"""The average-reward setting of continuing problems: exact stationary distribution, r̄, differential values, gradient four ways.

All functions raise UsageError for a problem that ends, and where the policy's chain falls into several closed classes, so that
r̄ depends on the start. ``policy`` and the gradients are as in :mod:`upslope.tabular.exact` and :mod:`upslope.tabular.gradients`.
"""

from typing import cast

import torch
from torch import Tensor

from upslope.errors import UsageError, require
from upslope.records import Policy, offers
from upslope.tabular.arguments import check_whole
from upslope.tabular.chains import TabularPolicy, chain, policy_table, reachable
from upslope.tabular.enumeration import flat_gradient, trajectories
from upslope.tabular.gradients import STEP, central_differences
from upslope.tabular.mdp import MDP
from upslope.typed import as_list, solve


def stationary_distribution(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """d with ``dᵀ P_π = dᵀ`` and ``Σ d = 1``, ``[S]``: the solution of ``dᵀ (I − P_π + 𝟙𝟙ᵀ) = 𝟙ᵀ``. Source: SB eq. 10.8."""
    transition, _ = chain(mdp, policy)
    check_one_class(mdp, transition)
    ones = torch.ones(mdp.num_states, dtype=transition.dtype)
    return solve((torch.diag(ones) - transition + 1.0).T, ones)


def objective(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """``r̄ = Σ_s d(s) r_π(s)``, 0-d: the reward per step in the long run. Source: SB eq. 10.7."""
    _, reward = chain(mdp, policy)
    return stationary_distribution(mdp, policy) @ reward


def value(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """Differential values, ``[S]``: ``(I − P_π) V = r_π − r̄`` with ``dᵀ V = 0``, solved as ``(I − P_π + 𝟙dᵀ) V = r_π − r̄``.

    Source: SB section 10.3.
    """
    transition, reward = chain(mdp, policy)
    d = stationary_distribution(mdp, policy)
    return solve(torch.eye(mdp.num_states, dtype=d.dtype) - transition + d, reward - d @ reward)


def action_value(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """``Q(s, a) = r(s, a) − r̄ + Σ_s' p(s'|s, a) V(s')``, ``[S, A]``. Source: SB section 10.3."""
    return mdp.reward - objective(mdp, policy) + mdp.transition @ value(mdp, policy)


def advantage(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """``A(s, a) = Q(s, a) − V(s)``, ``[S, A]``; its mean under π is 0 in every state."""
    return action_value(mdp, policy) - value(mdp, policy).unsqueeze(-1)


def gradient(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """``∇r̄ = Σ_s d(s) Σ_a Q(s, a) ∇π(a|s)``, ``[P]``, an equality. Source: Sutton et al. 2000, theorem 1; SB section 13.6."""
    with torch.no_grad():
        d, q = stationary_distribution(mdp, policy), action_value(mdp, policy)
    return flat_gradient((d.unsqueeze(-1) * q * policy_table(mdp, policy)).sum(), policy)


def gradient_by_autograd(mdp: MDP, policy: TabularPolicy) -> Tensor:
    """∇r̄ through the linear solve of the stationary distribution, ``[P]``."""
    return flat_gradient(objective(mdp, policy), policy)


def gradient_by_differences(mdp: MDP, policy: TabularPolicy, step: float = STEP) -> Tensor:
    """∇r̄ by central differences, ``[P]``; right to about 1e-9."""
    return central_differences(lambda: objective(mdp, policy), policy, step)


def gradient_by_enumeration(mdp: MDP, policy: TabularPolicy, horizon: int = 1) -> Tensor:
    """∇r̄ from all trajectories of T = ``horizon`` ≥ 1 steps that begin in the long run, ``[P]``, the same for every T:

    ``∇r̄ = 1/T Σ_τ d(s_0) P(τ | s_0) · (Σ_t<T (r(s_t, a_t) − r̄) + V(s_T)) · Σ_t<T ∇ log π(a_t|s_t)``

    Differentiate ``V(s_0) = E[Σ_t<T (r_t − r̄) + V(s_T)]`` by θ and take the mean over ``s_0 ~ d``: the score brings the right
    side, r̄ brings ``−T ∇r̄``, and ``E[∇V(s_0)] = E[∇V(s_T)]``, since d is stationary, cancels. d, r̄ and V are not differentiated.
    Raises UsageError for more than a million trajectories. Source: Williams 1992 for the score; SB section 13.6 for the setting.
    """
    check_whole("horizon", horizon)
    require(offers(policy, Policy), f"policy: expected one with evaluate, found {type(policy).__name__}")
    with torch.no_grad():
        d, average, v = stationary_distribution(mdp, policy), objective(mdp, policy), value(mdp, policy)
    states, actions, dynamics = trajectories(mdp, horizon, d)
    credit = (mdp.reward[states[:, :-1], actions] - average).sum(-1) + v[states[:, -1]]
    score = cast(Policy, policy).evaluate(observation=mdp.observation[states[:, :-1]], action=actions).log_prob.sum(-1)
    return flat_gradient((dynamics * score.detach().exp() * credit * score).sum() / horizon, policy)


def check_one_class(mdp: MDP, transition: Tensor) -> None:
    """Refuse ends, and chains whose long run depends on where they begin."""
    if bool(mdp.terminal.any()):
        raise UsageError("mdp: it has terminal states, and an average reward is of what never ends; take upslope.tabular.exact")
    paths = reachable(transition)
    closed = ~(paths & ~paths.T).any(-1)  # everything that such a state leads to leads back
    classes = len({tuple(row) for row in as_list(paths[closed])})
    require(classes == 1, f"policy: its chain falls into {classes} closed classes, so the average reward depends on the start")
