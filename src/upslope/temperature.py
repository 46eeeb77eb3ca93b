"""The bound of the temperature, which settings and policies share."""

from __future__ import annotations

import math

from upslope.errors import require

LOWEST = 0.01
"""Below it ``logits / temperature`` is so large that float32 no longer tells a text's log-probability twice alike."""


def check_temperature(temperature: float) -> None:
    """Raise :class:`~upslope.errors.UsageError` unless the temperature is a finite number of at least :data:`LOWEST`."""
    require(
        LOWEST <= temperature < math.inf,
        f"temperature: expected a number ≥ {LOWEST}, found {temperature:g}; "
        "for the most likely text evaluate greedily (upslope evaluate does, upslope chat with --greedy)",
    )
