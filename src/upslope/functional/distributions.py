"""Log-probability, entropy and sampling of the action distributions, as functions of raw network outputs.

``[..., P]`` parameters give ``[...]`` log-probabilities and entropies; independent parts add over the last axis. Sampling
takes an explicit generator and draws a fixed number of numbers (Beta excepted), so that another implementation fed
the same numbers draws the same actions. Shapes that do not fit raise ValueError.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from upslope.functional.divergences import check_log_std, log_beta_function
from upslope.functional.shapes import check_shapes


def categorical_log_prob(logits: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
    """``log π_a = z_a − logsumexp(z)``: logits ``[..., A]``, action ``[...]`` int64, → ``[...]``.

    ``mask [..., A]`` is True for legal actions; illegal logits count as −∞.

    Source: FORMULAS section 1; ∇ is ``e_a − p``.
    """
    check_shapes("logits without its last axis", logits.shape[:-1], action=action)
    log_p = (logits if mask is None else _legal(logits, mask)).log_softmax(-1)
    return log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def categorical_entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """``H = −Σ_a p_a log p_a`` (nats) of legal actions: ``[..., A]`` → ``[...]``; ``∂H/∂z_j = −p_j (log p_j + H)``. FORMULAS section 1."""
    log_p = (logits if mask is None else _legal(logits, mask)).log_softmax(-1)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)  # 0 · log 0 = 0, and so is its derivative


def categorical_sample(logits: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
    """One action per row by inverting the cumulative distribution at one uniform number u: ``[..., A]`` → ``[...]`` int64.

    ``a = #{j : F(j) ≤ u}``, ``F(j) = p_0 + … + p_j``, at most the first a at which F reaches its last value, which may round to below u.
    """
    cumulative = (logits if mask is None else _legal(logits, mask)).log_softmax(-1).exp().cumsum(-1)
    uniform = torch.rand(logits.shape[:-1], generator=generator, dtype=logits.dtype, device=logits.device)
    reached = (cumulative < cumulative[..., -1:]).sum(-1)
    return torch.minimum((cumulative <= uniform.unsqueeze(-1)).sum(-1), reached)


def bernoulli_log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """Independent coins: ``Σ a log σ(z) + (1 − a) log σ(−z)``; logits and action (0 or 1) ``[..., n]`` → ``[...]``."""
    check_shapes("logits", logits.shape, action=action)
    return logsigmoid(torch.where(action != 0, logits, -logits)).sum(-1)


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """``Σ −p log p − (1 − p) log(1 − p)`` with ``p = σ(z)``, written in ``|z|`` so that nothing cancels: ``[..., n]`` → ``[...]``.

    A coin with a logit of ±∞ has none.
    """
    size = logits.abs().clamp(max=torch.finfo(logits.dtype).max)  # ∞ · 0 is NaN
    return (size * (-size).sigmoid() - logsigmoid(size)).sum(-1)


def bernoulli_sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``a = 1`` where a uniform number is below ``σ(z)``: ``[..., n]`` → the same shape, int64."""
    return (torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device) < logits.sigmoid()).long()


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Diagonal Gaussian: ``Σ −½ ((a − μ)/σ)² − log σ − ½ log 2π``: ``[..., d]`` → ``[...]``; ``log_std`` may be ``[d]``.

    Source: FORMULAS section 1; ``∂/∂μ = (a − μ)/σ²``, ``∂/∂log σ = (a − μ)²/σ² − 1``.
    """
    check_shapes("mean", mean.shape, action=action)
    check_log_std(mean, "log_std", log_std)
    z = (action - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std).sum(-1) - 0.5 * math.log(2.0 * math.pi) * mean.shape[-1]


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """``Σ log σ + ½ log 2πe``: ``[..., d]`` → ``[...]``, in nats; the mean does not matter."""
    return log_std.sum(-1) + 0.5 * math.log(2.0 * math.pi * math.e) * log_std.shape[-1]


def gaussian_sample(mean: Tensor, log_std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``μ + σ ε`` with ``ε`` standard normal: ``[..., d]``; ``log_std`` ``[..., d]`` or ``[d]``."""
    check_log_std(mean, "log_std", log_std)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return torch.addcmul(mean, log_std.exp(), noise)


def squashed_gaussian_log_prob(mean: Tensor, log_std: Tensor, unsquashed: Tensor) -> Tensor:
    """Density of ``a = tanh u``, evaluated from ``u [..., d]`` → ``[...]``: ``log N(u; μ, σ) − Σ log(1 − tanh² u)``.

    ``log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u))`` is exact for every u; from ``a`` it is lost to rounding near ±1.

    Source: Haarnoja et al. 2018 (SAC), appendix C, eq. 21.
    """
    # −softplus(−x) = logsigmoid(x), which has no cut-off at large arguments
    log_slope = 2.0 * (math.log(2.0) - unsquashed + logsigmoid(2.0 * unsquashed))
    return gaussian_log_prob(mean, log_std, unsquashed) - log_slope.sum(-1)


def beta_log_prob(log_alpha: Tensor, log_beta: Tensor, action: Tensor) -> Tensor:
    """Independent Beta distributions on (0, 1): ``Σ (α − 1) log a + (β − 1) log(1 − a) − log B(α, β)``; all ``[..., d]`` → ``[...]``.

    Source: Chou et al. 2017, on Beta policies.
    """
    check_shapes("log_alpha", log_alpha.shape, log_beta=log_beta, action=action)
    alpha, beta = log_alpha.exp(), log_beta.exp()
    return ((alpha - 1.0) * action.log() + (beta - 1.0) * torch.log1p(-action) - log_beta_function(alpha, beta)).sum(-1)


def beta_entropy(log_alpha: Tensor, log_beta: Tensor) -> Tensor:
    """``Σ log B − (α − 1) ψ(α) − (β − 1) ψ(β) + (α + β − 2) ψ(α + β)``: ``[..., d]`` → ``[...]``, in nats."""
    check_shapes("log_alpha", log_alpha.shape, log_beta=log_beta)
    alpha, beta = log_alpha.exp(), log_beta.exp()
    middle = (alpha - 1.0) * alpha.digamma() + (beta - 1.0) * beta.digamma()
    return (log_beta_function(alpha, beta) - middle + (alpha + beta - 2.0) * (alpha + beta).digamma()).sum(-1)


def beta_sample(log_alpha: Tensor, log_beta: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``x / (x + y)`` of two gamma variables, kept off 0 and 1, where the density may be infinite: ``[..., d]``."""
    check_shapes("log_alpha", log_alpha.shape, log_beta=log_beta)
    concentration = torch.stack([log_alpha, log_beta]).exp()
    # torch's public samplers take no generator
    gamma = torch._standard_gamma(concentration, generator=generator)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    eps = torch.finfo(gamma.dtype).eps
    return (gamma[0] / gamma.sum(0)).clamp(eps, 1.0 - eps)


def _legal(logits: Tensor, mask: Tensor) -> Tensor:
    """The logits, −∞ where an action is illegal."""
    check_shapes("logits", logits.shape, mask=mask)
    return logits.masked_fill(~mask, -torch.inf)
