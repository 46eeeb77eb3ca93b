"""The last layer: log-probabilities of given tokens, some hundred rows at a time, so that no large ``[tokens, vocabulary]`` ever exists;
and tokens from uniform random numbers."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

once: Any = once_differentiable  # whose types would make ``ctx`` positional

CHUNK = 1 << 24  # logits that exist at one time (64 MiB in float32)

BLOCK = 512  # tokens in each of the blocks, one of which is drawn before a token in it

FLOAT_MIN = torch.finfo(torch.float32).min
"""What stands for log-probabilities of −∞: times a probability of 0 it adds nothing."""

KEPT = 1 << 25
"""Probabilities that a pass may keep until its backward pass (128 MiB in float32). Where there are more, or a cap bends the logits,
the backward pass computes them again."""


class Head(NamedTuple):
    """What makes logits: ``z = cap · tanh((h Wᵀ + b) / cap) · scale``, ``weight [V, H]``, ``bias [V]`` or None; ``cap`` None: no tanh."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None


class TokenLogProb(torch.autograd.Function):
    """``log softmax(z)[target]`` and the entropy of ``softmax(z)``, with the logits ``z`` of a :class:`Head`.

    ``hidden [M, H]``, ``targets [M]`` and the head's fields → ``log_prob [M]``, ``entropy [M]``, in float32 at least.
    Backward: ``∂ log π_y / ∂z = e_y − p``, ``∂H / ∂z_j = −p_j (log p_j + H)``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        log_prob, entropy = (hidden.new_empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32)) for _ in range(2))
        keep = cap is None and ctx.needs_input_grad[0] and len(targets) * weight.shape[0] <= KEPT
        kept: list[Tensor] = []
        for rows in chunks(len(targets), weight.shape[0]):
            z, _ = finished(torch.mm(hidden[rows], weight.t()), bias, scale, cap)
            p = z.sub_(z.amax(-1, keepdim=True)).exp()  # not divided by its sum yet
            total = p.sum(-1)
            log_prob[rows] = z.gather(1, targets[rows, None]).squeeze(1) - total.log()
            entropy[rows] = total.log() - torch.einsum("mv,mv->m", p, z.clamp_(min=FLOAT_MIN)) / total
            if keep:
                kept += p, total
        ctx.save_for_backward(hidden, weight, bias, targets, log_prob, entropy, *kept)
        ctx.scale, ctx.cap = scale, cap
        ctx.set_materialize_grads(False)
        return log_prob, entropy

    @staticmethod
    @once
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        to_log_prob, to_entropy = gradients
        if to_log_prob is None and to_entropy is None:
            return (None,) * 6
        hidden, weight, bias, targets, log_prob, entropy, *kept = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), None
        to_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        for i, rows in enumerate(chunks(len(targets), weight.shape[0])):
            if kept:
                p, slope = kept[2 * i] / kept[2 * i + 1][:, None], None
            else:
                z, slope = finished(torch.mm(hidden[rows], weight.t()), bias, ctx.scale, ctx.cap)
                p = z.softmax(-1)
            grad = torch.zeros((), dtype=p.dtype, device=p.device)
            if to_entropy is not None:
                grad = p.log().clamp_(min=FLOAT_MIN).add_(entropy[rows, None]).mul_(p).mul_(-to_entropy[rows, None])
            if to_log_prob is not None:
                up = to_log_prob[rows, None]
                by_log_prob = p.mul_(-up)
                by_log_prob.scatter_(1, targets[rows, None], -up * torch.expm1(log_prob[rows, None]))  # 1 − p_y, exactly
                grad = by_log_prob if to_entropy is None else grad.add_(by_log_prob)
            grad = grad if slope is None else grad.mul_(slope)
            grad = (grad if ctx.scale == 1.0 else grad.mul_(ctx.scale)).to(hidden.dtype)
            if to_bias is not None:
                to_bias += grad.sum(0, dtype=to_bias.dtype)
            torch.mm(grad, weight, out=to_hidden[rows])
            if ctx.needs_input_grad[1]:
                to_weight = torch.mm(grad.t(), hidden[rows]) if to_weight is None else added(to_weight, grad.t(), hidden[rows])
        to_weight = None if to_weight is None else to_weight.to(weight.dtype)
        to_bias = None if to_bias is None or bias is None else to_bias.to(bias.dtype)
        return to_hidden, to_weight, to_bias, None, None, None


def added(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total + a b``, in float32 at least, in which many products add up."""
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(torch.mm(a, b))


def finished(logits: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """From ``h Wᵀ [rows, V]``, which may be overwritten, to the logits of every token, and the slope of the cap where there is one."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits if bias is None else logits.add_(bias)
    slope = None
    if cap is not None:
        bent = torch.tanh(logits / cap)
        logits, slope = bent * cap, 1 - bent.square()
    return (logits if scale == 1.0 else logits.mul_(scale)), slope


def chunks(rows: int, vocabulary: int) -> list[slice]:
    """Slices of rows, of nearly the same size, whose logits fit in :data:`CHUNK`."""
    number = max(1, math.ceil(rows / max(1, CHUNK // vocabulary)))
    edges = [rows * i // number for i in range(number + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


def inverse_cdf(log_p: Tensor, uniform: Tensor) -> Tensor:
    """The token whose stretch of [0, 1) holds the uniform number ``[rows]``: its block, then its place, by short sums, which round less."""
    p = log_p.exp()
    size = min(BLOCK, p.shape[1])
    if p.shape[1] % size:
        p = torch.nn.functional.pad(p, (0, size - p.shape[1] % size))
    blocks = p.view(len(p), -1, size)
    block, rest = locate_in_cdf(blocks.sum(-1), uniform.to(torch.float64))
    inside, _ = locate_in_cdf(blocks[torch.arange(len(p), device=p.device), block], rest)
    return block * size + inside


def locate_in_cdf(mass: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Which entry of ``mass [rows, n]`` holds ``share`` (in [0, 1) of the total), and which share of that entry is left."""
    total = mass.to(torch.float64).cumsum(-1)
    wanted = (share * total[:, -1])[:, None]
    index = torch.searchsorted(total, wanted, right=True)
    last = (mass > 0).to(torch.int8).cumsum(-1).argmax(-1, keepdim=True)  # rounding must not lead past the last possible entry
    index = torch.minimum(index, last)
    before = torch.where(index > 0, total.gather(1, (index - 1).clamp(min=0)), 0.0)
    left = (wanted - before) / mass.to(torch.float64).gather(1, index)
    return index.squeeze(1), left.clamp(0.0, 1.0 - 1e-12).squeeze(1)
