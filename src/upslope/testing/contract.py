"""What all checks share: the error that they raise, and parallel vectors."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from upslope.errors import UsageError
from upslope.typed import norm

EXACT = 1e-6
"""Relative difference that is taken for rounding. Expectations are finite sums in float64, but a user's γ^t may be float32."""


class ContractError(AssertionError):
    """A user's code breaks its contract; the message names the mistake, what was found and what to do.

    ``mistake`` is its name in :data:`~upslope.testing.MISTAKES`, or "contract" for what is not about a gradient.
    """

    def __init__(self, message: str, mistake: str = "contract") -> None:
        super().__init__(message)
        self.mistake = mistake


def expect(holds: bool, message: str, mistake: str = "contract") -> None:
    if not holds:
        raise ContractError(message, mistake)


NARROW = 1e-3
"""ε of a clip so narrow that no dual clip, which does not move along with it, acts at its bound."""


def clipped_on_the_wrong_side(moves: Callable[[float, float], bool], narrow: Callable[[float, float], bool] | None = None) -> str | None:
    """Where a clip takes the gradient from what has moved the wrong way, or None.

    ``moves(sign of the advantage, ratio)`` says whether a step is still moved, ``narrow`` the same with a clip range of ``NARROW``. A bad
    action that has become more frequent must be, up to a dual clip: just above the bound where the good ones are cut.
    """
    if not moves(1.0, 0.5):
        return "A > 0 at ratio 0.5"
    above = 1.0 + 2.0 * NARROW
    if narrow is not None and not narrow(1.0, above):
        return None if narrow(-1.0, above) else "A < 0 just above ratio 1 + ε"
    if moves(1.0, 2.0):
        return None if moves(-1.0, 2.0) else "A < 0 at ratio 2"
    low, high = 0.0, 1.0  # the clip range is not known: look where it ends
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if moves(1.0, 1.0 + middle) else (low, middle)
    at_once, inside, outside = (moves(-1.0, 1.0 + x * high) for x in (0.01, 0.9, 1.1))
    return None if outside or (at_once and not inside) else f"A < 0 just above ratio {1.0 + high:.3g}"


@contextmanager
def user_errors(name: str, where: str = "") -> Generator[None]:
    """Whatever a user's code raises becomes one line that names it: :class:`UsageError`."""
    try:
        yield
    except (UsageError, ContractError):
        raise
    except Exception as error:
        raise UsageError(f"{name}: raised {type(error).__name__} ({' '.join(str(error).split())}){where}") from error


def norm_of(vector: Tensor) -> float:
    return float(norm(vector))


def nearly_equal(a: Tensor, b: Tensor, tolerance: float = EXACT) -> bool:
    """Whether two vectors differ by no more than ``tolerance`` times the larger one's length."""
    size = torch.maximum(norm(a), norm(b))
    return bool(norm(a - b) <= tolerance * size) or bool(size < 1e-14)


def factor(vector: Tensor, direction: Tensor, tolerance: float = EXACT) -> float | None:
    """c with ``vector = c · direction``, or None where the two are not parallel or one of them is zero."""
    if norm_of(vector) < 1e-12 or norm_of(direction) < 1e-12:
        return None
    scale = float(vector @ direction / (direction @ direction))
    return scale if nearly_equal(vector, scale * direction, tolerance) else None


def points_along(vector: Tensor, direction: Tensor, tolerance: float = EXACT) -> bool:
    """Whether ``vector = c · direction`` with c > 0."""
    c = factor(vector, direction, tolerance)
    return c is not None and c > 0


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors; NaN where one is zero."""
    return float(a @ b / (norm(a) * norm(b)))
