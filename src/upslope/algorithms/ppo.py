"""Proximal policy optimization (Schulman et al. 2017).

    ratio = π(a|s) / π_old(a|s)
    maximise E[ min(ratio · Â, clip(ratio, 1 − ε_low, 1 + ε_high) · Â) − value_coef (V − R)² + entropy_coef H − kl_coef KL(π_old‖π) ]

over several epochs of minibatches of one batch; Â = GAE(γ, λ), R = Â + V.

Left out: per-minibatch advantage normalization (it is done once, over the whole batch) and shared-memory workers.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from upslope import functional as F
from upslope.algorithms import common
from upslope.errors import require
from upslope.records import Batch, HasDistribution, Policy, Rollout, Surrogate, offers
from upslope.updates import Ascent
from upslope.updates.critic import value_error
from upslope.updates.fisher import distribution_of

SURROGATES: dict[str, Surrogate] = {
    "clipped": F.clipped_surrogate,
    "importance-weighted": F.importance_weighted,
    "truncated-score": F.truncated_score,
}
"""The names that the command line knows."""
MIN_KL_COEF, MAX_KL_COEF = 1e-12, 1e12
"""An adaptive weight stays in between: it has to be able to come back."""
K3 = "leave the method out (the penalty is then estimated by k3)"
"""What a policy can do whose divergences have no formula."""


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Several epochs on each batch, kept near the policy that sampled it by a clip, a KL penalty, or both.

    ``PPO(surrogate=F.importance_weighted, kl_coef=1.0, adaptive_kl=0.01)`` is the penalty form of the paper's section 4;
    ``PPO(surrogate=mine)`` optimizes a user's function: ``upslope.testing.check_surrogate(mine)`` is its contract.
    """

    needs_critic: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"surrogate": SURROGATES}

    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """trace decay of the advantage: 0 is one step, 1 the whole return"""
    clip_range: float | tuple[float, float] = 0.2
    """the ratio is clipped to [1 − low, 1 + high]; one number for both"""
    dual_clip: float | None = None
    """for negative advantages the surrogate is kept above dual_clip · Â (none: off)"""
    value_clip_range: float | None = None
    """the new value counts at most this far from the old one, in standard deviations of the returns (none: no clipping)"""
    value_coef: float = 0.25
    """weight of the squared value error, in standard deviations of the returns"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    kl_coef: float = 0.0
    """weight of the penalty KL(π_old‖π), exact where the policy offers its distribution, else k3"""
    reference_kl_coef: float = 0.0
    """weight of log π_old − log π_ref in the reward of each step; needs a collector with a reference"""
    adaptive_kl: float | None = None
    """target of that KL: below target/1.5 the weight is halved, above 1.5 · target doubled (none: constant)"""
    normalize_advantage: bool = True
    """give the advantages mean 0 and standard deviation 1 over the whole batch"""
    surrogate: Surrogate = F.clipped_surrogate
    """the objective per step: clipped, importance-weighted or truncated-score"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=3e-4, num_epochs=10, num_minibatches=4))
    """how parameters move"""

    def __post_init__(self) -> None:
        common.check_fractions(gamma=self.gamma, gae_lambda=self.gae_lambda)
        common.check_clip_range(self.clip_range)
        common.check_dual_clip(self.dual_clip, self.surrogate)
        common.check_not_negative(value_coef=self.value_coef, entropy_coef=self.entropy_coef, kl_coef=self.kl_coef)
        common.check_not_negative(reference_kl_coef=self.reference_kl_coef)
        for name, value in {"value_clip_range": self.value_clip_range, "adaptive_kl": self.adaptive_kl}.items():
            require(value is None or value > 0, f"{name}: expected a number > 0 or none, found {value}")
        require(self.adaptive_kl is None or self.kl_coef > 0, "adaptive_kl: it adapts kl_coef, which is 0; give kl_coef a start, 1.0 say")

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """``Â = GAE`` of the penalized reward, ``returns = Â + V``; with ``kl_coef`` also the sampling distribution's parameters."""
        value, next_value = common.critic_values(rollout, policy, self.gamma)
        reward = rollout.reward if self.reference_kl_coef == 0 else common.penalized_reward(rollout, self.reference_kl_coef)
        advantage = F.gae(reward, value, next_value, rollout.terminated, rollout.truncated, self.gamma, self.gae_lambda, rollout.mask)
        returns = advantage + value
        metrics = {"explained_variance": float(F.explained_variance(value, returns, rollout.mask))}
        if rollout.reference_log_prob is not None:
            metrics |= common.reference_metrics(rollout)
            metrics |= common.score_metrics(reward, rollout.mask) if self.reference_kl_coef > 0 else {}
        if self.normalize_advantage:
            advantage = F.normalize(advantage, rollout.mask)
            metrics["zero_spread"] = 0.0 if bool(advantage.any()) else 1.0
        batch = Batch.of(rollout, value=value, advantage=advantage, returns=returns, metrics=metrics)
        return self.with_distribution(policy, batch) if self.kl_coef > 0 and offers(policy, HasDistribution) else batch

    @torch.no_grad()
    def with_distribution(self, policy: HasDistribution, batch: Batch) -> Batch:
        """The batch with the sampling distribution's parameters, and the penalty's weight reported."""
        old = distribution_of(policy, batch.inputs, otherwise=K3).parameters.clone()
        return replace(batch, behavior_parameters=old, metrics={**batch.metrics, "kl_coef": self.kl_coef})

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``surrogate − value_coef · value_error + entropy_coef · H − kl_coef · KL``, weighted and summed."""
        new = policy.evaluate(**batch.inputs)
        options = {} if self.dual_clip is None else {"dual_clip": self.dual_clip}
        surrogate = self.surrogate(new.log_prob, batch.behavior_log_prob, batch.need("advantage"), batch.mask, self.clip_range, **options)
        if self.surrogate not in SURROGATES.values():
            common.check_surrogate_value(surrogate, new.log_prob)
        error = value_error(policy, new.value, batch, self.value_clip_range)
        total = surrogate - self.value_coef * error + self.entropy_coef * new.entropy
        if self.kl_coef > 0:
            total = total - self.kl_coef * self.divergence(policy, batch, new.log_prob)
        metrics = common.policy_metrics(new, batch, error, clip_range=self.clip_range, dual_clip=self.dual_clip)
        return F.weighted_sum(total, batch.weight), metrics

    def divergence(self, policy: Policy, batch: Batch, log_prob: Tensor) -> Tensor:
        """KL(π_old‖π) per step: exact from the distributions' parameters, else k3 (whose gradient is not zero, unlike k1's)."""
        if batch.behavior_parameters is None:
            return F.kl_k3(batch.behavior_log_prob, log_prob)
        new = distribution_of(policy, batch.inputs, otherwise=K3)
        return replace(new, parameters=batch.behavior_parameters).kl(new)

    @torch.no_grad()
    def adapted(self, policy: Policy, batch: Batch) -> Self:
        """The algorithm of the next iteration: ``kl_coef`` moved by the KL that this update ended with (section 4)."""
        if self.adaptive_kl is None:
            return self
        kl = float(common.masked_mean(self.divergence(policy, batch, policy.evaluate(**batch.inputs).log_prob), batch.mask))
        factor = 0.5 if kl < self.adaptive_kl / 1.5 else 2.0 if kl > self.adaptive_kl * 1.5 else 1.0
        return replace(self, kl_coef=min(max(self.kl_coef * factor, MIN_KL_COEF), MAX_KL_COEF))
