"""What an observation's Box is taken for: an image, a grid of codes, or a row of numbers; by its size, its dtype and its bounds.

A space does not say whether its numbers are intensities or names of things: MiniGrid declares codes from 0 to 10 as bytes from 0 to 255.
So integers on a grid go to the network in both readings, unless the grid is large enough for the convolutions of an Atari screen.

====================================================  ========================================================================
an image, for :class:`upslope.control.CNNPolicy`      2 to 4 axes, height and width of at least 16: integers; floats with a channel
                                                      axis (no longer than the sides), or without one from 0 to 1 or to 255
a grid of codes, for a vector's network               integers with 2 to 4 axes on a smaller grid
numbers                                               everything else
====================================================  ========================================================================

``"yes"`` takes every Box of 2 to 4 axes for an image, ``"no"`` none; ``"bytes"`` knows no codes, and as images bytes from 0 to 255 only:
the rule of policies that were saved before there was a choice.
"""

import math
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from upslope.control.kinds import Array, Box
from upslope.errors import UsageError, unknown

ImageChoice = Literal["auto", "yes", "no", "bytes"]
IMAGE_SIDE = 16  # smallest height and width of what is taken for an image unasked
NATURE_SIDE = 36
"""Smallest height and width for the convolutions of Mnih et al. 2015; integers from 0 to 255 on such an image are intensities."""
MAX_CODES, FIRST_CODES = 32, 16
"""So many values at most are codes, each distinguished; of more, the first 16 are distinguished, and all are also intensities."""
MAX_ONES = 2**14  # longest one-hot vector of a grid; a longer one is left to convolutions


class Reading(NamedTuple):
    """How the numbers of an integer Box are read: ``low`` to ``low + span − 1``, each one-hot in a vector of ``ones`` and as a share.

    The one is ``√ones``, so that the vector has the mean square of a normalized number: among a thousand zeros a plain 1 is too faint
    for a network's first layer (orthogonal weights, Adam) to learn from.
    """

    low: int
    span: int
    ones: int
    share: bool

    @property
    def one(self) -> float:
        """What stands for 1 in the one-hot vector."""
        return math.sqrt(self.ones)

    @property
    def width(self) -> int:
        """Numbers that one number becomes."""
        return self.ones + self.share

    def checked(self, array: Array) -> NDArray[np.int64]:
        """The array counted from 0; :class:`UsageError` for what the space does not hold, which would be taken for another code."""
        shifted = array.astype(np.int64) - self.low
        if shifted.size and not 0 <= shifted.min() <= shifted.max() < self.span:
            wrong = shifted.min() if shifted.min() < 0 else shifted.max()
            raise UsageError(f"observation: found {wrong + self.low}, its space holds {self.low} to {self.low + self.span - 1}")
        return shifted

    def __call__(self, array: Array) -> NDArray[np.float32]:
        """``[N, *shape]`` as ``[N, size · width]``."""
        index = self.checked(array).reshape(len(array), -1)
        block = np.zeros((*index.shape, self.width), np.float32)
        if self.ones:
            np.put_along_axis(block, np.minimum(index, self.ones - 1)[..., None], self.one, axis=2)
        if self.share:
            block[..., -1] = index / max(1, self.span - 1)
        return block.reshape(len(array), -1)


def reading(space: spaces.Box, *, large: bool = False) -> Reading | None:
    """The reading of an integer Box with bounds; None for floats, and for integers without bounds."""
    if space.dtype.kind not in "iub" or not space.shape or 0 in space.shape:
        return None
    low, count = int(space.low.min()), int(space.high.max()) - int(space.low.min()) + 1
    if count > 2**16:
        return None
    if count <= 2 or (large and count > MAX_CODES):
        return Reading(low, count, 0, True)
    return Reading(low, count, count, False) if count <= MAX_CODES else Reading(low, count, FIRST_CODES + 1, True)


def is_image(space: Any, choice: ImageChoice = "auto") -> bool:
    if choice not in get_args(ImageChoice):
        raise unknown("image", str(choice), get_args(ImageChoice))
    if not isinstance(space, Box) or not 2 <= len(space.shape) <= 4 or 0 in space.shape or choice == "no":
        return False
    if choice == "yes":
        return True
    channels, *sides = image_shape(space.shape)
    if choice == "bytes":
        return is_bytes(space) and min(sides) >= IMAGE_SIDE and bool((space.low == 0).all()) and bool((space.high == 255).all())
    if space.dtype.kind in "iub":
        read = reading(space)
        return read is not None and (min(sides) >= IMAGE_SIDE or read.width * math.prod(space.shape) > MAX_ONES)
    usual = bounds(space) in ((0, 1), (0, 255))
    return min(sides) >= IMAGE_SIDE and (usual if len(space.shape) == 2 else channels <= min(sides))


def is_grid(space: Any) -> bool:
    """Whether what is no image is a grid of codes."""
    return isinstance(space, Box) and 2 <= len(space.shape) <= 4 and (read := reading(space)) is not None and read.ones > 0


def is_bytes(space: Any) -> bool:
    """Whether it is a Box of bytes: an emulator's memory, for one."""
    return isinstance(space, Box) and space.dtype == np.uint8 and space.high.max(initial=0) == 255


def bounds(space: spaces.Box) -> tuple[float, float]:
    """The lowest and the highest number; what float32 can hardly hold counts as infinite."""
    low, high = float(space.low.astype(np.float64).min(initial=math.inf)), float(space.high.astype(np.float64).max(initial=-math.inf))
    return (low if low > -1e30 else -math.inf), (high if high < 1e30 else math.inf)


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an image of three or four axes ends in its channels: the others are its equal sides, or none of them is shorter."""
    first, middle, last = shape[-3:]
    return first == middle if (first == middle) != (middle == last) else last <= first


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of ``[H, W]``, ``[H, W, C]``, ``[C, H, W]`` and of stacks ``[K, H, W, C]``, ``[K, C, H, W]``."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    frames = shape[0] if len(shape) == 4 else 1
    channels, height, width = (shape[-1], *shape[-3:-1]) if channels_last(shape) else shape[-3:]
    return frames * channels, height, width


class Image(NamedTuple):
    """An image as a network meets it: uint8 counted from 0, with a ``reading``; or float32, in [−1, 1] where the bounds are known."""

    shape: tuple[int, int, int]
    reading: Reading | None
    low: float = 0.0
    scale: float = 1.0

    @property
    def dtype(self) -> Any:
        return np.float32 if self.reading is None else np.uint8

    @classmethod
    def of(cls, space: spaces.Box, choice: ImageChoice = "auto") -> Self:
        shape = image_shape(space.shape)
        read = reading(space, large=min(shape[1:]) >= NATURE_SIDE or choice == "bytes")
        if read is not None and read.span <= 256:
            return cls(shape, read)
        low, high = bounds(space)
        known = math.isfinite(low) and math.isfinite(high)
        return cls(shape, None, low, high - low) if known and (low < -1 or high > 1) else cls(shape, None)

    def __call__(self, array: Array, shape: tuple[int, ...]) -> Array:
        """A batch ``[N, *shape]`` as ``[N, C, H, W]``."""
        if len(shape) >= 3 and channels_last(shape):
            array = np.moveaxis(array, -1, -3)
        if self.reading is None:
            array = (np.asarray(array, np.float32) - self.low) / self.scale
        elif self.reading.span < 256 or self.reading.low:
            array = self.reading.checked(array)
        return np.array(array, dtype=self.dtype, order="C").reshape(len(array), *self.shape)

    def description(self) -> str:
        """``an image, 3 × 40 × 40 (channels, height, width), numbers as they are``."""
        read = self.reading
        if read is None:
            how = "numbers as they are" if self.scale == 1 else f"numbers from {self.low:g} to {self.low + self.scale:g} scaled to [0, 1]"
        elif not read.ones:
            how = f"divided by {read.span - 1}" if read.span > 2 else "zeros and ones"
        else:
            how = f"{read.span} codes" if not read.share else f"codes below {FIRST_CODES} distinguished, and all divided by {read.span - 1}"
        return f"an image, {' × '.join(map(str, self.shape))} (channels, height, width), {how}"
