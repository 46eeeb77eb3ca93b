"""Two problems that need no library: a bandit with k arms, and the short corridor with switched actions.

Both look the same at every step: the only feature is the constant 1, ``[1]``.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from upslope.reference.arrays import Array

LEFT, RIGHT = 0, 1


class Problem(Protocol):
    """What a trainer needs: ``reset() -> x`` and ``step(action) -> (x, reward, terminated)``."""

    def reset(self) -> Array: ...

    def step(self, action: int) -> tuple[Array, float, bool]: ...


class Bandit:
    """``R ~ N(means[a], 1)``; an episode is one decision (SB 2.3)."""

    def __init__(self, means: Array, *, seed: int = 0) -> None:
        self.means = means
        self.generator = np.random.default_rng(seed)

    @classmethod
    def testbed(cls, num_arms: int = 10, *, shift: float = 0.0, seed: int = 0) -> Bandit:
        """One of SB's randomly made bandits: ``means ~ N(shift, 1)``."""
        bandit = cls(np.zeros(num_arms), seed=seed)
        bandit.means = shift + bandit.generator.standard_normal(num_arms)
        return bandit

    def reset(self) -> Array:
        return np.ones(1)

    def step(self, action: int) -> tuple[Array, float, bool]:
        return np.ones(1), float(self.means[action] + self.generator.standard_normal()), True


class ShortCorridor:
    """Three states in a row that look alike, a reward of −1 for every step; in the middle one left and right are switched (SB Ex. 13.1).

    With p = p(right) at every step, ``V(p) = −2 (2 − p) / (p (1 − p))``: at most −(6 + 4√2) = −11.657, at p = 2 − √2 = 0.5858.
    """

    def __init__(self) -> None:
        self.state = 0

    def reset(self) -> Array:
        self.state = 0
        return np.ones(1)

    def step(self, action: int) -> tuple[Array, float, bool]:
        """One cell on, or back; the wall at the left end holds, the cell to the right of the third is the goal."""
        forward = action == RIGHT
        if self.state == 1:
            forward = not forward
        self.state = self.state + 1 if forward else max(self.state - 1, 0)
        return np.ones(1), -1.0, self.state == 3
