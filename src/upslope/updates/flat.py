"""All parameters of a small module in one contiguous buffer, so that an optimizer step is one operation.

This serves dense, untied, single-device float32 modules of some million parameters at most; :meth:`FlatParameters.of` answers
None for every other one, and the update then uses the parameters where they are (sharded, low-rank and tied models among them).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_FLAT_SIZE = 1 << 24
"""Parameters beyond which one buffer saves nothing that counts, and a second copy of the gradients costs memory that does."""


@dataclass(frozen=True)
class FlatParameters:
    """``data [P]``; every trainable parameter of the module is a view into it, in ``module.parameters()`` order."""

    data: Tensor
    parameters: tuple[nn.Parameter, ...]

    @classmethod
    def of(cls, module: object) -> FlatParameters | None:
        """Move the module's trainable parameters into one buffer, or None where that would not be safe."""
        if not isinstance(module, nn.Module):
            return None
        parameters = tuple(p for p in module.parameters() if p.requires_grad)
        names = [name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
        plain = all(type(p) is nn.Parameter and p.dtype == torch.float32 and p.layout == torch.strided for p in parameters)
        small = sum(p.numel() for p in parameters) <= MAX_FLAT_SIZE
        if not parameters or not plain or not small or len(names) != len(parameters) or len({p.device for p in parameters}) != 1:
            return None
        flat = cls(torch.cat([p.detach().reshape(-1) for p in parameters]), parameters)
        flat.bind()
        return flat

    def bind(self) -> None:
        """Make every parameter a view into the buffer."""
        offset = 0
        for p in self.parameters:
            p.data = self.data[offset : offset + p.numel()].view_as(p)
            offset += p.numel()

    def part(self, parameters: tuple[nn.Parameter, ...]) -> FlatParameters | None:
        """The piece of the buffer that holds these parameters alone, or None where they do not lie in it one behind the other."""
        places = [i for i, p in enumerate(self.parameters) if any(p is q for q in parameters)]
        if len(places) != len(parameters) or not places or places != list(range(places[0], places[0] + len(places))):
            return None
        start = sum(p.numel() for p in self.parameters[: places[0]])
        inside = self.parameters[places[0] : places[-1] + 1]
        return FlatParameters(self.data[start : start + sum(p.numel() for p in inside)], inside)

    @functools.cached_property
    def addresses(self) -> list[int]:
        """Where each parameter begins."""
        return list(itertools.accumulate((4 * p.numel() for p in self.parameters[:-1]), initial=self.data.data_ptr()))

    def rebind(self) -> None:
        """Take parameters that have left the buffer (``module.to``, an assigned ``.data``) back into it, with the values they have now."""
        self.data.copy_(torch.cat([p.detach().reshape(-1).to(self.data) for p in self.parameters]))
        self.bind()
