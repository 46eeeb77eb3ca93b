"""How a rollout and a batch are shown: names and shapes, for their numbers are thousands."""

from dataclasses import fields
from typing import Any

from torch import Tensor


def outline(self: Any) -> str:
    """The ``__repr__`` of both: what is in it and of which shape, in a line."""
    tensors = {f.name: t for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)}
    listed = ", ".join(f"{name} {list(t.shape)}" for name, t in {**self.inputs, **tensors}.items())
    return f"{type(self).__name__}({int(self.mask.sum()):,} steps: {listed})"
