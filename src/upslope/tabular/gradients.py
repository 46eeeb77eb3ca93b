"""The exact gradient of J four ways, a look into the theorem, and ascent along it: what every method of this library estimates.

Each returns the gradient for all of ``policy.parameters()`` as one flat vector ``[P]``, zero where J does not reach (a critic).
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from upslope.errors import require
from upslope.records import Policy
from upslope.tabular import exact
from upslope.tabular.arguments import check_gamma, check_number, check_whole
from upslope.tabular.chains import TabularPolicy, policy_table
from upslope.tabular.enumeration import enumerate_rollouts, flat_gradient, parameters_of
from upslope.tabular.mdp import MDP

STEP = 1e-5
"""Of central differences: their error of order STEP² and the rounding of order 1e-16 / STEP are about the same."""


def gradient(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """The policy gradient theorem: ``∇J = Σ_s η_γ(s) Σ_a Q(s, a) ∇π(a|s)``, ``[P]``. Only π is differentiated.

    Source: Sutton et al. 2000, theorem 1; SB section 13.2, where "∝" is "=" once η is not normalized.
    """
    with torch.no_grad():
        eta, q = exact.visitation(mdp, policy, gamma), exact.action_value(mdp, policy, gamma)
    visited = eta > 0
    return flat_gradient((eta[visited, None] * q[visited] * policy_table(mdp, policy)[visited]).sum(), policy)


def gradient_by_autograd(mdp: MDP, policy: TabularPolicy, gamma: float) -> Tensor:
    """∇J through the linear solve ``J = startᵀ (I − γ P_π)⁻¹ r_π``, ``[P]``."""
    return flat_gradient(exact.objective(mdp, policy, gamma), policy)


def gradient_by_differences(mdp: MDP, policy: TabularPolicy, gamma: float, step: float = STEP) -> Tensor:
    """``(J(θ + step e_i) − J(θ − step e_i)) / 2 step`` for each parameter, ``[P]``; right to about 1e-9."""
    return central_differences(lambda: exact.objective(mdp, policy, gamma), policy, step)


def gradient_by_enumeration(mdp: MDP, policy: TabularPolicy, gamma: float, horizon: int | None = None) -> Tensor:
    """``Σ_τ P(τ) R(τ) ∇ log P(τ)`` over all trajectories, ``[P]``: of J cut after ``horizon`` steps (``time_limit`` unless given).

    Source: Williams 1992; SB exercise 13.3 for the score. Raises UsageError where trajectories have no longest length.
    """
    check_gamma(gamma)
    rollout, probability = enumerate_rollouts(mdp, policy, horizon)
    score = cast(Policy, policy).evaluate(**rollout.inputs).log_prob.where(rollout.mask, 0.0).sum(-1)
    discount = gamma ** torch.arange(rollout.reward.shape[-1], dtype=torch.float64)
    return flat_gradient((probability * (rollout.reward * discount).sum(-1) * score).sum(), policy)


def product_rule(mdp: MDP, policy: TabularPolicy, gamma: float, step: float = STEP) -> tuple[Tensor, Tensor]:
    """``J = Σ_s η_θ(s) r_π(s)`` differentiated through its factors: ``(Σ_s ∇η_θ(s) · r_π(s), Σ_s η_θ(s) · ∇r_π(s))``, each ``[P]``.

    Their sum is ∇J. The first, by finite differences, needs to know how the visits change; the theorem gives the same sum
    without it. SB section 13.2 calls this surprising.
    """
    with torch.no_grad():
        eta, reward = exact.visitation(mdp, policy, gamma), (policy_table(mdp, policy) * mdp.reward).sum(-1)
    through_visits = central_differences(lambda: (exact.visitation(mdp, policy, gamma) * reward).sum(), policy, step)
    return through_visits, central_differences(lambda: (eta * (policy_table(mdp, policy) * mdp.reward).sum(-1)).sum(), policy, step)


@torch.no_grad()
def central_differences(function: Callable[[], Tensor], policy: TabularPolicy, step: float = STEP) -> Tensor:
    """Central differences of a number that depends on the policy's parameters, ``[P]``; the parameters are left as they were."""
    check_number("step", step)
    require(step > 0, f"step: expected a number > 0, found {step}")
    found: list[Tensor] = []
    for parameter in parameters_of(policy):
        kept = parameter.detach().clone()
        try:
            for i in range(kept.numel()):
                entry = parameter.view(-1)[i]
                entry += step
                above = function()
                entry.copy_(kept.view(-1)[i] - step)
                found.append((above - function()) / (2.0 * step))
                entry.copy_(kept.view(-1)[i])
        finally:
            parameter.copy_(kept)
    return torch.stack(found)


def ascend(mdp: MDP, policy: TabularPolicy, gamma: float, *, learning_rate: float, num_steps: int) -> list[float]:
    """``θ ← θ + α ∇J(θ)``, ``num_steps`` times, in place; returns J before each step. Source: SB eq. 13.1."""
    check_number("learning_rate", learning_rate, 0.0)
    check_whole("num_steps", num_steps, 0)
    history: list[float] = []
    parameters = parameters_of(policy)
    for _ in range(num_steps):
        history.append(exact.objective(mdp, policy, gamma).item())
        steps = torch.split(gradient(mdp, policy, gamma), [p.numel() for p in parameters])
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter += learning_rate * step.view_as(parameter)
    return history
