"""A2C (Mnih et al. 2016, synchronous): generalized advantages, one pass over each batch.

    ∇J ∝ E[ ∇log π(a_t|s_t) · Â_t ],   Â = GAE(γ, λ);  λ = 1 is the n-step advantage of the paper

Left out: RMSprop and separate workers. Online actor–critic with traces is another algorithm, with another loop.
"""

from dataclasses import dataclass, field

from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import advantage_and_returns, check_fractions, check_not_negative, check_one_pass, in_spreads, policy_metrics
from upslope.records import Batch, Policy, Rollout
from upslope.updates import Ascent, linear
from upslope.updates.critic import value_error


@dataclass(frozen=True, kw_only=True)
class A2C:
    """Advantage actor–critic: the policy climbs ``log π · Â``, the critic follows ``Â + V``."""

    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 1.0
    """trace decay of the advantage: 0 is one step, 1 the whole return"""
    normalize_advantage: bool = False
    """give the advantages mean 0 and standard deviation 1 over the whole batch; once the policy is right, all of them are noise, which
    this keeps at full size (without it they are divided by the spread of the returns)"""
    value_coef: float = 0.25
    """weight of the squared value error, in standard deviations of the returns"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=7e-4, schedule=linear))
    """how parameters move; one step per batch has no epochs to stop, so the schedule is what holds a trained policy"""

    def __post_init__(self) -> None:
        check_fractions(gamma=self.gamma, gae_lambda=self.gae_lambda)
        check_not_negative(value_coef=self.value_coef, entropy_coef=self.entropy_coef)
        check_one_pass(self.update)

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """``Â = GAE``, ``returns = Â + V``."""
        value, advantage, returns, metrics = advantage_and_returns(policy, rollout, self.gamma, self.gae_lambda)
        if self.normalize_advantage:
            advantage = F.normalize(advantage, rollout.mask)
            metrics["zero_spread"] = 0.0 if bool(advantage.any()) else 1.0
        else:
            advantage = in_spreads(advantage, policy, returns, rollout.mask)
        return Batch.of(rollout, value=value, advantage=advantage, returns=returns, metrics=metrics)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``log π · Â − value_coef · (V − R)² + entropy_coef · H``, weighted and summed."""
        new = policy.evaluate(**batch.inputs)
        surrogate = F.score_function(new.log_prob, batch.behavior_log_prob, batch.need("advantage"), batch.mask, 0.0)
        error = value_error(policy, new.value, batch)
        metrics = policy_metrics(new, batch, error)
        return F.weighted_sum(surrogate - self.value_coef * error + self.entropy_coef * new.entropy, batch.weight), metrics
