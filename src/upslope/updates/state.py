"""What an ascent remembers from one update to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from upslope.errors import UsageError, require
from upslope.records import Policy
from upslope.updates.adam import exact
from upslope.updates.flat import FlatParameters


@dataclass
class AscentState:
    """What an :class:`Ascent` remembers: Adam's moments, the shuffling generator, the current learning rate.

    ``targets`` are the tensors that move: the one flat buffer where the policy allows it, else its parameters one by one.
    ``critic`` says of each parameter whether only the critic has it.
    """

    parameters: tuple[nn.Parameter, ...]
    flat: FlatParameters | None
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

    def check(self) -> None:
        """Before an update: what was trainable at the start still is, and lies where it is expected."""
        if not all(p.requires_grad for p in self.parameters):
            raise UsageError("policy: a parameter was frozen after training began; freeze it before, so that its update can be left out")
        if self.flat is not None:
            self.flat.rebind()

    def take_gradients(self) -> list[Tensor]:
        """What backward passes have left in ``p.grad``, one tensor per target; nothing stays there."""
        gradients = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return self.gather(gradients)

    def gather(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """One gradient per target from one per parameter; zeros where the objective does not reach."""
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, self.parameters, strict=True)]
        return [g.to(exact(g)) for g in filled] if self.flat is None else [torch.cat([g.reshape(-1) for g in filled])]


def trainable(policy: Policy, flat: FlatParameters | None) -> tuple[nn.Parameter, ...]:
    """The policy's parameters that require a gradient; raises :class:`UsageError` where there is none."""
    parameters = tuple(p for p in policy.parameters() if p.requires_grad) if flat is None else flat.parameters
    require(bool(parameters), "policy: it has no trainable parameter; pass one with requires_grad=True")
    return parameters
