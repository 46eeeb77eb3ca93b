"""Gradient ascent on an algorithm's objective: epochs of shuffled minibatches, global-norm clip, Adam.

Adam minimises, so it is handed **minus** the objective's gradient: the one minus sign of the library stands here.
The compiled twin for MLP policies is ``upslope.fast``; a test holds both to the same parameters.

Left out: other optimizers (subclass :class:`Ascent` and replace ``step``), mixed precision, several update ranks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import Diverged, RunFault, require
from upslope.records import Batch, Metrics
from upslope.updates.adam import adam_descend
from upslope.updates.flat import FlatParameters
from upslope.updates.schedules import Schedule, constant

RATIO_TOLERANCE = 1e-3
"""Largest |log π − log π_behavior| on the first minibatch of an update that rounding can explain (float32 sums)."""


@dataclass
class AscentState:
    """What an :class:`Ascent` remembers: Adam's moments, the shuffling generator, the current learning rate.

    ``targets`` are the tensors that move: the one flat buffer where the policy allows it, else its parameters one by one.
    """

    parameters: tuple[nn.Parameter, ...]
    flat: FlatParameters | None
    targets: tuple[Tensor, ...]
    moments: tuple[tuple[Tensor, Tensor], ...]
    generator: torch.Generator
    learning_rate: float
    num_updates: int = 0

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradient of each target; None where ``backward`` did not reach it."""
        return tuple(p.grad for p in self.parameters) if self.flat is None else (self.flat.grad,)


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """``θ ← θ + α · Adam(∇ objective)`` for ``num_epochs`` passes over a batch in ``num_minibatches`` parts."""

    learning_rate: float = 3e-4
    """step size of Adam"""
    schedule: Schedule = constant
    """how the learning rate moves over the run: constant or linear (to zero)"""
    num_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 1
    """parts that each pass is split into, one gradient step each"""
    max_grad_norm: float | None = 0.5
    """the gradient's global norm is clipped to this (none: no clipping)"""
    target_kl: float | None = None
    """stop the epochs of an update once approx KL exceeds this (none: never)"""
    micro_batch_size: int | None = None
    """units per backward pass, to save memory; never changes a result"""
    eps: float = 1e-5
    """Adam's eps"""

    def __post_init__(self) -> None:
        require(self.learning_rate >= 0, f"learning_rate: expected a number ≥ 0, found {self.learning_rate}")
        require(self.num_epochs >= 1, f"num_epochs: expected an integer ≥ 1, found {self.num_epochs}")
        require(self.num_minibatches >= 1, f"num_minibatches: expected an integer ≥ 1, found {self.num_minibatches}")
        require(self.eps > 0, f"eps: expected a number > 0, found {self.eps}")
        for name in ("max_grad_norm", "target_kl", "micro_batch_size"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}: expected a number > 0 or none, found {value}")

    def start(self, policy: nn.Module, *, seed: int) -> AscentState:
        """Fresh state for a policy; its parameters move into one flat buffer where that is possible."""
        flat = FlatParameters.of(policy)
        parameters = tuple(p for p in policy.parameters() if p.requires_grad) if flat is None else flat.parameters
        require(bool(parameters), "policy: it has no trainable parameter; pass one with requires_grad=True")
        targets = parameters if flat is None else (flat.data,)
        moments = tuple((torch.zeros_like(t), torch.zeros_like(t)) for t in targets)
        generator = torch.Generator().manual_seed(seed)
        return AscentState(parameters, flat, targets, moments, generator, self.learning_rate)

    def set_fraction(self, state: AscentState, fraction: float) -> None:
        """Follow the schedule: ``fraction`` of the run is done."""
        state.learning_rate = self.learning_rate * self.schedule(fraction)

    def permutations(self, num_units: int, state: AscentState) -> Iterator[Tensor]:
        """One shuffle of the units per epoch, from the state's own generator."""
        for _ in range(self.num_epochs):
            yield torch.randperm(num_units, generator=state.generator)

    def __call__(self, algorithm: Any, policy: Any, batch: Batch, state: AscentState) -> Metrics:
        """One update on one batch; means over its minibatches of what the objective reports."""
        batch = batch.by_unit()
        count = min(self.num_minibatches, batch.num_units)
        collected: defaultdict[str, list[Tensor]] = defaultdict(list)
        for permutation in self.permutations(batch.num_units, state):
            for part in batch.minibatches(permutation.to(batch.mask.device), count):
                metrics = self.accumulate(algorithm, policy, part, state)
                if not collected and "max_log_ratio" in metrics:
                    check_first_ratio(float(metrics["max_log_ratio"]))
                for name, value in metrics.items():
                    collected[name].append(value)
                if self.target_kl is not None and "approx_kl" in metrics and float(metrics["approx_kl"]) > self.target_kl:
                    return averaged(collected)
                collected["gradient_norm"].append(self.step(state))
        return averaged(collected)

    def accumulate(self, algorithm: Any, policy: Any, part: Batch, state: AscentState) -> dict[str, Tensor]:
        """Set the gradients of minus the objective on one minibatch, in micro-batches whose sums are the whole."""
        zero_grad(state)
        totals: dict[str, Tensor] = {}
        for piece in micro_batches(part, self.micro_batch_size):
            objective, metrics = algorithm.objective(policy, piece)
            if not math.isfinite(objective.item()):
                raise Diverged(diagnosis(state, part, policy))
            (-objective).backward()  # the only minus sign: Adam minimises
            if piece is part:
                return {"objective": objective.detach(), **metrics}
            share = piece.num_units / part.num_units
            for name, value in {"objective": objective.detach() / share, **metrics}.items():
                before = totals.get(name, torch.zeros_like(value))
                totals[name] = torch.maximum(before, value) if name.startswith("max_") else before + share * value
        return totals

    def step(self, state: AscentState) -> Tensor:
        """Clip the global norm, move the parameters; returns the norm before clipping."""
        moving = [(t, g, *m) for t, g, m in zip(state.targets, state.gradients, state.moments, strict=True) if g is not None]
        norm = torch.stack([g.square().sum() for _, g, _, _ in moving]).sum().sqrt()
        factor = None if self.max_grad_norm is None else (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        state.num_updates += 1
        for target, gradient, exp_avg, exp_avg_sq in moving:
            if factor is not None:
                gradient.mul_(factor)
            adam_descend(
                target, gradient, exp_avg, exp_avg_sq, num_updates=state.num_updates, learning_rate=state.learning_rate, eps=self.eps
            )
        return norm


def micro_batches(part: Batch, size: int | None) -> Iterator[Batch]:
    """A minibatch in pieces of ``size`` units; the weights are left alone, so the pieces' gradients add to the whole."""
    if size is None or size >= part.num_units:
        yield part
    else:
        for start in range(0, part.num_units, size):
            yield part.select(torch.arange(start, min(start + size, part.num_units), device=part.mask.device))


def zero_grad(state: AscentState) -> None:
    """Gradients to zero; in the flat buffer they stay allocated, so that ``backward`` adds into the views."""
    if state.flat is None:
        for p in state.parameters:
            p.grad = None
        return
    if not state.flat.is_bound():
        state.flat.bind()
    state.flat.grad.zero_()


def averaged(collected: dict[str, list[Tensor]]) -> Metrics:
    """Means over minibatches (``max_*``: maxima); one transfer from the device per name."""
    values = {name: torch.stack(items) for name, items in collected.items()}
    means: Metrics = {name: float(v.max() if name.startswith("max_") else v.mean()) for name, v in values.items()}
    means["num_minibatches"] = float(len(collected.get("gradient_norm", ())))
    return means


def check_first_ratio(max_log_ratio: float) -> None:
    """Before its first step the policy still is the one that sampled: π/π_behavior must be 1 (FORMULAS section 8)."""
    if max_log_ratio > RATIO_TOLERANCE:
        raise RunFault(
            f"ratio: expected 1 on the first minibatch of an update, found exp(±{max_log_ratio:.2g}); "
            "the policy must sample and score with the same distribution (temperature, masks, dropout, normalization)"
        )


def diagnosis(state: AscentState, part: Batch, policy: Any) -> str:
    """One line that names the update and the first tensor that is not finite."""
    suspects: dict[str, Tensor | None] = {
        "advantage": part.advantage,
        "returns": part.returns,
        "behavior_log_prob": part.behavior_log_prob,
        **{f"inputs[{name!r}]": tensor for name, tensor in part.inputs.items() if tensor.is_floating_point()},
        **dict(policy.named_parameters() if isinstance(policy, nn.Module) else ()),
    }
    name = next((name for name, tensor in suspects.items() if tensor is not None and not finite(tensor, part.mask)), "objective")
    return (
        f"diverged: {name} is not finite at gradient step {state.num_updates + 1}; "
        "lower the learning rate, lower max_grad_norm, or normalize observations and rewards"
    )


def finite(tensor: Tensor, mask: Tensor) -> bool:
    """Whether all entries are finite; where the tensor has the mask's axes, all unmasked entries."""
    seen = tensor[mask] if tensor.shape[: mask.dim()] == mask.shape else tensor
    return bool(torch.isfinite(seen).all())
