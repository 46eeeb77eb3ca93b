"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024).

    Â_i = score_i − mean of the other scores of the group
    maximise Σ_i,t weight_i,t Â_i log π(a_i,t)

Averaged over a constant length it is unbiased for ∇J, whatever the lengths of the rows. Where an update makes more than one
gradient step on a batch, the clipped surrogate takes the place of log π.

Left out: other surrogates and ratios; ``GRPO(advantage=F.leave_one_out)`` has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import check_clip_range, check_not_negative, masked_mean, policy_metrics
from upslope.algorithms.groups import Estimator, Placement, check_group_size, check_kl, group_batch, kl_term
from upslope.records import Batch, Policy, Rollout
from upslope.updates import Ascent


@dataclass(frozen=True, kw_only=True)
class RLOO:
    """Every row is compared with the mean of the others that answer the same prompt, or start in the same state."""

    learns_from: ClassVar[str] = "groups"

    clip_range: float | tuple[float, float] = 0.2
    """the ratio is clipped to [1 − low, 1 + high] where an update makes several steps; one number for both"""
    average_over: F.AverageOver = "constant"
    """what counts the same: all sequences, all steps, or (constant) all steps over the longest length, proportional to the gradient"""
    kl_coef: float = 0.0
    """weight of the KL to the reference policy; above 0 it needs a collector with a reference"""
    kl_estimator: Estimator = "k1"
    """how that KL is estimated: k1 in the reward, k2 or k3 in the objective"""
    kl_placement: Placement = "reward"
    """where it is subtracted: from the reward before rows are compared, or from the objective at each step"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-6, max_grad_norm=1.0, eps=1e-8))
    """how parameters move"""

    def __post_init__(self) -> None:
        check_clip_range(self.clip_range)
        check_kl(self.kl_coef, self.kl_estimator, self.kl_placement)
        check_not_negative(entropy_coef=self.entropy_coef)

    @property
    def kl_in_objective(self) -> bool:
        """Whether the objective holds a KL term."""
        return self.kl_coef > 0 and self.kl_placement == "objective"

    @property
    def zero_variance_groups_have_gradient(self) -> bool:
        """Whether groups of equal scores carry gradient too; where they do not, they are skipped and a collector may refill them."""
        return self.kl_in_objective or self.entropy_coef > 0

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
        if self.kl_in_objective:
            divergence = kl_term(self.kl_estimator, new.log_prob, batch)
            total = total - self.kl_coef * divergence
            metrics["kl"] = masked_mean(divergence, batch.mask)
        if self.entropy_coef > 0:
            total = total + self.entropy_coef * new.entropy
        return F.weighted_sum(total, batch.weight), metrics
