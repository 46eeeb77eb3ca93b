"""How many threads a policy is worth."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

SMALL = 500_000
"""Parameters below which a policy on the processor runs on one thread."""


@contextlib.contextmanager
def one_thread(policy: Any) -> Iterator[None]:
    """Small networks on the processor run on one thread: waking a second one costs more than their products.

    ``OMP_NUM_THREADS`` in the environment is taken as the user's own choice and left alone.
    """
    import torch

    parameters = list(policy.parameters())
    small = sum(p.numel() for p in parameters) < SMALL and all(p.device.type == "cpu" for p in parameters)
    before = torch.get_num_threads()
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
