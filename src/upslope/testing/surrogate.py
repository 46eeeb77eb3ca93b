"""The contract of a surrogate: one value per step, to be maximized."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor

from upslope.records import Surrogate
from upslope.testing.contract import ContractError, expect, same
from upslope.testing.known_mistakes import MISTAKES

CLIP_RANGES = (0.2, (0.2, 0.28))


def check_surrogate(surrogate: Surrogate, *, on_policy_gradient: bool = True, sequence: bool = False, seed: int = 0) -> None:
    r"""Hold a surrogate to the contract that the library relies on; returns None or raises :class:`ContractError`.

    A surrogate is ``(log_prob, behavior_log_prob, advantage, mask, clip_range) -> [..., T]``, one value per step, to be
    **maximised**. What must hold, checked in float64 on random ``[3, 5]`` input with masked entries:

    1. shape and dtype of ``log_prob``; finite wherever the mask is True, for small and large ratios;
    2. differentiable with respect to ``log_prob``;
    3. at ``ratio = 1`` the gradient is that of the policy gradient: :math:`\partial / \partial \log\pi_t = A_t`
       (FORMULAS section 6; ``on_policy_gradient=False`` skips it; ``sequence=True`` asks it of each sequence's sum or, for a ratio
       of whole sequences, of its mean);
    4. what stands in masked entries, NaN included, changes neither value nor gradient of the others;
    5. rows do not see each other: what one row holds changes neither value nor gradient of the others (so that minibatches and
       micro-batches mean what they say; a mean over the batch breaks it);
    6. inputs are not changed in place;
    7. a good action that has become rarer (ratio 0.5) and a bad one that has become more frequent (ratio 2) are still moved.

    Args:
        surrogate: the function; bind further options with ``functools.partial``.
        on_policy_gradient: whether property 3 is meant to hold.
        sequence: whether one ratio per sequence is used: a mean (GSPO) or the product of the steps' ratios.
        seed: of the random input.

    Source: PPO equations 6 and 7; the property at ratio 1 is TRPO's equation 4.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    mask[2, 1:] = False
    behavior = -torch.rand(3, 5, generator=generator, dtype=torch.float64) * 2 - 0.1
    advantage = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    if sequence:
        advantage = advantage[:, :1].expand(3, 5).clone()
    for clip_range in CLIP_RANGES:
        for shift in (0.0, 0.05, 1.0, -20.0, 20.0):
            drift = shift * torch.randn(3, 5, generator=generator, dtype=torch.float64).abs()
            _check_values(surrogate, behavior + drift, behavior, advantage, mask, clip_range)
        if on_policy_gradient:
            _check_on_policy(surrogate, behavior, advantage, mask, clip_range, sequence)
            _check_clip(surrogate, behavior, mask, clip_range)


def _call(surrogate: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return surrogate(*arguments)
    except Exception as error:
        raise ContractError(
            f"surrogate: raised {type(error).__name__} ({error}) when called as "
            "(log_prob, behavior_log_prob, advantage, mask, clip_range); accept these five, clip_range a float or (low, high)"
        ) from error


def _gradient(surrogate: Surrogate, log_prob: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    leaf = log_prob.detach().clone().requires_grad_()
    value = _call(surrogate, leaf, *rest)
    expect(isinstance(value, Tensor), f"surrogate: expected a tensor, found {type(value).__name__}; return one value per step")
    expect(
        value.shape == leaf.shape,
        f"surrogate: expected one value per step, shape {tuple(leaf.shape)}, found {tuple(value.shape)}; do not reduce",
    )
    expect(value.dtype == leaf.dtype, f"surrogate: expected dtype {leaf.dtype}, found {value.dtype}; keep the input's")
    expect(value.requires_grad, "surrogate: the value does not depend on log_prob; nothing would be learned")
    mask: Tensor = rest[2]
    (gradient,) = torch.autograd.grad(value.where(mask, 0.0).sum(), leaf)
    return value.detach(), gradient


def _check_values(surrogate: Surrogate, log_prob: Tensor, behavior: Tensor, advantage: Tensor, mask: Tensor, clip_range: Any) -> None:
    before = [t.clone() for t in (log_prob, behavior, advantage, mask)]
    inputs = (log_prob.clone(), behavior.clone(), advantage.clone(), mask.clone())
    value, gradient = _gradient(surrogate, inputs[0], *inputs[1:], clip_range)
    for name, old, new in zip(("log_prob", "behavior_log_prob", "advantage", "mask"), before, inputs, strict=True):
        expect(torch.equal(old, new), f"surrogate: it changed {name} in place; work on new tensors")
    expect(bool(value[mask].isfinite().all()), "surrogate: a value at an unmasked step is not finite; bound the ratio or its logarithm")
    expect(bool(gradient[mask].isfinite().all()), "surrogate: a gradient at an unmasked step is not finite")

    hole = ~mask
    for junk in (float("nan"), 1e4):
        dirty = [t.masked_fill(hole, junk) for t in (log_prob, behavior, advantage)]
        other_value, other_gradient = _gradient(surrogate, dirty[0], dirty[1], dirty[2], mask, clip_range)
        expect(
            torch.equal(value[mask], other_value[mask]), "surrogate: masked entries leak into values; replace them with torch.where first"
        )
        expect(
            torch.equal(gradient[mask], other_gradient[mask]) and bool((other_gradient[hole] == 0).all()),
            "surrogate: masked entries leak into the gradient; replace them with torch.where before exp and before multiplying",
        )

    for row in range(len(mask)):
        others, changed = torch.arange(len(mask)) != row, mask.clone()
        moved = [t.clone() for t in (log_prob, behavior, advantage)]
        moved[0][row] += 0.7
        moved[2][row] = 1.0 - 2.0 * moved[2][row]
        changed[row, 1:] = False
        other_value, other_gradient = _gradient(surrogate, moved[0], moved[1], moved[2], changed, clip_range)
        same = [torch.allclose(a[others], b[others], rtol=1e-12, atol=1e-12) for a, b in ((value, other_value), (gradient, other_gradient))]
        expect(all(same), "surrogate: rows influence each other; leave means over the batch to the weights")


def _check_on_policy(surrogate: Surrogate, behavior: Tensor, advantage: Tensor, mask: Tensor, clip_range: Any, sequence: bool) -> None:
    _, gradient = _gradient(surrogate, behavior, behavior, advantage, mask, clip_range)
    expected = advantage.where(mask, 0.0)
    if sequence:
        gradient, expected, length = gradient.sum(-1), expected.sum(-1), mask.sum(-1)
        if same(gradient, length * expected):  # each step holds the whole sequence's value
            gradient = gradient / length
    # to six digits: two Python numbers in torch.where make a float32 tensor
    expect(
        not same(gradient, -expected),
        "surrogate: the sign is wrong: the library maximises, and this is the negative of the policy gradient",
    )
    expect(
        same(gradient, expected),
        "surrogate: at ratio 1 its gradient is not advantage · ∇log π; scale it per step, leave averaging to the weights, "
        "or pass on_policy_gradient=False if that is by design",
    )


def _check_clip(surrogate: Surrogate, behavior: Tensor, mask: Tensor, clip_range: Any) -> None:
    for sign, ratio in ((1.0, 0.5), (-1.0, 2.0)):
        _, gradient = _gradient(surrogate, behavior + log(ratio), behavior, torch.full_like(behavior, sign), mask, clip_range)
        side = "A > 0" if sign > 0 else "A < 0"
        mistake = "clip on the wrong side"
        expect(bool(gradient[mask].any()), f"surrogate: {mistake}, no gradient for {side} at ratio {ratio:g}: {MISTAKES[mistake]}", mistake)
