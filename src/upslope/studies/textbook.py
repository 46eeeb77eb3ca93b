"""Sutton & Barto's experiments, many runs side by side in NumPy.

Each lane of an array is one run. Given its column of the random numbers, it is the plain loop of :mod:`upslope.reference`:
``tests/studies/test_textbook.py`` holds it to that.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

START_PREFERENCE = -2.94  # θ_right − θ_left for θ₀ = (−1.47, 1.47): p(right) = 0.0502
FLOOR = 0.05  # neither action of the corridor is ever rarer


@dataclass(frozen=True)
class CorridorRuns:
    """``returns [lanes, episodes]``, and at the end ``preference = θ_right − θ_left`` and the ``baseline`` w, ``[lanes]`` each."""

    returns: Array
    preference: Array
    baseline: Array


def corridor_runs(learning_rate: Array, baseline_rate: Array, num_episodes: int, generator: np.random.Generator) -> CorridorRuns:
    """REINFORCE on the short corridor with switched actions, one run for each pair of rates, ``[lanes]``.

    γ = 1, every step costs 1 (the last one too), p = clip(softmax(θ), 0.05, 0.95) in acting and in the score e_a − p. After an episode
    of T steps, with all gradients and w as they were while it was played,

        θ ← θ + α Σ_t (G_t − w)(e_{a_t} − p),   w ← w + α_w Σ_t (G_t − w),   G_t = −(T − t), t from 0.

    p does not change within an episode, so the sums need only T, the number of steps to the right, and the sum of their t.
    A lane begins its next episode at once; one that is through with its episodes goes on with rates of 0, unrecorded.
    Source: SB Example 13.1, sections 13.3 and 13.4.
    """
    lanes = len(learning_rate)
    rate, rate_w = learning_rate.copy(), baseline_rate.copy()
    preference, baseline = np.full(lanes, START_PREFERENCE), np.zeros(lanes)
    p_left = probability_of_left(preference)
    state, episode = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    length, rights, right_times = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes)
    returns = np.zeros((lanes, num_episodes + 1))  # the last column takes what comes after the last episode
    unfinished = lanes
    while unfinished:
        right = generator.random(lanes) >= p_left
        rights += right
        right_times += right * length
        length += 1.0
        state += np.where(right == (state != 1), 1, -1)
        np.maximum(state, 0, out=state)
        over = np.flatnonzero(state == 3)
        if not len(over):
            continue
        steps, w = length[over], baseline[over]
        every = -steps * (steps + 1.0) / 2.0 - w * steps  # Σ_t (G_t − w)
        to_the_right = right_times[over] - rights[over] * (steps + w)  # the same over steps to the right
        # with D = Σ_t (G_t − w)(1[a_t = right] − p(right)), θ_right moves by αD and θ_left by −αD
        preference[over] += 2.0 * rate[over] * (to_the_right - (1.0 - p_left[over]) * every)
        baseline[over] += rate_w[over] * every
        p_left[over] = probability_of_left(preference[over])
        returns[over, episode[over]] = -steps
        last = over[episode[over] == num_episodes - 1]
        unfinished -= len(last)
        rate[last] = rate_w[last] = 0.0
        episode[over] = np.minimum(episode[over] + 1, num_episodes)
        for tally in (state, length, rights, right_times):
            tally[over] = 0
    return CorridorRuns(returns[:, :num_episodes], preference, baseline)


def probability_of_left(preference: Array) -> Array:
    """``clip(1 / (1 + exp(θ_right − θ_left)), 0.05, 0.95)``."""
    with np.errstate(over="ignore"):  # exp may be infinite: then left is as rare as it can be
        return np.clip(1.0 / (1.0 + np.exp(preference)), FLOOR, 1.0 - FLOOR)


@dataclass(frozen=True)
class BanditRuns:
    """``optimal [steps]``: the share of bandits whose best arm was pulled; ``preferences [arms, bandits]`` at the end."""

    optimal: Array
    preferences: Array


def gradient_bandit_runs(
    num_bandits: int,
    num_steps: int,
    learning_rate: float,
    baseline: bool,
    generator: np.random.Generator,
    *,
    shift: float,
    num_arms: int = 10,
) -> BanditRuns:
    """The gradient bandit on as many testbeds: ``q* ~ N(shift, 1)``, ``R ~ N(q*(A), 1)``.

    With π and R̄ as they were before A and R: ``h(A) += α (R − R̄)(1 − π(A))``, the others ``h(b) −= α (R − R̄) π(b)``. R̄ is the mean of the
    rewards before this one (at the first step R itself, so nothing moves), or 0 without a baseline. Source: SB section 2.8, eq. 2.12.
    """
    means = shift + generator.standard_normal((num_arms, num_bandits))  # arms first: sums over them run along contiguous memory
    best, column = means.argmax(0), np.arange(num_bandits)
    preferences, mean_reward, optimal = np.zeros(means.shape), np.zeros(num_bandits), np.zeros(num_steps)
    for t in range(num_steps):
        weight = np.exp(preferences - preferences.max(0))
        cumulative = np.cumsum(weight, 0)
        total = cumulative[-1]
        action = (cumulative <= generator.random(num_bandits) * total).sum(0)
        reward = means[action, column] + generator.standard_normal(num_bandits)
        reference = 0.0 if not baseline else reward if t == 0 else mean_reward
        step = learning_rate * (reward - reference)
        preferences -= step / total * weight
        preferences[action, column] += step
        mean_reward += (reward - mean_reward) / (t + 1)
        optimal[t] = np.mean(action == best)
    return BanditRuns(optimal, preferences)
