"""What every update checks: the first ratio, and that objective and gradient are finite."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from upslope.errors import Diverged, RunFault
from upslope.records import Batch, HasDistribution, Policy, offers

RATIO_TOLERANCE = 1e-3
"""Largest |log π − log π_behavior| on the first minibatch of an update that rounding can explain (float32 sums)."""
UNITS = 16  # units in the last place of an action, or of its mean, that the sums of a network may differ by
COARSEST = 0.1
"""Largest |log π − log π_behavior| of a very narrow policy that is let pass as rounding: beyond, updates would follow noise."""


def check_first_ratio(max_log_ratio: float, policy: Policy, part: Batch) -> None:
    """Before its first step the policy still is the one that sampled: π/π_behavior must be 1 (FORMULAS section 8).

    For a log ratio beyond :data:`RATIO_TOLERANCE`. Where the policy is so narrow that the last digits of an action move log π, rounding
    is allowed for, up to a ratio of exp(±:data:`COARSEST`).
    """
    rounding = action_rounding(policy, part)
    if max_log_ratio > RATIO_TOLERANCE + UNITS * rounding:
        hint = "the policy must sample and score with the same distribution (temperature, masks, dropout, normalization)"
        raise RunFault(f"ratio: expected 1 on the first minibatch of an update, found exp(±{max_log_ratio:.2g}); {hint}")
    if max_log_ratio > COARSEST:
        raise RunFault(
            f"ratio: expected 1 on the first minibatch of an update, found exp(±{max_log_ratio:.2g}), which is rounding: the last digit of "
            f"an action moves log π by up to {rounding:.2g}, so narrow has the policy become; raise entropy_coef or lower the learning rate"
        )


def action_rounding(policy: Policy, part: Batch) -> float:
    """By how much log π may change where a unit in the last place of an action does: ``max_t Σ_i |∂log π/∂a_i| · eps · max(|a_i|, 1)``.

    For a Gaussian that is ``|a − μ|/σ² · eps · max(|a|, 1)``. 0 for actions that are integers, which do not round.
    """
    action = part.inputs.get("action")
    if action is None or not action.is_floating_point():
        return 0.0
    action = action.detach().clone().requires_grad_()
    log_prob = policy.evaluate(**{**part.inputs, "action": action}).log_prob
    if not log_prob.requires_grad:
        return 0.0
    (slope,) = cast(Sequence[Tensor | None], torch.autograd.grad(log_prob.sum(), action, allow_unused=True))
    if slope is None:
        return 0.0
    moved = slope.abs() * torch.finfo(action.dtype).eps * action.detach().abs().clamp(min=1.0)
    each = moved.reshape(*log_prob.shape, -1).sum(-1)
    return each.masked_fill(~part.mask, 0.0).max().item()


ADVICE = "lower the learning rate, lower max_grad_norm, or scale what it learns from (rewards, observations) to about 1"
"""What helps in every world: texts have no observations, recorded ones no rewards."""


class Counted(Protocol):
    """The state of an update that counts its steps."""

    num_updates: int


def gradient_not_finite(state: Counted) -> Diverged:
    """A finite objective may have a gradient that is not (a square root at 0, an overflow), which would spoil the parameters."""
    return Diverged(f"diverged: the gradient is not finite at gradient step {state.num_updates + 1}; {ADVICE}")


def diagnosis(state: Counted, part: Batch, policy: Policy) -> str:
    """One line that names the update and the first tensor that is not finite.

    Raises:
        RunFault: the policy leaves no action possible in some states, which no other batch would mend.
    """
    if reason := without_action(policy, part):
        raise RunFault(f"{reason} (gradient step {state.num_updates + 1}); leave at least one action possible in every state")
    suspects: dict[str, Tensor | None] = {name: getattr(part, name) for name in ("advantage", "returns", "behavior_log_prob")}
    suspects |= {f"inputs[{name!r}]": tensor for name, tensor in part.inputs.items() if tensor.is_floating_point()}
    suspects |= dict(policy.named_parameters()) if isinstance(policy, nn.Module) else {}
    name = next((name for name, tensor in suspects.items() if tensor is not None and not finite(tensor, part.mask)), "objective")
    return f"diverged: {name} is not finite at gradient step {state.num_updates + 1}; {ADVICE}"


def finite(tensor: Tensor, mask: Tensor) -> bool:
    """Whether all entries are finite; where the tensor has the mask's axes, all unmasked entries."""
    seen = tensor[mask] if tensor.shape[: mask.dim()] == mask.shape else tensor
    return bool(torch.isfinite(seen).all())


def without_action(policy: Policy, part: Batch) -> str:
    """Where a network gives every action that it may take a logit of −∞, as a message, else ''; no learning rate would help."""
    action = part.inputs.get("action")
    if action is None or not offers(policy, HasDistribution):
        return ""
    try:
        with torch.no_grad():
            found = policy.distribution(**part.inputs)
            parameters, log_prob = found.parameters, found.log_prob(action)
        wrong = (parameters.isnan() | parameters.isposinf()).any(-1)
        hopeless: Tensor = log_prob.isnan() & parameters.isneginf().any(-1) & ~wrong & part.mask
    except Exception:  # a user's distribution, of another form
        return ""
    if not hopeless.any():
        return ""
    how_many = f"{int(hopeless.sum())} of {int(part.mask.sum())} steps"
    observation: Any = part.inputs.get("observation")
    # rows are shuffled: their places say nothing
    numbers: list[float] = [] if observation is None else observation[hopeless][0].flatten().tolist()
    shown = ", ".join(f"{number:.4g}" for number in numbers[:8]) + (", …" if len(numbers) > 8 else "")
    which = f", for one where the observation is [{shown}]" if numbers else ""
    return f"no legal action: the network gives all of them a logit of −∞ in {how_many}{which}"
