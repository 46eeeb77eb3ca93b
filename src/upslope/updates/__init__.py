"""How parameters move: gradient ascent (the library's only minus sign), learning-rate schedules, flat parameters."""

from upslope.updates.ascent import Ascent, AscentState
from upslope.updates.flat import FlatParameters
from upslope.updates.schedules import constant, linear

__all__ = ["Ascent", "AscentState", "FlatParameters", "constant", "linear"]
