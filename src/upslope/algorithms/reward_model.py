"""A reward model from pairs (Bradley & Terry 1952; Ouyang et al. 2022).

    maximise mean over pairs of log σ(r(y_w) − r(y_l))

The policy here is whatever has ``score(**inputs) -> [N, 2]``, one number for each completion of a pair.

Left out: margins given with the labels, and terms that center the scores: only differences within a pair are determined.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from upslope import functional as F
from upslope.algorithms.pairs import pair_batch, pair_metrics, pair_sum
from upslope.errors import UsageError
from upslope.records import Batch, HasScore, Policy, Rollout, offers
from upslope.updates import Ascent


@dataclass(frozen=True, kw_only=True)
class RewardModeling:
    """Learn a score under which chosen completions win against rejected ones."""

    learns_from: ClassVar[str] = "pairs"
    needs_critic: ClassVar[bool] = True
    scores_texts: ClassVar[bool] = True

    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-5, max_grad_norm=1.0, eps=1e-8))
    """how parameters move"""

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """The pairs, each with a weight of 1/N; nothing is estimated."""
        return pair_batch(rollout)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over pairs of ``log σ(r_w − r_l)``; reports both scores, their margin, and how often the chosen one wins."""
        if not offers(policy, HasScore):
            raise UsageError(f"policy: expected score(**inputs) -> [N, 2], and {type(policy).__name__} has none; add a score head")
        score = policy.score(**batch.inputs)
        if score.shape != batch.mask.shape[:-1]:
            raise UsageError(f"policy: score() should give one number per row, {tuple(batch.mask.shape[:-1])}, found {tuple(score.shape)}")
        return pair_sum(F.bradley_terry(score), batch), pair_metrics(score.detach())
