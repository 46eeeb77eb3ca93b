"""Actor–critic that learns at every step, on recorded transitions: the boxes of Sutton & Barto 13.5 and 13.6 in plain loops.

The policy is a linear softmax, ``π = softmax(θᵀx)`` with θ ``[d, k]``, the critic linear, ``v̂ = wᵀx`` with w ``[d]``; the
gradients are by hand: ``∇log π_a = x (e_a − p)ᵀ``, ``∇v̂ = x``. Each function returns the θ and w behind the last transition.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from upslope.reference.arrays import Array
from upslope.reference.distributions import softmax
from upslope.reference.softmax_policy import linear_score


class Transition(NamedTuple):
    """Features of S, the action, R, features of the true successor S′, and how the step ended."""

    x: Array
    action: int
    reward: float
    next_x: Array
    terminated: bool
    truncated: bool


def score(theta: Array, x: Array, action: int) -> Array:
    """``∇_θ log π(a|x) = x (e_a − p)ᵀ``, ``[d, k]``."""
    return linear_score(x, action, softmax(x @ theta))


def one_step(
    theta: Array, w: Array, transitions: Iterable[Transition], *, gamma: float, learning_rate: float, value_learning_rate: float
) -> tuple[Array, Array]:
    """One-step actor–critic (episodic), p. 332: ``w += α_w δ ∇v̂``, ``θ += α_θ δ (I ∇log π)``, ``I ← γ I``."""
    weight = 1.0
    for x, action, reward, next_x, terminated, truncated in transitions:
        next_value = 0.0 if terminated else next_x @ w
        td_error = reward + gamma * next_value - x @ w
        gradient = score(theta, x, action)
        w = w + (value_learning_rate * td_error) * x
        theta = theta + (learning_rate * td_error) * (weight * gradient)
        weight = 1.0 if terminated or truncated else weight * gamma
    return theta, w


def with_traces(
    theta: Array,
    w: Array,
    transitions: Iterable[Transition],
    *,
    gamma: float,
    learning_rate: float,
    value_learning_rate: float,
    trace_decay: float,
    value_trace_decay: float,
) -> tuple[Array, Array]:
    """Actor–critic with eligibility traces (episodic), p. 332: ``z ← γλ z + I ∇``, and δ moves the parameters along z."""
    z_theta, z_w, weight = np.zeros_like(theta), np.zeros_like(w), 1.0
    for x, action, reward, next_x, terminated, truncated in transitions:
        next_value = 0.0 if terminated else next_x @ w
        td_error = reward + gamma * next_value - x @ w
        z_w = gamma * value_trace_decay * z_w + x
        z_theta = gamma * trace_decay * z_theta + weight * score(theta, x, action)
        w = w + (value_learning_rate * td_error) * z_w
        theta = theta + (learning_rate * td_error) * z_theta
        weight *= gamma
        if terminated or truncated:
            z_theta, z_w, weight = np.zeros_like(theta), np.zeros_like(w), 1.0
    return theta, w


def continuing(
    theta: Array,
    w: Array,
    transitions: Iterable[Transition],
    *,
    learning_rate: float,
    value_learning_rate: float,
    average_reward_rate: float,
    trace_decay: float,
    value_trace_decay: float,
) -> tuple[Array, Array, float]:
    """Actor–critic with eligibility traces (continuing), p. 333; returns R̄ as well. Where a recording is cut, so are the traces."""
    z_theta, z_w, average_reward = np.zeros_like(theta), np.zeros_like(w), 0.0
    for x, action, reward, next_x, _, truncated in transitions:
        td_error = reward - average_reward + float(next_x @ w) - float(x @ w)
        average_reward = average_reward + average_reward_rate * td_error
        z_w = value_trace_decay * z_w + x
        z_theta = trace_decay * z_theta + score(theta, x, action)
        w = w + (value_learning_rate * td_error) * z_w
        theta = theta + (learning_rate * td_error) * z_theta
        if truncated:
            z_theta, z_w = np.zeros_like(theta), np.zeros_like(w)
    return theta, w, average_reward
