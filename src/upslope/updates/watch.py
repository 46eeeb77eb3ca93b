"""Whether an update moved the weights that it meant to move.

A step smaller than half the distance to the next number of a weight's precision is lost: about 6e-8 of the weight in float32, 4e-3 in
bfloat16. Weights in bfloat16 that are rounded stochastically move seldom by design and are not reported.
"""

from collections.abc import Sequence

from torch import Tensor

from upslope.records import Metrics
from upslope.updates.state import AscentState

SAMPLE = 1024  # weights of each tensor that are looked at, evenly spread
ALMOST_NONE = 0.01  # share of weights below which an update is reported


def weights_moved(state: AscentState, before: Sequence[Tensor]) -> Metrics:
    """``weights_moved``, the share of the weights with a step that moved since ``before``, where it is almost none; else nothing."""
    if state.rounding is not None or state.learning_rate == 0:
        return {}
    moved, meant = 0, 0
    for old, target, (moment, _) in zip(before, state.targets, state.moments, strict=True):
        new, step = (t.detach().reshape(-1)[:: max(1, t.numel() // SAMPLE)] for t in (target, moment))
        moved, meant = moved + int(((new != old) & (step != 0)).sum()), meant + int((step != 0).sum())
    return {"weights_moved": moved / meant} if meant and moved < ALMOST_NONE * meant else {}
