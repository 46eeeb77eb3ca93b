"""The natural policy gradient (Kakade 2001) and trust region policy optimization (Schulman et al. 2015).

    maximize  E[ π(a|s) / π_old(a|s) · Â ]    subject to    mean_s KL(π_old(·|s) ‖ π(·|s)) ≤ max_kl

Both take one step per batch along F⁻¹g, with F the Fisher matrix of π; TRPO's line search makes sure of the bound, the natural
gradient trusts its quadratic model. Â = GAE(γ, λ); the critic is fitted to Â + V separately. See :mod:`upslope.updates.trust_region`.

Left out: the vine procedure, and several steps on a batch (that is PPO).
"""

from dataclasses import dataclass, field

from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import advantage_and_returns, check_fractions, check_not_negative, masked_mean
from upslope.records import Batch, Policy, Rollout
from upslope.updates import NaturalGradient, TrustRegion
from upslope.updates.trust_region import NaturalStep


@dataclass(frozen=True, kw_only=True)
class NPG:
    """Natural policy gradient: the policy climbs ``ratio · Â`` along F⁻¹g, the critic is fitted to ``Â + V``."""

    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """trace decay of the advantage: 0 is one step, 1 the whole return"""
    normalize_advantage: bool = True
    """give the advantages mean 0 and standard deviation 1 over the whole batch"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: NaturalStep = field(default_factory=NaturalGradient)
    """how parameters move"""

    def __post_init__(self) -> None:
        check_fractions(gamma=self.gamma, gae_lambda=self.gae_lambda)
        check_not_negative(entropy_coef=self.entropy_coef)

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """``Â = GAE``, ``returns = Â + V``."""
        value, advantage, returns, metrics = advantage_and_returns(policy, rollout, self.gamma, self.gae_lambda)
        if self.normalize_advantage:
            advantage = F.normalize(advantage, rollout.mask)
            metrics["zero_spread"] = 0.0 if bool(advantage.any()) else 1.0
        return Batch.of(rollout, value=value, advantage=advantage, returns=returns, metrics=metrics)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``ratio · Â + entropy_coef · H``, weighted and summed; the critic has no part in it."""
        new = policy.evaluate(**batch.inputs)
        surrogate = F.importance_weighted(new.log_prob, batch.behavior_log_prob, batch.need("advantage"), batch.mask, 0.0)
        metrics = {"entropy": masked_mean(new.entropy, batch.mask), "log_ratio": new.log_prob - batch.behavior_log_prob}
        return F.weighted_sum(surrogate + self.entropy_coef * new.entropy, batch.weight), metrics


@dataclass(frozen=True, kw_only=True)
class TRPO(NPG):
    """Trust region policy optimization: the same direction, no farther than a mean KL of ``max_kl``, and only where it climbs."""

    update: NaturalStep = field(default_factory=TrustRegion)
    """how parameters move"""
