"""What several algorithms share: checks of their arguments and rollouts, and the numbers that every objective reports."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError, require
from upslope.records import Batch, Evaluation, Metrics, Policy, ReturnScale, Rollout, Surrogate

NO_CLIP = (1.0, math.inf)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def by_name(*functions: FunctionT, without: str = "") -> dict[str, FunctionT]:
    """Functions under the names that the command line knows: ``per_decision`` is per-decision, ``without`` the ending that all share."""
    return {cast(Any, each).__name__.removesuffix(without).replace("_", "-"): each for each in functions}


def check_fractions(**values: float) -> None:
    """Refuse what is not in [0, 1]: discount factors and trace decays."""
    for name, value in values.items():
        require(0.0 <= value <= 1.0, f"{name}: expected a number in [0, 1], found {value}")


def check_not_negative(**values: float | None) -> None:
    for name, value in values.items():
        require(value is None or value >= 0.0, f"{name}: expected a number ≥ 0, found {value}")


def check_one_pass(update: Any) -> None:
    """Refuse several epochs where the objective has no importance weight: from the second on its gradient is of an old policy."""
    num_epochs = getattr(update, "num_epochs", 1)
    require(num_epochs == 1, f"num_epochs: this algorithm makes one pass over each batch, found {num_epochs}; take ppo for several")


def check_clip_range(clip_range: Any) -> None:
    """Refuse what is neither a number nor a pair, a negative ε, and an ε_low above 1, which no ratio reaches."""
    require(
        (isinstance(clip_range, tuple) and len(cast(tuple[Any, ...], clip_range)) == 2)
        or (isinstance(clip_range, (int, float)) and not isinstance(clip_range, bool)),
        f"clip_range: expected a number or a tuple (low, high), found {clip_range!r}",
    )
    low, high = cast(tuple[float, float], clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range))
    require(0 <= low <= 1 and high >= 0, f"clip_range: expected low in [0, 1] and high ≥ 0, found {clip_range}")


def check_dual_clip(dual_clip: float | None, surrogate: Surrogate) -> None:
    """Refuse a dual clip of at most 1, and one beside a surrogate that does not take it."""
    require(dual_clip is None or dual_clip > 1, f"dual_clip: expected a number > 1 or none, found {dual_clip}")
    message = "dual_clip: it belongs to the clipped surrogate; leave it out or bind it to yours with functools.partial"
    require(dual_clip is None or surrogate is F.clipped_surrogate, message)


def check_surrogate_value(surrogate: Tensor, log_prob: Tensor) -> None:
    """Refuse a surrogate that is reduced or that does not move with the policy."""
    if surrogate.shape != log_prob.shape:
        raise UsageError(f"surrogate: expected one value per step, shape {tuple(log_prob.shape)}, found {tuple(surrogate.shape)}")
    if log_prob.requires_grad and not surrogate.requires_grad:
        raise UsageError("surrogate: it does not depend on log_prob, so nothing would be learned")


def critic_values(rollout: Rollout, policy: Policy | None = None, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """``value`` and ``next_value`` of a rollout whose policy has a critic; :func:`first_values` as long as that has no units."""
    value, next_value = rollout.value, rollout.next_value
    if value is None or next_value is None:
        raise UsageError("policy: this algorithm needs a critic, and sample() returned no value; use a policy with a value head")
    scale: ReturnScale | None = getattr(policy, "value_scale", None)
    return (value, next_value) if scale is None or scale.count > 0 else first_values(rollout, value, next_value, gamma)


def first_values(rollout: Rollout, value: Tensor, next_value: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The values moved by the constant that fits the rewards, before a critic's units are known.

    With V + c the mean TD error is 0: ``c = Σ (r + γ V′ − V) / Σ (1 − γ)``, γ being 0 where a step terminates. Without it the first
    advantages would tell how far the end of the recording is, where every reward has an offset.
    """
    kept = gamma * (~rollout.terminated).double()
    missing = float((1.0 - kept)[rollout.mask].sum())
    if missing == 0.0:  # nothing ends and nothing is discounted
        return value, next_value
    c = float((rollout.reward + kept * next_value - value)[rollout.mask].sum()) / missing
    return value + c, next_value + c


def advantage_and_returns(
    policy: Policy, rollout: Rollout, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
    """``(V, Â, R, metrics)``: ``Â = GAE(γ, λ)`` and ``R = Â + V``, of a rollout whose policy has a critic."""
    value, next_value = critic_values(rollout, policy, gamma)
    advantage = F.gae(rollout.reward, value, next_value, rollout.terminated, rollout.truncated, gamma, gae_lambda, rollout.mask)
    returns = advantage + value
    return value, advantage, returns, {"explained_variance": float(F.explained_variance(value, returns, rollout.mask))}


def in_spreads(advantage: Tensor, policy: Policy, returns: Tensor, mask: Tensor) -> Tensor:
    """Advantages in standard deviations of the returns, where the policy keeps them (``value_scale``): free of the rewards' size."""
    scale: ReturnScale | None = getattr(policy, "value_scale", None)
    if scale is None or not bool(mask.any()):
        return advantage
    std = float(scale.std) if scale.count > 0 else float(returns[mask].double().std(correction=0))
    return advantage / std if std > 0.0 else advantage


def check_longest(rollout: Rollout) -> None:
    """Refuse ``constant`` where nobody knows the longest that a row may be."""
    hint = "take 'sequences' or 'steps', or let the collector set max_steps"
    message = f"average_over: 'constant' divides by the longest that a row may be, which this collector does not know; {hint}"
    require(rollout.max_steps is not None, message)


def reference_of(rollout: Rollout, setting: str) -> Tensor:
    """``reference_log_prob`` of a rollout whose collector has a reference policy; ``setting`` is what asks for it."""
    if rollout.reference_log_prob is None:
        raise UsageError(f"{setting}: it needs a reference policy, and this rollout has none; give the collector a reference")
    return rollout.reference_log_prob


def penalized_reward(rollout: Rollout, coef: float, setting: str = "reference_kl_coef") -> Tensor:
    """``r_t − coef · (log π_old − log π_ref)_t``, ``[..., T]``: k1 in the reward of each step, whose expected sum is KL(π_old‖π_ref).

    Nothing is differentiated here, so the score function supplies the whole of ∇KL. Raises UsageError without a reference.

    Source: Ouyang et al. 2022 (InstructGPT), eq. 2; FORMULAS section 8.
    """
    if coef == 0:
        return rollout.reward
    return rollout.reward - coef * F.kl_k1(rollout.behavior_log_prob, reference_of(rollout, setting), rollout.mask)


def reference_metrics(rollout: Rollout) -> Metrics:
    """``reference_kl``: mean k3 per step of KL(π_old‖π_ref), where the collector has a reference."""
    if rollout.reference_log_prob is None or not bool(rollout.mask.any()):
        return {}
    return {"reference_kl": float(masked_mean(F.kl_k3(rollout.behavior_log_prob, rollout.reference_log_prob, rollout.mask), rollout.mask))}


def score_metrics(reward: Tensor, mask: Tensor) -> Metrics:
    """``score_mean``, ``score_std``: of the rows that have a step, the sum of their rewards, as they are trained on."""
    score = reward.sum(-1)[mask.any(-1)]
    return {"score_mean": float(score.mean()), "score_std": float(score.std(correction=0))} if score.numel() else {}


@torch.no_grad()
def policy_metrics(
    new: Evaluation, batch: Batch, value_error: Tensor | None = None, *, clip_range: F.ClipRange = NO_CLIP, dual_clip: float | None = None
) -> dict[str, Tensor]:
    """What every objective reports: 0-d means over the minibatch's unmasked steps, and ``log_ratio [..., T]``, which is 0 at first."""
    behavior, mask = batch.behavior_log_prob, batch.mask
    metrics = F.surrogate_metrics(new.log_prob, behavior, batch.need("advantage"), mask, clip_range, dual_clip=dual_clip)
    mismatch = None if batch.sampler_log_prob is None else (behavior - batch.sampler_log_prob).abs()
    means = {"entropy": new.entropy, "value_error": value_error, "mismatch": mismatch}
    metrics |= {name: x.masked_fill(~mask, 0.0).sum() / mask.sum() for name, x in means.items() if x is not None}
    return {**metrics, "log_ratio": new.log_prob - behavior}


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return x.detach().masked_fill(~mask, 0.0).sum() / mask.sum()
