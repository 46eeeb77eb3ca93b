"""The last layer: log-probabilities of given tokens, a few hundred rows at a time, so that ``[tokens, vocabulary]`` never exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Logits that exist at one time (64 MiB in float32)."""


class TokenLogProb(torch.autograd.Function):
    """``log softmax(z)[target]`` and the entropy of ``softmax(z)``, ``z = cap · tanh((h Wᵀ + b) / cap) · scale`` (``cap`` None: no tanh).

    ``hidden [M, H]``, ``weight [V, H]``, ``bias [V]`` or None, ``targets [M]`` → ``log_prob [M]``, ``entropy [M]``, in float32.
    The backward pass computes the logits again: ``∂ log π_y / ∂z = e_y − p``, ``∂H / ∂z_j = −p_j (log p_j + H)``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        log_prob, entropy = (torch.empty(len(targets), dtype=accumulated(hidden), device=hidden.device) for _ in range(2))
        for rows in chunks(len(targets), weight.shape[0]):
            log_p, _ = log_softmax(hidden[rows], weight, bias, scale, cap)
            log_prob[rows] = log_p.gather(1, targets[rows, None]).squeeze(1)
            entropy[rows] = -log_p.exp().mul_(finite_(log_p)).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, entropy)
        ctx.scale, ctx.cap = scale, cap
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        to_log_prob, to_entropy = gradients
        if to_log_prob is None and to_entropy is None:
            return (None,) * 6
        hidden, weight, bias, targets, entropy = ctx.saved_tensors
        to_hidden = torch.zeros_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = None if bias is None else torch.zeros_like(bias)
        for rows in chunks(len(targets), weight.shape[0]):
            log_p, slope = log_softmax(hidden[rows], weight, bias, ctx.scale, ctx.cap)
            p, grad = log_p.exp(), None
            if to_entropy is not None:
                grad = finite_(log_p).add_(entropy[rows, None]).mul_(p).mul_(-to_entropy[rows, None])
            if to_log_prob is not None:
                up = to_log_prob[rows, None]
                own = p.mul_(-up).scatter_add_(1, targets[rows, None], up)
                grad = own if grad is None else grad.add_(own)
            assert grad is not None  # one of the two asked for it
            grad = grad if slope is None else grad.mul_(slope)
            grad = (grad if ctx.scale == 1.0 else grad.mul_(ctx.scale)).to(hidden.dtype)
            if to_bias is not None:
                to_bias += grad.sum(0)
            torch.mm(grad, weight, out=to_hidden[rows])
            if to_weight is not None:
                to_weight.addmm_(grad.t(), hidden[rows])
        return to_hidden, to_weight, to_bias, None, None, None


def accumulated(hidden: Tensor) -> torch.dtype:
    """Log-probabilities are float32 at least."""
    return torch.promote_types(hidden.dtype, torch.float32)


def log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of every token ``[rows, V]``, and the slope of the cap where there is one."""
    logits = torch.mm(hidden, weight.t()).to(accumulated(hidden))
    logits = logits if bias is None else logits + bias
    slope = None
    if cap is not None:
        bent = torch.tanh(logits / cap)
        logits, slope = bent * cap, 1 - bent.square()
    return (logits if scale == 1.0 else logits * scale).log_softmax(-1), slope


def finite_(log_p: Tensor) -> Tensor:
    """Log-probabilities of −∞ made finite, in place: times a probability of 0 they then add nothing."""
    return log_p.clamp_(min=torch.finfo(log_p.dtype).min)


def chunks(rows: int, vocabulary: int) -> list[slice]:
    """Slices of rows whose logits fit in :data:`CHUNK`."""
    size = max(1, CHUNK // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
