"""The bound of the temperature, which settings and policies share."""

import math

from upslope.errors import require

MIN_TEMPERATURE = 0.01
"""Below it ``logits / temperature`` is so large that float32 no longer gives a text the same log-probability twice."""


def check_temperature(temperature: float) -> None:
    """Raise :class:`~upslope.errors.UsageError` unless the temperature is a finite number of at least :data:`MIN_TEMPERATURE`."""
    hint = "for the most likely text evaluate greedily (upslope evaluate does, upslope chat with --greedy)"
    fits = MIN_TEMPERATURE <= temperature < math.inf
    require(fits, f"temperature: expected a number ≥ {MIN_TEMPERATURE}, found {temperature:g}; {hint}")
