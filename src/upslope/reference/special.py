"""Gamma functions that NumPy lacks."""

import math


def log_beta_function(alpha: float, beta: float) -> float:
    """``log B(α, β) = log Γ(α) + log Γ(β) − log Γ(α + β)``."""
    return math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)


def digamma(x: float) -> float:
    """``ψ(x) = d log Γ/dx`` for x > 0: ``ψ(x) = ψ(x + 1) − 1/x`` up to 10, then the asymptotic series."""
    result = 0.0
    while x < 10.0:
        result -= 1.0 / x
        x += 1.0
    y = 1.0 / (x * x)
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132 - y * 691 / 32760)))))
    return result + math.log(x) - 0.5 / x - series


def trigamma(x: float) -> float:
    """``ψ′(x)`` for x > 0: ``ψ′(x) = ψ′(x + 1) + 1/x²`` up to 10, then the asymptotic series."""
    result = 0.0
    while x < 10.0:
        result += 1.0 / (x * x)
        x += 1.0
    y = 1.0 / (x * x)
    series = y * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * (5 / 66 - y * 691 / 2730)))))
    return result + 1.0 / x + 0.5 * y + series / x
