"""Every surrogate with its derivative, written out by hand.

Each function returns ``(value, gradient)``, both ``[..., T]``: ``gradient_u = ∂/∂log π_u Σ_t weight_t · value_t`` (``weight``
is 1 by default). With d ratio/d log π = ratio, a surrogate f(ratio, A) of the token ratio has the derivative f′(ratio, A) · ratio;
the ratios of whole sequences spread theirs over the row. Masked rows have value and gradient 0.
"""

import math
from collections.abc import Callable

import numpy as np

from upslope.reference.arrays import Array, as_mask, rows, unmasked

Pair = tuple[float, float]


def bounds(clip_range: float | tuple[float, float]) -> Pair:
    """``(1 − ε_low, 1 + ε_high)``."""
    low, high = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    return 1.0 - low, 1.0 + high


def ratios(kind: str, log_prob: Array, behavior_log_prob: Array, mask: Array) -> tuple[Array, Array]:
    """One row's ratios ``[T]`` and their derivatives ``[T, T]``, entry (t, u) being ``∂ ratio_t / ∂ log π_u``.

    ``token``: exp Δ_t, derivative ratio_t at u = t. ``sequence``: exp Σ Δ, derivative ratio at every u. ``sequence_mean``:
    exp mean Δ, derivative ``ratio / |o|`` at every u. ``sequence_mean_token``: the same value, but the derivative ratio at u = t only.
    """
    steps = [t for t in range(len(mask)) if mask[t]]
    ratio, derivative = np.ones(len(mask)), np.zeros((len(mask), len(mask)))
    delta = {t: float(log_prob[t] - behavior_log_prob[t]) for t in steps}
    total = sum(delta.values())
    row_ratio = {"token": 1.0, "sequence": math.exp(total)}.get(kind, math.exp(total / max(len(steps), 1)))
    for t in steps:
        ratio[t] = math.exp(delta[t]) if kind == "token" else row_ratio
        for u in steps:
            if kind in ("token", "sequence_mean_token"):
                derivative[t, u] = ratio[t] if t == u else 0.0
            else:
                derivative[t, u] = ratio[t] / (len(steps) if kind == "sequence_mean" else 1)
    return ratio, derivative


def from_ratio(
    f: Callable[[float, float], Pair],
    log_prob: Array,
    behavior_log_prob: Array,
    advantage: Array,
    mask: Array | None,
    *,
    ratio: str = "token",
    weight: Array | None = None,
) -> tuple[Array, Array]:
    """A surrogate given as ``f(ratio, A) -> (value, ∂ value/∂ ratio)``, chained with the ratio's derivative."""
    shown = as_mask(mask, log_prob.shape)
    share = np.ones(log_prob.shape) if weight is None else weight
    value, gradient = np.zeros(log_prob.shape), np.zeros(log_prob.shape)
    for row in rows(log_prob.shape):
        numbers, derivative = ratios(ratio, log_prob[row], behavior_log_prob[row], shown[row])
        for t in range(log_prob.shape[-1]):
            if shown[row][t]:
                value[row][t], slope = f(float(numbers[t]), float(advantage[row][t]))
                for u in range(log_prob.shape[-1]):
                    gradient[row][u] += share[row][t] * slope * derivative[t, u]
    return value, gradient


def importance_weighted(
    log_prob: Array, behavior_log_prob: Array, advantage: Array, mask: Array | None, *, ratio: str = "token", weight: Array | None = None
) -> tuple[Array, Array]:
    """``ratio · A``; ∂/∂ratio = A."""

    return from_ratio(lambda r, a: (r * a, a), log_prob, behavior_log_prob, advantage, mask, ratio=ratio, weight=weight)


def clipped_surrogate(
    log_prob: Array,
    behavior_log_prob: Array,
    advantage: Array,
    mask: Array | None,
    clip_range: float | tuple[float, float],
    *,
    dual_clip: float | None = None,
    ratio: str = "token",
    weight: Array | None = None,
) -> tuple[Array, Array]:
    """``min(ratio · A, clip(ratio) · A)``, and for A < 0 never below ``dual_clip · A``.

    ∂/∂ratio = A, except 0 where the minimum takes the clipped side: A > 0 with the ratio above the range, A < 0 with it
    below; and 0 where ``dual_clip`` binds.
    """
    low, high = bounds(clip_range)

    def f(r: float, a: float) -> Pair:
        value = min(r * a, min(max(r, low), high) * a)
        dead = (a > 0 and r > high) or (a < 0 and r < low)
        if dual_clip is not None and a < 0 and dual_clip * a > value:
            value, dead = dual_clip * a, True
        return value, 0.0 if dead else a

    return from_ratio(f, log_prob, behavior_log_prob, advantage, mask, ratio=ratio, weight=weight)


def kl_penalized_surrogate(
    log_prob: Array, behavior_log_prob: Array, advantage: Array, mask: Array | None, *, beta: float, weight: Array | None = None
) -> tuple[Array, Array]:
    """``ratio · A − β (ratio − 1 − log ratio)``; ∂/∂ratio = A − β (1 − 1/ratio)."""

    def f(r: float, a: float) -> Pair:
        return r * a - beta * (r - 1.0 - math.log(r)), a - beta * (1.0 - 1.0 / r)

    return from_ratio(f, log_prob, behavior_log_prob, advantage, mask, weight=weight)


def score_function(log_prob: Array, advantage: Array, mask: Array | None, *, weight: Array | None = None) -> tuple[Array, Array]:
    """``log π · A``; ∂/∂log π = A."""
    value, gradient = np.zeros(log_prob.shape), np.zeros(log_prob.shape)
    for i in unmasked(log_prob.shape, mask):
        value[i], gradient[i] = log_prob[i] * advantage[i], (1.0 if weight is None else weight[i]) * advantage[i]
    return value, gradient


def truncated_score(
    log_prob: Array,
    behavior_log_prob: Array,
    advantage: Array,
    mask: Array | None,
    clip_range: float | tuple[float, float],
    *,
    weight: Array | None = None,
) -> tuple[Array, Array]:
    """``sg(w) · A · log π`` with ``w = min(ratio, 1 + ε_high)``; ∂/∂log π = w · A, for w does not move; ``0 · log 0 = 0``."""
    value, gradient = np.zeros(log_prob.shape), np.zeros(log_prob.shape)
    for i in unmasked(log_prob.shape, mask):
        w = min(math.exp(log_prob[i] - behavior_log_prob[i]), bounds(clip_range)[1])
        value[i] = w * advantage[i] * log_prob[i] if w > 0 else 0.0
        gradient[i] = (1.0 if weight is None else weight[i]) * w * advantage[i]
    return value, gradient


def truncated_importance_weight(trainer: Array, sampler: Array, cap: float, mask: Array | None = None) -> Array:
    """``min(cap, exp(trainer − sampler))``, 1 (or the cap, if smaller) where masked."""
    result = np.full(trainer.shape, min(1.0, cap))
    for i in unmasked(trainer.shape, mask):
        result[i] = min(cap, math.exp(float(trainer[i] - sampler[i])))
    return result


def surrogate_metrics(
    log_prob: Array,
    behavior_log_prob: Array,
    advantage: Array,
    mask: Array | None,
    clip_range: float | tuple[float, float],
    weight: Array | None = None,
    *,
    dual_clip: float | None = None,
) -> dict[str, float]:
    """Mean k3 of KL(π_old‖π), share of ratios outside the range, share of steps whose gradient the clip takes away."""
    steps = list(unmasked(log_prob.shape, mask))
    low, high = bounds(clip_range)
    result = {"approx_kl": 0.0, "clip_fraction": 0.0, "dead_fraction": 0.0}
    for i in steps:
        share = 1.0 / len(steps) if weight is None else float(weight[i])
        moved, a = float(log_prob[i] - behavior_log_prob[i]), float(advantage[i])
        ratio = math.exp(moved)
        dead = (a > 0 and ratio > high) or (a < 0 and ratio < low)
        dead = dead or (dual_clip is not None and a < 0 and ratio > dual_clip)
        result["approx_kl"] += share * (ratio - 1.0 - moved)
        result["clip_fraction"] += share * (ratio < low or ratio > high)
        result["dead_fraction"] += share * dead
    return result
