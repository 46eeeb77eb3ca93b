"""What this machine is good at: the precision that passes compute in, by what the processor has instructions for, and large blocks.

glibc maps every block above some hundred kilobytes anew and returns it to the system when it is freed; the system then fills it with
zeros, page by page, each time. A training pass allocates thousands of such blocks of always the same sizes. Telling the allocator to
keep them takes most of that time away (1.7 times faster passes were seen) and costs the peak that was needed anyway.
"""

import ctypes
import functools
import os
import sys

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
LARGE = (1 << 31) - 1


def preferred(device: torch.device | str) -> torch.dtype:
    """``bfloat16`` where this device multiplies matrices of it in hardware (AMX or AVX512-BF16, CUDA from Ampere on), else ``float32``."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and multiplies_bfloat16() else torch.float32


def multiplies_bfloat16() -> bool:
    """Whether this processor has AMX tiles or AVX512-BF16; PyTorch must know to ask, and use them."""
    asks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.backends.mkldnn.is_available() and any(ask is not None and bool(ask()) for ask in asks)


@functools.cache
def keep_large_blocks() -> bool:
    """Set glibc's allocator to keep large blocks, once per process; False without it, or where environment variables set it."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
        settings = {MMAP_MAX: 0, TRIM_THRESHOLD: LARGE, TOP_PAD: 64 << 20}
        return all(library.mallopt(option, value) == 1 for option, value in settings.items())
    except (OSError, AttributeError):
        return False
