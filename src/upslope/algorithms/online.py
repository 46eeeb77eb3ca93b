"""What the methods that learn at every step share: gradients of one state, and eligibility traces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.errors import Diverged, UsageError, require
from upslope.records import HasGradients, HasValue, Policy, ReturnScale, State, offers

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rows:
    """A gradient that is 0 but for some rows, each of which is ``row``: what a table or tile coding gives. On the processor."""

    index: NDArray[np.int64]
    """which rows, none of them twice"""
    row: NDArray[np.float32]
    shape: tuple[int, ...]

    def add_to(self, z: Tensor, weight: float) -> None:
        """``z ← z + weight · gradient``."""
        z.numpy()[self.index] += np.float32(weight) * self.row


Gradients = Sequence[Tensor | Rows | None]  # one gradient per parameter; None where the parameter is not reached


class Trace:
    """An eligibility trace: one tensor z for each parameter that the gradient reaches, all 0 at first (Sutton & Barto 12.2)."""

    def __init__(self, num_parameters: int) -> None:
        self.z: list[Tensor | None] = [None] * num_parameters

    def add(self, gradients: Gradients, decay: float, weight: float = 1.0) -> None:
        """``z ← decay · z + weight · gradient``."""
        for i, gradient in enumerate(gradients):
            z = self.z[i]
            if z is not None:
                z.mul_(decay)
            if gradient is None:
                continue
            if z is None:
                z = self.z[i] = torch.zeros(gradient.shape) if isinstance(gradient, Rows) else torch.zeros_like(gradient)
            if isinstance(gradient, Rows):
                gradient.add_to(z, weight)
            else:
                z.add_(gradient, alpha=weight)

    @torch.no_grad()
    def ascend(self, targets: Sequence[Tensor], step: float) -> None:
        """``target ← target + step · z``."""
        for target, z in zip(targets, self.z, strict=True):
            if z is not None:
                target.add_(z, alpha=step)

    def reset(self) -> None:
        for z in self.z:
            if z is not None:
                z.zero_()


@dataclass
class OnlineState:
    """What an online method remembers from one step to the next.

    ``targets`` are the tensors that move: the parameters themselves. Put others of the same shapes there, and the updates add
    up in them while the policy stays as it is: *offline* updates, which an episode's end may apply (Sutton & Barto 12.1).
    """

    parameters: tuple[nn.Parameter, ...]
    targets: Sequence[Tensor]
    trace: Trace
    value_trace: Trace
    weight: float = 1.0
    average_reward: float = 0.0
    action: Tensor | None = None
    step_factor: float = 1.0
    """the schedule's part of the step sizes"""
    num_updates: int = 0
    squared_errors: list[float] = field(default_factory=list[float])

    @classmethod
    def of(cls, policy: Policy) -> OnlineState:
        """At the start of a run: ``z = 0``, ``I = 1``, ``R̄ = 0``."""
        parameters = tuple(p for p in policy.parameters() if p.requires_grad)
        require(bool(parameters), "policy: it has no trainable parameter; pass one with requires_grad=True")
        scale: ReturnScale | None = getattr(policy, "value_scale", None)
        what = "its critic learned in standard deviations of the returns, and a method that learns at every step takes plain steps"
        require(scale is None or float(scale.count) == 0, f"policy: {what}; start from a policy made with normalize_value=False")
        return cls(parameters, parameters, Trace(len(parameters)), Trace(len(parameters)))

    def state_dict(self) -> State:
        names = ("weight", "average_reward", "action", "num_updates", "squared_errors")
        return {"trace": self.trace.z, "value_trace": self.value_trace.z, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: State) -> None:
        self.trace.z, self.value_trace.z = state["trace"], state["value_trace"]
        for name in state.keys() - {"trace", "value_trace"}:
            setattr(self, name, state[name])

    def start_episode(self) -> None:
        """``z = 0``, ``I = 1``."""
        self.trace.reset()
        self.value_trace.reset()
        self.weight = 1.0

    def checked(self, td_error: float) -> float:
        """The error itself, noted for the metrics; :class:`Diverged` where it would spoil the parameters."""
        self.num_updates += 1
        if not math.isfinite(td_error):
            raise Diverged(f"diverged: the TD error is not finite at step {self.num_updates}; lower the learning rates or the trace decays")
        self.squared_errors.append(td_error * td_error)
        return td_error

    def mean_squared_error(self) -> float:
        errors, self.squared_errors = self.squared_errors, []
        return sum(errors) / max(len(errors), 1)


class Online:
    """A method that learns at every step, and begins with nothing remembered."""

    def start(self, policy: Policy, *, seed: int = 0) -> OnlineState:
        """``z = 0``, ``I = 1``, ``R̄ = 0``; nothing here is random, so the seed is not used."""
        return OnlineState.of(policy)


def gradients(policy: Policy, inputs: Inputs, action: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[float, Gradients, Gradients]:
    """``(v̂(S), ∇v̂(S), ∇log π(A|S))`` for one state: by the policy's formula where it has one, else by autograd."""
    found = policy.gradients(inputs, action, parameters) if offers(policy, HasGradients) else None
    if found is not None:
        return found
    new = policy.evaluate(**inputs, action=action)
    value = evaluated_value(new.value)
    score = torch.autograd.grad(new.log_prob.sum(), parameters, allow_unused=True, retain_graph=True)
    return value.item(), torch.autograd.grad(value.sum(), parameters, allow_unused=True), score


@torch.no_grad()
def value_of(policy: Policy, inputs: Inputs, action: Tensor) -> float:
    """``v̂`` of one state; the action is for policies that can only say it beside a score."""
    return float(evaluated_value(policy.value(inputs) if offers(policy, HasValue) else policy.evaluate(**inputs, action=action).value))


def evaluated_value(value: Tensor | None) -> Tensor:
    if value is None:
        raise UsageError("policy: evaluate() returned no value; use a policy with a value head")
    return value
