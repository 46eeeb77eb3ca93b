"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024).

    Â_i = score_i − mean of the other scores of the group
    maximise Σ_i,t weight_i,t Â_i log π(a_i,t)

Averaged over a constant length it is unbiased for ∇J, whatever the lengths of the rows. Where an update makes more than one
gradient step on a batch, the clipped surrogate takes the place of log π.

Left out: other surrogates and ratios; ``GRPO(advantage=F.leave_one_out)`` has them.
"""

from dataclasses import dataclass

from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import policy_metrics
from upslope.algorithms.groups import ComparesRows, Estimator, Placement, check_group_size, group_batch
from upslope.records import Batch, Policy, Rollout


@dataclass(frozen=True, kw_only=True)
class RLOO(ComparesRows):
    """Every row is compared with the mean of the others that answer the same prompt, or start in the same state."""

    average_over: F.AverageOver = "constant"
    kl_estimator: Estimator = "k1"
    kl_placement: Placement = "reward"

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """Score of a row = Σ_t reward; advantage = the score less the mean of the others, at each of the row's steps."""
        check_group_size(rollout)
        return group_batch(self, rollout, F.leave_one_out)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``log π · Â``, or the clipped surrogate after the first step, ``− kl_coef · KL + entropy_coef · H``, weighted and summed."""
        new = policy.evaluate(**batch.inputs)
        surrogate = F.score_function if self.update.makes_one_step else F.clipped_surrogate
        total = surrogate(new.log_prob, batch.behavior_log_prob, batch.need("advantage"), batch.mask, self.clip_range)
        metrics = policy_metrics(new, batch, clip_range=self.clip_range)
        return self.regularized(total, new, batch, metrics)
