"""Off-policy policy gradient: importance sampling and V-trace, from steps that another policy took.

    ρ_t = π(a_t|s_t) / b(a_t|s_t)         b: the behavior policy that recorded the data, π: the one that learns

Left out: estimating b where it was not recorded, self-normalized weights, and replay of earlier batches (collect from a data set).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import (
    by_name,
    check_clip_range,
    check_fractions,
    check_not_negative,
    critic_values,
    masked_mean,
    policy_metrics,
)
from upslope.errors import RunFault, UsageError, require
from upslope.records import Batch, Metrics, Policy, Rollout
from upslope.updates import Ascent
from upslope.updates.critic import value_error

Estimator = Callable[[Rollout, Tensor, Any], tuple[Tensor, Tensor]]
"""``(rollout, log_prob, settings) -> (advantage, weight)``, each ``[..., T]``: what multiplies ∇log π, and its weight, uncapped."""


def trajectory(rollout: Rollout, log_prob: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
    """``ρ_{0:K−1} γ^t (G_t − V_t)``: unbiased for the discounted J of whole episodes, with the highest variance."""
    weight = F.trajectory_ratio(log_prob, rollout.behavior_log_prob, rollout.terminated, rollout.truncated, rollout.mask)
    return weighted_credit(rollout, weight, settings), weight


def per_decision(rollout: Rollout, log_prob: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
    """``Σ_{k≥t} γ^k ρ_{0:k} r_k − γ^t ρ_{0:t} V_t``: unbiased for the discounted J of whole episodes, usually with lower variance."""
    weight = F.cumulative_ratio(log_prob, rollout.behavior_log_prob, rollout.terminated, rollout.truncated, rollout.mask)
    return weighted_credit(rollout, weight, settings), weight


def truncated(rollout: Rollout, log_prob: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
    """Per-decision with ``min(ratio_cap, ρ_{0:k})``: bounded variance, and biased as far as weights were cut (Ionides 2008)."""
    weight = F.cumulative_ratio(log_prob, rollout.behavior_log_prob, rollout.terminated, rollout.truncated, rollout.mask)
    return weighted_credit(rollout, weight.clamp(max=cap(settings.ratio_cap)), settings), weight


def per_step(rollout: Rollout, log_prob: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
    """``ρ_t (G_t − V_t)`` with b's returns: the gradient of ``Σ_s d^b Σ_a π Q^b``, which is not ∇J for b ≠ π."""
    weight = F.token_ratio(log_prob, rollout.behavior_log_prob, rollout.mask)
    value, next_value = critic_values(rollout) if settings.baseline else (0.0, None)
    returns = F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, settings.gamma, rollout.mask, next_value)
    return weight * (returns - value), weight


def vtrace(rollout: Rollout, log_prob: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
    """``min(ρ̄, ρ_t) (r_t + γ v_{t+1} − V_t)``: low variance. Exact critic, no cap: ``Σ_s d^b Σ_a Q^π ∇π`` (Degris et al. 2012)."""
    _, advantage = vtrace_of(rollout, log_prob, settings)
    return advantage, F.token_ratio(log_prob, rollout.behavior_log_prob, rollout.mask)


ESTIMATORS: dict[str, Estimator] = by_name(vtrace, per_decision, trajectory, truncated, per_step)
"""The names that the command line knows."""
CAPPED: tuple[Estimator, ...] = (vtrace, truncated)  # those whose weights ratio_cap bounds


@dataclass(frozen=True, kw_only=True)
class OffPolicyGradient:
    """A policy gradient from the steps of any policy whose action probabilities were recorded.

    | estimator | its expectation over b's steps |
    | --- | --- |
    | ``trajectory``, ``per-decision`` | ∇J, discounted by ``gamma`` (1: undiscounted), of whole episodes |
    | ``truncated`` | ∇J as long as no weight exceeds ``ratio_cap`` |
    | ``per-step`` | ``Σ_s d^b Σ_a Q^b ∇π``: not ∇J, and of Q^b, the worth of going on as b does |
    | ``vtrace`` | with an exact critic and no cap ``Σ_s d^b Σ_a Q^π ∇π``: not ∇J; it leaves ∇Q^π and the change of d out |

    Each estimates at the policy as it is before the update, so the data are scored anew in every iteration. Several epochs follow
    ``π/π_old · Â``, whose gradient at π_old is the estimator; give them a ``clip_range``, else nothing keeps π near π_old. A critic,
    where there is one, learns V-trace's targets.
    """

    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"estimator": ESTIMATORS}

    estimator: Estimator = vtrace
    """vtrace, per-decision, trajectory, truncated or per-step"""
    gamma: float = 0.99
    """discount factor"""
    trace_lambda: float = 1.0
    """V-trace's λ: 0 is one step, 1 as far as the ratios reach"""
    ratio_cap: float | None = 1.0
    """largest importance weight: V-trace's ρ̄ and that of truncated (none: no cap)"""
    trace_cap: float | None = 1.0
    """largest factor of V-trace's traces, c̄; at most ratio_cap (none: no cap)"""
    baseline: bool = True
    """subtract the critic's value, within the weight; V-trace always does"""
    clip_range: float | tuple[float, float] | None = None
    """ε of PPO's clipped surrogate around the policy before the update: a number, or (low, high) (none: no clip)"""
    scale_advantage: bool = True
    """divide the advantages by their root mean square; nothing is subtracted: b's mean of ∇log π is not 0"""
    value_coef: float = 0.25
    """weight of the squared value error, in standard deviations of the returns (only with a critic)"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-3))
    """how parameters move"""

    def __post_init__(self) -> None:
        check_fractions(gamma=self.gamma, trace_lambda=self.trace_lambda)
        check_not_negative(value_coef=self.value_coef, entropy_coef=self.entropy_coef)
        if self.clip_range is not None:
            check_clip_range(self.clip_range)
        for name, value in {"ratio_cap": self.ratio_cap, "trace_cap": self.trace_cap}.items():
            require(value is None or value > 0, f"{name}: expected a number > 0 or none, found {value}")
        message = f"trace_cap: expected at most ratio_cap, which is {argument_text(self.ratio_cap)}, found {argument_text(self.trace_cap)}"
        require(cap(self.trace_cap) <= cap(self.ratio_cap), message)

    @property
    def bounds(self) -> F.ClipRange:
        """The clip range; without one, a range that clips nothing."""
        return (1.0, math.inf) if self.clip_range is None else self.clip_range

    @property
    def critic(self) -> bool:
        """Whether the policy's value is asked for."""
        return self.baseline or self.estimator is vtrace

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """Score the steps anew, weigh them; π_old of the update is the policy as it is now."""
        if rollout.sampler_log_prob is not None:  # whoever sampled is the behavior policy
            rollout = replace(rollout, behavior_log_prob=rollout.sampler_log_prob, sampler_log_prob=None)
        check_behavior(rollout)
        with torch.no_grad():
            log_prob = policy.evaluate(**rollout.inputs).log_prob
        value = None
        if self.critic:
            value, next_value = critic_values(rollout, policy, self.gamma)
            rollout = replace(rollout, value=value, next_value=next_value)
        advantage, weight = self.estimator(rollout, log_prob, self)
        metrics = weight_metrics(rollout, log_prob, weight, self)
        returns = None
        if value is not None:
            returns, _ = vtrace_of(rollout, log_prob, self)
            metrics["explained_variance"] = float(F.explained_variance(value, returns, rollout.mask))
        if self.scale_advantage:
            advantage = advantage / masked_mean(advantage.square(), rollout.mask).sqrt().clamp(min=1e-8)
        batch = Batch.of(replace(rollout, behavior_log_prob=log_prob), advantage=advantage, returns=returns, metrics=metrics)
        return without_steps(batch, torch.isneginf(log_prob))

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``π/π_old · Â``, clipped where asked, ``− value_coef · (V − v)² + entropy_coef · H``, weighted and summed."""
        new = policy.evaluate(**batch.inputs)
        total = F.clipped_surrogate(new.log_prob, batch.behavior_log_prob, batch.need("advantage"), batch.mask, self.bounds)
        error = None
        if batch.returns is not None:
            error = value_error(policy, new.value, batch)
            total = total - self.value_coef * error
        metrics = policy_metrics(new, batch, error, clip_range=self.bounds)
        return F.weighted_sum(total + self.entropy_coef * new.entropy, batch.weight), metrics


def weighted_credit(rollout: Rollout, weight: Tensor, settings: Any) -> Tensor:
    """``γ^t (Σ_{k≥t} γ^{k−t} w_k r_k − w_t V_t)``, where a cut episode's last reward has its bootstrap beside it."""
    value, next_value = critic_values(rollout) if settings.baseline else (None, None)
    ends = rollout.terminated, rollout.truncated
    after = None if next_value is None else weight * next_value
    credit = F.returns_to_go(weight * rollout.reward, *ends, settings.gamma, rollout.mask, after)
    credit = credit if value is None else credit - weight * value
    return credit * F.discount_weight(*ends, settings.gamma, rollout.mask, rollout.first_step, dtype=credit.dtype)


def vtrace_of(rollout: Rollout, log_prob: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
    steps = (rollout.reward, *critic_values(rollout), log_prob, rollout.behavior_log_prob, rollout.terminated, rollout.truncated)
    return F.vtrace(*steps, settings.gamma, settings.trace_lambda, cap(settings.ratio_cap), cap(settings.trace_cap), rollout.mask)


def cap(value: float | None) -> float:
    return math.inf if value is None else value


def argument_text(value: float | None) -> str:
    return "none" if value is None else str(value)


def check_behavior(rollout: Rollout) -> None:
    """Refuse recorded actions that the behavior policy cannot have taken: their ratio is not defined."""
    wrong = ~rollout.behavior_log_prob.isfinite() & rollout.mask
    if bool(wrong.any()):
        row = tuple(int(i) for i in wrong.nonzero()[0])
        hint = "a recorded action has a probability above 0 under the policy that took it"
        raise UsageError(f"behavior_log_prob: expected finite numbers, found {float(rollout.behavior_log_prob[row])} at row {row}; {hint}")


def weight_metrics(rollout: Rollout, log_prob: Tensor, weight: Tensor, settings: OffPolicyGradient) -> Metrics:
    """How far the policies are apart: ESS of the weights in steps, mean and largest ratio of a step, share of weights that were cut.

    Raises RunFault where a product of ratios has overflowed.
    """
    mask = rollout.mask
    if not bool(mask.any()):
        return {}
    limit = cap(settings.ratio_cap) if settings.estimator in CAPPED else math.inf
    used = weight.clamp(max=limit)
    if not bool(used[mask].isfinite().all()):
        what = "a product of ratios is no longer finite, for the two policies differ too much over an episode"
        raise RunFault(f"importance weights: {what}; take the estimator vtrace, or truncated with a ratio_cap")
    ratio = F.token_ratio(log_prob, rollout.behavior_log_prob, mask)[mask]
    return {
        "effective_sample_size": float(F.effective_sample_size(used, mask)),
        "ratio_mean": float(ratio.mean()),
        "ratio_max": float(ratio.max()),
        "capped_fraction": float((weight[mask] > limit * (1 + 1e-6)).float().mean()),  # on-policy 1 may round to more than 1
    }


def without_steps(batch: Batch, never: Tensor) -> Batch:
    """The batch without the steps that the policy would never take: ∇π is 0 there, but ∞ − ∞ would not be. The others' weights stay."""
    if not bool(never.any()):
        return batch
    return replace(batch, mask=batch.mask & ~never, weight=batch.weight.masked_fill(never, 0.0))
