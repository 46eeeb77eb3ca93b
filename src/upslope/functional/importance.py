"""Importance sampling: what data recorded by a behavior policy b says about a policy π.

Every tensor is ``[..., T]``. ``log_prob`` is log π and ``behavior_log_prob`` log b of the recorded actions; the ratio of a step is
``ρ_t = π(a_t|s_t) / b(a_t|s_t)`` (:func:`~upslope.functional.surrogates.token_ratio`), and ``ρ_{i:k} = Π_{t=i..k} ρ_t`` within one episode.
Products and sums are cut at ends; masked rows change nothing, whatever they hold, and the output there is 0. An action that π
never takes (log π = −∞) has ratio 0; one that b never takes cannot have been recorded, and no ratio is defined for it.
All functions raise ValueError when shapes differ or flags are not boolean. SB is Sutton & Barto, 2nd edition.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from upslope.functional.recursion import bootstrapped, scan, zero_masked
from upslope.functional.returns import episode_returns, td_error
from upslope.functional.shapes import check_shapes
from upslope.functional.surrogates import token_ratio, truncated_importance_weight


def cumulative_ratio(
    log_prob: Tensor, behavior_log_prob: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``ρ_{0:t}``, the ratio of everything up to and including step t of its episode, ``[..., T]``.

    The weight of the reward at t in per-decision importance sampling. Step 0 is the episode's first *recorded* step.

    Source: Precup, Sutton & Singh 2000, eq. 4; SB section 5.9.
    """
    ends = {"terminated": terminated, "truncated": truncated, "mask": mask}
    check_shapes("log_prob", log_prob.shape, **ends, behavior_log_prob=behavior_log_prob)

    def up_to(x: Tensor) -> Tensor:
        starts = torch.zeros_like(terminated)
        starts[..., 1:] = (terminated | truncated)[..., :-1]
        if mask is not None:
            starts[..., 1:] &= mask[..., :-1]
        return scan(x.flip(-1), 1.0, starts.flip(-1)).flip(-1)  # without the mask: a masked row may be the one that cuts

    return _product(log_prob, behavior_log_prob, mask, up_to)


def trajectory_ratio(
    log_prob: Tensor, behavior_log_prob: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``ρ_{0:K−1}``, the ratio of the whole recorded episode of K steps, given to each of its steps, ``[..., T]``. Source: SB eq. 5.3."""
    ends = {"terminated": terminated, "truncated": truncated, "mask": mask}
    check_shapes("log_prob", log_prob.shape, **ends, behavior_log_prob=behavior_log_prob)
    return _product(log_prob, behavior_log_prob, mask, lambda x: episode_returns(x, terminated, truncated, 1.0, mask))


def per_decision_returns(
    reward: Tensor,
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    mask: Tensor | None = None,
    next_value: Tensor | None = None,
) -> Tensor:
    """``G_t = ρ_t (r_t + γ (1 − ended_t) G_{t+1})``, whose expectation under b is ``V^π(s_t)``, ``[..., T]``.

    That is ``Σ_k γ^k ρ_{t:t+k} r_{t+k}``: each reward is weighted by the decisions that led to it and by no later one. With a
    critic, ``γ (1 − terminated_t) next_value_t`` joins the reward at ends and at each row's last unmasked step.

    Source: Precup, Sutton & Singh 2000, section 3; SB eq. 5.14.
    """
    ends = {"terminated": terminated, "truncated": truncated, "mask": mask}
    check_shapes("reward", reward.shape, **ends, log_prob=log_prob, next_value=next_value)
    ratio = token_ratio(log_prob, behavior_log_prob, mask)
    addend = ratio * bootstrapped(reward, terminated, truncated, gamma, mask, next_value)
    return zero_masked(scan(addend, gamma * ratio, terminated | truncated, mask), mask)


def vtrace(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    trace_lambda: float = 1.0,
    ratio_cap: float = 1.0,
    trace_cap: float = 1.0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """V-trace: the critic's targets v and the policy's advantages from another policy's steps, both ``[..., T]``, without gradient to π.

    ``v_s = V_s + Σ_{t≥s} γ^{t−s} (c_s ⋯ c_{t−1}) ρ̂_t δ_t`` with ``ρ̂_t = min(ρ̄, ρ_t)``, ``c_t = λ min(c̄, ρ_t)`` and δ the TD error;
    ``Â_s = ρ̂_s (r_s + γ (λ v_{s+1} + (1 − λ) V_{s+1}) − V_s)``, where an end or the recording's puts its bootstrap for both values.

    ``ratio_cap`` is ρ̄: it decides *which* policy is valued, one between b (ρ̄ → 0) and π (ρ̄ = ∞). ``trace_cap`` is c̄: it decides only
    how fast. On-policy with caps of at least 1, v is the λ-return and Â is GAE. At λ = 1, Â is the paper's.

    Raises ValueError unless 0 < trace_cap ≤ ratio_cap.

    Source: Espeholt et al. 2018 (IMPALA), eq. 1 and section 4.2, λ in their remark 2.
    """
    if not 0 < trace_cap <= ratio_cap:
        raise ValueError(f"trace_cap: expected a positive number, at most ratio_cap ({ratio_cap}), found {trace_cap}")
    check_shapes("reward", reward.shape, terminated=terminated, truncated=truncated, mask=mask, value=value, log_prob=log_prob)
    ended = terminated | truncated
    delta = td_error(reward, value, next_value, terminated, gamma, mask)
    ratio = truncated_importance_weight(log_prob, behavior_log_prob, ratio_cap, mask)
    trace = trace_lambda * truncated_importance_weight(log_prob, behavior_log_prob, trace_cap, mask)
    excess = scan(ratio * delta, gamma * trace, ended, mask)  # v − V; a masked row holds that of the step which follows it
    following = torch.zeros_like(excess)
    following[..., :-1] = excess[..., 1:]
    advantage = ratio * torch.add(delta, following.masked_fill(ended, 0.0), alpha=gamma * trace_lambda)
    return zero_masked(value + excess, mask), zero_masked(advantage, mask)


def _product(log_prob: Tensor, behavior_log_prob: Tensor, mask: Tensor | None, add: Callable[[Tensor], Tensor]) -> Tensor:
    """``exp`` of the log ratios that ``add`` adds up; sums with a ratio of 0 in them are kept apart, for 0 · ∞ and ∞ − ∞ are NaN."""
    difference = zero_masked(log_prob - behavior_log_prob, mask)
    never = torch.isneginf(difference)
    total = add(difference.masked_fill(never, 0.0)).exp()
    return zero_masked(total.masked_fill(add(never.to(total.dtype)) > 0, 0.0), mask)
