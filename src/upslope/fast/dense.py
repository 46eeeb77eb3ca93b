"""A policy whose ``evaluate`` is one node of the autograd graph: the fast path for a user's own objective on an MLP policy.

Forward and backward of both networks and of the head run as machine code (:mod:`upslope.fast.policy_kernels`); the objective
stays plain torch and autograd differentiates it down to ∂objective/∂(log π, entropy, value), where this node takes over.
So ``algorithm.objective(policy, batch)`` works unchanged, whatever it computes from an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from upslope.fast import layout as at
from upslope.fast.descent import CompiledAscent, compilable, run, vars_of
from upslope.fast.descent import Memory as Descent
from upslope.fast.native import Library
from upslope.fast.plan import Anatomy, Memory, actions_exist, readable
from upslope.records import Batch, Evaluation, Metrics
from upslope.updates import AscentState


class DensePolicy:
    """Stands in for an MLP policy during updates; whatever is not an evaluation, the policy itself answers."""

    def __init__(self, policy: Any, library: Library, parts: Anatomy) -> None:
        self.policy, self.library, self.parts = policy, library, parts
        self.memory = Memory(parts)
        self.flat: Tensor | None = None
        """all parameters as one leaf of the graph, while an update asks for their gradient in one piece"""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by copy and pickle before there is a policy to answer
            raise AttributeError(name)
        return getattr(self.policy, name)

    def evaluate(self, **inputs: Tensor) -> Evaluation:
        """The twin of ``MLPPolicy.evaluate``."""
        observation, action, legal = inputs.get("observation"), inputs.get("action"), inputs.get("action_mask")
        if observation is None or action is None or not readable(observation, legal, self.parts):
            return self.policy.evaluate(**inputs)
        if not self.takes(observation, action) or not self.memory.in_one_piece():
            return self.policy.evaluate(**inputs)
        leaves = self.parts.parameters if self.flat is None else (self.flat,)
        log_prob, entropy, value = _Evaluate.apply(self, observation, action, legal, *leaves)
        return Evaluation(log_prob=log_prob, entropy=entropy, value=self.policy._restored(value) if self.parts.critic else None)

    __call__ = evaluate

    def takes(self, observation: Tensor, action: Tensor) -> bool:
        """Whether the actions are what the head records."""
        lead = observation.shape[:-1]
        if not action.is_contiguous() or observation.requires_grad:
            return False
        if self.parts.head == at.GAUSSIAN:
            return action.dtype == torch.float32 and action.shape == (*lead, self.parts.outputs) and not action.requires_grad
        return action.dtype == torch.int64 and action.shape == lead and actions_exist(action, self.parts.outputs)

    def arguments(self, observation: Tensor, action: Tensor, legal: Tensor | None) -> tuple[int, ...]:
        """What both kernels begin with."""
        where = action.data_ptr()
        discrete, continuous = (0, where) if self.parts.head == at.GAUSSIAN else (where, 0)
        rows = observation.numel() // self.parts.inputs
        masked = 0 if legal is None else legal.data_ptr()
        return *self.memory.addresses(), observation.data_ptr(), rows, legal is not None, discrete, continuous, masked


@dataclass
class DenseState(AscentState):
    """The state of an update whose gradient comes in one piece; ``parameters`` begins with the flat vector as a leaf."""

    def gather(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """The flat gradient, and what reached the parameters past the dense evaluation."""
        flat, *single = gradients
        total = torch.zeros_like(self.targets[0]) if flat is None else flat
        if all(g is None for g in single):
            return [total]
        parts = [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(single, self.parameters[1:], strict=True)]
        return [total + torch.cat(parts)]


class DenseUpdate:
    """Called like an :class:`~upslope.updates.Ascent`, which it runs with the dense policy in the policy's place."""

    def __init__(self, policy: DensePolicy) -> None:
        self.policy = policy

    def __call__(self, algorithm: Any, policy: Any, batch: Batch, state: AscentState) -> Metrics:
        """One update on one batch; the metrics of :meth:`Ascent.__call__`."""
        if state.flat is None or policy is not self.policy.policy or not compilable(state):
            return algorithm.update(algorithm, policy, batch, state)
        state.check()
        leaf = state.flat.data.detach().requires_grad_()
        own = DenseState(**{**vars_of(state), "parameters": (leaf, *state.parameters)})
        steps = Descent(algorithm.update, state)
        ascent = CompiledAscent(library=self.policy.library, memory=steps, **vars_of(algorithm.update))
        self.policy.flat = leaf
        try:
            return run(ascent, algorithm, self.policy, batch, state, own)
        finally:
            self.policy.flat = None


class _Evaluate(torch.autograd.Function):
    """``(log π, entropy, value)`` of recorded actions as a function of the parameters."""

    @staticmethod
    def forward(ctx: Any, policy: DensePolicy, observation: Tensor, action: Tensor, legal: Tensor | None, *parameters: Tensor) -> Any:
        lead = observation.shape[:-1]
        results = log_prob, entropy, value = torch.empty(*lead), torch.empty(*lead), torch.empty(*lead)
        arguments = policy.arguments(observation, action, legal)
        policy.library.evaluate(*arguments, log_prob.data_ptr(), entropy.data_ptr(), value.data_ptr())
        ctx.policy, ctx.flat = policy, policy.flat is not None
        ctx.save_for_backward(observation, action, legal)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        policy: DensePolicy = ctx.policy
        slopes = tuple(slope.contiguous() for slope in slopes)
        gradient = torch.zeros(sum(p.numel() for p in policy.parts.parameters))
        addresses = [slope.data_ptr() for slope in slopes]
        policy.library.pull_back(*policy.arguments(*ctx.saved_tensors), *addresses, gradient.data_ptr())
        parts = (gradient,) if ctx.flat else (gradient.as_strided(*view) for view in policy.parts.views)
        return None, None, None, None, *parts
