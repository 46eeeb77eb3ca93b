"""What a reward asks for by the names of its parameters, and what it may be given besides the columns of the data."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from upslope.language.checks import Reward

ALSO_KNOWN = ("prompts", "completions", "completion_ids", "finish_reason", "trainer_state")
"""What a reward may ask for that is no column of the data."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """How far training is, for rewards that ask for ``trainer_state``: a curriculum, an annealed weight."""

    iteration: int = 0
    """iterations that are done"""
    iterations: int | None = None
    """iterations after which the run ends, where that is known"""
    total_steps: int = 0
    """tokens trained on so far"""
    fraction: float = 0.0
    """how much of the run is done, from 0 to 1"""

    @property
    def global_step(self) -> int:
        """TRL's name of ``iteration``."""
        return self.iteration

    @property
    def max_steps(self) -> int:
        """TRL's name of ``iterations``; −1 where it is not known."""
        return -1 if self.iterations is None else self.iterations


@dataclass(frozen=True)
class Asked:
    """The names that a function takes (None: whatever it is given), and what it cannot be called without besides texts."""

    takes: frozenset[str] | None
    needed: tuple[str, ...]

    @classmethod
    def by(cls, function: Reward) -> Asked:
        """By its parameters, and what it says itself that it ``needs``."""
        try:
            found = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            found = None
        named = [p for p in found or () if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
        needed = [name for name in (*(p.name for p in named), *getattr(function, "needs", ())) if name not in ("prompts", "completions")]
        everything = found is None or any(p.kind is p.VAR_KEYWORD for p in found)
        return cls(None if everything else frozenset(p.name for p in found or ()), tuple(needed))
