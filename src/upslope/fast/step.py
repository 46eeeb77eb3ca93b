"""A policy that acts by machine code: the compiled twin of ``MLPPolicy.sample``, ``act`` and ``value``.

The random numbers come from the caller's generator as for its twin, one uniform number per row (categorical) or one standard
normal per dimension (Gaussian), so that both draw the same actions; only rounding differs. See :mod:`upslope.fast.kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.native import Library
from upslope.fast.plan import MLPLayout, Plan, kernel_can_read
from upslope.fast.tape import Tape
from upslope.records import Sample


class PolicyProxy:
    """What the fast twins of policies are: whatever is asked of one that it does not have, the policy itself answers."""

    def __init__(self, policy: object) -> None:
        self.policy = cast(Any, policy)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by copy and pickle before there is a policy to answer
            raise AttributeError(name)
        return getattr(self.policy, name)

    def __call__(self, **inputs: Tensor) -> Any:
        """The policy's ``evaluate``, which nothing here makes faster."""
        return self.policy(**inputs)


class CompiledPolicy(PolicyProxy):
    """Stands in for an MLP policy while it acts; whatever else is asked of it, the policy itself answers."""

    def __init__(self, policy: object, library: Library, parts: MLPLayout) -> None:
        super().__init__(policy)
        self.library, self.parts = library, parts
        self.plan = Plan(parts)
        self.tapes: dict[tuple[int, int], Tape] = {}

    def run(self, observation: Tensor, legal: Tensor | None, mode: int, *tensors: Tensor | None) -> None:
        """Call the kernel on checked inputs; ``tensors``: random numbers, actions, continuous actions, log-probabilities, values."""
        noise, *targets = tensors
        self.library.step(
            *(*self.plan.addresses(), observation.data_ptr(), observation.numel() // self.parts.inputs, mode, legal is not None),
            *(0 if tensor is None else tensor.data_ptr() for tensor in (noise, legal, *targets)),
        )

    def sample(self, inputs: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Sample:
        """The twin of ``MLPPolicy.sample``."""
        observation, legal = inputs["observation"], inputs.get("action_mask")
        if not kernel_can_read(observation, legal, self.parts):
            return self.policy.sample(inputs, generator=generator)
        lead = observation.shape[:-1]
        log_prob = torch.empty(*lead)  # sizes one by one: torch reads them twice as fast as a torch.Size
        value = torch.empty(*lead) if self.parts.critic else None
        mode = at.SAMPLE if value is None else at.SAMPLE_AND_EVALUATE
        if self.parts.head == at.GAUSSIAN:
            noise = torch.randn(*lead, self.parts.outputs, generator=generator)
            action = torch.empty_like(noise)
            self.run(observation, legal, mode, noise, None, action, log_prob, value)
        else:
            noise = torch.rand(*lead, generator=generator)
            action = torch.empty(*lead, dtype=torch.int64)
            self.run(observation, legal, mode, noise, action, None, log_prob, value)
        return Sample(action=action, log_prob=log_prob, value=self.restored(value))

    def tape(self, num_envs: int, num_steps: int) -> Tape:
        """The tape for recordings of this size; one for each size is kept."""
        size = num_envs, num_steps
        if size not in self.tapes:
            self.tapes[size] = Tape(self.library, self.parts, self.plan, *size)
        return self.tapes[size]

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The twin of ``MLPPolicy.value``: any number of rows in one call."""
        observation = inputs["observation"]
        if not self.parts.critic or not kernel_can_read(observation, None, self.parts):
            return self.policy.value(inputs)
        value = torch.empty(*observation.shape[:-1])
        self.run(observation, None, at.EVALUATE, None, None, None, None, value)
        return self.restored(value)

    def restored(self, value: Tensor | None) -> Tensor | None:
        """The value in the units of the rewards from the network's."""
        return value if value is None or self.policy.value_scale is None else self.policy.value_scale(value)

    def act(self, *arguments: Any, **options: Any) -> Any:
        """``MLPPolicy.act`` on the compiled actor."""
        return type(self.policy).act(self, *arguments, **options)

    def _actor(self, inputs: Mapping[str, Tensor]) -> Tensor:
        observation = inputs["observation"]
        if not kernel_can_read(observation, None, self.parts):
            return self.policy._actor(inputs)
        output = torch.empty(*observation.shape[:-1], self.parts.outputs)
        self.run(observation, None, at.OUTPUT, None, None, output, None, None)
        return self.policy._with_log_std(output)
