"""Group relative policy optimization (Shao et al. 2024, DeepSeekMath) and its relatives.

    Â_i = (score_i − mean of the group) / (std of the group + eps),  the same at every step of row i
    maximise Σ_i,t weight_i,t [ min(ratio · Â_i, clip(ratio, 1 − ε_low, 1 + ε_high) · Â_i) − kl_coef · k3 + entropy_coef · H ]

No critic. What its relatives change is an argument each (:data:`RELATIVES`): who is compared, which ratio, which surrogate,
how steps are averaged.

Left out: what belongs to the collector (refilled groups, over-length penalties), and process rewards.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from upslope import functional as F
from upslope.algorithms import ppo
from upslope.algorithms.common import by_name, check_dual_clip, check_surrogate_value, policy_metrics
from upslope.algorithms.groups import HOMOGENEOUS, Advantage, ComparesRows, check_group_size, group_batch
from upslope.errors import require
from upslope.records import Batch, Policy, Rollout, Surrogate


def group_centered(score: Tensor, mask: Tensor | None = None) -> Tensor:
    """``r_i − mean`` of the group, ``[..., G]``, not divided by the spread: every prompt keeps its scale.

    Source: Liu et al. 2025 (Dr. GRPO), section 3.2.
    """
    return F.group_relative(score, mask, scale=False)


ADVANTAGES: dict[str, Advantage] = by_name(F.group_relative, group_centered, F.leave_one_out, F.batch_relative)
RATIOS: dict[str, F.Ratio] = by_name(F.token_ratio, F.sequence_ratio, F.sequence_mean_ratio, F.sequence_mean_token_ratio, without="_ratio")
SURROGATES: dict[str, Surrogate] = {**ppo.SURROGATES, "score-function": F.score_function}
TAKE_A_RATIO = (F.clipped_surrogate, F.importance_weighted)

RELATIVES: dict[str, dict[str, Any]] = {
    # Liu et al. 2025, "Understanding R1-Zero-like training", section 3.2: neither the spread nor the length divides
    "dr-grpo": {"advantage": group_centered, "average_over": "constant"},
    # Yu et al. 2025, eq. 8 and section 3: clip-higher, every token counts the same; its refill and length penalty are the collector's
    "dapo": {"clip_range": (0.2, 0.28), "average_over": "steps"},
    # Zheng et al. 2025, eq. 5 to 7 and section 5.1: the ratio of the sequence's mean log-probability, clipped closely
    "gspo": {"ratio": F.sequence_mean_ratio, "clip_range": (3e-4, 4e-4), "average_over": "sequences"},
    # MiniMax 2025, eq. 4 and 5; the paper names no ε_high: the weight's cap of 5 is that of Khatri et al. 2025 (ScaleRL)
    "cispo": {"surrogate": F.truncated_score, "clip_range": (1.0, 4.0), "average_over": "steps"},
    # Hu 2025 (REINFORCE++ with a group baseline): one scale for the whole batch, a KL, if kl_coef is given, in the reward
    "reinforce-pp": {"advantage": F.batch_relative, "kl_estimator": "k1", "kl_placement": "reward", "average_over": "steps"},
}
"""Settings of published relatives, each to be given to :class:`GRPO`: ``GRPO(**RELATIVES["dapo"])``."""


@dataclass(frozen=True, kw_only=True)
class GRPO(ComparesRows):
    """Rows that answer the same prompt, or start in the same state, are compared with one another; no critic is learned.

    ``GRPO(surrogate=mine)`` optimizes a user's function: ``upslope.testing.check_surrogate(mine)`` is its contract.
    """

    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"advantage": ADVANTAGES, "ratio": RATIOS, "surrogate": SURROGATES}

    advantage: Advantage = F.group_relative
    """how a row is compared with its group: group-relative, group-centered, leave-one-out or batch-relative"""
    ratio: F.Ratio = F.token_ratio
    """what is clipped: the ratio of each token, of the sequence, of the sequence-mean, or its form sequence-mean-token"""
    surrogate: Surrogate = F.clipped_surrogate
    """the objective per step: clipped, importance-weighted, truncated-score or score-function"""
    dual_clip: float | None = None
    """for negative advantages the surrogate is kept above dual_clip · Â (none: off)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dual_clip(self.dual_clip, self.surrogate)
        message = "ratio: it belongs to the clipped and the importance-weighted surrogate; bind it to yours with functools.partial"
        require(self.ratio is F.token_ratio or self.surrogate in TAKE_A_RATIO, message)
        require(
            self.ratio is not F.sequence_ratio or self.average_over == "sequences",
            f"average_over: the sequence ratio is one value per sequence, and {self.average_over!r} would count it once per step; "
            "take 'sequences', or the ratio sequence-mean",
        )

    @property
    def zero_variance_groups_have_gradient(self) -> bool:
        """Of a KL or an entropy term, or of a surrogate that is not known."""
        surrogate: Any = self.surrogate
        known = (surrogate.func if isinstance(surrogate, partial) else surrogate) in HOMOGENEOUS
        return (self.kl_coef > 0 and self.kl_placement == "objective") or self.entropy_coef > 0 or not known

    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """Score of a row = Σ_t reward; advantage = its comparison with the group, at each of the row's steps."""
        if self.advantage in ADVANTAGES.values() and (rollout.mask.dim() < 2 or rollout.mask.shape[-2] < 2):
            check_group_size(rollout)
        return group_batch(self, rollout, self.advantage)

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``surrogate − kl_coef · KL + entropy_coef · H``, weighted and summed."""
        new = policy.evaluate(**batch.inputs)
        options: dict[str, Any] = {} if self.dual_clip is None else {"dual_clip": self.dual_clip}
        options |= {} if self.ratio is F.token_ratio else {"ratio": self.ratio}
        total = self.surrogate(new.log_prob, batch.behavior_log_prob, batch.need("advantage"), batch.mask, self.clip_range, **options)
        if self.surrogate not in SURROGATES.values():
            check_surrogate_value(total, new.log_prob)
        metrics = policy_metrics(new, batch, clip_range=self.clip_range, dual_clip=self.dual_clip)
        if self.ratio is not F.token_ratio:
            metrics |= self.clip_metrics(new.log_prob.detach(), batch)
        return self.regularized(total, new, batch, metrics)

    def clip_metrics(self, log_prob: Tensor, batch: Batch) -> dict[str, Tensor]:
        """How many steps are clipped, by the ratio that is clipped."""
        old = batch.behavior_log_prob
        moved = old + self.ratio(log_prob, old, batch.mask).log()
        found = F.surrogate_metrics(moved, old, batch.need("advantage"), batch.mask, self.clip_range, dual_clip=self.dual_clip)
        return {name: found[name] for name in ("clip_fraction", "dead_fraction")}
