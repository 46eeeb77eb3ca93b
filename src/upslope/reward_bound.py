"""The bound of rewards, which environments and reward functions share."""

import math

MAX_REWARD = 1e15
"""A larger one is no reward: of some more of them float32 cannot hold the squares, nor a sum of the squares."""


def beyond(reward: float, where: str) -> str:
    """What a reward is that cannot be learned from."""
    if not math.isfinite(reward):
        return f"not finite: {reward} {where}"
    return f"{reward:g} {where}, expected a number from {-MAX_REWARD:g} to {MAX_REWARD:g}; scale it to about 1"
