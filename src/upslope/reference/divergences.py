"""Sampled and exact divergences with their derivatives written out by hand."""

import math

import numpy as np

from upslope.reference.arrays import Array
from upslope.reference.distributions import log_softmax, sigmoid, softmax, softplus
from upslope.reference.special import digamma, log_beta_function, trigamma


def kl_k1(log_prob: float, other: float) -> tuple[float, float]:
    """``Δ = log_prob − other``; ∂/∂log_prob = 1."""
    return log_prob - other, 1.0


def kl_k2(log_prob: float, other: float) -> tuple[float, float]:
    """``½ Δ²``; ∂/∂log_prob = Δ."""
    return 0.5 * (log_prob - other) ** 2, log_prob - other


def kl_k3(log_prob: float, other: float) -> tuple[float, float]:
    """``exp(−Δ) + Δ − 1``; ∂/∂log_prob = 1 − exp(−Δ)."""
    delta = log_prob - other
    return math.exp(-delta) + delta - 1.0, 1.0 - math.exp(-delta)


def categorical_kl(logits_p: Array, logits_q: Array, mask: Array | None = None) -> tuple[float, Array, Array]:
    """``Σ p (log p − log q)`` over actions with p > 0; ∂/∂z_p = p (log p − log q − KL), ∂/∂z_q = q − p.

    Where q is 0 and p is not it is +∞, and ∂/∂z_p does not exist.
    """
    p, q = softmax(logits_p, mask), softmax(logits_q, mask)
    gap = [x - y if a > 0 else 0.0 for a, x, y in zip(p, log_softmax(logits_p, mask), log_softmax(logits_q, mask), strict=True)]
    value = math.fsum(a * g for a, g in zip(p, gap, strict=True))
    if math.isinf(value):
        return value, np.full(p.shape, math.nan), q - p
    return value, np.array([a * (g - value) for a, g in zip(p, gap, strict=True)]), q - p


def bernoulli_kl(logits_p: Array, logits_q: Array) -> tuple[float, Array, Array]:
    """``Σ p (log p − log q) + (1 − p)(log(1 − p) − log(1 − q))``; ∂/∂z_p = p (1 − p)(z_p − z_q), ∂/∂z_q = q − p.

    A side with p = 0 adds nothing; +∞ where q is 0 and p is not.
    """
    value, d_p, d_q = 0.0, np.zeros(logits_p.shape), np.zeros(logits_p.shape)
    for i, (x, y) in enumerate(zip(logits_p, logits_q, strict=True)):
        value += sigmoid(x) * (softplus(-y) - softplus(-x)) if sigmoid(x) > 0 else 0.0
        value += sigmoid(-x) * (softplus(y) - softplus(x)) if sigmoid(-x) > 0 else 0.0
        d_p[i], d_q[i] = sigmoid(x) * sigmoid(-x) * (x - y) if math.isfinite(x) else 0.0, sigmoid(y) - sigmoid(x)
    return value, d_p, d_q


def gaussian_kl(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array) -> tuple[float, Array, Array, Array, Array]:
    """``Σ log σ_q − log σ_p + (σ_p² + (μ_p − μ_q)²)/(2σ_q²) − ½``.

    ∂/∂μ_p = (μ_p − μ_q)/σ_q² = −∂/∂μ_q, ∂/∂log σ_p = σ_p²/σ_q² − 1, ∂/∂log σ_q = 1 − (σ_p² + (μ_p − μ_q)²)/σ_q².
    """
    value = 0.0
    gradients = np.zeros((4, len(mean_p)))
    for i in range(len(mean_p)):
        precision = math.exp(-2.0 * log_std_q[i])
        variance, gap = math.exp(2.0 * log_std_p[i]), float(mean_p[i] - mean_q[i])
        value += log_std_q[i] - log_std_p[i] + 0.5 * (variance + gap**2) * precision - 0.5
        gradients[:, i] = [gap * precision, variance * precision - 1.0, -gap * precision, 1.0 - (variance + gap**2) * precision]
    return float(value), gradients[0], gradients[1], gradients[2], gradients[3]


def beta_kl(log_alpha_p: Array, log_beta_p: Array, log_alpha_q: Array, log_beta_q: Array) -> tuple[float, Array, Array, Array, Array]:
    """``E_p[log p − log q]``, with E log a = ψ(α_p) − ψ(α_p + β_p) and E log(1 − a) = ψ(β_p) − ψ(α_p + β_p).

    With s = α_p + β_p and t = α_q + β_q: ∂/∂log α_p = α_p ((α_p − α_q) ψ′(α_p) − (s − t) ψ′(s)),
    ∂/∂log α_q = α_q (ψ(α_q) − ψ(t) − E log a), and the same with β and 1 − a.
    """
    value = 0.0
    gradients = np.zeros((4, len(log_alpha_p)))
    for i in range(len(log_alpha_p)):
        ap, bp, aq, bq = (math.exp(x[i]) for x in (log_alpha_p, log_beta_p, log_alpha_q, log_beta_q))
        log_a, log_b = digamma(ap) - digamma(ap + bp), digamma(bp) - digamma(ap + bp)
        value += (ap - aq) * log_a + (bp - bq) * log_b - log_beta_function(ap, bp) + log_beta_function(aq, bq)
        common = (ap + bp - aq - bq) * trigamma(ap + bp)
        gradients[:, i] = [
            ap * ((ap - aq) * trigamma(ap) - common),
            bp * ((bp - bq) * trigamma(bp) - common),
            aq * (digamma(aq) - digamma(aq + bq) - log_a),
            bq * (digamma(bq) - digamma(aq + bq) - log_b),
        ]
    return value, gradients[0], gradients[1], gradients[2], gradients[3]
