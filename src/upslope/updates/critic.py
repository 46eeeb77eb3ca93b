"""A critic in normalized units: what an update does so that the size and the offset of rewards do not decide what is learned.

A policy may have ``value_scale``, the running moments of the returns (:class:`upslope.control.normalize.ValueScale`), and
``critic_parameters()``, those that only its critic has. Values are in the rewards' units wherever a policy says them; the error
that a critic descends is in standard deviations of the returns. Without the two everything is as written: V is the network's output.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from upslope import functional as F
from upslope.errors import UsageError
from upslope.records import Batch, HasReturnScale, Policy, ReturnScale, offers


def value_error(policy: Policy, value: Tensor | None, batch: Batch, clip_range: float | None = None) -> Tensor:
    """``((V − R) / σ)²``, ``[..., T]``, σ from the policy's ``value_scale``; V counts at most ``clip_range`` σ from what it was."""
    if value is None:
        raise UsageError("policy: evaluate() returned no value; use a policy with a value head, or set value_coef or num_value_epochs to 0")
    returns, old = batch.need("returns"), batch.value
    scale: ReturnScale | None = getattr(policy, "value_scale", None)
    if scale is not None:
        value, returns = (value - scale.mean) / scale.std, (returns - scale.mean) / scale.std
        old = None if old is None else (old - scale.mean) / scale.std
    if clip_range is None or old is None:
        return F.squared_error(value, returns, batch.mask)
    return F.clipped_squared_error(value, returns, old, clip_range, batch.mask)


def of_critic(policy: object, parameters: Sequence[nn.Parameter]) -> tuple[bool, ...]:
    """Which of these the policy says only its critic has; nothing of a policy that says nothing or shares its networks."""
    only_critic = policy.critic_parameters() if offers(policy, HasReturnScale) else ()
    return tuple(any(p is q for q in only_critic) for p in parameters)
