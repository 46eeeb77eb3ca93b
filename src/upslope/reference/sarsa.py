"""Episodic semi-gradient SARSA(λ) on recorded transitions, in plain loops: Sutton & Barto 10.1 and 12.7."""

from collections.abc import Sequence

import numpy as np

from upslope.reference.actor_critic import Transition
from upslope.reference.arrays import Array


def sarsa(
    w: Array, transitions: Sequence[Transition], *, gamma: float, learning_rate: float, trace_decay: float, last_action: int = 0
) -> Array:
    """``w`` ``[d, k]`` of ``q̂(s, a) = xᵀw_a`` after all transitions: ``z ← γλ z + ∇q̂``, ``w += α δ z``.

    A′ is the next transition's action, behind the last one ``last_action``; q̂(terminal) = 0.
    """
    z = np.zeros_like(w)
    for t, (x, action, reward, next_x, terminated, truncated) in enumerate(transitions):
        next_action = transitions[t + 1].action if t + 1 < len(transitions) else last_action
        next_value = 0.0 if terminated else next_x @ w[:, next_action]
        td_error = reward + gamma * next_value - x @ w[:, action]
        z = gamma * trace_decay * z
        for i in range(len(x)):
            z[i, action] += x[i]
        w = w + learning_rate * td_error * z
        if terminated or truncated:
            z = np.zeros_like(w)
    return w
