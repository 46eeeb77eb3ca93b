"""What an environment keeps from episode to episode in plain attributes: a count of episodes, the level of a curriculum.

An episode that is played again begins with what its numbers, flags and texts were before its reset (:mod:`upslope.control.restore`), and
must end with what all that counts, in lists, dicts and arrays too, was behind its last step. Looked at are the environment and its
wrappers, but for Gymnasium's, whose environments keep nothing: what somebody wrote pays some microseconds for each reset. Left alone is
what means something to one process only, by its name or because it is a time, and what no reset and no step has changed since it was
made: a port, a folder, when it began.
"""

import itertools
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import gymnasium
import numpy as np

from upslope.control.kinds import AnyDict, AnyList, AnyTuple
from upslope.errors import is_kind

PLAIN = (bool, int, float, str)
MOST, MOST_NUMBERS = 1000, 100_000
"""Parts of a list or a dict, and numbers of an array, that are compared at most. More is data."""
MEASURED = re.compile(r"float|-?(\d+\.|\d+e|inf|nan|\d{12,}$)")
OF_A_PROCESS = re.compile(r"(^|_)(pid|process|fd|port|socket|server|client|handle|uuid|file|path|dir|folder|time|clock|date)(_|$)")
OF_GYMNASIUM = {"_np_random_seed", "spec", "metadata", "render_mode", "reward_range"}
YEAR = 3.2e7

Memory = dict[str, Any]
"""Attributes by ``"level.name"``; level 0 is the environment, the others are its wrappers from the inside."""


def parts(env: Any) -> list[Any]:
    """The environment and its wrappers, from the inside."""
    found: list[Any] = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(cast(Any, found[-1]).env)
    return found[::-1]


def is_somebodys(part: Any) -> bool:
    return not type(part).__module__.startswith(("gymnasium.", "upslope."))


def levels(env: Any) -> list[dict[str, Any]]:
    """The attributes of each part; empty for those of Gymnasium and of this library."""
    return [getattr(part, "__dict__", {}) if is_somebodys(part) else {} for part in parts(env)]


def own(env: Any) -> Iterator[tuple[str, Any]]:
    """The attributes that may be of the episodes, by their places."""
    for level, attributes in enumerate(levels(env)):
        for name, value in attributes.items():
            if name not in OF_GYMNASIUM and not OF_A_PROCESS.search(name.lower()) and not is_time(value):
                yield f"{level}.{name}", value


def remembered(env: Any) -> Memory:
    """What can be set: numbers, flags and texts. Lists, dicts and arrays may be held elsewhere as well, or be a part of one another."""
    return {place: value for place, value in own(env) if is_number(value)}


def is_number(value: Any) -> bool:
    """Or a text."""
    return type(value) in PLAIN or (is_kind(value, np.generic) and value.dtype.kind in "biuf")


def is_time(value: Any) -> bool:
    """Whether a number is what a clock has shown, of late: since 1970 within a year, or since the machine was started within minutes."""
    if type(value) is not float:
        return False
    running = time.monotonic()
    return abs(value - time.time()) < YEAR or 0.0 <= running - value < min(600.0, running / 10.0)


@dataclass(frozen=True)
class Made:
    """What an environment keeps before its first reset."""

    values: Memory
    marks: Mapping[str, int]
    looked_at: bool
    """whether a part of it is neither Gymnasium's nor this library's"""

    @classmethod
    def of(cls, env: Any) -> Self:
        return cls(remembered(env), marks(env), any(map(is_somebodys, parts(env))))

    def changed(self, now: Memory) -> Memory:
        """What is not as it was made, in a form that checkpoints hold to the bit."""
        found = {place: value for place, value in now.items() if self.marks.get(place) != mark(value)}
        return {place: np.asarray(value) if is_kind(value, np.generic) else value for place, value in found.items()}


def marks(env: Any) -> dict[str, int]:
    """A number for each attribute that is plain, however nested: the same where they are the same to the bit."""
    return {place: found for place, value in own(env) if (found := mark(value)) is not None}


def mark(value: Any) -> int | None:
    try:
        texts = list(itertools.islice(described(value), MOST + 1))
    except (TypeError, RecursionError):
        return None
    return None if len(texts) > MOST else zlib.crc32("\n".join(texts).encode())


def described(value: Any) -> Iterator[str]:
    """What it holds as texts; TypeError where it is not plain."""
    if is_kind(value, np.generic) and is_number(value):
        yield repr(value.item())
    elif value is None or is_number(value):
        yield repr(value)
    elif is_kind(value, np.ndarray) and value.dtype.kind in "biuf" and value.size <= MOST_NUMBERS:
        yield f"{value.dtype} {value.shape} {zlib.crc32(value.tobytes())}" if value.shape else repr(value.item())
    elif type(value) in (AnyList, AnyTuple, AnyDict):
        yield f"{type(value).__name__} of {len(value)}"
        for part in itertools.chain.from_iterable(value.items()) if type(value) is AnyDict else value:
            yield from described(part)
    else:
        raise TypeError(value)


def set_back(env: Any, made: Made, state: Mapping[str, Any]) -> None:
    """Before a reset: what was changed then is what it was ``before`` that reset; what was not, and is by now, as it was ``made``."""
    found = levels(env)
    for place, value in remembered(env).items():
        if place in made.values and state["made"].get(place) == made.marks[place] != mark(value):
            put(found, place, made.values[place])
    for place, value in state["before"].items():
        put(found, place, value[()] if is_kind(value, np.ndarray) and not value.shape else value)


def put(found: list[dict[str, Any]], place: str, value: Any) -> None:
    level, _, name = place.partition(".")
    found[int(level)][name] = value


def first_difference(env: Any, made: Made, state: Mapping[str, Any]) -> str:
    """The name of what it keeps and is not as it was at the checkpoint; '' where all is."""
    now = dict(own(env))
    for place, then in state["now"].items():
        found = mark(now.get(place))
        moved = then != state["made"].get(place) or found != made.marks.get(place)
        if moved and found != then and not is_measured(now.get(place)):
            return place.partition(".")[2]
    return ""


def is_measured(value: Any) -> bool:
    """Whether there are fractions in it, or numbers as large as addresses and nanoseconds: how long a step took is no memory."""
    return any(MEASURED.match(text) for text in described(value))
