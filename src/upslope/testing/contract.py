"""What all checks share: the error that they raise, and parallel vectors."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 1e-6
"""Relative difference that is taken for rounding. Expectations are finite sums in float64, but a user's γ^t may be float32."""


class ContractError(AssertionError):
    """A user's code breaks a law; the message names the law, what was found and what to do."""


def hold(holds: bool, message: str) -> None:
    """Raise :class:`ContractError` unless the law holds."""
    if not holds:
        raise ContractError(message)


def same(a: Tensor, b: Tensor, tolerance: float = EXACT) -> bool:
    """Whether two vectors differ by no more than ``tolerance`` times the larger one's length."""
    size = torch.maximum(a.norm(), b.norm())
    return bool((a - b).norm() <= tolerance * size) or bool(size < 1e-14)


def factor(vector: Tensor, direction: Tensor, tolerance: float = EXACT) -> float | None:
    """c with ``vector = c · direction``, or None where the two are not parallel or one of them is zero."""
    if bool(vector.norm() < 1e-12) or bool(direction.norm() < 1e-12):
        return None
    scale = float(vector @ direction / (direction @ direction))
    return scale if same(vector, scale * direction, tolerance) else None


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors; NaN where one is zero."""
    return float(a @ b / (a.norm() * b.norm()))
