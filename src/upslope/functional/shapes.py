"""Shape checks: tensors that belong to the same steps must have the same shape, and nothing is broadcast silently."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(like: str, shape: torch.Size, **tensors: Tensor | None) -> None:
    """Refuse tensors whose shape is not ``shape`` (``[N]`` against ``[N, 1]`` would broadcast to ``[N, N]``); None is skipped.

    Raises ValueError naming the tensor, the shape expected and the shape found.
    """
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)} like {like}, found {tuple(tensor.shape)}")


def check_flags(**flags: Tensor | None) -> None:
    """Refuse end flags and masks that are not boolean: ``~`` and ``|`` mean something else on numbers.

    Raises ValueError naming the tensor and its dtype.
    """
    for name, flag in flags.items():
        if flag is not None and flag.dtype is not torch.bool:
            raise ValueError(f"{name}: expected dtype torch.bool, found {flag.dtype}")


def check_recording(reward: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor | None, **values: Tensor | None) -> None:
    """Refuse shapes that are not the reward's, and flags that are not boolean; None is skipped.

    Raises ValueError naming the tensor.
    """
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask, **values)
    check_flags(terminated=terminated, truncated=truncated, mask=mask)


def check_masked_rows(reward: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor) -> None:
    """Refuse rewards and end flags on masked rows, where there was no decision (FORMULAS, section 3).

    All ``[..., T]``. Meant to be called once per recording: it reads a result back from the device.
    Raises ValueError naming the first offending row.
    """
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask)
    check_flags(terminated=terminated, truncated=truncated, mask=mask)
    wrong = ((reward != 0) | terminated | truncated) & ~mask
    if bool(wrong.any()):
        row = tuple(int(i) for i in wrong.nonzero()[0])
        name, found = next(
            (n, x[row].item()) for n, x in (("terminated", terminated), ("truncated", truncated), ("reward", reward)) if bool(x[row] != 0)
        )
        raise ValueError(f"{name}: found {found} at masked row {row}; move it to the last real step before it")
