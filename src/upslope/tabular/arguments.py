"""What callers pass, read and checked: arrays, integers and numbers; each UsageError names the argument and what was found."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from upslope.errors import UsageError, require

KINDS = {torch.float64: "numbers", torch.int64: "whole numbers", torch.bool: "booleans"}


def attached(name: str, value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """An array, a list or a tensor as a tensor; nothing is rounded to fit ``dtype``, and gradients flow through it."""
    try:
        if torch.as_tensor(value).is_complex():
            raise TypeError("they are complex")
        given = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{name}: expected an array of {KINDS[dtype]}, found {type(value).__name__} ({reason})") from error
    tensor = given.to(dtype)
    if dtype is not torch.float64 and bool((wrong := tensor.double() != given).any()):
        raise UsageError(f"{name}: expected {KINDS[dtype]}, found {float(given[wrong][0]):g}")
    return tensor


def as_tensor(name: str, value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return attached(name, value, dtype).detach().clone()


def check_whole(name: str, value: Any, least: int = 1, *, optional: bool = False) -> None:
    """Refuse what is no integer ≥ ``least`` (or None, where that is ``optional``)."""
    fits = not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least
    require(fits or (optional and value is None), f"{name}: expected an integer ≥ {least}{' or none' * optional}, found {value!r}")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    kind = f"a number in [{low:g}, {high:g}]" if math.isfinite(high) else f"a number ≥ {low:g}" if math.isfinite(low) else "a finite number"
    fits = isinstance(value, Real) and math.isfinite(value) and low <= float(value) <= high
    require(fits, f"{name}: expected {kind}, found {value!r}")


def check_seed(seed: Any) -> None:
    check_whole("seed", seed, 0)
    require(seed < 2**32, f"seed: expected an integer from 0 to {2**32 - 1}, found {seed}")


def check_gamma(gamma: Any) -> None:
    check_number("gamma", gamma, 0.0, 1.0)
