"""What strict types miss in other packages: generic classes as ``isinstance`` finds them, which hold anything, and functions of PyTorch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]
from_numpy: Callable[[Array], torch.Tensor] = vars(torch)["from_numpy"]
fork_rng: Callable[..., Any] = vars(torch.random)["fork_rng"]

if TYPE_CHECKING:

    class Box(spaces.Box[Any]): ...

    class MultiDiscrete(spaces.MultiDiscrete[Any]): ...

    class DictSpace(spaces.Dict[Any]): ...

    class TupleSpace(spaces.Tuple[Any]): ...

    class AnyDict(dict[str, Any]): ...

    class AnyTuple(tuple[Any, ...]): ...

    class AnyList(list[Any]): ...
else:
    Box, MultiDiscrete, DictSpace, TupleSpace = spaces.Box, spaces.MultiDiscrete, spaces.Dict, spaces.Tuple
    AnyDict, AnyTuple, AnyList = dict, tuple, list
