"""Shape checks: tensors that belong to the same steps must have the same shape, and nothing is broadcast silently."""

import torch
from torch import Tensor

FLAGS = frozenset(("terminated", "truncated", "mask", "desirable"))
"""What must be boolean: ``~`` and ``|`` mean something else on numbers."""


def check_shapes(like: str, shape: torch.Size, **tensors: Tensor | None) -> None:
    """ValueError for tensors whose shape is not ``shape``, which would broadcast, and for flags that are not boolean; None is skipped."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)} like {like}, found {tuple(tensor.shape)}")
        if tensor is not None and name in FLAGS and tensor.dtype is not torch.bool:
            raise ValueError(f"{name}: expected dtype torch.bool, found {tensor.dtype}")


def check_masked_rows(reward: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor) -> None:
    """Refuse rewards and end flags on masked rows, where there was no decision (FORMULAS, section 3).

    All ``[..., T]``. Meant to be called once per recording: it reads a result back from the device.
    Raises ValueError naming the first offending row.
    """
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask)
    wrong = ((reward != 0) | terminated | truncated) & ~mask
    if bool(wrong.any()):
        row = tuple(int(i) for i in wrong.nonzero()[0])
        found = {"terminated": terminated[row].item(), "truncated": truncated[row].item(), "reward": reward[row].item()}
        name = next(name for name, value in found.items() if value)
        raise ValueError(f"{name}: found {found[name]} at masked row {row}; move it to the last real step before it")
