"""The heads: what the outputs of a network for one row say of an action, and the derivatives, in the kernels' subset of Python."""

from __future__ import annotations

import math

from upslope.fast import layout as at
from upslope.fast.layout import BLOCK
from upslope.fast.registers import Flags, Floats, Integers, Table, shift

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def log_normalizer(logits: Floats, count: int, legal: Flags, masked: bool) -> float:
    """``logsumexp`` of one row's legal logits, ``BLOCK`` entries apart."""
    largest = -math.inf
    for a in range(count):
        if not masked or legal[a] != 0:
            largest = max(largest, logits[a * BLOCK])
    total = 0.0
    for a in range(count):
        if not masked or legal[a] != 0:
            total += math.exp(logits[a * BLOCK] - largest)
    return largest + math.log(total)


def categorical_entropy(logits: Floats, count: int, legal: Flags, masked: bool, normalizer: float) -> float:
    """``H = −Σ p log p`` over legal actions."""
    entropy = 0.0
    for a in range(count):
        if not masked or legal[a] != 0:
            log_p = logits[a * BLOCK] - normalizer
            p = math.exp(log_p)
            if p > 0.0:  # 0 · log 0 is 0
                entropy -= p * log_p
    return entropy


def categorical_backward(
    logits: Floats, delta: Floats, count: int, legal: Flags, masked: bool, normalizer: float, entropy: float, action: int,
    from_log_prob: float, from_entropy: float,
) -> None:  # fmt: skip
    """``∂ log π_a/∂z_j = 1[j = a] − p_j`` and ``∂H/∂z_j = −p_j (log p_j + H)``."""
    for a in range(count):
        delta[a * BLOCK] = 0.0
        if not masked or legal[a] != 0:
            log_p = logits[a * BLOCK] - normalizer
            chosen = 1.0 if a == action else 0.0
            p = math.exp(log_p)
            excess = log_p + entropy if p > 0.0 else 0.0
            delta[a * BLOCK] = from_log_prob * (chosen - p) - from_entropy * p * excess


def gaussian_log_prob(mean: Floats, log_std: Floats, count: int, action: Floats) -> float:
    """``Σ −½ ((a − μ)/σ)² − log σ − ½ log 2π``."""
    total = 0.0
    for i in range(count):
        z = (action[i] - mean[i * BLOCK]) * math.exp(-log_std[i])
        total -= 0.5 * z * z + log_std[i] + HALF_LOG_TWO_PI
    return total


def gaussian_backward(
    mean: Floats, log_std: Floats, delta: Floats, gradient: Floats, count: int, action: Floats, from_log_prob: float, from_entropy:
    float,
) -> None:  # fmt: skip
    """``∂/∂μ = (a − μ)/σ²`` into ``delta``; ``∂/∂ log σ = (a − μ)²/σ² − 1``, and 1 for the entropy, into the gradient."""
    for i in range(count):
        inverse = math.exp(-log_std[i])
        z = (action[i] - mean[i * BLOCK]) * inverse
        delta[i * BLOCK] = from_log_prob * z * inverse
        gradient[i] += from_log_prob * (z * z - 1.0) + from_entropy


def head_forward(networks: Integers, log_std: Floats, z: Floats, batch: Table, row: int, masked: bool) -> tuple[float, float, float]:
    """``log π`` of one row's action, the entropy, and what the logits are normalized by (0 for a Gaussian)."""
    outputs = networks[at.OUTPUTS]
    entropy = 0.0
    if networks[at.HEAD] == at.GAUSSIAN:
        continuous: Floats = batch[at.CONTINUOUS]
        for i in range(outputs):
            entropy += log_std[i] + HALF_LOG_TWO_PI + 0.5
        return gaussian_log_prob(z, log_std, outputs, shift(continuous, row * outputs)), entropy, 0.0
    action: Integers = batch[at.ACTION]
    legal: Flags = batch[at.LEGAL]
    allowed = shift(legal, row * outputs)
    normalizer = log_normalizer(z, outputs, allowed, masked)
    entropy = categorical_entropy(z, outputs, allowed, masked, normalizer)
    return z[action[row] * BLOCK] - normalizer, entropy, normalizer


def head_backward(
    networks: Integers, log_std: Floats, z: Floats, batch: Table, row: int, masked: bool, entropy: float, normalizer: float,
    from_log_prob: float, from_entropy: float, delta: Floats, gradient: Floats,
) -> None:  # fmt: skip
    """∂/∂outputs of one row into ``delta``, from ∂/∂log π and ∂/∂entropy; a Gaussian's ∂/∂log σ is added to its ``gradient``."""
    outputs = networks[at.OUTPUTS]
    if networks[at.HEAD] == at.GAUSSIAN:
        continuous: Floats = batch[at.CONTINUOUS]
        gaussian_backward(z, log_std, delta, gradient, outputs, shift(continuous, row * outputs), from_log_prob, from_entropy)
    else:
        action: Integers = batch[at.ACTION]
        legal: Flags = batch[at.LEGAL]
        allowed = shift(legal, row * outputs)
        categorical_backward(z, delta, outputs, allowed, masked, normalizer, entropy, action[row], from_log_prob, from_entropy)
