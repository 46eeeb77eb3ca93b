"""Episodic semi-gradient SARSA (Sutton & Barto 10.1, with the traces of 12.7): action values, for comparison with policy gradients.

The loop is the book's box, p. 244 (p. 305 with traces): ``w += α δ z``, ``δ = R + γ q̂(S′, A′) − q̂(S, A)``.

``schedule`` lets α fall over the run, so that what was learned is not stirred by the last few updates.

Left out: replacing and dutch traces, several environments, an ε that falls.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope.algorithms.all_actions import valued
from upslope.algorithms.common import check_fractions, check_not_negative
from upslope.algorithms.online import Gradients, Inputs, Online, OnlineState
from upslope.records import HasActionGradient, Metrics, Policy, SamplingPolicy, Stream, offers
from upslope.updates.schedules import SCHEDULES, Schedule, constant


@dataclass(frozen=True, kw_only=True)
class SARSA(Online):
    """On-policy control by action values; the policy is ε-greedy in them, and owns ε."""

    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"schedule": SCHEDULES}
    action_values: ClassVar[bool] = True

    gamma: float = 0.99
    """discount factor"""
    learning_rate: float = 1e-2
    """step size"""
    trace_decay: float = 0.0
    """λ of the eligibility trace (accumulating): 0 is one step"""
    schedule: Schedule = constant
    """how the step size moves over the run: constant or linear (to zero)"""

    def __post_init__(self) -> None:
        check_fractions(gamma=self.gamma, trace_decay=self.trace_decay)
        check_not_negative(learning_rate=self.learning_rate)

    def set_fraction(self, state: OnlineState, fraction: float) -> None:
        state.step_factor = self.schedule(fraction)

    def learn(self, policy: SamplingPolicy, stream: Stream, state: OnlineState) -> Metrics:
        """``δ = R + γ q̂(S′, A′) − q̂(S, A)``, q̂(terminal) = 0. A truncation bootstraps, then resets."""
        for _ in range(stream.num_steps):
            inputs = stream.observe(policy)  # S
            action = stream.act(policy, inputs) if state.action is None else state.action  # A
            step = stream.step(policy, action)  # R, S′
            state.action = None if step.terminated else stream.act(policy, step.next_inputs)  # A′
            value, gradient = action_value(policy, inputs, action, state)
            next_value = 0.0 if state.action is None else float(action_values(policy, step.next_inputs)[0, state.action])
            td_error = state.checked(step.reward + self.gamma * next_value - value)
            state.trace.add(gradient, self.gamma * self.trace_decay)
            state.trace.ascend(state.targets, state.step_factor * self.learning_rate * td_error)
            if step.ended:
                state.action = None
                state.start_episode()
        return {"td_error_squared": state.mean_squared_error(), **stream.metrics()}


def action_value(policy: Policy, inputs: Inputs, action: Tensor, state: OnlineState) -> tuple[float, Gradients]:
    """``q̂(S, A)`` and its gradient: by the policy's formula where it has one, else by autograd."""
    found = policy.action_gradient(inputs, action, state.parameters) if offers(policy, HasActionGradient) else None
    if found is not None:
        return found
    value = valued(policy).action_values(**inputs)[0, action[0]]
    return value.item(), torch.autograd.grad(value, state.parameters, allow_unused=True)


@torch.no_grad()
def action_values(policy: Policy, inputs: Inputs) -> Tensor:
    """``q̂(S, ·)``, ``[1, n]``."""
    return valued(policy).action_values(**inputs)
