"""Which precision a processor computes fastest in: measured once per process, in some milliseconds."""

from __future__ import annotations

import functools
import time

import torch


def fastest(device: torch.device | str) -> torch.dtype:
    """``bfloat16`` where this device multiplies matrices clearly faster in it, else ``float32``."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return measured() if device.type == "cpu" else torch.float32


@functools.cache
def measured() -> torch.dtype:
    """Processors with matrix units for bfloat16 are four to eight times faster in it, others that much slower."""
    return torch.bfloat16 if product_seconds(torch.bfloat16) * 1.5 < product_seconds(torch.float32) else torch.float32


def product_seconds(dtype: torch.dtype, size: int = 256) -> float:
    """The shortest of five products of square matrices."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    taken: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - started)
    return min(taken)
