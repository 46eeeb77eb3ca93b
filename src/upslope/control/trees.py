"""Batched observations as trees: a NumPy array, or a dict or tuple of them, each with the environments on the first axis."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from upslope.control.kinds import AnyDict, AnyList, AnyTuple, Array, DictSpace, MultiDiscrete, TupleSpace


def tree_map(change: Callable[[Array], Array], tree: Any) -> Any:
    if isinstance(tree, AnyDict):
        return {name: tree_map(change, part) for name, part in tree.items()}
    if isinstance(tree, AnyTuple):
        return tuple(tree_map(change, part) for part in tree)
    return change(np.asarray(tree))


def by_space(space: Space[Any], tree: Any, change: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """The parts that the space says, each changed: dicts and tuples as there, whatever the tree had in their place."""
    if isinstance(space, DictSpace):
        return {name: by_space(part, tree[name], change) for name, part in space.spaces.items()}
    if isinstance(space, TupleSpace):
        return tuple(by_space(part, tree[index], change) for index, part in enumerate(space.spaces))
    return change(tree)


def rows(tree: Any, indices: Array) -> Any:
    return tree_map(lambda array: array[indices].copy(), tree)


def write_row(tree: Any, index: int, row: Any) -> None:
    """Put an observation into one row of a batch."""
    if isinstance(tree, (AnyDict, AnyTuple)):
        for key, part in tree.items() if isinstance(tree, AnyDict) else enumerate(tree):
            write_row(part, index, row[key])
    else:
        tree[index] = row


def stack(space: Space[Any], items: Sequence[Any]) -> Any:
    return concatenate(space, items, create_empty_array(space, n=len(items), fn=np.empty))


def leaf_spaces(space: Space[Any]) -> Iterator[tuple[str, Space[Any]]]:
    """The basic spaces inside ``space`` with the path to each: ``""`` for the space itself, ``"['camera'][0]"`` inside."""
    if not isinstance(space, (DictSpace, TupleSpace)):
        yield "", space
        return
    for key, part in space.spaces.items() if isinstance(space, DictSpace) else enumerate(space.spaces):
        for path, leaf in leaf_spaces(part):
            yield f"[{key!r}]{path}", leaf


def named_leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays of a tree with the path to each, as :func:`leaf_spaces` writes it."""
    if isinstance(tree, (AnyDict, AnyTuple)):
        for key, part in tree.items() if isinstance(tree, AnyDict) else enumerate(tree):
            yield from named_leaves(part, f"{path}[{key!r}]")
    else:
        yield path, np.asarray(tree)


def from_leaves(space: Space[Any], leaf: Callable[[str], Array], path: str = "") -> Any:
    """The tree of a space from its arrays by their paths."""
    if isinstance(space, DictSpace):
        return {name: from_leaves(part, leaf, f"{path}[{name!r}]") for name, part in space.spaces.items()}
    if isinstance(space, TupleSpace):
        return tuple(from_leaves(part, leaf, f"{path}[{i}]") for i, part in enumerate(space.spaces))
    return leaf(path)


def as_arrays(tree: Any, space: Space[Any], num_envs: int, path: str = "") -> Any:
    """The tree as arrays of the space's dtypes, or a ``ValueError`` that says which part is wrong and how.

    Float arrays must be finite. A float64 array for a float32 space is converted; a float array for an integer space is not.
    """
    if isinstance(space, DictSpace):
        if not isinstance(tree, AnyDict) or set(tree) != set(space.spaces):
            raise ValueError(f"observation{path} should be a dict with the keys {sorted(space.spaces)}, found {describe_tree(tree)}")
        return {name: as_arrays(tree[name], part, num_envs, f"{path}[{name!r}]") for name, part in space.spaces.items()}
    if isinstance(space, TupleSpace):
        if not isinstance(tree, AnyTuple) or len(tree) != len(space.spaces):
            raise ValueError(f"observation{path} should be a tuple of {len(space.spaces)}, found {describe_tree(tree)}")
        parts = enumerate(zip(tree, space.spaces, strict=True))
        return tuple(as_arrays(part, inner, num_envs, f"{path}[{i}]") for i, (part, inner) in parts)
    array = tree if type(tree) is np.ndarray else np.asarray(tree)
    shape, dtype = (num_envs, *(space.shape or ())), space.dtype or np.dtype(object)
    if array.shape != shape:
        raise ValueError(f"observation{path} has shape {array.shape[1:]}, observation_space{path} says {shape[1:]}")
    if array.dtype != dtype:
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise ValueError(f"observation{path} has dtype {array.dtype}, observation_space{path} says {dtype}")
        array = array.astype(dtype)
    if isinstance(space, (spaces.Discrete, MultiDiscrete, spaces.MultiBinary)):
        check_range(array, space, path)
    if dtype.kind == "f" and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0]
        message = f"observation{path} is not finite: {array[tuple(where)]} in environment {where[0]}, index {list(map(int, where[1:]))}"
        raise ValueError(message)
    return array


def check_range(array: Array, space: spaces.Discrete | MultiDiscrete | spaces.MultiBinary, path: str = "") -> None:
    """``ValueError`` for a number that a discrete space does not hold: as an index it would count from behind."""
    if isinstance(space, spaces.MultiBinary):
        start, count = 0, 2
    else:
        start, count = space.start, space.n if isinstance(space, spaces.Discrete) else space.nvec
    outside = (array < start) | (array >= start + count)
    if outside.any():
        where = np.argwhere(outside)[0]
        raise ValueError(f"observation{path} is outside {space}: {array[tuple(where)]} in environment {where[0]}")


def describe_tree(tree: Any) -> str:
    if tree is None:
        return "None"
    if isinstance(tree, AnyDict):
        return f"a dict with the keys {sorted(map(str, tree))}"
    if isinstance(tree, (AnyTuple, AnyList)):
        return f"a {type(tree).__name__} of {len(tree)}"
    array = np.asarray(tree)
    return f"{type(tree).__name__} of shape {array.shape} and dtype {array.dtype}"
