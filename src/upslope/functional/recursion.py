"""The recursions that returns, advantages and importance weights share: cut at an end, passed on unchanged at a masked row."""

import torch
from torch import Tensor


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """0 on masked rows, whatever stood there: a product would let NaN through."""
    return x if mask is None else x.masked_fill(~mask, 0.0)


def scan(addend: Tensor, rate: Tensor | float, ended: Tensor, mask: Tensor | None = None) -> Tensor:
    """``x_t = addend_t + rate_t (1 − ended_t) x_{t+1}`` with 0 after the last column; a masked row passes x on unchanged.

    In log₂ T rounds, each of which doubles how far an entry has looked ahead: x_t = b_t + a_t x_{t+s} becomes
    (b_t + a_t b_{t+s}) + a_t a_{t+s} x_{t+2s}. Rolling wraps around, but the last column's factor is 0. Source: Hillis & Steele 1986.
    """
    factor = (rate if isinstance(rate, Tensor) else torch.full_like(addend, rate)).masked_fill(ended, 0.0)
    if mask is not None:
        factor.masked_fill_(~mask, 1.0)
    factor[..., -1:] = 0.0
    reach, length = 1, addend.shape[-1]
    while reach < length:
        addend = torch.addcmul(addend, factor, addend.roll(-reach, -1))
        if 2 * reach < length:
            factor = factor * factor.roll(-reach, -1)
        reach *= 2
    return addend


def last_step(mask: Tensor | None, like: Tensor) -> Tensor:
    """True at each row's last unmasked column."""
    if mask is None:
        last = torch.zeros_like(like, dtype=torch.bool)
        last[..., -1:] = True
        return last
    later = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (later == 1)


def bootstrapped(
    reward: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, mask: Tensor | None, next_value: Tensor | None
) -> Tensor:
    """The reward, and where the recursion has no next step ``γ (1 − terminated) next_value``, if a critic is given; 0 on masked rows."""
    masked_reward = zero_masked(reward, mask)
    if next_value is None:
        return masked_reward
    boundary = (terminated | truncated | last_step(mask, reward)) & ~terminated
    return torch.add(masked_reward, torch.where(boundary, zero_masked(next_value, mask), 0.0), alpha=gamma)


def episode_start(ended: Tensor, mask: Tensor | None) -> Tensor:
    """Index of the column in which each column's episode begins: the first, or the one after the latest end."""
    ended = ended if mask is None else ended & mask
    column = torch.arange(ended.shape[-1], device=ended.device).expand(ended.shape)
    after_end = torch.zeros_like(ended)
    after_end[..., 1:] = ended[..., :-1]
    return column.masked_fill(~after_end, 0).cummax(-1).values
