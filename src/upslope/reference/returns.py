"""Returns and advantages by their definitions: one step at a time, summing forward until the episode or the recording ends.

Nothing here is a recursion, so that agreement with the recursions of :mod:`upslope.functional` says something.
Arrays are ``[..., T]``. Whatever stands on a masked row, rewards, values and flags alike, is ignored, and the output there is 0.
"""

from __future__ import annotations

from upslope.reference.arrays import Array, as_mask, each_step


def future(t: int, terminated: Array, truncated: Array, mask: Array) -> list[int]:
    """Columns of the episode's steps from ``t`` on: unmasked, up to and including the end or the last one recorded."""
    steps: list[int] = []
    for k in range(t, len(mask)):
        if mask[k]:
            steps.append(k)
            if terminated[k] or truncated[k]:
                break
    return steps


def first_column(t: int, terminated: Array, truncated: Array, mask: Array) -> int:
    """Column after the latest end before ``t``, or 0: where the episode of step ``t`` begins in the recording."""
    for k in range(t - 1, -1, -1):
        if mask[k] and (terminated[k] or truncated[k]):
            return k + 1
    return 0


def returns_to_go(
    reward: Array, terminated: Array, truncated: Array, gamma: float, mask: Array | None = None, next_value: Array | None = None
) -> Array:
    """``G_t = Σ_k γ^k r_{t+k}``, and ``γ^K V`` of the last step's true successor where it did not terminate and a critic is given."""
    shown = as_mask(mask, reward.shape)

    def value(row: tuple[int, ...], t: int) -> float:
        steps = future(t, terminated[row], truncated[row], shown[row])
        total = sum(gamma**k * reward[row][s] for k, s in enumerate(steps))
        if next_value is not None and not terminated[row][steps[-1]]:
            total += gamma ** len(steps) * next_value[row][steps[-1]]
        return total

    return each_step(reward.shape, shown, value)


def episode_returns(
    reward: Array, terminated: Array, truncated: Array, gamma: float, mask: Array | None = None, next_value: Array | None = None
) -> Array:
    """``R(τ) = Σ_k γ^k r_k`` over the whole recorded episode that each step belongs to, and ``γ^K V`` as in :func:`returns_to_go`."""
    shown = as_mask(mask, reward.shape)

    def value(row: tuple[int, ...], t: int) -> float:
        start = first_column(t, terminated[row], truncated[row], shown[row])
        steps = future(start, terminated[row], truncated[row], shown[row])
        total = sum(gamma**k * reward[row][s] for k, s in enumerate(steps))
        if next_value is not None and not terminated[row][steps[-1]]:
            total += gamma ** len(steps) * next_value[row][steps[-1]]
        return total

    return each_step(reward.shape, shown, value)


def discount_weight(terminated: Array, truncated: Array, gamma: float, mask: Array | None = None, first_step: Array | None = None) -> Array:
    """``γ^t``, t the number of unmasked steps of the same episode before this one, those before the recording included."""
    shown = as_mask(mask, terminated.shape)

    def value(row: tuple[int, ...], t: int) -> float:
        start = first_column(t, terminated[row], truncated[row], shown[row])
        count = sum(1 for k in range(start, t) if shown[row][k])
        if start == 0 and first_step is not None:
            count += int(first_step[row])
        return gamma**count

    return each_step(terminated.shape, shown, value)


def td_error(reward: Array, value: Array, next_value: Array, terminated: Array, gamma: float, mask: Array | None = None) -> Array:
    """``δ_t = r_t + γ (1 − terminated_t) next_value_t − value_t``."""

    def error(row: tuple[int, ...], t: int) -> float:
        successor = 0.0 if terminated[row][t] else next_value[row][t]
        return reward[row][t] + gamma * successor - value[row][t]

    return each_step(reward.shape, as_mask(mask, reward.shape), error)


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
    shown = as_mask(mask, reward.shape)
    delta = td_error(reward, value, next_value, terminated, gamma, shown)

    def advantage(row: tuple[int, ...], t: int) -> float:
        steps = future(t, terminated[row], truncated[row], shown[row])
        return sum((gamma * gae_lambda) ** k * delta[row][s] for k, s in enumerate(steps))

    return each_step(reward.shape, shown, advantage)


def n_step_returns(
    reward: Array, next_value: Array, terminated: Array, truncated: Array, gamma: float, n: int, mask: Array | None = None
) -> Array:
    """``G_{t:t+n}``: up to n rewards, then the value of the true successor unless the last of them terminated."""
    shown = as_mask(mask, reward.shape)

    def value(row: tuple[int, ...], t: int) -> float:
        steps = future(t, terminated[row], truncated[row], shown[row])[:n]
        total = sum(gamma**k * reward[row][s] for k, s in enumerate(steps))
        return total + (0.0 if terminated[row][steps[-1]] else gamma ** len(steps) * next_value[row][steps[-1]])

    return each_step(reward.shape, shown, value)


def lambda_returns(
    reward: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    trace_lambda: float,
    mask: Array | None = None,
) -> Array:
    """``(1 − λ) Σ_{n<K} λ^{n−1} G_{t:t+n} + λ^{K−1} G_{t:t+K}``, K the steps left (SB eq. 12.3)."""
    shown = as_mask(mask, reward.shape)
    n_step = [n_step_returns(reward, next_value, terminated, truncated, gamma, n, shown) for n in range(1, reward.shape[-1] + 1)]

    def value(row: tuple[int, ...], t: int) -> float:
        left = len(future(t, terminated[row], truncated[row], shown[row]))
        total = sum((1.0 - trace_lambda) * trace_lambda ** (n - 1) * n_step[n - 1][row][t] for n in range(1, left))
        return total + trace_lambda ** (left - 1) * n_step[left - 1][row][t]

    return each_step(reward.shape, shown, value)
