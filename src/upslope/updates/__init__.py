"""How parameters move: gradient ascent (the readable update's one minus sign), natural gradients and trust regions, flat parameters."""

from upslope.updates.ascent import Ascent, AscentState
from upslope.updates.flat import FlatParameters
from upslope.updates.schedules import constant, linear
from upslope.updates.trust_region import NaturalGradient, TrustRegion

__all__ = ["Ascent", "AscentState", "FlatParameters", "NaturalGradient", "TrustRegion", "constant", "linear"]
