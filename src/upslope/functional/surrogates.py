"""Objectives per step, to be maximized: each ``(log_prob, behavior_log_prob, advantage, mask, clip_range) -> [..., T]``.

``ratio = exp(log_prob − behavior_log_prob)``. Wherever it is 1 the gradient of every one of them is ``advantage · ∇ log π``.
``clip_range`` is ε or (ε_low, ε_high). Masked rows give 0 and take no gradient, whatever they hold; ``mask=None`` means all
True. Options beyond the five arguments are keyword-only: bind them with ``functools.partial``. Shapes that differ raise ValueError.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from upslope.functional.recursion import zero_masked
from upslope.functional.shapes import check_shapes

ClipRange = float | tuple[float, float]
Ratio = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(log_prob, behavior_log_prob, mask) -> ratio``, all ``[..., T]``."""


def clip_bounds(clip_range: ClipRange) -> tuple[float, float]:
    """The interval in which a ratio is left alone, ``(1 − ε_low, 1 + ε_high)``; raises ValueError for a negative ε."""
    low, high = (clip_range, clip_range) if isinstance(clip_range, (int, float)) else clip_range
    if not (low >= 0 and high >= 0):
        raise ValueError(f"clip_range: expected numbers of at least 0, found {clip_range}")
    return 1.0 - low, 1.0 + high


def token_ratio(log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor | None = None) -> Tensor:
    """``exp Δ_t``, ``Δ = log_prob − behavior_log_prob``, ``[..., T]``; 1 on masked rows. Source: Schulman et al. 2017 (PPO), eq. 6."""
    check_shapes("log_prob", log_prob.shape, behavior_log_prob=behavior_log_prob, mask=mask)
    return zero_masked(log_prob - behavior_log_prob, mask).exp()  # masked *before* it is exponentiated: 0 · ∞ would be NaN


def sequence_ratio(log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor | None = None) -> Tensor:
    """``exp Σ_t Δ_t``, the ratio of the whole row, repeated at each of its steps, ``[..., T]``.

    One row is one sequence. Average over ``sequences``, whose weights add to 1/N in a row: with a weight of 1/N at every step
    a row of length T would count T times.

    Source: the ratio of two trajectories' probabilities, SB eq. 5.3.
    """
    difference = _difference(log_prob, behavior_log_prob, mask)
    return difference.sum(-1, keepdim=True).exp().expand_as(difference)


def sequence_mean_ratio(log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor | None = None) -> Tensor:
    """``exp mean_t Δ_t`` over a row's unmasked steps, repeated at each step, ``[..., T]``. Average over ``sequences``.

    Source: Zheng et al. 2025 (GSPO), eq. 7.
    """
    difference = _difference(log_prob, behavior_log_prob, mask)
    return _row_mean(difference, mask).exp().expand_as(difference)


def sequence_mean_token_ratio(log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor | None = None) -> Tensor:
    """``sg(s) · exp(log π_t − sg(log π_t))``, s the row's :func:`sequence_mean_ratio`: its value, but each step's gradient.

    Source: Zheng et al. 2025 (GSPO-token), eq. 14.
    """
    mean = sequence_mean_ratio(log_prob.detach(), behavior_log_prob, mask)
    return mean * _difference(log_prob, log_prob.detach(), mask).exp()


def score_function(
    log_prob: Tensor, behavior_log_prob: Tensor, advantage: Tensor, mask: Tensor | None, clip_range: ClipRange | None
) -> Tensor:
    """``log π · A``, ``[..., T]``: REINFORCE. ``behavior_log_prob`` and ``clip_range`` are not used. Source: Williams 1992; SB eq. 13.8."""
    check_shapes("log_prob", log_prob.shape, behavior_log_prob=behavior_log_prob, advantage=advantage, mask=mask)
    return zero_masked(log_prob, mask) * zero_masked(advantage, mask)


def importance_weighted(
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor | None,
    clip_range: ClipRange | None,
    *,
    ratio: Ratio = token_ratio,
) -> Tensor:
    """``ratio · A``, ``[..., T]``: valid close to the behavior policy only. ``clip_range`` is not used.

    Source: Schulman et al. 2015 (TRPO), eq. 14; Degris et al. 2012 for off-policy samples.
    """
    check_shapes("log_prob", log_prob.shape, advantage=advantage)
    return ratio(log_prob, behavior_log_prob, mask) * zero_masked(advantage, mask)


def clipped_surrogate(
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor | None,
    clip_range: ClipRange,
    *,
    dual_clip: float | None = None,
    ratio: Ratio = token_ratio,
) -> Tensor:
    """``min(ratio · A, clip(ratio, 1 − ε_low, 1 + ε_high) · A)``, ``[..., T]``: no reward for moving further than the range.

    ``dual_clip`` c, ValueError for c ≤ 1: for A < 0, ``max(min(…), c · A)``. Source: Schulman et al. 2017, eq. 7; Ye et al. 2020, eq. 5.
    """
    check_shapes("log_prob", log_prob.shape, advantage=advantage)
    low, high = clip_bounds(clip_range)
    r, masked_advantage = ratio(log_prob, behavior_log_prob, mask), zero_masked(advantage, mask)
    # one bound decides which of the two products is the smaller: the upper for A ≥ 0, the lower for A < 0
    surrogate = torch.where(masked_advantage < 0, r.clamp(min=low), r.clamp(max=high)) * masked_advantage
    if dual_clip is None:
        return surrogate
    if not dual_clip > 1:
        raise ValueError(f"dual_clip: expected a number above 1, found {dual_clip}")
    return torch.where(masked_advantage < 0, torch.maximum(surrogate, dual_clip * masked_advantage), surrogate)


def truncated_score(log_prob: Tensor, behavior_log_prob: Tensor, advantage: Tensor, mask: Tensor | None, clip_range: ClipRange) -> Tensor:
    """``sg(min(ratio, 1 + ε_high)) · A · log π``, ``[..., T]``: the weight is clipped, the gradient of no step is lost.

    Source: MiniMax 2025 (CISPO), eq. 4 and 5.
    """
    check_shapes("log_prob", log_prob.shape, advantage=advantage)
    weight = token_ratio(log_prob.detach(), behavior_log_prob, mask).clamp(max=clip_bounds(clip_range)[1])
    # an action that the policy no longer takes has weight 0, and 0 · log 0 is 0
    return weight * zero_masked(advantage, mask) * zero_masked(log_prob, mask).masked_fill(weight == 0, 0.0)


def kl_penalized_surrogate(
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor | None,
    clip_range: ClipRange | None,
    *,
    beta: float,
    kl: Tensor | None = None,
) -> Tensor:
    """``ratio · A − β KL(π_old‖π)``, ``[..., T]``. ``clip_range`` is not used.

    ``kl`` is the exact divergence of each step's two distributions; without it k3, ``ratio − 1 − log ratio``, stands in (k1 would not
    do: on-policy its gradient is 0 in expectation).

    Source: Schulman et al. 2017 (PPO), eq. 8.
    """
    check_shapes("log_prob", log_prob.shape, advantage=advantage, kl=kl)
    difference = _difference(log_prob, behavior_log_prob, mask)
    penalty = torch.expm1(difference) - difference if kl is None else zero_masked(kl, mask)
    return difference.exp() * zero_masked(advantage, mask) - beta * penalty


def truncated_importance_weight(log_prob_trainer: Tensor, log_prob_sampler: Tensor, cap: float, mask: Tensor | None = None) -> Tensor:
    """``sg(min(C, π_trainer / π_sampler))``, ``[..., T]``: multiply a surrogate by it when sampler and trainer round differently.

    Raises ValueError for a cap that is not positive. Source: Ionides 2008 (truncated importance sampling); FORMULAS section 6.
    """
    if not cap > 0:
        raise ValueError(f"cap: expected a positive number, found {cap}")
    return _difference(log_prob_trainer.detach(), log_prob_sampler.detach(), mask).exp().clamp(max=cap)


@torch.no_grad()
def surrogate_metrics(
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor | None,
    clip_range: ClipRange,
    weight: Tensor | None = None,
    *,
    dual_clip: float | None = None,
) -> dict[str, Tensor]:
    """How far the policy has moved, 0-d: means over unmasked steps, or ``Σ weight · x`` (parts of a batch add up).

    ``approx_kl``: k3 of KL(π_old‖π), ``ratio − 1 − log ratio``. ``clip_fraction``: share of ratios outside the range. ``dead_fraction``:
    share of steps without a gradient (``A > 0`` above the range, ``A < 0`` below it or beyond ``dual_clip``). Source: FORMULAS section 8.
    """
    check_shapes("log_prob", log_prob.shape, advantage=advantage, weight=weight, behavior_log_prob=behavior_log_prob, mask=mask)
    low, high = clip_bounds(clip_range)
    difference, masked_advantage = zero_masked(log_prob - behavior_log_prob, mask), zero_masked(advantage, mask)
    excess = torch.expm1(difference)  # ratio − 1
    outside = (excess < low - 1.0) | (excess > high - 1.0)
    dead = outside & (difference * masked_advantage > 0)
    if dual_clip is not None:
        dead = dead | ((excess > dual_clip - 1.0) & (masked_advantage < 0))
    columns = {"approx_kl": excess - difference, "clip_fraction": outside.to(excess.dtype), "dead_fraction": dead.to(excess.dtype)}
    if weight is not None:
        return {name: (column * weight).sum() for name, column in columns.items()}
    count = difference.numel() if mask is None else mask.sum().clamp(min=1)
    return {name: column.sum() / count for name, column in columns.items()}


def _difference(log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor | None) -> Tensor:
    """``log_prob − behavior_log_prob``, 0 on masked rows *before* anything is exponentiated: 0 · ∞ would be NaN."""
    check_shapes("log_prob", log_prob.shape, behavior_log_prob=behavior_log_prob, mask=mask)
    return zero_masked(log_prob - behavior_log_prob, mask)


def _row_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of each row's unmasked entries, ``[..., 1]``; 0 for an empty row. Masked entries are 0 already."""
    count = x.shape[-1] if mask is None else mask.sum(-1, keepdim=True).clamp(min=1)
    return x.sum(-1, keepdim=True) / count
