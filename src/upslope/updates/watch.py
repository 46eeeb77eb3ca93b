"""Whether an update moved the weights that it meant to move."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from upslope.records import Metrics
from upslope.updates.state import AscentState

SAMPLE = 1024
"""Weights of each tensor that are looked at, evenly spread."""
ALMOST_NONE = 0.01
"""Share of weights below which an update is reported."""


def sample_weights(state: AscentState) -> list[Tensor]:
    """Some weights of each target, before an update; none where a step is not meant to show at once.

    A step smaller than half the distance to the next number of a weight's precision is lost: about 6e-8 of the weight in float32, 4e-3 in
    bfloat16. Weights in bfloat16 that are rounded stochastically move seldom by design and are not reported.
    """
    if state.rounding is not None or state.learning_rate == 0:
        return []
    return [some(target).clone() for target in state.targets]


def weights_moved(state: AscentState, before: Sequence[Tensor]) -> Metrics:
    """``weights_moved``, the share of the weights with a step that moved, where it is almost none; else nothing."""
    moved, meant = 0, 0
    for target, (exp_avg, _), old in zip(state.targets, state.moments, before, strict=False):
        step = some(exp_avg) != 0
        moved, meant = moved + int(((some(target) != old) & step).sum()), meant + int(step.sum())
    return {"weights_moved": moved / meant} if meant and moved < ALMOST_NONE * meant else {}


def some(tensor: Tensor) -> Tensor:
    """Some entries of a tensor, evenly spread."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)]
