"""Returns and advantages by their definitions: one step at a time, summing forward until the episode or the recording ends.

Nothing here is a recursion, so that agreement with the recursions of :mod:`upslope.functional` says something.
Arrays are ``[..., T]``. Whatever stands on a masked row, rewards, values and flags alike, is ignored, and the output there is 0.
"""

import numpy as np

from upslope.reference.arrays import Array, as_mask, episodes, unmasked


def discounted_return(reward: Array, next_value: Array | None, terminated: Array, steps: list[int], gamma: float) -> float:
    """``Σ_k γ^k r_k`` over K steps of a row, and ``γ^K V`` of the last one's successor where it did not terminate and a critic is given."""
    total = sum(gamma**k * reward[t] for k, t in enumerate(steps))
    if next_value is not None and not terminated[steps[-1]]:
        total += gamma ** len(steps) * next_value[steps[-1]]
    return total


def returns_to_go(
    reward: Array, terminated: Array, truncated: Array, gamma: float, mask: Array | None = None, next_value: Array | None = None
) -> Array:
    """``G_t = Σ_k γ^k r_{t+k}``, and ``γ^K V`` of the last step's true successor where it did not terminate and a critic is given."""
    return n_step_returns(reward, next_value, terminated, truncated, gamma, reward.shape[-1], mask)


def episode_returns(
    reward: Array, terminated: Array, truncated: Array, gamma: float, mask: Array | None = None, next_value: Array | None = None
) -> Array:
    """``R(τ) = Σ_k γ^k r_k`` over the whole recorded episode that each step belongs to, and ``γ^K V`` as in :func:`returns_to_go`."""
    result = np.zeros(reward.shape)
    for row, steps in episodes(terminated, truncated, as_mask(mask, reward.shape)):
        value = None if next_value is None else next_value[row]
        for t in steps:
            result[row][t] = discounted_return(reward[row], value, terminated[row], steps, gamma)
    return result


def discount_weight(terminated: Array, truncated: Array, gamma: float, mask: Array | None = None, first_step: Array | None = None) -> Array:
    """``γ^t``, t the number of unmasked steps of the same episode before this one, those before the recording included."""
    result, begun = np.zeros(terminated.shape), set[tuple[int, ...]]()
    for row, steps in episodes(terminated, truncated, as_mask(mask, terminated.shape)):
        before = 0 if first_step is None or row in begun else int(first_step[row])
        begun.add(row)
        for k, t in enumerate(steps):
            result[row][t] = gamma ** (before + k)
    return result


def td_error(reward: Array, value: Array, next_value: Array, terminated: Array, gamma: float, mask: Array | None = None) -> Array:
    """``δ_t = r_t + γ (1 − terminated_t) next_value_t − value_t``."""
    result = np.zeros(reward.shape)
    for i in unmasked(reward.shape, mask):
        result[i] = reward[i] + gamma * (0.0 if terminated[i] else next_value[i]) - value[i]
    return result


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    gae_lambda: float,
    mask: Array | None = None,
) -> Array:
    """``Â_t = Σ_k (γλ)^k δ_{t+k}``: the closed sum, of which each δ is itself a sum."""
    result, delta = np.zeros(reward.shape), td_error(reward, value, next_value, terminated, gamma, mask)
    for row, steps in episodes(terminated, truncated, as_mask(mask, reward.shape)):
        for i, t in enumerate(steps):
            result[row][t] = sum((gamma * gae_lambda) ** k * delta[row][s] for k, s in enumerate(steps[i:]))
    return result


def n_step_returns(
    reward: Array, next_value: Array | None, terminated: Array, truncated: Array, gamma: float, n: int, mask: Array | None = None
) -> Array:
    """``G_{t:t+n}``: up to n rewards, then the value of the true successor unless the last of them terminated (or there is no critic)."""
    result = np.zeros(reward.shape)
    for row, steps in episodes(terminated, truncated, as_mask(mask, reward.shape)):
        value = None if next_value is None else next_value[row]
        for i, t in enumerate(steps):
            result[row][t] = discounted_return(reward[row], value, terminated[row], steps[i : i + n], gamma)
    return result


def lambda_returns(
    reward: Array, next_value: Array, terminated: Array, truncated: Array, gamma: float, trace_lambda: float, mask: Array | None = None
) -> Array:
    """``(1 − λ) Σ_{n<K} λ^{n−1} G_{t:t+n} + λ^{K−1} G_{t:t+K}``, K the steps left (SB eq. 12.3)."""
    result = np.zeros(reward.shape)
    n_step = [n_step_returns(reward, next_value, terminated, truncated, gamma, n + 1, mask) for n in range(reward.shape[-1])]
    for row, steps in episodes(terminated, truncated, as_mask(mask, reward.shape)):
        for i, t in enumerate(steps):
            left = len(steps) - i
            total = sum((1.0 - trace_lambda) * trace_lambda ** (n - 1) * n_step[n - 1][row][t] for n in range(1, left))
            result[row][t] = total + trace_lambda ** (left - 1) * n_step[left - 1][row][t]
    return result
