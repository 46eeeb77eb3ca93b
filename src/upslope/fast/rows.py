"""A batch as the kernels read it: flat columns in memory, checked, and the order in which their rows are visited."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.graph import NotLowered
from upslope.fast.plan import MLPLayout
from upslope.records import ROW_AXES, Batch


class Columns:
    """The steps of a batch: each tensor contiguous, with the batch's axes made one. ``names`` are the columns that the objective reads.

    ``outputs`` is 0 where no action is scored. Raises :class:`NotLowered` for shapes and types that the kernels do not read.
    """

    def __init__(self, batch: Batch, head: int, outputs: int, names: list[str]) -> None:
        self.shape = batch.mask.shape
        self.tensors: dict[str, Tensor] = {}
        action = batch.inputs.get("action")
        if head == at.GAUSSIAN and outputs:
            self.add("continuous", action, torch.float32, outputs)
        elif outputs:
            self.add("action", action, torch.int64)
            if "action_mask" in batch.inputs:
                self.add("legal", batch.inputs["action_mask"], torch.bool, outputs)
            lowest, highest = self.tensors["action"].aminmax()
            if int(lowest) < 0 or int(highest) >= outputs:  # the kernels use them as addresses
                raise NotLowered
        self.add("mask", batch.mask, torch.bool)
        self.own = [self.add(f"batch.{name}", getattr(batch, name), getattr(batch, name).dtype) for name in names]

    def add(self, name: str, tensor: Tensor | None, dtype: torch.dtype, size: int | None = None) -> int:
        """Take a tensor in, if it is what the kernels expect; where its numbers begin."""
        shape = self.shape if size is None else (*self.shape, size)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
            raise NotLowered
        self.tensors[name] = tensor.contiguous()
        return self.tensors[name].data_ptr()

    @property
    def masked(self) -> bool:
        return "legal" in self.tensors

    def addresses(self) -> NDArray[np.int64]:
        """Where each column's numbers begin; 0 for one that is not there, which the kernel is told not to look at."""
        return np.array([*(self.tensors[name].data_ptr() if name in self.tensors else 0 for name in at.OWN_COLUMNS), *self.own])


class Rows(Columns):
    """The columns of a whole batch for an MLP policy, its observations among them, and its units."""

    def __init__(self, batch: Batch, parts: MLPLayout, names: list[str]) -> None:
        super().__init__(batch, parts.head, parts.outputs, names)
        self.add("observation", batch.inputs.get("observation"), torch.float32, parts.inputs)
        axes = ROW_AXES[batch.unit]
        if batch.inputs.keys() - {"observation", "action", "action_mask"} or axes > len(self.shape):
            raise NotLowered
        self.size = int(np.prod(self.shape[len(self.shape) - axes :]))
        self.alive = np.flatnonzero(self.tensors["mask"].numpy().reshape(-1, self.size).any(1))
        if not len(self.alive):
            raise NotLowered

    @property
    def num_units(self) -> int:
        """Units with at least one unmasked step: only these are shuffled, and only these count."""
        return len(self.alive)

    def order(self, permutation: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the units in a permuted order, unit by unit."""
        units = self.alive[permutation]
        return units if self.size == 1 else (units[:, None] * self.size + np.arange(self.size)).reshape(-1)


def split(count: int, parts: int) -> NDArray[np.int64]:
    """Where the parts of ``torch.tensor_split`` begin and end: the first ones take what does not divide evenly."""
    return np.concatenate([[0], np.cumsum([count // parts + (i < count % parts) for i in range(parts)])]).astype(np.int64)
