"""The specification: every formula in plain loops over NumPy arrays, with gradients derived by hand.

Slow on purpose, and written from the definitions rather than from the fast code. Tests, documentation and examples import
it; the library itself does not. Read it next to the function of the same name in :mod:`upslope.functional`.
"""

from __future__ import annotations

from upslope.reference import distributions, divergences, importance, objective, preferences, returns, special, statistics, surrogates
from upslope.reference.softmax_policy import SoftmaxPolicy

__all__ = [
    "SoftmaxPolicy",
    "distributions",
    "divergences",
    "importance",
    "objective",
    "preferences",
    "returns",
    "special",
    "statistics",
    "surrogates",
]
