"""Actor–critic that learns at every step (Sutton & Barto 13.5, 13.6): one step, eligibility traces, average reward.

The loops are the book's boxes, p. 332 and 333, line by line; plain steps, no Adam. Any policy with a critic will do: tables,
tile coding, networks.

Left out: several environments (their traces would have to be kept apart, so each step would need the gradients of every
environment alone), an entropy bonus.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from upslope.algorithms.common import check_fractions, check_not_negative
from upslope.algorithms.online import Online, OnlineState, gradients, value_of
from upslope.errors import require
from upslope.records import Metrics, SamplingPolicy, Stream
from upslope.updates.schedules import SCHEDULES, Schedule, constant


@dataclass(frozen=True, kw_only=True)
class OnlineActorCritic(Online):
    """The episodic boxes of p. 332: with decays of 0 the one-step actor–critic, else the one with eligibility traces."""

    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"schedule": SCHEDULES}

    gamma: float = 0.99
    """discount factor"""
    learning_rate: float = 1e-3
    """step size of the policy"""
    value_learning_rate: float = 1e-2
    """step size of the critic"""
    trace_decay: float = 0.0
    """λ of the policy's eligibility trace: 0 is one step, 1 Monte Carlo"""
    value_trace_decay: float = 0.0
    """λ of the critic's eligibility trace"""
    discount_weight: bool = True
    """weight the policy's steps by γ^t, as the box does; without it the gradient is of no objective, but late steps count"""
    schedule: Schedule = constant
    """how both step sizes move over the run: constant or linear (to zero)"""

    def __post_init__(self) -> None:
        check_fractions(gamma=self.gamma, trace_decay=self.trace_decay, value_trace_decay=self.value_trace_decay)
        check_not_negative(learning_rate=self.learning_rate, value_learning_rate=self.value_learning_rate)

    def set_fraction(self, state: OnlineState, fraction: float) -> None:
        state.step_factor = self.schedule(fraction)

    def learn(self, policy: SamplingPolicy, stream: Stream, state: OnlineState) -> Metrics:
        """``δ = R + γ v̂(S′) − v̂(S)``, v̂(terminal) = 0; both traces; both steps. A truncation bootstraps, then resets."""
        for _ in range(stream.num_steps):
            inputs = stream.observe(policy)  # S
            action = stream.act(policy, inputs)  # A ~ π(·|S, θ)
            step = stream.step(policy, action)  # R, S′
            value, value_gradient, score = gradients(policy, inputs, action, state.parameters)
            next_value = 0.0 if step.terminated else value_of(policy, step.next_inputs, action)
            td_error = state.checked(step.reward + self.gamma * next_value - value)
            state.value_trace.add(value_gradient, self.gamma * self.value_trace_decay)
            state.trace.add(score, self.gamma * self.trace_decay, state.weight)
            state.value_trace.ascend(state.targets, state.step_factor * self.value_learning_rate * td_error)
            state.trace.ascend(state.targets, state.step_factor * self.learning_rate * td_error)
            if self.discount_weight:
                state.weight *= self.gamma  # I ← γ I
            if step.ended:
                state.start_episode()
        return {"td_error_squared": state.mean_squared_error(), **stream.metrics()}


@dataclass(frozen=True, kw_only=True)
class ContinuingActorCritic(Online):
    """The same for tasks without episodes and without a discount: the average reward per step, R̄ (Sutton & Barto, p. 333).

    An environment that terminates is refused. Where a recording is cut (a time limit), the true successor's value is used as
    always, the traces are cut, and R̄ goes on.
    """

    learning_rate: float = 1e-3
    """step size of the policy"""
    value_learning_rate: float = 1e-2
    """step size of the critic"""
    average_reward_rate: float = 1e-2
    """step size of the average reward"""
    trace_decay: float = 0.0
    """λ of the policy's eligibility trace"""
    value_trace_decay: float = 0.0
    """λ of the critic's eligibility trace"""

    def __post_init__(self) -> None:
        check_fractions(trace_decay=self.trace_decay, value_trace_decay=self.value_trace_decay)
        check_not_negative(learning_rate=self.learning_rate, value_learning_rate=self.value_learning_rate)
        check_not_negative(average_reward_rate=self.average_reward_rate)

    def learn(self, policy: SamplingPolicy, stream: Stream, state: OnlineState) -> Metrics:
        """``δ = R − R̄ + v̂(S′) − v̂(S)``; ``R̄ ← R̄ + α_R δ``; both traces; both steps."""
        for _ in range(stream.num_steps):
            inputs = stream.observe(policy)  # S
            action = stream.act(policy, inputs)  # A ~ π(·|S, θ)
            step = stream.step(policy, action)  # R, S′
            require(not step.terminated, TERMINATED)
            value, value_gradient, score = gradients(policy, inputs, action, state.parameters)
            td_error = state.checked(step.reward - state.average_reward + value_of(policy, step.next_inputs, action) - value)
            state.average_reward += self.average_reward_rate * td_error
            state.value_trace.add(value_gradient, self.value_trace_decay)
            state.trace.add(score, self.trace_decay)
            state.value_trace.ascend(state.targets, self.value_learning_rate * td_error)
            state.trace.ascend(state.targets, self.learning_rate * td_error)
            if step.truncated:
                state.start_episode()
        return {"td_error_squared": state.mean_squared_error(), "average_reward": state.average_reward, **stream.metrics()}


TERMINATED = "env: it terminated, and a task with an end has no average reward per step; take the episodic actor-critic"
