"""Learning-rate schedules: functions of the fraction of the run that is done, ``[0, 1] -> factor``."""

from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(fraction: float) -> float:
    """``1`` throughout."""
    return 1.0


def linear(fraction: float) -> float:
    """``1 − fraction``: from the full learning rate to zero."""
    return max(0.0, 1.0 - fraction)


SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear}
"""The names that the command line knows."""
