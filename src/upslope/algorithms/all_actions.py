"""The all-actions policy gradient (Sutton & Barto, eq. 13.7): every action of a visited state, not only the one that was taken.

    ∇J ∝ E[ Σ_t weight_t · Σ_a ∇π(a|s_t) · q̂(s_t, a) ]

The sum over actions is exact, so what varies is only which states are visited; a baseline would change nothing, for
``Σ_a ∇π(a|s) = 0``. With the exact q̂ and ``weight = γ^t`` it is unbiased for the discounted J; else its bias is that of q̂,
which is given, or learned beside the policy as in mean actor–critic (Allen et al. 2017, arXiv 1709.00503).

Left out: continuous actions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from upslope import functional as F
from upslope.algorithms.common import advantage_and_returns, check_fractions, check_not_negative, check_one_pass, masked_mean
from upslope.errors import UsageError, require
from upslope.records import Batch, HasActionValues, HasDistribution, Policy, Rollout, require_members
from upslope.updates import Ascent
from upslope.updates.critic import value_error
from upslope.updates.fisher import distribution_of

ActionValues = Callable[[Mapping[str, Tensor]], Tensor]
"""``inputs -> q̂ [..., T, A]``: a value for every action of each recorded state; nothing is differentiated through it."""
NAME = "action_values"  # under which q̂ travels among a batch's inputs


@dataclass(frozen=True, kw_only=True)
class AllActions:
    """Policies with ``distribution(**inputs)`` over finitely many actions climb ``Σ_a π(a|s) q̂(s, a)``, q̂ a constant.

    ``AllActions(q=values)``: ``values(inputs)`` says what each action of a recorded state is worth. ``AllActions()`` asks the
    policy's ``action_values(**inputs)``, whose value of the action taken follows the λ-return; ``V = Σ_a π(a|s) q̂(s, a)`` is
    then the policy's value of a state, as :class:`upslope.control.QCriticPolicy` has it.
    """

    q: ActionValues | None = None
    """q̂ of every action: inputs -> [..., T, A] (none: the policy's action values, learned along)"""
    gamma: float = 0.99
    """discount factor of the q̂ that is learned"""
    gae_lambda: float = 0.95
    """trace decay of the returns that q̂ learns from: 0 is one step, 1 the whole return"""
    value_coef: float = 0.5
    """weight of q̂'s squared error, in standard deviations of the returns"""
    state_discount: float = 1.0
    """a state weighs state_discount^t: q̂'s γ for the discounted J (1: every visit counts the same)"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-3))
    """how parameters move"""

    def __post_init__(self) -> None:
        found = type(self.q).__name__
        require(self.q is None or callable(self.q), f"q: expected a function of inputs that returns [..., T, A], found {found}")
        check_fractions(gamma=self.gamma, gae_lambda=self.gae_lambda, state_discount=self.state_discount)
        check_not_negative(value_coef=self.value_coef, entropy_coef=self.entropy_coef)
        check_one_pass(self.update)

    @property
    def action_critic(self) -> bool:
        """Whether the policy must value every action itself."""
        return self.q is None

    @torch.no_grad()
    def estimate(self, policy: Policy, rollout: Rollout) -> Batch:
        """``weight_t · q̂(s_t, ·)``, which joins the inputs; where q̂ is learned, ``returns = GAE + V`` for the action taken."""
        require_members("policy", policy, HasDistribution)
        values = valued(policy).action_values(**rollout.inputs) if self.q is None else self.q(rollout.inputs)
        shape, found = tuple(rollout.mask.shape), tuple(getattr(values, "shape", ()))
        message = f"q: expected a tensor with a value for every action, shape {(*shape, 'A')}, found {found or type(values).__name__}"
        require(len(found) == len(shape) + 1 and found[:-1] == shape, message)
        require(bool(values[rollout.mask].isfinite().all()), "q: it returned a value that is not finite")
        steps = (rollout.terminated, rollout.truncated, self.state_discount, rollout.mask, rollout.first_step)
        weight = F.discount_weight(*steps, dtype=rollout.behavior_log_prob.dtype)
        batch = Batch.of(rollout)
        if self.q is None:  # what the q̂ of each action taken should follow is its λ-return
            value, _, returns, metrics = advantage_and_returns(policy, rollout, self.gamma, self.gae_lambda)
            batch = replace(batch, value=value, returns=returns, metrics=metrics)
        return replace(batch, inputs={**rollout.inputs, NAME: values.to(weight.dtype) * weight.unsqueeze(-1)})

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``Σ_a π(a|s) q̂(s, a) + entropy_coef · H``, weighted and summed; less ``value_coef · (q̂(s_t, a_t) − R)²`` where q̂ is learned."""
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name != NAME}
        values = batch.inputs[NAME].masked_fill(~batch.mask.unsqueeze(-1), 0.0)
        distribution = distribution_of(policy, inputs, otherwise="take a method that needs no probabilities")
        probability = probabilities(distribution, values.shape[-1], batch.mask)
        entropy = distribution.entropy()
        total = (probability * values).sum(-1) + self.entropy_coef * entropy
        log_ratio = distribution.log_prob(inputs["action"]) - batch.behavior_log_prob
        metrics = {"entropy": masked_mean(entropy, batch.mask), "log_ratio": log_ratio}
        if batch.returns is not None:
            q_taken = valued(policy).action_values(**inputs).gather(-1, inputs["action"].unsqueeze(-1)).squeeze(-1)
            error = value_error(policy, q_taken, batch)
            total = total - self.value_coef * error
            metrics["value_error"] = masked_mean(error, batch.mask)
        return F.weighted_sum(total, batch.weight), metrics


def valued(policy: object) -> HasActionValues:
    require_members("policy", policy, HasActionValues)
    return cast(HasActionValues, policy)


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
