"""Preference objectives with their derivatives by hand, one pair at a time.

Each returns ``(value, gradient)``: the value of each pair ``[...]`` and ``∂ Σ value / ∂ log π``, ``[..., 2, T]`` (``kto_value``:
``[..., T]``; ``bradley_terry``: with respect to the scores, ``[..., 2]``). With ``h = Σ_t (log π − log π_ref)_t`` every derivative
with respect to a step's log-probability is that with respect to its sequence's h; it is 0 on masked steps.
"""

import math
from collections.abc import Callable

import numpy as np

from upslope.reference.arrays import Array, as_mask, rows
from upslope.reference.distributions import sigmoid, softplus

Pair = tuple[float, float]


def log_sigmoid(x: float) -> float:
    """``−log(1 + e^−x)``, without overflow."""
    return -softplus(-x)


def sequence_log_ratio(log_prob: Array, reference_log_prob: Array, mask: Array | None = None) -> Array:
    """``Σ_t (log π − log π_ref)_t`` of each row."""
    shown, result = as_mask(mask, log_prob.shape), np.zeros(log_prob.shape[:-1])
    for row in rows(log_prob.shape):
        result[row] = math.fsum(float(log_prob[row][t] - reference_log_prob[row][t]) for t in range(log_prob.shape[-1]) if shown[row][t])
    return result


def from_margin(
    f: Callable[[float], Pair], log_prob: Array, reference_log_prob: Array, mask: Array | None, *, per_step: bool = False
) -> tuple[Array, Array]:
    """An objective of the margin ``m = h_w − h_l`` given as ``f(m) -> (value, slope)``: ∂/∂log π is slope for w, −slope for l.

    ``per_step`` divides each h by its number of steps.
    """
    shown, h = as_mask(mask, log_prob.shape), sequence_log_ratio(log_prob, reference_log_prob, mask)
    value, gradient = np.zeros(log_prob.shape[:-2]), np.zeros(log_prob.shape)
    for pair in np.ndindex(*value.shape):
        lengths = [max(int(shown[pair][i].sum()), 1) if per_step else 1 for i in range(2)]
        value[pair], slope = f(float(h[pair][0] / lengths[0] - h[pair][1] / lengths[1]))
        for i, sign in ((0, 1.0), (1, -1.0)):
            for t in range(log_prob.shape[-1]):
                if shown[pair][i][t]:
                    gradient[pair][i][t] = sign * slope / lengths[i]
    return value, gradient


def sigmoid_preference(
    log_prob: Array, reference_log_prob: Array, mask: Array | None, beta: float, *, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """``(1 − ε) log σ(βm) + ε log σ(−βm)``; slope ``β [(1 − ε) σ(−βm) − ε σ(βm)]``."""

    def f(margin: float) -> Pair:
        x = beta * margin
        value = (1.0 - label_smoothing) * log_sigmoid(x) + label_smoothing * log_sigmoid(-x)
        return value, beta * ((1.0 - label_smoothing) * sigmoid(-x) - label_smoothing * sigmoid(x))

    return from_margin(f, log_prob, reference_log_prob, mask)


def ipo_preference(log_prob: Array, reference_log_prob: Array, mask: Array | None, beta: float) -> tuple[Array, Array]:
    """``−(m − 1/(2β))²`` with h per step; slope ``−2 (m − 1/(2β))``."""

    def f(margin: float) -> Pair:
        distance = margin - 1.0 / (2.0 * beta)
        return -(distance**2), -2.0 * distance

    return from_margin(f, log_prob, reference_log_prob, mask, per_step=True)


def hinge_preference(log_prob: Array, reference_log_prob: Array, mask: Array | None, beta: float) -> tuple[Array, Array]:
    """``−max(0, 1 − βm)``; slope β below the margin of 1, 0 above."""

    def f(margin: float) -> Pair:
        missing = 1.0 - beta * margin
        return (-missing, beta) if missing > 0 else (0.0, 0.0)

    return from_margin(f, log_prob, reference_log_prob, mask)


def kto_value(
    log_prob: Array,
    reference_log_prob: Array,
    mask: Array | None,
    beta: float,
    *,
    desirable: Array,
    reference_point: Array,
    desirable_coef: float = 1.0,
    undesirable_coef: float = 1.0,
) -> tuple[Array, Array]:
    """``λ σ(±β (h − z₀))``; slope ``±λ β σ σ̄``, where ``σ̄ = 1 − σ``; plus for desirable rows."""
    shown, h = as_mask(mask, log_prob.shape), sequence_log_ratio(log_prob, reference_log_prob, mask)
    value, gradient = np.zeros(log_prob.shape[:-1]), np.zeros(log_prob.shape)
    for row in rows(log_prob.shape):
        sign, coef = (1.0, desirable_coef) if desirable[row] else (-1.0, undesirable_coef)
        x = sign * beta * float(h[row] - reference_point[row])
        value[row] = coef * sigmoid(x)
        for t in range(log_prob.shape[-1]):
            if shown[row][t]:
                gradient[row][t] = sign * coef * beta * sigmoid(x) * sigmoid(-x)
    return value, gradient


def bradley_terry(score: Array) -> tuple[Array, Array]:
    """``log σ(r_w − r_l)``; ∂/∂r_w = σ(r_l − r_w) = −∂/∂r_l."""
    value, gradient = np.zeros(score.shape[:-1]), np.zeros(score.shape)
    for pair in rows(score.shape):
        margin = float(score[pair][0] - score[pair][1])
        value[pair] = log_sigmoid(margin)
        gradient[pair] = [sigmoid(-margin), -sigmoid(-margin)]
    return value, gradient
