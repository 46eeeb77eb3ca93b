"""What an environment changes of PyTorch for the whole process is changed back behind each call of it."""

import contextlib
from collections.abc import Generator

import torch


def set_back(before: tuple[torch.dtype, bool]) -> None:
    """Set the default dtype, and whether gradients are computed."""
    torch.set_default_dtype(before[0])
    torch.set_grad_enabled(before[1])


@contextlib.contextmanager
def torch_kept() -> Generator[None]:
    """Both are behind the block, or a function of which this is the decorator, what they were before it."""
    before = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        set_back(before)
