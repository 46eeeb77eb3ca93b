"""Returns and advantages: what an action was worth, from what came after it.

Every tensor is ``[..., T]``: time last, everything before it batch. ``terminated`` (the problem ended with this action, so
what follows is worth 0) and ``truncated`` (only the recording stopped, so the true successor's value counts) are apart,
and either one cuts every recursion. ``next_value`` is the value of the *true* successor of each unmasked step, also
where the episode ended. Masked rows change nothing: no reward, no discount, and the output there is 0.
All functions raise ValueError when shapes differ or flags are not boolean. SB is Sutton & Barto, 2nd edition.
"""

import torch
from torch import Tensor

from upslope.functional.recursion import bootstrapped, episode_start, last_step, scan, zero_masked
from upslope.functional.shapes import check_shapes


def returns_to_go(
    reward: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, mask: Tensor | None = None, next_value: Tensor | None = None
) -> Tensor:
    """Discounted sum of the rewards from each step on, ``[..., T]``.

    ``G_t = r_t + γ (1 − ended_t) G_{t+1}``, with ``γ (1 − terminated_t) next_value_t`` added at ends and at each row's last
    unmasked step where a critic is given; without one, what lies beyond an end or the recording counts as 0.

    Source: SB eq. 3.9; Pardo et al. 2018 (partial-episode bootstrapping) for the bootstrap at a truncation.
    """
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask, next_value=next_value)
    return zero_masked(_returns(reward, terminated, truncated, gamma, mask, next_value), mask)


def episode_returns(
    reward: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, mask: Tensor | None = None, next_value: Tensor | None = None
) -> Tensor:
    """The whole episode's return, given to each of its steps, ``[..., T]``.

    ``R(τ) = Σ_k γ^k r_k`` with k counted from the episode's first recorded step; where a critic is given, ``γ^K next_value`` of
    the K-th and last recorded step is added unless it terminated.

    Source: Williams 1992, episodic REINFORCE; SB section 13.3 uses the part of it that follows t.
    """
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask, next_value=next_value)
    total = _returns(reward, terminated, truncated, gamma, mask, next_value)  # masked rows carry the next step's, so starts may be masked
    return zero_masked(total.gather(-1, episode_start(terminated | truncated, mask)), mask)


def discount_weight(
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    mask: Tensor | None = None,
    first_step: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``γ^t`` with t the step's number within its episode, ``[..., T]``; masked rows do not count and get 0.

    ``first_step [...]`` is how many steps the episode in each row's first column had behind it when recording began.

    Source: the factor in the box of SB section 13.3; Nota & Thomas 2020 on what leaving it out means.
    """
    check_shapes("terminated", terminated.shape, terminated=terminated, truncated=truncated, mask=mask)
    step = (torch.ones_like(terminated) if mask is None else mask).long()
    before = step.cumsum(-1) - step
    start = episode_start(terminated | truncated, mask)
    count = before - before.gather(-1, start)
    if first_step is not None:
        check_shapes("terminated without its time axis", terminated.shape[:-1], first_step=first_step)
        count = count + torch.where(start == 0, first_step.unsqueeze(-1), 0)
    return zero_masked(torch.pow(gamma, count.to(dtype or torch.get_default_dtype())), mask)


def td_error(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, gamma: float, mask: Tensor | None = None) -> Tensor:
    """One-step temporal-difference error, ``[..., T]``: ``δ_t = r_t + γ (1 − terminated_t) next_value_t − value_t``. SB eq. 6.5."""
    check_shapes("reward", reward.shape, terminated=terminated, mask=mask, value=value, next_value=next_value)
    return zero_masked(torch.add(reward, next_value.masked_fill(terminated, 0.0), alpha=gamma) - value, mask)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
    mask: Tensor | None = None,
) -> Tensor:
    """``Â_t = δ_t + γλ (1 − ended_t) Â_{t+1}``, ``[..., T]``; ``Â + value`` is the critic's target. Source: Schulman 2016, eq. 16."""
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask, value=value, next_value=next_value)
    delta = zero_masked(torch.add(reward, next_value.masked_fill(terminated, 0.0), alpha=gamma) - value, mask)
    return zero_masked(scan(delta, gamma * gae_lambda, terminated | truncated, mask), mask)


def lambda_returns(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    trace_lambda: float,
    mask: Tensor | None = None,
) -> Tensor:
    """λ-return, ``[..., T]``: ``G^λ_t = r_t + γ ((1 − λ) V(s_{t+1}) + λ G^λ_{t+1})``, computed as ``value + Σ_k (γλ)^k δ_{t+k}``.

    Source: SB eq. 12.2 and 12.3; the sum of TD errors is SB exercise 12.3's.
    """
    return zero_masked(value, mask) + gae(reward, value, next_value, terminated, truncated, gamma, trace_lambda, mask)


def n_step_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, n: int, mask: Tensor | None = None
) -> Tensor:
    """n rewards and then the critic, ``[..., T]``: ``G_{t:t+n} = r_t + … + γ^{n−1} r_{t+n−1} + γ^n V(s_{t+n})``.

    Cut at an end and at the row's last unmasked step, where the bootstrap takes the place of what is missing.
    Raises ValueError for n < 1.

    Source: SB eq. 7.1.
    """
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask, next_value=next_value)
    if n < 1:
        raise ValueError(f"n: expected at least 1, found {n}")
    masked_reward = zero_masked(reward, mask)
    successor = next_value.masked_fill(terminated, 0.0)
    boundary = terminated | truncated | last_step(mask, reward)
    following = _next_step(mask, reward)
    result = torch.add(masked_reward, successor, alpha=gamma)
    for _ in range(min(n, reward.shape[-1]) - 1):
        result = torch.add(masked_reward, torch.where(boundary, successor, result.gather(-1, following)), alpha=gamma)
    return zero_masked(result, mask)


def _returns(reward: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, mask: Tensor | None, next_value: Tensor | None) -> Tensor:
    """Returns to go; a masked row holds the return of the step that follows it."""
    return scan(bootstrapped(reward, terminated, truncated, gamma, mask, next_value), gamma, terminated | truncated, mask)


def _next_step(mask: Tensor | None, like: Tensor) -> Tensor:
    """Index of the next unmasked column after each column; the last column where there is none."""
    last = like.shape[-1] - 1
    column = torch.arange(1, last + 2, device=like.device).clamp(max=last).expand(like.shape)
    if mask is None:
        return column
    candidate = torch.arange(last + 1, device=like.device).expand(like.shape).masked_fill(~mask, last)
    return candidate.flip(-1).cummin(-1).values.flip(-1).gather(-1, column)
