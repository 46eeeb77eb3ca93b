"""Where a policy lives, and how many threads it is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

from upslope.errors import UsageError, require
from upslope.records import Policy

SMALL = 500_000  # parameters below which a policy on the processor runs on one thread


@contextlib.contextmanager
def one_thread(policy: Policy | None = None) -> Generator[None]:
    """Small networks on the processor are made and run on one thread: waking a second one costs more than their products.

    Sums round by the number of threads, so the same seed gives the same bits whatever the number of cores, and ``OMP_NUM_THREADS``.
    Without a policy it is about to be made.
    """
    parameters = [] if policy is None else list(policy.parameters())
    small = sum(p.numel() for p in parameters) < SMALL and all(p.device.type == "cpu" for p in parameters)
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # which is none of those below
    require(device.type in ("cpu", "cuda", "mps"), f"device: expected cpu, cuda, cuda:N or mps, found {name!r}")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device: {name!r} is not available, {torch.cuda.device_count()} CUDA devices are; use --device cpu")
    require(device.type != "mps" or torch.backends.mps.is_available(), "device: 'mps' is not available here; use --device cpu")
    return device
