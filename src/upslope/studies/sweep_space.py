"""What a sweep searches: a range or a few values for each setting, and the space that a method has unless one is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from upslope.errors import UsageError, require
from upslope.run.config import RunConfig
from upslope.run.settings import function_name, settings_of


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, integers where both are; ``log``: evenly over their logarithms."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        require(math.isfinite(self.low) and math.isfinite(self.high), f"search: expected finite ends, found {self.low} and {self.high}")
        require(self.low < self.high, f"search: expected LOW < HIGH, found {self.low:g}:{self.high:g}")
        require(not self.log or self.low > 0, f"search: a logarithmic range begins above 0, found {self.low:g}:{self.high:g}:log")

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """What has to be allowed for all of it to be."""
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        right = isinstance(value, int if self.is_integer else int | float) and not isinstance(value, bool)
        return right and self.low <= value <= self.high

    def suggest(self, trial: Any, name: str) -> Any:
        """The value that an Optuna trial has for the setting ``name``."""
        ask = trial.suggest_int if self.is_integer else trial.suggest_float
        return ask(name, self.low, self.high, log=self.log)

    def recorded(self, value: Any) -> Any:
        """A value as Optuna stores it."""
        return value

    def value(self, recorded: Any) -> Any:
        """The value that is stored so."""
        return recorded

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """One of a few values of any kind."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        require(len(self.values) > 1, f"search: expected two values or more, found {len(self.values)}")
        names = [self.recorded(value) for value in self.values]
        twice = [name for name in names if names.count(name) > 1]
        require(not twice, f"search: {twice[0] if twice else ''} is named twice")

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    def holds(self, value: Any) -> bool:
        return any(self.recorded(value) == self.recorded(each) for each in self.values)

    def suggest(self, trial: Any, name: str) -> Any:
        return self.value(trial.suggest_categorical(name, [self.recorded(value) for value in self.values]))

    def recorded(self, value: Any) -> Any:
        """A value as Optuna stores it, which knows numbers and texts alone."""
        return value_name(value)

    def value(self, recorded: Any) -> Any:
        return next(value for value in self.values if self.recorded(value) == recorded)

    def __str__(self) -> str:
        return ", ".join(value_name(value) for value in self.values)


def value_name(value: Any) -> str:
    """``0.003``, ``64 64``, ``none``, ``clipped_surrogate``."""
    if isinstance(value, tuple):
        return " ".join(value_name(item) for item in cast("tuple[Any, ...]", value)) or "none"
    if callable(value):
        return function_name(value, type(None), "")
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


Space = Mapping[str, Range | Choices]


def around(factor: float) -> Callable[[Any], Range | None]:
    """From a ``factor`` below a number to as much above it."""

    def made(value: Any) -> Range | None:
        return Range(rounded(value / factor), rounded(value * factor), log=True) if isinstance(value, float) and value > 0 else None

    return made


def rounded(number: float) -> float:
    """Three digits of it, so that a range reads well."""
    return float(f"{number:.3g}")


def among(*values: float) -> Callable[[Any], Choices | None]:
    """These values and the one that is started from."""

    def made(value: Any) -> Choices | None:
        return Choices(tuple(sorted({*values, value}))) if isinstance(value, float) else None

    return made


def doubled(times: int, least: int = 1) -> Callable[[Any], Choices | None]:
    """A count, halved and doubled so often."""

    def made(value: Any) -> Choices | None:
        if not isinstance(value, int) or value < 2:
            return None
        smaller = {value >> power for power in range(1, times + 1)}
        found = sorted({count for count in smaller if count >= least} | {value << power for power in range(times + 1)})
        return Choices(tuple(found))

    return made


def epochs(value: Any) -> Range | None:
    """A quarter of a number of epochs to twice as many; one epoch stays one, for there nothing bounds how far several would go."""
    return Range(max(1, value // 4), 2 * value, log=True) if isinstance(value, int) and value > 1 else None


DEFAULTS: dict[str, Callable[[Any], Range | Choices | None]] = {
    **dict.fromkeys(("learning_rate", "value_learning_rate", "average_reward_rate", "max_kl", "beta"), around(10.0)),
    **dict.fromkeys(("kl_coef", "reference_kl_coef"), around(10.0)),  # where there is none, a reference model would be loaded for it
    "gamma": lambda value: None if value == 1.0 else among(0.9, 0.95, 0.98, 0.99, 0.995, 0.999)(value),  # 1 is the problem's own
    "gae_lambda": among(0.8, 0.9, 0.95, 0.98, 1.0),
    **dict.fromkeys(("trace_decay", "value_trace_decay"), among(0.0, 0.5, 0.8, 0.9, 0.95)),
    "clip_range": among(0.1, 0.2, 0.3, 0.4),
    "entropy_coef": among(0.0, 0.001, 0.003, 0.01, 0.03),
    "max_grad_norm": among(0.3, 0.5, 1.0, 2.0, 5.0),
    "num_epochs": epochs,
    "num_minibatches": doubled(2),
    "num_steps": doubled(2),
    "group_size": doubled(1, least=2),
    "num_groups": doubled(1),
}
"""Setting → its range or values, from what a run of the method starts with; None where it is not searched."""


def default_space(config: RunConfig, fixed: frozenset[str] = frozenset()) -> dict[str, Range | Choices]:
    """The settings of :data:`DEFAULTS` that the algorithm and the collector have, without the ``fixed`` ones.

    Raises:
        UsageError: nothing is left to search.
    """
    known = {name: setting.value for name, setting in settings_of(config.algorithm, config.collector).items() if name not in fixed}
    if config.needs.learns_from == "stream":  # it learns at every step, so how many make an iteration changes nothing
        known.pop("num_steps", None)
    found = {name: made for name, of in DEFAULTS.items() if name in known and (made := of(known[name])) is not None}
    if not found:
        raise UsageError(f"search: of {config.name} nothing is left to search by default; say --search NAME=LOW:HIGH or NAME=a,b,c")
    return found


def check_space(config: RunConfig, space: Space) -> None:
    """Raise :class:`UsageError` for a setting that the run does not have, or a value that it does not take."""
    require(bool(space), "search: expected at least one setting")
    for name, dimension in space.items():
        require(name not in ("seed", "total_steps", "iterations"), f"search: {name} is not searched: trials would not be comparable")
        for value in dimension.ends:
            config.replaced({name: value})
