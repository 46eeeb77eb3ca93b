"""Log-probabilities and entropies of one row of parameters, with their gradients written out by hand.

Every function takes the parameters of a single decision, ``[P]``, and returns ``(value, gradient, …)``: one gradient ``[P]`` for each
parameter vector, in the order of the arguments.
"""

import math

import numpy as np

from upslope.reference.arrays import Array, as_mask
from upslope.reference.special import digamma, log_beta_function, trigamma


def softmax(logits: Array, mask: Array | None = None) -> Array:
    """``p_a = exp z_a / Σ_b exp z_b`` over legal actions, the largest subtracted first."""
    legal = as_mask(mask, logits.shape)
    largest = max(float(z) for z, ok in zip(logits, legal, strict=True) if ok)
    weights = [math.exp(z - largest) if ok else 0.0 for z, ok in zip(logits, legal, strict=True)]
    return np.array([w / math.fsum(weights) for w in weights])


def categorical_log_prob(logits: Array, action: int, mask: Array | None = None) -> tuple[float, Array]:
    """``log π_a = z_a − logsumexp(z)``; ∂/∂z = e_a − p."""
    gradient = -softmax(logits, mask)
    gradient[action] += 1.0
    return float(log_softmax(logits, mask)[action]), gradient


def log_softmax(logits: Array, mask: Array | None = None) -> Array:
    """``z_a − logsumexp(z)`` over legal actions, the largest subtracted first; −∞ for the others and for logits of −∞."""
    legal = as_mask(mask, logits.shape)
    largest = max(float(z) for z, ok in zip(logits, legal, strict=True) if ok)
    total = math.fsum(math.exp(z - largest) for z, ok in zip(logits, legal, strict=True) if ok)
    return np.array([float(z) - largest - math.log(total) if ok else -math.inf for z, ok in zip(logits, legal, strict=True)])


def categorical_entropy(logits: Array, mask: Array | None = None) -> tuple[float, Array]:
    """``H = −Σ p log p`` over legal actions; ∂H/∂z_j = −p_j (log p_j + H)."""
    p = softmax(logits, mask)
    entropy = -math.fsum(q * math.log(q) for q in p if q > 0)
    return entropy, np.array([-q * (math.log(q) + entropy) if q > 0 else 0.0 for q in p])


def categorical_sample(logits: Array, uniform: float, mask: Array | None = None) -> int:
    """The first action whose cumulative probability exceeds the uniform number; the last legal one if rounding leaves none."""
    legal = as_mask(mask, logits.shape)
    cumulative = 0.0
    for action, p in enumerate(softmax(logits, mask)):
        cumulative += p
        if cumulative > uniform:
            return action
    return max(a for a in range(len(logits)) if legal[a])


def sigmoid(z: float) -> float:
    """``1 / (1 + exp(−z))`` without overflow."""
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))


def softplus(z: float) -> float:
    """``log(1 + exp z)`` without overflow."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def bernoulli_log_prob(logits: Array, action: Array) -> tuple[float, Array]:
    """``Σ a log σ(z) + (1 − a) log σ(−z)``; ∂/∂z = a − σ(z)."""
    value = -sum(softplus(-z) if a else softplus(z) for z, a in zip(logits, action, strict=True))
    return value, np.array([float(a) - sigmoid(z) for z, a in zip(logits, action, strict=True)])


def bernoulli_entropy(logits: Array) -> tuple[float, Array]:
    """``Σ p softplus(−z) + (1 − p) softplus(z)``, p = σ(z); ∂/∂z = −z p (1 − p). Both are 0 at logits of ±∞."""
    value = sum(sigmoid(z) * softplus(-z) + sigmoid(-z) * softplus(z) if math.isfinite(z) else 0.0 for z in logits)
    return value, np.array([-z * sigmoid(z) * sigmoid(-z) if math.isfinite(z) else 0.0 for z in logits])


def gaussian_log_prob(mean: Array, log_std: Array, action: Array) -> tuple[float, Array, Array]:
    """``Σ −½ ((a − μ)/σ)² − log σ − ½ log 2π``; ∂/∂μ = (a − μ)/σ², ∂/∂log σ = (a − μ)²/σ² − 1."""
    value, d_mean, d_log_std = 0.0, np.zeros(mean.shape), np.zeros(mean.shape)
    for i, (mu, s, a) in enumerate(zip(mean, log_std, action, strict=True)):
        z = (a - mu) / math.exp(s)
        value += -0.5 * z * z - s - 0.5 * math.log(2.0 * math.pi)
        d_mean[i], d_log_std[i] = z / math.exp(s), z * z - 1.0
    return value, d_mean, d_log_std


def gaussian_entropy(log_std: Array) -> tuple[float, Array]:
    """``Σ log σ + ½ log 2πe``; ∂/∂log σ = 1."""
    return sum(float(s) + 0.5 * math.log(2.0 * math.pi * math.e) for s in log_std), np.ones(log_std.shape)


def squashed_gaussian_log_prob(mean: Array, log_std: Array, unsquashed: Array) -> tuple[float, Array, Array]:
    """``log N(u) − Σ 2 (log 2 − u − softplus(−2u))`` for a = tanh u; the gradients are the Gaussian's, u being constant."""
    value, d_mean, d_log_std = gaussian_log_prob(mean, log_std, unsquashed)
    value -= sum(2.0 * (math.log(2.0) - u - softplus(-2.0 * u)) for u in unsquashed)
    return value, d_mean, d_log_std


def beta_log_prob(log_alpha: Array, log_beta: Array, action: Array) -> tuple[float, Array, Array]:
    """``Σ (α − 1) log a + (β − 1) log(1 − a) − log B``; ∂/∂log α = α (log a − ψ(α) + ψ(α + β)), and with 1 − a for log β."""
    value, d_alpha, d_beta = 0.0, np.zeros(action.shape), np.zeros(action.shape)
    for i, a in enumerate(action):
        alpha, beta = math.exp(log_alpha[i]), math.exp(log_beta[i])
        value += (alpha - 1.0) * math.log(a) + (beta - 1.0) * math.log1p(-a) - log_beta_function(alpha, beta)
        d_alpha[i] = alpha * (math.log(a) - digamma(alpha) + digamma(alpha + beta))
        d_beta[i] = beta * (math.log1p(-a) - digamma(beta) + digamma(alpha + beta))
    return value, d_alpha, d_beta


def beta_entropy(log_alpha: Array, log_beta: Array) -> tuple[float, Array, Array]:
    """``Σ log B − (α − 1) ψ(α) − (β − 1) ψ(β) + (α + β − 2) ψ(α + β)``; ∂/∂log α = α ((α + β − 2) ψ′(α + β) − (α − 1) ψ′(α))."""
    value, d_alpha, d_beta = 0.0, np.zeros(log_alpha.shape), np.zeros(log_alpha.shape)
    for i in range(len(log_alpha)):
        alpha, beta = math.exp(log_alpha[i]), math.exp(log_beta[i])
        common = (alpha + beta - 2.0) * trigamma(alpha + beta)
        value += log_beta_function(alpha, beta) - (alpha - 1.0) * digamma(alpha) - (beta - 1.0) * digamma(beta)
        value += (alpha + beta - 2.0) * digamma(alpha + beta)
        d_alpha[i] = alpha * (common - (alpha - 1.0) * trigamma(alpha))
        d_beta[i] = beta * (common - (beta - 1.0) * trigamma(beta))
    return value, d_alpha, d_beta
