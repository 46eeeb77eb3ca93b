"""What the methods that compare the rows of a group share: scores, the KL term, and groups that teach nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from upslope import functional as F
from upslope.algorithms import common
from upslope.errors import UsageError, require
from upslope.records import Batch, Evaluation, Rollout
from upslope.updates import Ascent

Advantage = Callable[[Tensor, Tensor | None], Tensor]
"""``(score [..., G], mask [..., G] or None) -> [..., G]``; ``mask`` is False for rows that have no score."""
Placement = Literal["objective", "reward"]
Estimator = Literal["k1", "k2", "k3"]

HOMOGENEOUS = (F.clipped_surrogate, F.importance_weighted, F.truncated_score, F.score_function)
"""Surrogates that carry no gradient where the advantage is 0."""


def check_kl(kl_coef: float, kl_estimator: str, kl_placement: str) -> None:
    """Refuse the pairs of estimator and placement whose gradient is not that of a divergence (FORMULAS section 10)."""
    common.check_not_negative(kl_coef=kl_coef)
    require(kl_estimator in ("k1", "k2", "k3"), f"kl_estimator: expected 'k1', 'k2' or 'k3', found {kl_estimator!r}")
    require(kl_placement in ("objective", "reward"), f"kl_placement: expected 'objective' or 'reward', found {kl_placement!r}")
    if kl_placement == "objective":
        hint = "take k2 or k3, or kl_placement='reward'"
        require(kl_estimator != "k1", f"kl_estimator: k1 in the objective has gradient 0 in expectation and teaches nothing; {hint}")
    else:
        hint = "take k1, or kl_placement='objective'"
        message = f"kl_estimator: {kl_estimator} in the reward lacks the KL's derivative, so its gradient is not that of a KL; {hint}"
        require(kl_estimator == "k1", message)


@dataclass(frozen=True, kw_only=True)
class ComparesRows:
    """The settings that methods share which compare the rows of a group."""

    learns_from: ClassVar[str] = "groups"

    clip_range: float | tuple[float, float] = 0.2
    """the ratio is clipped to [1 − low, 1 + high]; one number for both"""
    average_over: F.AverageOver = "sequences"
    """what counts the same: all sequences, all steps, or (constant) all steps over the longest length, proportional to the gradient"""
    kl_coef: float = 0.0
    """weight of the KL to the reference policy; above 0 it needs a collector with a reference"""
    kl_estimator: Estimator = "k3"
    """how that KL is estimated: k2 or k3 in the objective, k1 in the reward"""
    kl_placement: Placement = "objective"
    """where it is subtracted: from the objective at each step, or from the reward before rows are compared"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-6, max_grad_norm=1.0, eps=1e-8))
    """how parameters move"""

    def __post_init__(self) -> None:
        common.check_clip_range(self.clip_range)
        check_kl(self.kl_coef, self.kl_estimator, self.kl_placement)
        common.check_not_negative(entropy_coef=self.entropy_coef)

    @property
    def zero_variance_groups_have_gradient(self) -> bool:
        """Whether groups of equal scores carry gradient too; where they do not, they are skipped and a collector may refill them."""
        return (self.kl_coef > 0 and self.kl_placement == "objective") or self.entropy_coef > 0

    def regularized(self, total: Tensor, new: Evaluation, batch: Batch, metrics: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``total − kl_coef · KL + entropy_coef · H``, weighted and summed; the KL is neither clipped nor weighted by a ratio."""
        if self.kl_coef > 0 and self.kl_placement == "objective":
            form = {"k2": F.kl_k2, "k3": F.kl_k3}[self.kl_estimator]
            divergence = form(new.log_prob, batch.need("reference_log_prob"), batch.mask)
            total = total - self.kl_coef * divergence
            metrics["kl"] = common.masked_mean(divergence, batch.mask)
        if self.entropy_coef > 0:
            total = total + self.entropy_coef * new.entropy
        return F.weighted_sum(total, batch.weight), metrics


def check_group_size(rollout: Rollout) -> None:
    size = rollout.mask.shape[-2] if rollout.mask.dim() > 1 else 1
    require(size > 1, f"group_size: expected at least 2, found {size}; there is nothing to compare a row with")


@torch.no_grad()
def group_batch(algorithm: ComparesRows, rollout: Rollout, advantage: Advantage) -> Batch:
    """A row's score is the sum of its rewards, its advantage the comparison within the group, the same at each of its steps.

    Rows without an unmasked step have no score and are no part of the N that ``average_over`` divides by. Groups whose advantages are all
    0 are counted (``dead_groups``) and, if they have no gradient, hidden; the others weigh what they would beside them.
    """
    require(
        rollout.unit == "group" and rollout.mask.dim() >= 2,
        f"rollout: this algorithm compares the rows of a group, and the collector's unit is {rollout.unit!r}; take a collector of groups",
    )
    if algorithm.average_over == "constant":
        common.check_longest(rollout)
    if algorithm.kl_coef > 0:
        common.reference_of(rollout, "kl_coef")
    present = rollout.mask.any(-1)
    reward = common.penalized_reward(rollout, algorithm.kl_coef, "kl_coef") if algorithm.kl_placement == "reward" else rollout.reward
    score = reward.sum(-1)
    compared = advantage(score, None if bool(present.all()) else present)
    if compared.shape != score.shape:
        raise UsageError(f"advantage: expected one value per row, shape {tuple(score.shape)}, found {tuple(compared.shape)}")
    alive = (compared.masked_fill(~present, 0.0) != 0).any(-1, keepdim=True)
    metrics = {"dead_groups": 1.0 - float(alive.float().mean()), "missing_rows": 1.0 - float(present.float().mean())}
    metrics |= common.score_metrics(reward, rollout.mask)
    metrics |= {} if rollout.reference_log_prob is None else common.reference_metrics(rollout)
    spread = compared.unsqueeze(-1).expand_as(reward)
    batch = Batch.of(rollout, average_over=algorithm.average_over, advantage=spread, metrics=metrics)
    mask, weight = batch.mask, batch.weight
    if algorithm.average_over != "steps" and bool(present.any()):  # an average over steps leaves masked ones out by itself
        weight = weight * (present.numel() / int(present.sum()))
    if not algorithm.zero_variance_groups_have_gradient:
        mask, weight = mask & alive.unsqueeze(-1), weight * alive.unsqueeze(-1)
    return replace(batch, mask=mask, weight=weight)
