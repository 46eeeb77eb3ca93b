"""All parameters of a small module in one contiguous buffer, so that an optimizer step is one operation.

This serves dense, untied, single-device float32 modules; :meth:`FlatParameters.of` answers None for every other one,
and the update then uses the parameters where they are (sharded, low-rank and tied models among them).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FlatParameters:
    """``data`` and ``grad`` ``[P]``; every trainable parameter of the module is a view into both."""

    data: Tensor
    grad: Tensor
    parameters: tuple[nn.Parameter, ...]

    @classmethod
    def of(cls, module: nn.Module) -> FlatParameters | None:
        """Move the module's trainable parameters into one buffer, in ``module.parameters()`` order."""
        parameters = tuple(p for p in module.parameters() if p.requires_grad)
        names = [name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
        plain = all(type(p) is nn.Parameter and p.dtype == torch.float32 and p.layout == torch.strided for p in parameters)
        if not parameters or not plain or len(names) != len(parameters) or len({p.device for p in parameters}) != 1:
            return None
        data = torch.cat([p.detach().reshape(-1) for p in parameters])
        flat = cls(data, torch.zeros_like(data), parameters)
        flat.bind()
        return flat

    def bind(self) -> None:
        """Make every parameter and its gradient a view into the buffers."""
        offset = 0
        for p in self.parameters:
            size = p.numel()
            p.data = self.data[offset : offset + size].view_as(p)
            p.grad = self.grad[offset : offset + size].view_as(p)
            offset += size

    def is_bound(self) -> bool:
        """Whether the module still lives in these buffers (``module.to`` and a replaced ``.grad`` break it)."""
        first, last = self.parameters[0], self.parameters[-1]
        end = self.data.data_ptr() + 4 * (self.data.numel() - last.numel())
        return (
            first.data_ptr() == self.data.data_ptr()
            and last.data_ptr() == end
            and first.grad is not None
            and first.grad.data_ptr() == self.grad.data_ptr()
        )
