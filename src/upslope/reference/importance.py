"""Importance sampling by its definitions: products of probabilities' quotients over the steps that each formula names.

Arrays are ``[..., T]``; ``log_prob`` is log π and ``behavior_log_prob`` log b. Nothing here is a recursion or a sum of logarithms.
Whatever stands on a masked row is ignored, and the output there is 0.
"""

from __future__ import annotations

import numpy as np

from upslope.reference.arrays import Array, as_mask, each_step
from upslope.reference.returns import first_column, future


def _ratio(log_prob: Array, behavior_log_prob: Array, steps: list[int], cap: float = np.inf) -> float:
    """``Π min(cap, π/b)`` over these columns of one row."""
    return float(np.prod([min(cap, np.exp(log_prob[k] - behavior_log_prob[k])) for k in steps]))


def cumulative_ratio(log_prob: Array, behavior_log_prob: Array, terminated: Array, truncated: Array, mask: Array | None = None) -> Array:
    """``ρ_{0:t}``: the product over the episode's recorded steps up to t."""
    shown = as_mask(mask, log_prob.shape)

    def value(row: tuple[int, ...], t: int) -> float:
        start = first_column(t, terminated[row], truncated[row], shown[row])
        return _ratio(log_prob[row], behavior_log_prob[row], [k for k in range(start, t + 1) if shown[row][k]])

    return each_step(log_prob.shape, shown, value)


def trajectory_ratio(log_prob: Array, behavior_log_prob: Array, terminated: Array, truncated: Array, mask: Array | None = None) -> Array:
    """``ρ_{0:K−1}``: the product over all recorded steps of the episode."""
    shown = as_mask(mask, log_prob.shape)

    def value(row: tuple[int, ...], t: int) -> float:
        start = first_column(t, terminated[row], truncated[row], shown[row])
        return _ratio(log_prob[row], behavior_log_prob[row], future(start, terminated[row], truncated[row], shown[row]))

    return each_step(log_prob.shape, shown, value)


def per_decision_returns(
    reward: Array,
    log_prob: Array,
    behavior_log_prob: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    mask: Array | None = None,
    next_value: Array | None = None,
) -> Array:
    """``Σ_k γ^k ρ_{t:t+k} r_{t+k}``, and ``γ V`` beside the last reward where the episode did not terminate and a critic is given."""
    shown = as_mask(mask, reward.shape)

    def value(row: tuple[int, ...], t: int) -> float:
        steps = future(t, terminated[row], truncated[row], shown[row])
        rewards = [reward[row][k] for k in steps]
        if next_value is not None and not terminated[row][steps[-1]]:
            rewards[-1] = rewards[-1] + gamma * next_value[row][steps[-1]]
        return sum(gamma**k * _ratio(log_prob[row], behavior_log_prob[row], steps[: k + 1]) * r for k, r in enumerate(rewards))

    return each_step(reward.shape, shown, value)


def vtrace(
    reward: Array,
    value: Array,
    next_value: Array,
    log_prob: Array,
    behavior_log_prob: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    trace_lambda: float = 1.0,
    ratio_cap: float = 1.0,
    trace_cap: float = 1.0,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """``v_s = V_s + Σ_t γ^{t−s} (Π_{i=s}^{t−1} c_i) ρ̂_t δ_t`` and ``ρ̂_s (r_s + γ (λ v_{s+1} + (1 − λ) V_{s+1}) − V_s)``."""
    shown = as_mask(mask, reward.shape)

    def successor(row: tuple[int, ...], t: int) -> float:
        return 0.0 if terminated[row][t] else next_value[row][t]

    def target(row: tuple[int, ...], s: int) -> float:
        steps = future(s, terminated[row], truncated[row], shown[row])
        log_probs = log_prob[row], behavior_log_prob[row]
        total = value[row][s]
        for k, t in enumerate(steps):
            delta = reward[row][t] + gamma * successor(row, t) - value[row][t]
            trace = trace_lambda**k * _ratio(*log_probs, steps[:k], trace_cap)
            total += gamma**k * trace * _ratio(*log_probs, [t], ratio_cap) * delta
        return total

    targets = each_step(reward.shape, shown, target)

    def advantage(row: tuple[int, ...], s: int) -> float:
        steps = future(s, terminated[row], truncated[row], shown[row])
        one_step = successor(row, s)
        longer = targets[row][steps[1]] if len(steps) > 1 else one_step
        blend = trace_lambda * longer + (1.0 - trace_lambda) * one_step
        return _ratio(log_prob[row], behavior_log_prob[row], [s], ratio_cap) * (reward[row][s] + gamma * blend - value[row][s])

    return targets, each_step(reward.shape, shown, advantage)
