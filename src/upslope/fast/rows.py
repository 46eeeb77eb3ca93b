"""A batch as the kernels read it: flat columns in memory, checked, and the order in which their rows are visited."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.plan import Anatomy, actions_exist
from upslope.records import Batch
from upslope.updates.critic import value_scale

UNIT_AXES = {"step": 0, "sequence": 1, "group": 2, "pair": 2}
"""How many of the batch's last axes belong to one unit."""


class NotCompiled(Exception):
    """This batch or state is not what the kernels take; the readable twin serves it."""


class Columns:
    """The steps of a batch: each tensor contiguous, with the batch's axes made one.

    ``value_error`` and ``value_clip``: whether the objective has such a term. Raises :class:`NotCompiled` for shapes and types
    that the kernels do not read.
    """

    def __init__(self, batch: Batch, head: int, outputs: int, *, value_error: bool, value_clip: bool) -> None:
        self.shape = batch.mask.shape
        self.tensors: dict[str, Tensor] = {}
        action = batch.inputs.get("action")
        if head == at.GAUSSIAN:
            self.add("continuous", action, torch.float32, outputs)
        else:
            self.add("action", action, torch.int64)
            self.add("legal", batch.inputs.get("action_mask"), torch.bool, outputs, optional=True)
            if not actions_exist(self.tensors["action"], outputs):
                raise NotCompiled
        self.add("behavior_log_prob", batch.behavior_log_prob, torch.float32)
        self.add("advantage", batch.advantage, torch.float32)
        self.add("returns", batch.returns, torch.float32, optional=not value_error)
        self.add("value", batch.value, torch.float32, optional=not value_clip)
        self.add("weight", batch.weight, torch.float32)
        self.add("mask", batch.mask, torch.bool)

    def add(self, name: str, tensor: Tensor | None, dtype: torch.dtype, size: int | None = None, *, optional: bool = False) -> None:
        """Take a tensor in, if it is what the kernels expect."""
        if tensor is None and optional:
            return
        shape = self.shape if size is None else (*self.shape, size)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
            raise NotCompiled
        self.tensors[name] = tensor.contiguous()

    def in_units_of(self, policy: Any) -> None:
        """Returns and old values as the critic's network says them."""
        if (scale := value_scale(policy)) is not None:
            self.tensors |= {name: scale.normalized(self.tensors[name]) for name in ("returns", "value") if name in self.tensors}

    @property
    def masked(self) -> bool:
        """Whether there is an action mask."""
        return "legal" in self.tensors

    def addresses(self) -> NDArray[np.int64]:
        """Where each column's numbers begin; 0 for one that is not there, which the kernel is told not to look at."""
        return np.array([self.tensors[name].data_ptr() if name in self.tensors else 0 for name in at.COLUMNS])


class Rows(Columns):
    """The columns of a whole batch for an MLP policy, its observations among them, and its units."""

    def __init__(self, batch: Batch, parts: Anatomy, *, value_error: bool, value_clip: bool) -> None:
        super().__init__(batch, parts.head, parts.outputs, value_error=value_error, value_clip=value_clip)
        self.add("observation", batch.inputs.get("observation"), torch.float32, parts.inputs)
        axes = UNIT_AXES[batch.unit]
        unknown = batch.inputs.keys() - {"observation", "action", "action_mask"}
        if unknown or axes > len(self.shape) or (value_error and not parts.critic):
            raise NotCompiled
        self.size = int(np.prod(self.shape[len(self.shape) - axes :]))
        self.alive = np.flatnonzero(self.tensors["mask"].numpy().reshape(-1, self.size).any(1))
        if not len(self.alive):
            raise NotCompiled

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
