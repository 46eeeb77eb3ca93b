"""Gymnasium spaces as tensors and as JSON.

:class:`Encoder` turns a (batch of) raw observation into the few tensors that a network takes: everything vector-like in
one float tensor ``observation [N, d]``, every image as ``image [N, C, H, W]``, uint8 or float32 (:mod:`upslope.control.images` says what
is one). :func:`space_to_json` and :func:`space_from_json` let a run folder hold a space without pickling it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from upslope.control.images import MAX_ONES, Image, ImageChoice, Reading, bounds, is_bytes, is_grid, is_image, reading
from upslope.control.kinds import AnyList, AnyTuple, Array, Box, DictSpace, MultiDiscrete, TupleSpace
from upslope.control.trees import by_space
from upslope.errors import UsageError, require

Space = spaces.Space[Any]
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


def short(space: Any) -> str:
    line = " ".join(repr(space).split())
    return line if len(line) <= 80 else line[:77] + "..."


def spaces_of(envs: Any) -> tuple[Space, Space]:
    """Observation and action space of one environment, from environments (single or vectorized) or from a pair of spaces."""
    names = [(f"single_{kind}_space", f"{kind}_space") for kind in ("observation", "action")]
    theirs = tuple(getattr(envs, single, None) or getattr(envs, plain, None) for single, plain in names)
    pair: tuple[Any, ...] = envs if isinstance(envs, AnyTuple) and len(envs) == 2 else theirs
    if not all(isinstance(space, spaces.Space) for space in pair):
        found = "a pair" if isinstance(envs, AnyTuple) else type(envs).__name__
        raise UsageError(f"envs: expected environments or (observation_space, action_space), found {found} without Gymnasium spaces")
    return pair[0], pair[1]


# ---------------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Leaf:
    """One basic space inside an observation space: how to reach it and what it becomes."""

    path: tuple[str | int, ...]
    space: Space
    size: int  # numbers it puts into "observation"; 0 for an image
    continuous: bool  # whether normalization applies to it
    name: str | None = None  # of the input that it becomes, if an image
    image: Image | None = None
    codes: Reading | None = None  # of a grid's

    def of(self, observation: Any) -> Any:
        for key in self.path:
            observation = observation[key]
        return observation

    def description(self) -> str:
        shape, space = " × ".join(map(str, self.space.shape or ())), self.space
        if self.image is not None:
            return self.image.description()
        if self.codes is not None:
            low, count = self.codes.low, self.codes.span
            shares = "" if not self.codes.share else f", and divided by {count - 1}"
            codes = f"{low} to {low + count - 1}" if not shares else f"below {self.codes.ones - 1}"
            return f"a grid of {shape} codes, {codes} distinguished{shares} ({self.size:,} numbers)"
        if isinstance(space, spaces.Discrete):
            return f"one of {space.n:,}"
        if len(self.space.shape or ()) > 1:
            return f"{self.size:,} numbers ({shape}, flattened)"
        return f"{self.size:,} number{'s' if self.size != 1 else ''}"


def _leaves(space: Space, path: tuple[str | int, ...], root: Space, image: ImageChoice) -> list[Leaf]:
    if isinstance(space, DictSpace):
        return [leaf for key in sorted(space.spaces) for leaf in _leaves(space.spaces[key], (*path, key), root, image)]
    if isinstance(space, TupleSpace):
        return [leaf for index, part in enumerate(space.spaces) for leaf in _leaves(part, (*path, index), root, image)]
    if isinstance(space, Box):
        if is_image(space, image):
            return [Leaf(path, space, 0, False, "/".join(["image", *map(str, path)]), Image.of(space, image))]
        codes, size = reading(space) if image != "bytes" and is_grid(space) else None, math.prod(space.shape)
        if codes is not None and codes.width * size <= MAX_ONES:
            return [Leaf(path, space, codes.width * size, False, codes=codes)]
        # zeros and ones are not normalized: an action mask for one
        binary = space.dtype.kind in "iub" and bool((space.low >= 0).all()) and bool((space.high <= 1).all())
        return [Leaf(path, space, size, not binary)]
    if isinstance(space, spaces.Discrete | MultiDiscrete | spaces.MultiBinary):
        return [Leaf(path, space, spaces.flatdim(space), False)]
    inside = "" if space is root else f" in {short(root)}"
    raise UsageError(f"observation space {short(space)}{inside}: not supported; supported are {SUPPORTED}")


def _one_hot(index: Array, out: Array) -> None:
    out[:] = 0
    np.put_along_axis(out, index[:, None], 1, axis=1)


def _counted(leaf: Leaf, array: Array, start: Any, count: Any) -> Array:
    """Numbers of a discrete space counted from 0; as an index, one that it does not hold would count from behind."""
    found = array.astype(np.int64)
    wrong = (found != array) | (found - start < 0) | (found - start >= count)
    if wrong.any():
        where = "".join(f"[{key!r}]" for key in leaf.path)
        raise UsageError(f"observation{where}: {array[wrong].flat[0]} is not in {short(leaf.space)}")
    return found - start


def _write(leaf: Leaf, array: Array, out: Array) -> None:
    space = leaf.space
    if isinstance(space, spaces.Discrete):
        _one_hot(_counted(leaf, array, int(space.start), int(space.n)), out)
    elif isinstance(space, MultiDiscrete):
        indices = _counted(leaf, array, space.start, space.nvec).reshape(len(array), -1)
        stop = 0
        for factor, count in enumerate(space.nvec.reshape(-1)):
            start, stop = stop, stop + int(count)
            _one_hot(indices[:, factor], out[:, start:stop])
    elif leaf.codes is not None:
        out[:] = leaf.codes(array)
    else:
        out[:] = array.reshape(len(array), -1)
        if is_bytes(space):
            out /= 255  # bytes (an emulator's memory) would saturate the first layer


class Encoder:
    """Turns observations of one space into named arrays; see the module's first lines.

    Attributes: ``size``, the length d of the vector part (0 if all is images); ``images``, name → :class:`Image`;
    ``names``, the inputs that come out; ``continuous [d]``, True where a number comes from a Box.
    """

    def __init__(self, space: Space, image: ImageChoice = "auto") -> None:
        self.space = space
        self.leaves = _leaves(space, (), space, image)
        self.size = sum(leaf.size for leaf in self.leaves)
        self.images: dict[str, Image] = {leaf.name: leaf.image for leaf in self.leaves if leaf.name and leaf.image}
        if image == "yes" and not self.images:
            raise UsageError(f"image: nothing in {short(space)} has 2 to 4 axes, so nothing is an image; leave it out")
        self.names = (("observation",) if self.size else ()) + tuple(self.images)
        require(bool(self.names), f"observation space {short(space)}: holds no numbers")
        self.continuous = np.repeat([leaf.continuous for leaf in self.leaves], [leaf.size for leaf in self.leaves])
        leaf = self.leaves[0]
        plain = len(self.leaves) == 1 and isinstance(space, Box) and leaf.image is None and leaf.codes is None
        self._plain_size = leaf.size if plain and space.dtype != np.uint8 else 0

    def is_single(self, observation: Any) -> bool:
        """Whether this is one observation of the space (False: a batch of them); anything else is a :class:`UsageError`."""
        leaf = self.leaves[0]
        try:
            shape = np.shape(leaf.of(observation))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UsageError(f"observation: expected one of {short(self.space)}, found {type(observation).__name__}") from error
        wanted = leaf.space.shape or ()
        if shape == wanted:
            return True
        if shape[1:] == wanted and len(shape) == len(wanted) + 1:
            return False
        raise UsageError(f"observation: expected shape {wanted} or {('N', *wanted)}, found {shape}".replace("'", ""))

    def batch(self, observation: Any) -> Any:
        return by_space(self.space, observation, lambda array: np.asarray(array)[None])

    def __call__(self, observation: Any, dtype: Any = np.float32) -> dict[str, Array]:
        """``[N, *space.shape]`` as new arrays: ``observation [N, d]`` of ``dtype`` and images ``[N, C, H, W]``; UsageError otherwise."""
        if self._plain_size:  # the common case, and the one that has to be quick
            array = np.array(observation, dtype=dtype, order="C")
            if array.shape[1:] != self.space.shape or array.ndim == 0:
                raise misfit(self.leaves[0], array)
            return {"observation": array.reshape(len(array), self._plain_size)}
        return self._parts(observation, dtype)

    def _parts(self, observation: Any, dtype: Any) -> dict[str, Array]:
        """The same for what has several leaves, or one that is no plain vector."""
        arrays = [np.asarray(leaf.of(observation)) for leaf in self.leaves]
        for leaf, array in zip(self.leaves, arrays, strict=True):
            if array.shape[1:] != leaf.space.shape or array.ndim == 0:
                raise misfit(leaf, array)
        vector = np.empty((len(arrays[0]), self.size), dtype)
        encoded: dict[str, Array] = {"observation": vector} if self.size else {}
        stop = 0
        for leaf, array in zip(self.leaves, arrays, strict=True):
            if leaf.image is not None and leaf.name is not None:
                encoded[leaf.name] = leaf.image(array, leaf.space.shape or ())
            else:
                start, stop = stop, stop + leaf.size
                _write(leaf, array, vector[:, start:stop])
        return encoded

    def description(self) -> str | None:
        """What the observation is taken for, part by part; None where there is no doubt, for all of it are rows of numbers."""
        if all(len(leaf.space.shape or ()) < 2 for leaf in self.leaves):
            return None
        named = [("/".join(map(str, leaf.path)), leaf.description()) for leaf in self.leaves]
        return "; ".join(f"{path} {text}" if path else text for path, text in named)

    def largest(self, observation: Any) -> tuple[float, float, float]:
        """The largest magnitude that a network meets unscaled: among the numbers of a batch and their finite bounds, and in its images.

        And the largest of the bytes, which it meets divided by 255.
        """
        numbers, images, octets = [0.0], [0.0], [0.0]
        for leaf in self.leaves:
            if not isinstance(leaf.space, Box) or leaf.codes is not None:
                continue
            found = float(np.abs(np.asarray(leaf.of(observation), np.float64)).max(initial=0.0))
            if is_bytes(leaf.space):
                octets += [found] if leaf.image is None else []
            elif leaf.continuous:
                numbers += [found, *(abs(bound) for bound in bounds(leaf.space) if math.isfinite(bound))]
            elif leaf.image is not None and leaf.image.reading is None:
                images.append(found / leaf.image.scale)
        return max(numbers), max(images), max(octets)


def misfit(leaf: Leaf, array: Array) -> UsageError:
    where = "".join(f"[{key!r}]" for key in leaf.path)
    found = f"found {array.shape}, want {('N', *(leaf.space.shape or ()))}".replace("'", "")
    return UsageError(f"observation{where}: shape is not a batch of {short(leaf.space)}: {found}")


# -------------------------------------------------------------------------------------------------------------------- JSON


def _number(value: float) -> float | str:
    """A JSON number; infinities, which JSON has no number for, as "inf" and "-inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _bound(array: Array) -> Any:
    """A bound: one number if it is the same everywhere (an image's would be thousands), else the flat list."""
    flat = array.reshape(-1).tolist()
    return _number(flat[0]) if flat and bool((array == array.flat[0]).all()) else [_number(value) for value in flat]


def _array(bound: Any, shape: Sequence[int], dtype: str) -> Array:
    values = [float(value) if isinstance(value, str) else value for value in (bound if isinstance(bound, AnyList) else [bound])]
    array = np.array(values, dtype=dtype)
    return (array if isinstance(bound, AnyList) else np.full(math.prod(shape), array[0], dtype)).reshape(tuple(shape))


def space_to_json(space: Space) -> dict[str, Any]:
    """A space as plain JSON values; :func:`space_from_json` gives back an equal one."""
    if isinstance(space, Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.shape)}
    if isinstance(space, DictSpace):
        return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    if isinstance(space, TupleSpace):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise UsageError(f"space {short(space)}: not supported; supported are {SUPPORTED}")


def space_from_json(data: Mapping[str, Any]) -> Space:
    """The space that :func:`space_to_json` described; :class:`UsageError` where the description is damaged."""
    try:
        return _from_json(data)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"space description: damaged, {type(error).__name__}: {' '.join(str(error).split())}") from error


def _from_json(data: Mapping[str, Any]) -> Space:
    kind = data["type"]
    if kind == "Box":
        shape, dtype = data["shape"], data["dtype"]
        low, high = _array(data["low"], shape, dtype), _array(data["high"], shape, dtype)
        return spaces.Box(low, high, tuple(shape), np.dtype(dtype).type)
    if kind == "Discrete":
        dtype = np.dtype(data["dtype"]).type
        other: dict[str, Any] = {} if dtype is np.int64 else {"dtype": dtype}  # Gymnasium 1.1 knows no other
        return spaces.Discrete(data["n"], start=data["start"], **other)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(data["nvec"]), np.dtype(data["dtype"]).type, start=np.array(data["start"]))
    if kind == "MultiBinary":
        shape = data["n"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Dict":
        return spaces.Dict([(key, _from_json(part)) for key, part in data["spaces"]])
    if kind == "Tuple":
        return spaces.Tuple([_from_json(part) for part in data["spaces"]])
    raise UsageError(f"space description: unknown type {kind!r}; supported are {SUPPORTED}")
