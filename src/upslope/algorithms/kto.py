"""Kahneman–Tversky optimization (Ethayarajh et al. 2024): completions labeled good or bad one by one.

    h(y) = Σ_t log π(y_t) − log π_ref(y_t),   z₀ = max(0, mean of h over the batch), a constant
    maximise mean of λ_D σ(β (h − z₀)) over desirable and λ_U σ(β (z₀ − h)) over undesirable completions

A completion's label is the sign of its summed reward. z₀ is taken once per batch, before its first step.

Left out: the paper's estimate of z₀ from completions of other prompts, which needs a second set of rows.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import check_not_negative, reference_of
from upslope.errors import require
from upslope.records import Batch, Metrics, Policy, Rollout
from upslope.updates import Ascent
from upslope.updates.ascent import micro_batches


@dataclass(frozen=True, kw_only=True)
class KTO:
    """Raise desirable completions above a reference point, and lower undesirable ones below it; no pairs are needed."""

    learns_from: ClassVar[str] = "labels"
    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    """weight of the KL to the reference that the labels are taken to regularize; the implicit reward is β h"""
    desirable_coef: float = 1.0
    """weight of desirable completions (λ_D)"""
    undesirable_coef: float = 1.0
    """weight of undesirable completions (λ_U)"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-6, max_grad_norm=1.0, eps=1e-8))
    """how parameters move"""

    def __post_init__(self) -> None:
        require(self.beta > 0, f"beta: expected a number > 0, found {self.beta}")
        check_not_negative(desirable_coef=self.desirable_coef, undesirable_coef=self.undesirable_coef)

    @torch.no_grad()
    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """``advantage`` holds each row's label, ±1, and ``value`` the reference point z₀ of the whole batch."""
        reference_of(rollout, "kto")
        require(rollout.unit == "pair", f"rollout: expected recorded completions [N, 1, T] of unit 'pair', found unit {rollout.unit!r}")
        label = torch.sign(rollout.reward.sum(-1, keepdim=True))
        present = rollout.mask.any(-1, keepdim=True)
        require(not bool((present & (label == 0)).any()), "reward: its sign is a completion's label, and one has reward 0; give +1 or −1")
        batch = Batch.of(rollout, average_over="sequences", advantage=label.expand_as(rollout.reward))
        known = batch.by_unit()
        h, shown = self.log_ratio(policy, known), known.mask.any(-1)
        point = h[shown].mean().clamp(min=0.0) if bool(shown.any()) else h.new_zeros(())
        metrics = {"kl": float(point)} | self.rewards(h[shown], known.need("advantage")[..., 0][shown])
        return replace(batch, value=point.to(batch.weight.dtype).expand_as(batch.weight), metrics=metrics)

    def log_ratio(self, policy: Policy, batch: Batch) -> Tensor:
        """h of each row, in the update's micro-batches."""
        found: list[Tensor] = []
        for piece in micro_batches(batch, getattr(self.update, "micro_batch_size", None)):
            log_prob = policy.evaluate(**piece.inputs).log_prob
            found.append(F.sequence_log_ratio(log_prob, piece.need("reference_log_prob"), piece.mask))
        return torch.cat(found)

    def rewards(self, h: Tensor, label: Tensor) -> Metrics:
        """Mean implicit reward β h of desirable and of undesirable completions, where there are any."""
        groups = {"reward_desirable": h[label > 0], "reward_undesirable": h[label < 0]}
        return {name: self.beta * float(x.mean()) for name, x in groups.items() if x.numel()}

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The value of each completion against z₀, weighted and summed; reports margins ``± β (h − z₀)`` and how many are above 0."""
        log_prob = policy.evaluate(**batch.inputs).log_prob
        reference = batch.need("reference_log_prob")
        label, point = batch.need("advantage")[..., 0], batch.need("value")[..., 0]
        coefs = {"desirable_coef": self.desirable_coef, "undesirable_coef": self.undesirable_coef}
        value = F.kto_value(log_prob, reference, batch.mask, self.beta, desirable=label > 0, reference_point=point, **coefs)
        shown = batch.mask.any(-1)
        h = F.sequence_log_ratio(log_prob.detach(), reference, batch.mask)
        margin = (self.beta * label * (h - point))[shown]
        metrics = {"margin": margin.mean(), "accuracy": (0.5 * (torch.sign(margin) + 1.0)).mean()}
        return F.weighted_sum(value, batch.weight.sum(-1)), metrics
