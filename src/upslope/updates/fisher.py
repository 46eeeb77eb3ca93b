"""The Fisher matrix of a policy as a function ``v ↦ F v``, never formed, and conjugate gradient to solve with it.

F is the Hessian of ``mean_s KL(π_old(·|s) ‖ π_θ(·|s))`` at θ_old. Source: TRPO (Schulman et al. 2015), appendix C.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from upslope import functional as F
from upslope.errors import UsageError
from upslope.records import Batch, HasDistribution, Policy, offers

Product = Callable[[Tensor], Tensor]  # v [P] ↦ F v [P]
NEEDED = "take ppo or a2c, which need none"  # what to do with a policy that has no exact divergences


def distribution_of(policy: object, inputs: Mapping[str, Tensor], *, otherwise: str) -> Any:
    """The policy's :class:`~upslope.records.Distribution`, or :class:`UsageError`, which ends with what to do ``otherwise``."""
    if not offers(policy, HasDistribution):
        raise UsageError(f"policy: {type(policy).__name__} has no distribution(), which exact KL divergences need; {otherwise}")
    distribution = policy.distribution(**inputs)
    if not (is_dataclass(distribution) and hasattr(distribution, "parameters") and hasattr(distribution, "kl")):
        raise UsageError(
            f"policy: distribution() returned {type(distribution).__name__}; return a dataclass with parameters and kl(other), such as "
            f"upslope.control.Distribution, or {otherwise}"
        )
    return distribution


def mean_kl(old: Any, new: Any, batch: Batch) -> Tensor:
    """``Σ_t w_t KL(π_old(·|s_t)‖π(·|s_t)) / Σ_t w_t``, 0-d, with the batch's weights; masked rows carry none."""
    return F.weighted_sum(old.kl(new), batch.weight / batch.weight.sum())


def fisher_product(policy: Policy, batch: Batch, parameters: Sequence[nn.Parameter]) -> Product:
    """``v ↦ Jᵀ M J v``: the Fisher matrix of the mean KL at the present parameters, ``[P] → [P]``, undamped.

    J is the Jacobian of the distribution's parameters, M the Hessian of the mean KL in them. Since the KL has no slope where the two
    distributions are equal, this *is* the Hessian-vector product ``∇((∇ mean-KL)ᵀ v)``, in two thirds of the time: M is small, and
    J v comes from differentiating ``Jᵀu``, which is linear in u, by u. Raises UsageError without exact divergences.
    Source: TRPO, appendix C.1; Martens 2020, section 9.2.
    """
    new = distribution_of(policy, batch.inputs, otherwise=NEEDED)
    outputs = new.parameters
    given = outputs.detach().clone().requires_grad_()
    slope = slope_of(mean_kl(detach(new), replace(new, parameters=given), batch), given, create_graph=True)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = flatten(torch.autograd.grad(outputs, parameters, u, create_graph=True), parameters)

    def product(v: Tensor) -> Tensor:
        pushed = slope_of(pulled, u, v, retain_graph=True)  # J v
        curved = slope_of(slope, given, pushed, retain_graph=True)  # M J v
        return flatten(torch.autograd.grad(outputs, parameters, curved, retain_graph=True), parameters)

    return product


def damped(product: Product, damping: float) -> Product:
    """``v ↦ F v + damping · v``."""
    return lambda v: product(v) + damping * v


def conjugate_gradient(product: Product, g: Tensor, num_steps: int, tolerance: float = 1e-10) -> Tensor:
    """``x [P]`` with ``F x = g`` for a positive definite F, from x = 0; ends early once ``‖g − Fx‖² ≤ tolerance · ‖g‖²``.

    In exact arithmetic P steps solve it. Source: Hestenes & Stiefel 1952.
    """
    x, residual, direction = torch.zeros_like(g), g.clone(), g.clone()
    size = float(residual @ residual)
    enough = tolerance * size
    for _ in range(num_steps):
        if size <= enough:
            break
        curved = product(direction)
        curvature = float(direction @ curved)
        if not curvature > 0:  # F has no say in this direction, or it is lost in rounding
            break
        x.add_(direction, alpha=size / curvature)
        residual.sub_(curved, alpha=size / curvature)
        before, size = size, float(residual @ residual)
        direction = residual + (size / before) * direction
    return x


def reached(output: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[nn.Parameter, ...]:
    if not output.requires_grad:
        return ()
    found = cast(Sequence[Tensor | None], torch.autograd.grad(output.sum(), parameters, allow_unused=True))
    return tuple(p for p, gradient in zip(parameters, found, strict=True) if gradient is not None)


def slope_of(output: Tensor, variable: Tensor, weights: Tensor | None = None, **options: bool) -> Tensor:
    """``∂(weights · output)/∂variable``."""
    found: Sequence[Tensor] = torch.autograd.grad(output, variable, weights, **options)
    return found[0]


def flatten(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """One vector ``[P]`` of one gradient per parameter; zeros where there is none."""
    return torch.cat([torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(gradients, parameters, strict=True)])


def detach(distribution: Any) -> Any:
    return replace(distribution, parameters=distribution.parameters.detach().clone())
