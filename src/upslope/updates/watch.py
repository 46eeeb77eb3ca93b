"""Whether an update moved the weights that it meant to move."""

from __future__ import annotations

from typing import Any

import torch

from upslope.records import Metrics

SAMPLE = 1024
"""Weights of each tensor that are looked at, evenly spread."""
ALMOST_NONE = 0.01
"""Share of weights below which an update is reported."""


class Watch:
    """Compares some weights before and after an update.

    A step smaller than half the distance to the next number of a weight's precision is lost: about 6e-8 of the weight in float32, 4e-3 in
    bfloat16. Weights in bfloat16 that are rounded stochastically move seldom by design and are not reported.
    """

    def __init__(self, state: Any) -> None:
        self.state = state
        self.targets = (
            [] if state.rounding is not None or state.learning_rate == 0 else list(zip(state.targets, state.moments, strict=True))
        )
        self.before = [sampled(target).clone() for target, _ in self.targets]

    def metrics(self) -> Metrics:
        """``weights_moved``, the share of the weights with a step that moved, where it is almost none; else nothing."""
        moved, meant = 0, 0
        for (target, (exp_avg, _)), before in zip(self.targets, self.before, strict=True):
            step = sampled(exp_avg) != 0
            moved, meant = moved + int(((sampled(target) != before) & step).sum()), meant + int(step.sum())
        return {"weights_moved": moved / meant} if meant and moved < ALMOST_NONE * meant else {}


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Some entries of a tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE)]
