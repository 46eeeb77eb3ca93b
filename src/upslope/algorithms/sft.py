"""Supervised fine-tuning: maximum likelihood of recorded completions, or of any recorded actions (behavior cloning).

    maximise Σ_i,t weight_i,t log π(a_i,t | s_i,t)

Left out: label smoothing and packing, which are the policy's and the collector's matter.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import check_longest, check_not_negative, masked_mean
from upslope.records import Batch, Policy, Rollout
from upslope.updates import Ascent


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Imitate what was recorded, step by step; rewards are not looked at."""

    learns_from: ClassVar[str] = "demonstrations"

    average_over: F.AverageOver = "steps"
    """what counts the same: all steps, all sequences, or (constant) all steps over the longest length"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=2e-5, max_grad_norm=1.0, eps=1e-8))
    """how parameters move"""

    def __post_init__(self) -> None:
        check_not_negative(entropy_coef=self.entropy_coef)

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """The recording and its weights; nothing is estimated."""
        if self.average_over == "constant":
            check_longest(rollout)
        return Batch.of(rollout, average_over=self.average_over)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``log π + entropy_coef · H``, weighted and summed."""
        new = policy.evaluate(**batch.inputs)
        metrics = {"log_prob": masked_mean(new.log_prob, batch.mask), "entropy": masked_mean(new.entropy, batch.mask)}
        total = new.log_prob + self.entropy_coef * new.entropy if self.entropy_coef > 0 else new.log_prob
        return F.weighted_sum(total, batch.weight), metrics
