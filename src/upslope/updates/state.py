"""What an ascent remembers from one update to the next, and Adam's step: tensors and a count, so that a run is saved without pickling.

The compiled update has another Adam (``upslope.fast.kernels``), which serves as long as it moves parameters as the one here does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from upslope.errors import Diverged, UsageError, require
from upslope.records import Batch, Policy, State
from upslope.updates.flat import FlatParameters

MAX_SKIPPED = 5
"""Gradient steps in a row that may be left out because they are not finite; the last one ends the run."""
BETAS = (0.9, 0.999)  # decay rates of Adam's two moments


def exact(tensor: Tensor) -> torch.dtype:
    """The precision to compute in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


@dataclass
class Trained:
    """The parameters that an update moves, and the buffer that they lie in, where there is one."""

    parameters: tuple[nn.Parameter, ...]
    flat: FlatParameters | None
    skipped: int = field(default=0, kw_only=True)
    """gradient steps in a row, up to now, that were left out because they were not finite"""

    def skip(self, fault: Diverged, part: Batch) -> None:
        """Leave out a gradient step on ``part`` that is not finite.

        Raises:
            Diverged: the fault itself, where it is one of too many in a row, or where the parameters are not finite either.
        """
        self.skipped, fault.batch = self.skipped + 1, part
        for p in self.parameters:
            p.grad = None
        if self.skipped >= MAX_SKIPPED or not all(bool(torch.isfinite(p).all()) for p in self.parameters):
            raise fault

    def check(self) -> None:
        """Before an update: what was trainable at the start still is, lies where it is expected, and has no gradient left over."""
        if not all(p.requires_grad for p in self.parameters):
            raise UsageError("policy: a parameter was frozen after training began; freeze it before, so that its update can be left out")
        for p in self.parameters:
            p.grad = None
        if self.flat is not None and self.flat.addresses != [p.data_ptr() for p in self.parameters]:
            self.flat.rebind()


@dataclass
class AscentState(Trained):
    """What an :class:`Ascent` remembers: Adam's moments, the shuffling generator, the current learning rate.

    ``targets`` are the tensors that move: the one flat buffer where the policy allows it, else its parameters one by one.
    ``critic`` says of each parameter whether only the critic has it.
    """

    targets: tuple[Tensor, ...]
    moments: tuple[tuple[Tensor, Tensor], ...]
    generator: torch.Generator
    learning_rate: float
    num_updates: int = 0
    rounding: torch.Generator | None = None
    """of the rounding of parameters in bfloat16, where there are some"""
    critic: tuple[bool, ...] = ()

    @classmethod
    def of(
        cls,
        parameters: tuple[nn.Parameter, ...],
        flat: FlatParameters | None,
        *,
        seed: int,
        learning_rate: float,
        critic: tuple[bool, ...] = (),
    ) -> Self:
        """Fresh state for these parameters, which lie in ``flat`` where there is one; moments are float32 at least."""
        targets = parameters if flat is None else (flat.data,)
        moments = tuple((torch.zeros_like(t, dtype=exact(t)), torch.zeros_like(t, dtype=exact(t))) for t in targets)
        rounded = next((t for t in targets if t.dtype == torch.bfloat16), None)
        rounding = None if rounded is None else torch.Generator(rounded.device).manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        return cls(parameters, flat, targets, moments, generator, learning_rate, rounding=rounding, critic=critic)

    def state_dict(self) -> State:
        """Everything but the parameters, which are the policy's."""
        rounding = None if self.rounding is None else self.rounding.get_state()
        numbers = {name: getattr(self, name) for name in ("learning_rate", "num_updates", "skipped")}
        return {"moments": [list(pair) for pair in self.moments], "generator": self.generator.get_state(), "rounding": rounding, **numbers}

    def load_state_dict(self, state: State) -> None:
        """Go on where another one was that moves the same parameters.

        Raises:
            UsageError: it moved others.
        """
        shapes = [tuple(exp_avg.shape) for exp_avg, _ in self.moments]
        found = [tuple(exp_avg.shape) for exp_avg, _ in state["moments"]]
        require(shapes == found, f"update state: its moments have the shapes {found}, the policy's parameters {shapes}")
        for pair, saved in zip(self.moments, state["moments"], strict=True):
            for moment, value in zip(pair, saved, strict=True):
                moment.copy_(value)
        self.generator.set_state(state["generator"])
        if self.rounding is not None:
            self.rounding.set_state(state["rounding"])
        self.learning_rate, self.num_updates, self.skipped = state["learning_rate"], state["num_updates"], state["skipped"]

    def take_gradients(self) -> list[Tensor]:
        """What backward passes have left in ``p.grad``, one tensor per target, 0 where they did not reach; nothing stays there."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return [g.to(exact(g)) for g in gradients] if self.flat is None else [torch.cat([g.reshape(-1) for g in gradients])]

    @torch.no_grad()
    def descend(self, gradients: Sequence[Tensor], eps: float) -> None:
        """One step of Adam down these gradients, in place: ``θ −= α · m̂ / (√v̂ + eps)``. A target in bfloat16 is rounded stochastically.

        ``m ← β₁m + (1−β₁)g``, ``v ← β₂v + (1−β₂)g²``, ``m̂ = m/(1−β₁ⁿ)``, ``v̂ = v/(1−β₂ⁿ)``, n counting this step (Kingma & Ba 2015).
        """
        self.num_updates, self.skipped = self.num_updates + 1, 0
        (beta1, beta2), n = BETAS, self.num_updates
        for target, gradient, (m, v) in zip(self.targets, gradients, self.moments, strict=True):
            m.lerp_(gradient, 1.0 - beta1)
            v.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
            denominator = v.sqrt().mul_((1.0 - beta2**n) ** -0.5).add_(eps)
            moved = target.to(m.dtype)
            moved.addcdiv_(m, denominator, value=-self.learning_rate / (1.0 - beta1**n))
            if moved is not target:
                target.copy_(moved if self.rounding is None else stochastically_rounded(moved, self.rounding))


def trainable(policy: Policy, flat: FlatParameters | None) -> tuple[nn.Parameter, ...]:
    """The policy's parameters that require a gradient; raises :class:`UsageError` where there is none."""
    parameters = tuple(p for p in policy.parameters() if p.requires_grad) if flat is None else flat.parameters
    require(bool(parameters), "policy: it has no trainable parameter; pass one with requires_grad=True")
    return parameters


def stochastically_rounded(exact: Tensor, generator: torch.Generator) -> Tensor:
    """``exact`` (float32) as bfloat16: up with probability ``(x − ⌊x⌋) / (⌈x⌉ − ⌊x⌋)``, else down, so that ``E[result] = x``.

    A bfloat16 is the upper half of a float32: a random lower half is added, and the lower half cut off.
    (Gupta et al. 2015, *Deep Learning with Limited Numerical Precision*, section 3.)
    """
    noise = torch.randint(0, 1 << 16, exact.shape, generator=generator, device=exact.device, dtype=torch.int32)
    return (exact.float().view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()
