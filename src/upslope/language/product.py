"""Products with a matrix that stays the same over many calls: the last layer while completions are sampled.

With few rows, most of the time of an ordinary product with a large matrix goes into bringing the matrix into the order in which the
processor's kernel reads it, at every call anew. oneDNN can be handed the matrix in that order: with the last layer of
SmolLM2 on an AVX2 core, a product of 32 rows took 38 ms instead of 73.
"""

import platform

import torch
from torch import Tensor

SMALLEST = 1 << 20  # entries from which on a second copy is worth its memory

FEWEST = 4  # rows at a time from which on the other order is worth the time it takes to get there


class Product:
    """``x [rows, K]`` → ``x · weightᵀ [rows, N]``, with ``weight [N, K]`` as it was when this was made."""

    def __init__(self, weight: Tensor, rows: int = FEWEST) -> None:
        self.weight = weight
        self.packed = packed(weight) if rows >= FEWEST and weight.numel() >= SMALLEST else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return torch.mm(x, self.weight.t())
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


def packed(weight: Tensor) -> Tensor | None:
    """A copy in oneDNN's order; None where this build of PyTorch, this processor or this precision has none."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    except (AttributeError, RuntimeError):  # no such operator, or no such kernel (bfloat16 without AVX512)
        return None
