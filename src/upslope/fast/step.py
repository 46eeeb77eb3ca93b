"""A policy that acts by machine code: the compiled twin of ``MLPPolicy.sample``, ``act`` and ``value``.

The random numbers come from the caller's generator as for its twin, one uniform number per row (categorical) or one standard
normal per dimension (Gaussian), so that both draw the same actions; only rounding differs. See :mod:`upslope.fast.kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.native import Library
from upslope.fast.plan import Anatomy, Plan
from upslope.records import Sample


class CompiledPolicy:
    """Stands in for an MLP policy while it acts; whatever else is asked of it, the policy itself answers."""

    def __init__(self, policy: Any, library: Library, parts: Anatomy) -> None:
        self.policy, self.library, self.parts = policy, library, parts
        self.ends = parts.parameters[0], parts.parameters[-1]
        self.where: tuple[int, int] | None = None
        self.replan()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def replan(self) -> None:
        """Note where the parameters are: training moves them into a buffer of their own."""
        base = self.ends[0].data_ptr()
        self.plan = Plan(self.parts, base, 0)
        self.where = base, self.ends[1].data_ptr()
        self.addresses = base, *self.plan.addresses

    def run(self, inputs: Mapping[str, Tensor], mode: int, noise: Tensor | None = None, *targets: Tensor | None) -> bool:
        """Call the kernel; False where the inputs are not what it takes."""
        observation, legal = inputs["observation"], inputs.get("action_mask")
        if observation.dtype != torch.float32 or observation.shape[-1] != self.parts.inputs or observation.device.type != "cpu":
            return False
        if (self.ends[0].data_ptr(), self.ends[1].data_ptr()) != self.where:
            self.replan()
        observation = observation.contiguous()
        if legal is not None:
            legal = legal.contiguous()
        rows = observation.numel() // self.parts.inputs
        self.library.step(
            *(*self.addresses, observation.data_ptr(), rows, mode, legal is not None),
            *(0 if tensor is None else tensor.data_ptr() for tensor in (noise, legal, *targets)),
        )
        return True

    @torch.no_grad()
    def sample(self, inputs: Mapping[str, Tensor], *, state: Any = None, generator: torch.Generator | None = None) -> Sample:
        """The twin of ``MLPPolicy.sample``."""
        lead = inputs["observation"].shape[:-1]
        log_prob = torch.empty(lead)
        value = torch.empty(lead) if self.parts.critic else None
        mode = at.SAMPLE if value is None else at.SAMPLE_AND_EVALUATE
        if self.parts.head == at.GAUSSIAN:
            noise = torch.randn(*lead, self.parts.outputs, generator=generator)
            action = torch.empty_like(noise)
            done = self.run(inputs, mode, noise, None, action, log_prob, value)
        else:
            noise = torch.rand(lead, generator=generator)
            action = torch.empty(lead, dtype=torch.int64)
            done = self.run(inputs, mode, noise, action, None, log_prob, value)
        if not done:
            return self.policy.sample(inputs, state=state, generator=generator)
        return Sample(action=action, log_prob=log_prob, value=value, state=state)

    @torch.no_grad()
    def value(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The twin of ``MLPPolicy.value``: any number of rows in one call."""
        if not self.parts.critic:
            return None
        value = torch.empty(inputs["observation"].shape[:-1])
        return value if self.run(inputs, at.EVALUATE, None, None, None, None, value) else self.policy.value(inputs)

    def act(self, *arguments: Any, **options: Any) -> Any:
        """``MLPPolicy.act`` on the compiled actor."""
        return type(self.policy).act(self, *arguments, **options)

    def _actor(self, inputs: Mapping[str, Tensor]) -> Tensor:
        output = torch.empty(*inputs["observation"].shape[:-1], self.parts.outputs)
        if not self.run(inputs, at.OUTPUT, None, None, output, None, None):
            return self.policy._actor(inputs)
        return self.policy._with_log_std(output)
