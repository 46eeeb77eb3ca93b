"""Importance sampling by its definitions: products of probabilities' quotients over the steps that each formula names.

Arrays are ``[..., T]``; ``log_prob`` is log π and ``behavior_log_prob`` log b. Nothing here is a recursion or a sum of logarithms.
Whatever stands on a masked row is ignored, and the output there is 0.
"""

import numpy as np

from upslope.reference.arrays import Array, as_mask, episodes


def _ratio(log_prob: Array, behavior_log_prob: Array, steps: list[int], cap: float = np.inf) -> float:
    """``Π min(cap, π/b)`` over these columns of one row."""
    return float(np.prod([min(cap, np.exp(log_prob[k] - behavior_log_prob[k])) for k in steps]))


def cumulative_ratio(log_prob: Array, behavior_log_prob: Array, terminated: Array, truncated: Array, mask: Array | None = None) -> Array:
    """``ρ_{0:t}``: the product over the episode's recorded steps up to t."""
    result = np.zeros(log_prob.shape)
    for row, steps in episodes(terminated, truncated, as_mask(mask, log_prob.shape)):
        for i, t in enumerate(steps):
            result[row][t] = _ratio(log_prob[row], behavior_log_prob[row], steps[: i + 1])
    return result


def trajectory_ratio(log_prob: Array, behavior_log_prob: Array, terminated: Array, truncated: Array, mask: Array | None = None) -> Array:
    """``ρ_{0:K−1}``: the product over all recorded steps of the episode."""
    result = np.zeros(log_prob.shape)
    for row, steps in episodes(terminated, truncated, as_mask(mask, log_prob.shape)):
        for t in steps:
            result[row][t] = _ratio(log_prob[row], behavior_log_prob[row], steps)
    return result


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
    result = np.zeros(reward.shape)
    for row, steps in episodes(terminated, truncated, as_mask(mask, reward.shape)):
        paid, last = {t: reward[row][t] for t in steps}, steps[-1]
        if next_value is not None and not terminated[row][last]:
            paid[last] = paid[last] + gamma * next_value[row][last]
        for i, t in enumerate(steps):
            ahead = steps[i:]
            ratios = [_ratio(log_prob[row], behavior_log_prob[row], ahead[: k + 1]) for k in range(len(ahead))]
            result[row][t] = sum(gamma**k * ratios[k] * paid[s] for k, s in enumerate(ahead))
    return result


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
    targets, advantages = np.zeros(reward.shape), np.zeros(reward.shape)
    for row, steps in episodes(terminated, truncated, as_mask(mask, reward.shape)):
        log_probs = log_prob[row], behavior_log_prob[row]
        after = {t: 0.0 if terminated[row][t] else next_value[row][t] for t in steps}
        capped = {t: _ratio(*log_probs, [t], ratio_cap) for t in steps}
        for i, s in enumerate(steps):
            total = value[row][s]
            for k, t in enumerate(steps[i:]):
                delta = reward[row][t] + gamma * after[t] - value[row][t]
                trace = trace_lambda**k * _ratio(*log_probs, steps[i : i + k], trace_cap)
                total += gamma**k * trace * capped[t] * delta
            targets[row][s] = total
        for i, s in enumerate(steps):
            longer = targets[row][steps[i + 1]] if i + 1 < len(steps) else after[s]
            blend = trace_lambda * longer + (1.0 - trace_lambda) * after[s]
            advantages[row][s] = capped[s] * (reward[row][s] + gamma * blend - value[row][s])
    return targets, advantages
