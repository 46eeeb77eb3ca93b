"""The contract of a surrogate: one value per step, to be maximized."""

from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor

from upslope.records import Surrogate
from upslope.testing.contract import NARROW, ContractError, clipped_on_the_wrong_side, expect, nearly_equal
from upslope.testing.known_mistakes import MISTAKES

CLIP_RANGES = (0.2, (0.2, 0.28))
Run = Callable[..., tuple[Tensor, Tensor]]  # (log_prob, behavior_log_prob, advantage, mask) -> (values, gradient)


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
    7. a good action that has become rarer (ratio 0.5) and a bad one that has become more frequent (just above 1 + ε: a dual clip may
       act further up) are still moved.

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
        run = partial(values_and_gradient, surrogate, clip_range)
        for shift in (0.0, 0.05, 1.0, -20.0, 20.0):
            drift = shift * torch.randn(3, 5, generator=generator, dtype=torch.float64).abs()
            check_values(run, behavior + drift, behavior, advantage, mask)
        if on_policy_gradient:
            check_on_policy(run, behavior, advantage, mask, sequence)
            check_clip(run, partial(values_and_gradient, surrogate, NARROW), behavior, mask)


def values_and_gradient(
    surrogate: Callable[..., Any], clip_range: Any, log_prob: Tensor, behavior: Tensor, advantage: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The surrogate's values and the gradient of the sum of those that are not masked, with properties 1 (shape, dtype) and 2 checked."""
    leaf = log_prob.detach().clone().requires_grad_()
    try:
        value = surrogate(leaf, behavior, advantage, mask, clip_range)
    except Exception as error:
        how = "(log_prob, behavior_log_prob, advantage, mask, clip_range); accept these five, clip_range a float or (low, high)"
        raise ContractError(f"surrogate: raised {type(error).__name__} ({error}) when called as {how}") from error
    expect(isinstance(value, Tensor), f"surrogate: expected a tensor, found {type(value).__name__}; return one value per step")
    shapes = f"shape {tuple(leaf.shape)}, found {tuple(value.shape)}"
    expect(value.shape == leaf.shape, f"surrogate: expected one value per step, {shapes}; do not reduce")
    expect(value.dtype == leaf.dtype, f"surrogate: expected dtype {leaf.dtype}, found {value.dtype}; keep the input's")
    expect(value.requires_grad, "surrogate: the value does not depend on log_prob; nothing would be learned")
    (gradient,) = torch.autograd.grad(value.where(mask, 0.0).sum(), leaf)
    return value.detach(), gradient


def check_values(run: Run, log_prob: Tensor, behavior: Tensor, advantage: Tensor, mask: Tensor) -> None:
    """Properties 1 (finite), 4, 5 and 6."""
    inputs = {"log_prob": log_prob, "behavior_log_prob": behavior, "advantage": advantage, "mask": mask}
    copies = {name: x.clone() for name, x in inputs.items()}
    value, gradient = run(*copies.values())
    for name, x in inputs.items():
        expect(torch.equal(x, copies[name]), f"surrogate: it changed {name} in place; work on new tensors")
    expect(bool(value[mask].isfinite().all()), "surrogate: a value at an unmasked step is not finite; bound the ratio or its logarithm")
    expect(bool(gradient[mask].isfinite().all()), "surrogate: a gradient at an unmasked step is not finite")

    for junk in (float("nan"), 1e4):
        other_value, other_gradient = run(*(x.masked_fill(~mask, junk) for x in (log_prob, behavior, advantage)), mask)
        hidden = torch.equal(value[mask], other_value[mask])
        expect(hidden, "surrogate: masked entries leak into values; replace them with torch.where first")
        hidden = torch.equal(gradient[mask], other_gradient[mask]) and bool((other_gradient[~mask] == 0).all())
        expect(hidden, "surrogate: masked entries leak into the gradient; replace them with torch.where before exp and before multiplying")

    for row in range(len(mask)):
        others, shorter = torch.arange(len(mask)) != row, mask.clone()
        moved, flipped = log_prob.clone(), advantage.clone()
        moved[row] += 0.7
        flipped[row] = 1.0 - 2.0 * flipped[row]
        shorter[row, 1:] = False
        found = zip((value, gradient), run(moved, behavior.clone(), flipped, shorter), strict=True)
        alone = all(torch.allclose(a[others], b[others], rtol=1e-12, atol=1e-12) for a, b in found)
        expect(alone, "surrogate: rows influence each other; leave means over the batch to the weights")


def check_on_policy(run: Run, behavior: Tensor, advantage: Tensor, mask: Tensor, sequence: bool) -> None:
    """Property 3."""
    _, gradient = run(behavior, behavior, advantage, mask)
    expected = advantage.where(mask, 0.0)
    if sequence:
        gradient, expected, length = gradient.sum(-1), expected.sum(-1), mask.sum(-1)
        if nearly_equal(gradient, length * expected):  # each step holds the whole sequence's value
            gradient = gradient / length
    # to six digits: two Python numbers in torch.where make a float32 tensor
    downwards = nearly_equal(gradient, -expected)
    expect(not downwards, "surrogate: the sign is wrong: the library maximises, and this is the negative of the policy gradient")
    hint = "scale it per step, leave averaging to the weights, or pass on_policy_gradient=False if that is by design"
    expect(nearly_equal(gradient, expected), f"surrogate: at ratio 1 its gradient is not advantage · ∇log π; {hint}")


def check_clip(run: Run, narrow: Run, behavior: Tensor, mask: Tensor) -> None:
    """Property 7."""

    def moves(run: Run, sign: float, ratio: float) -> bool:
        return bool(run(behavior + log(ratio), behavior, torch.full_like(behavior, sign), mask)[1][mask].any())

    where, mistake = clipped_on_the_wrong_side(partial(moves, run), partial(moves, narrow)), "clip on the wrong side"
    expect(where is None, f"surrogate: {mistake}, no gradient for {where}: {MISTAKES[mistake]}", mistake)
