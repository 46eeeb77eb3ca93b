"""What a reward returned, as floats, or in one line what is wrong with it."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from upslope.errors import RunFault


def numbers(name: str, result: Any, count: int, first: int = 0) -> list[float | None]:
    """What reward ``name`` returned for ``count`` items, the first of which is item ``first`` of the batch.

    Raises:
        RunFault: it is not one finite number or None for each item.
    """
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple):
        raise RunFault(f"reward {name} returned {kind_of(result)}: expected a list with a number or None for each of {count} completions")
    if len(values) != count:
        raise RunFault(f"reward {name} returned {len(values)} values for {count} completions: expected one for each")
    return [_number(f"reward {name} gave", value, first + index) for index, value in enumerate(values)]


def _number(said: str, value: Any, index: int) -> float | None:
    single = value.tolist() if hasattr(value, "tolist") else value
    if single is None:
        return None
    if not isinstance(single, Real):
        raise RunFault(f"{said} {kind_of(value)} for item {index + 1}: expected a number, or None for no score")
    try:
        number = float(single)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RunFault(f"{said} {number} for item {index + 1}: expected a finite number, or None for no score")
    return number


def kind_of(value: Any) -> str:
    """A value and its type, for messages."""
    text = " ".join(repr(value).split())
    shown = text if len(text) <= 40 else f"{text[:39]}…"
    return "None" if value is None else f"{shown} of type {type(value).__name__}"


def error_line(error: BaseException) -> str:
    """An exception in one line of at most some 200 characters."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
