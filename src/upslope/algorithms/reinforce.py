"""REINFORCE (Williams 1992; Sutton & Barto 13.3 and 13.4), with and without a learned baseline.

    ∇J ∝ E[ Σ_t weight_t · ∇log π(a_t|s_t) · (credit_t − b(s_t)) ]

Left out: several epochs over a batch. More than one gradient step needs an importance weight; that is PPO.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope import functional as F
from upslope.algorithms import common
from upslope.errors import require
from upslope.records import Batch, Policy, Rollout
from upslope.updates import Ascent
from upslope.updates.critic import value_error

ReturnForm = Callable[[Rollout, float, Tensor | None], tuple[Tensor, Tensor, Tensor]]
"""``(rollout, gamma, next_value) -> (credit, weight, target)``, each ``[..., T]``; ``next_value`` is None without a baseline.

``target`` is what the critic learns, the return from t on, whatever t is credited with: cut episodes go on with the critic's value.
"""


def to_go(rollout: Rollout, gamma: float, next_value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``G_t = Σ_{k≥t} γ^{k−t} r_k``, weight 1: what everybody ships. Low variance, biased for γ < 1 (Nota & Thomas 2020)."""
    credit = F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, gamma, rollout.mask, next_value)
    return credit, torch.ones_like(credit), credit


def to_go_undiscounted(rollout: Rollout, gamma: float, next_value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``G_t`` with γ = 1, whatever ``gamma`` says: unbiased for the undiscounted J."""
    return to_go(rollout, 1.0, next_value)


def to_go_discounted(rollout: Rollout, gamma: float, next_value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``G_t`` with weight ``γ^t``: unbiased for the discounted J (Sutton & Barto, boxed algorithm of 13.3)."""
    credit, _, target = to_go(rollout, gamma, next_value)
    steps = (rollout.terminated, rollout.truncated, gamma, rollout.mask, rollout.first_step)
    return credit, F.discount_weight(*steps, dtype=credit.dtype), target


def full_trajectory(rollout: Rollout, gamma: float, next_value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``R(τ) = Σ_t γ^t r_t`` at every step: unbiased for the discounted J of whole episodes, with the highest variance."""
    credit = F.episode_returns(rollout.reward, rollout.terminated, rollout.truncated, gamma, rollout.mask, next_value)
    _, weight, target = to_go(rollout, gamma, next_value)
    return credit, weight, target


RETURNS: dict[str, ReturnForm] = common.by_name(to_go, to_go_undiscounted, to_go_discounted, full_trajectory)
"""The names that the command line knows."""


@dataclass(frozen=True, kw_only=True)
class REINFORCE:
    """Monte Carlo policy gradient; ``baseline`` subtracts a learned value and bootstraps truncated episodes with it."""

    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"returns": RETURNS}

    gamma: float = 0.99
    """discount factor"""
    returns: ReturnForm = to_go
    """what an action is credited with: to-go, to-go-undiscounted, to-go-discounted or full-trajectory"""
    baseline: bool = True
    """subtract the critic's value from the credit"""
    normalize_advantage: bool = True
    """give the advantages mean 0 and standard deviation 1 over the whole batch"""
    value_coef: float = 0.5
    """weight of the squared value error, in standard deviations of the returns (only with a baseline)"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    reference_kl_coef: float = 0.0
    """weight of log π_old − log π_ref in the reward of each step; needs a collector with a reference"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-3))
    """how parameters move"""

    def __post_init__(self) -> None:
        common.check_fractions(gamma=self.gamma)
        common.check_not_negative(value_coef=self.value_coef, entropy_coef=self.entropy_coef, reference_kl_coef=self.reference_kl_coef)
        common.check_one_pass(self.update)

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """``advantage = weight · (credit − V)``; the critic learns the return from t on."""
        value, next_value = common.critic_values(rollout, policy, self.gamma) if self.baseline else (None, None)
        if self.reference_kl_coef > 0:
            rollout = replace(rollout, reward=common.penalized_reward(rollout, self.reference_kl_coef))
        found = self.returns(rollout, self.gamma, next_value)
        require(len(found) == 3, f"returns: expected a function that gives (credit, weight, target), found {len(found)} values")
        credit, weight, target = found
        advantage = weight * (credit if value is None else credit - value)
        metrics = common.reference_metrics(rollout)
        if self.reference_kl_coef > 0:
            metrics |= common.score_metrics(rollout.reward, rollout.mask)
        if value is not None:
            metrics["explained_variance"] = float(F.explained_variance(value, target, rollout.mask))
        if self.normalize_advantage:
            advantage = F.normalize(advantage, rollout.mask)
            metrics["zero_spread"] = 0.0 if bool(advantage.any()) else 1.0
        return Batch.of(rollout, value=value, advantage=advantage, returns=target, metrics=metrics)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``log π · A − value_coef · (V − G)² + entropy_coef · H``, weighted and summed."""
        new = policy.evaluate(**batch.inputs)
        total = F.score_function(new.log_prob, batch.behavior_log_prob, batch.need("advantage"), batch.mask, 0.0)
        error = None
        if self.baseline:
            error = value_error(policy, new.value, batch)
            total = total - self.value_coef * error
        return F.weighted_sum(total + self.entropy_coef * new.entropy, batch.weight), common.policy_metrics(new, batch, error)
