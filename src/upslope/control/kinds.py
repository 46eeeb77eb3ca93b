"""Generic classes of other packages as ``isinstance`` finds them: they hold anything, where a type checker alone would know nothing."""

from typing import TYPE_CHECKING, Any

from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]

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
