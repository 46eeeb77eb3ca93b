"""What a reward asks for by the names of its parameters, and what it may be given besides the columns of the data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def _parameters(function: Reward) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def accepted(function: Reward, given: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Those of the arguments that the function has parameters for."""
    return {name: column for name, column in given.items() if takes(function, name)}


def takes(function: Reward, name: str) -> bool:
    """Whether the function has a parameter of this name, or takes every keyword."""
    parameters = _parameters(function)
    return parameters is None or name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def needed(function: Reward) -> list[str]:
    """What the function cannot be called without, apart from prompts and completions."""
    named = [
        name
        for name, parameter in (_parameters(function) or {}).items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and parameter.default is parameter.empty
    ]
    return [name for name in (*named, *getattr(function, "needs", ())) if name not in ("prompts", "completions")]
