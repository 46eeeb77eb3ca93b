"""What PyTorch has without types, under names that have them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

untyped: Any = torch
as_list: Callable[[Tensor], list[Any]] = untyped.Tensor.tolist
unflatten: Callable[..., Tensor] = untyped.Tensor.unflatten
norm: Callable[..., Tensor] = untyped.Tensor.norm
solve: Callable[[Tensor, Tensor], Tensor] = untyped.linalg.solve
from_numpy: Callable[[Any], Tensor] = untyped.from_numpy
manual_seed: Callable[[int], torch.Generator] = untyped.manual_seed
fork_rng: Callable[[list[str]], AbstractContextManager[None]] = untyped.random.fork_rng
