"""How far one distribution is from another: three sampled estimates, and the exact values where there is a formula.

``Δ = log_prob − other``. On samples of π (``log_prob`` its, ``other`` that of π_ref) the means of k1 and k3 are KL(π‖π_ref).
Differentiated as a loss they are not alike: E∇k1 = 0, E∇k2 = ∇KL(π‖π_ref), E∇k3 = ∇KL(π_ref‖π); and only with Δ of the whole
sampled object, an action or a sequence's sum. Source: J. Schulman, "Approximating KL divergence"; FORMULAS section 10.
All functions raise ValueError when shapes differ.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from upslope.functional.recursion import zero_masked
from upslope.functional.shapes import check_shapes


def kl_k1(log_prob: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """``k1 = Δ``, any shape: unbiased, of either sign; as a loss its gradient is 0 in expectation."""
    check_shapes("log_prob", log_prob.shape, other=other, mask=mask)
    return zero_masked(log_prob - other, mask)


def kl_k2(log_prob: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """``k2 = ½ Δ²``, any shape: biased, low variance; its gradient on samples of π is that of KL(π‖π_ref)."""
    return 0.5 * kl_k1(log_prob, other, mask).square()


def kl_k3(log_prob: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """``k3 = exp(−Δ) + Δ − 1``, any shape: unbiased, never negative; its gradient on samples of π is that of KL(π_ref‖π)."""
    difference = kl_k1(log_prob, other, mask)
    return torch.expm1(-difference) + difference


def categorical_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor | None = None) -> Tensor:
    """``KL(p‖q) = Σ_a p_a (log p_a − log q_a)`` of two softmax distributions: ``[..., A]`` → ``[...]``.

    ``mask [..., A]`` is True for legal actions; illegal ones, and those whose logits are −∞, have probability 0. An action with
    ``p = 0`` adds nothing, whatever q is; one with ``q = 0`` and ``p > 0`` makes the divergence +∞.
    """
    check_shapes("logits_p", logits_p.shape, logits_q=logits_q, mask=mask)
    if mask is not None:
        logits_p, logits_q = logits_p.masked_fill(~mask, -torch.inf), logits_q.masked_fill(~mask, -torch.inf)
    log_p, log_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    return _expected_gap(log_p.exp(), log_p, log_q).sum(-1)


def bernoulli_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """``KL(p‖q)`` of independent coins with probabilities ``σ(logits)``, summed: ``[..., n]`` → ``[...]``.

    ``Σ p (log p − log q) + (1 − p)(log(1 − p) − log(1 − q))``; logits of ±∞ are coins that always fall on one side.
    """
    check_shapes("logits_p", logits_p.shape, logits_q=logits_q)
    heads = _expected_gap(logits_p.sigmoid(), logsigmoid(logits_p), logsigmoid(logits_q))
    tails = _expected_gap((-logits_p).sigmoid(), logsigmoid(-logits_p), logsigmoid(-logits_q))
    return (heads + tails).sum(-1)


def gaussian_kl(mean_p: Tensor, log_std_p: Tensor, mean_q: Tensor, log_std_q: Tensor) -> Tensor:
    """``KL(p‖q)`` of diagonal Gaussians, summed: ``[..., d]`` → ``[...]``; a ``log_std`` may be ``[d]``.

    ``Σ log σ_q − log σ_p + (σ_p² + (μ_p − μ_q)²) / (2 σ_q²) − ½``.
    """
    check_shapes("mean_p", mean_p.shape, mean_q=mean_q)
    for name, log_std in (("log_std_p", log_std_p), ("log_std_q", log_std_q)):
        check_log_std(mean_p, name, log_std)
    ratio = (2.0 * (log_std_p - log_std_q)).exp()
    distance = ((mean_p - mean_q) * (-log_std_q).exp()).square()
    return (log_std_q - log_std_p + 0.5 * (ratio + distance - 1.0)).sum(-1)


def beta_kl(log_alpha_p: Tensor, log_beta_p: Tensor, log_alpha_q: Tensor, log_beta_q: Tensor) -> Tensor:
    """``KL(p‖q)`` of independent Beta distributions on (0, 1), summed: ``[..., d]`` → ``[...]``.

    ``Σ log B(q) − log B(p) + (α_p − α_q) ψ(α_p) + (β_p − β_q) ψ(β_p) + (α_q − α_p + β_q − β_p) ψ(α_p + β_p)``.
    """
    check_shapes("log_alpha_p", log_alpha_p.shape, log_beta_p=log_beta_p, log_alpha_q=log_alpha_q, log_beta_q=log_beta_q)
    alpha_p, beta_p, alpha_q, beta_q = log_alpha_p.exp(), log_beta_p.exp(), log_alpha_q.exp(), log_beta_q.exp()
    value = log_beta_function(alpha_q, beta_q) - log_beta_function(alpha_p, beta_p)
    value = value + (alpha_p - alpha_q) * alpha_p.digamma() + (beta_p - beta_q) * beta_p.digamma()
    return (value + (alpha_q - alpha_p + beta_q - beta_p) * (alpha_p + beta_p).digamma()).sum(-1)


def log_beta_function(alpha: Tensor, beta: Tensor) -> Tensor:
    """``log B(α, β) = log Γ(α) + log Γ(β) − log Γ(α + β)``, any shape."""
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


def _expected_gap(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """``p (log p − log q)``, elementwise; where p is 0 it is 0, and so are its derivatives, even for ``log q = −∞``."""
    return p * (log_p - log_q).masked_fill(p == 0, 0.0)


def check_log_std(mean: Tensor, name: str, log_std: Tensor) -> None:
    """A log standard deviation is given per entry ``[..., d]`` or once for all ``[d]``; anything else raises ValueError."""
    if log_std.shape != mean.shape and log_std.shape != mean.shape[-1:]:
        raise ValueError(f"{name}: expected shape {tuple(mean.shape)} or {tuple(mean.shape[-1:])}, found {tuple(log_std.shape)}")
