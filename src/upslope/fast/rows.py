"""A batch as the compiled update reads it: flat rows in memory, checked, and the order in which they are visited."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.plan import Anatomy, actions_exist
from upslope.records import Batch

UNIT_AXES = {"step": 0, "sequence": 1, "group": 2, "pair": 2}
"""How many of the batch's last axes belong to one unit."""


class NotCompiled(Exception):
    """This batch or state is not what the kernels take; the readable twin serves it."""


class Rows:
    """The steps of a batch: each tensor contiguous, with the batch's axes made one."""

    def __init__(self, batch: Batch, parts: Anatomy, *, value_error: bool, value_clip: bool) -> None:
        self.shape = batch.mask.shape
        self.tensors: dict[str, Tensor] = {}
        inputs = dict(batch.inputs)
        self.add("observation", inputs.pop("observation", None), torch.float32, parts.inputs)
        if parts.head == at.GAUSSIAN:
            self.add("continuous", inputs.pop("action", None), torch.float32, parts.outputs)
        else:
            self.add("action", inputs.pop("action", None), torch.int64)
            self.add("legal", inputs.pop("action_mask", None), torch.bool, parts.outputs, optional=True)
        self.add("behavior_log_prob", batch.behavior_log_prob, torch.float32)
        self.add("advantage", batch.advantage, torch.float32)
        self.add("returns", batch.returns, torch.float32, optional=not value_error)
        self.add("value", batch.value, torch.float32, optional=not value_clip)
        self.add("weight", batch.weight, torch.float32)
        self.add("mask", batch.mask, torch.bool)
        axes = UNIT_AXES[batch.unit]
        if inputs or axes > len(self.shape) or (value_error and not parts.critic):
            raise NotCompiled
        self.size = int(np.prod(self.shape[len(self.shape) - axes :]))
        alive = self.tensors["mask"].numpy().reshape(-1, self.size).any(1)
        self.alive = np.flatnonzero(alive)
        if not len(self.alive) or ("action" in self.tensors and not actions_exist(self.tensors["action"], parts.outputs)):
            raise NotCompiled

    def add(self, name: str, tensor: Tensor | None, dtype: torch.dtype, size: int | None = None, *, optional: bool = False) -> None:
        """Take a tensor in, if it is what the kernels expect."""
        if tensor is None and optional:
            return
        shape = self.shape if size is None else (*self.shape, size)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
            raise NotCompiled
        self.tensors[name] = tensor.contiguous()

    @property
    def num_units(self) -> int:
        """Units with at least one unmasked step: only these are shuffled, and only these count."""
        return len(self.alive)

    def address(self, name: str) -> int:
        """Where a tensor's numbers begin; 0 for one that is not there, which the kernel is told not to look at."""
        return self.tensors[name].data_ptr() if name in self.tensors else 0

    def order(self, permutation: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the units in a permuted order, unit by unit."""
        units = self.alive[permutation]
        return units if self.size == 1 else (units[:, None] * self.size + np.arange(self.size)).reshape(-1)


def split(count: int, parts: int) -> NDArray[np.int64]:
    """Where the parts of ``torch.tensor_split`` begin and end: the first ones take what does not divide evenly."""
    return np.concatenate([[0], np.cumsum([count // parts + (i < count % parts) for i in range(parts)])]).astype(np.int64)
