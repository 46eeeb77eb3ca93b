"""The all-actions policy gradient (Sutton & Barto, eq. 13.7): every action of a visited state, not only the one that was taken.

    ∇J ∝ E[ Σ_t weight_t · Σ_a ∇π(a|s_t) · q̂(s_t, a) ]

The sum over actions is exact, so what varies is only which states are visited; a baseline would change nothing, for
``Σ_a ∇π(a|s) = 0``. With the exact q̂ and ``weight = γ^t`` it is unbiased for the discounted J; else its bias is that of q̂.

Left out: learning q̂, which is given (a network of yours, a table, or exact values), and continuous actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import check_fraction, check_not_negative, check_one_pass, masked_mean
from upslope.errors import UsageError, require
from upslope.records import Batch, Rollout
from upslope.updates import Ascent

ActionValues = Callable[[Mapping[str, Tensor]], Tensor]
"""``inputs -> q̂ [..., T, A]``: a value for every action of each recorded state; nothing is differentiated through it."""
NAME = "action_values"
"""Under which q̂ travels among a batch's inputs."""


@dataclass(frozen=True, kw_only=True)
class AllActions:
    """Policies with ``distribution(**inputs)`` over finitely many actions climb ``Σ_a π(a|s) q̂(s, a)``, q̂ held fixed.

    ``AllActions(q=values)``: ``values(inputs)`` says what each action of a recorded state is worth.
    """

    q: ActionValues
    """q̂ of every action: inputs -> [..., T, A]"""
    state_discount: float = 1.0
    """a state weighs state_discount^t: q̂'s own γ for the discounted J (1: every visit counts the same)"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-3))
    """how parameters move"""

    def __post_init__(self) -> None:
        require(callable(self.q), f"q: expected a function of inputs that returns [..., T, A], found {type(self.q).__name__}")
        check_fraction("state_discount", self.state_discount)
        check_not_negative(entropy_coef=self.entropy_coef)
        check_one_pass(self.update)

    @torch.no_grad()
    def estimate(self, policy: Any, rollout: Rollout) -> Batch:
        """``weight_t · q̂(s_t, ·)``, which joins the inputs."""
        if not hasattr(policy, "distribution"):
            raise UsageError(f"policy: all actions need distribution(**inputs), which {type(policy).__name__} lacks")
        values = self.q(rollout.inputs)
        shape, found = tuple(rollout.mask.shape), tuple(getattr(values, "shape", ()))
        require(
            len(found) == len(shape) + 1 and found[:-1] == shape,
            f"q: expected a tensor with a value for every action, shape {(*shape, 'A')}, found {found or type(values).__name__}",
        )
        require(bool(values[rollout.mask].isfinite().all()), "q: it returned a value that is not finite")
        steps = (rollout.terminated, rollout.truncated, self.state_discount, rollout.mask, rollout.first_step)
        weight = F.discount_weight(*steps, dtype=rollout.behavior_log_prob.dtype)
        batch = Batch.of(rollout)
        return replace(batch, inputs={**rollout.inputs, NAME: values.to(weight.dtype) * weight.unsqueeze(-1)})

    def objective(self, policy: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``Σ_a π(a|s) q̂(s, a) + entropy_coef · H``, weighted and summed."""
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != NAME}
        values = batch.inputs[NAME].masked_fill(~batch.mask.unsqueeze(-1), 0.0)
        distribution = policy.distribution(**inputs)
        probability = probabilities(distribution, values.shape[-1], batch.mask)
        entropy = distribution.entropy()
        total = (probability * values).sum(-1) + self.entropy_coef * entropy
        mask = batch.mask if batch.has_masked else None
        metrics = {
            "entropy": masked_mean(entropy, mask),
            "log_ratio": distribution.log_prob(inputs["action"]) - batch.behavior_log_prob,
        }
        return F.weighted_sum(total, batch.weight, hide=batch.has_masked), metrics


def probabilities(distribution: Any, num_actions: int, mask: Tensor) -> Tensor:
    """``π(a|s)`` of actions 0, 1, …, ``[..., T, A]``; raises :class:`UsageError` where these are not all that the policy may take."""
    try:
        actions = [torch.full_like(mask, a, dtype=torch.int64) for a in range(num_actions)]
        found = torch.stack([distribution.log_prob(action) for action in actions], -1).exp()
        complete = found.shape[:-1] == mask.shape and bool(((found.sum(-1) - 1.0).abs() < 1e-3)[mask].all())
    except (RuntimeError, IndexError) as error:
        raise UsageError(f"q: it values {num_actions} actions, which are not those of the policy ({error})") from error
    require(complete, f"q: it values {num_actions} actions, and the policy's probabilities of these do not sum to 1")
    return found
