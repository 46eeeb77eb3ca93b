"""A policy that acts by machine code: the compiled twin of ``MLPPolicy.sample``, ``act`` and ``value``.

The random numbers come from the caller's generator as for its twin, one uniform number per row (categorical) or one standard
normal per dimension (Gaussian), so that both draw the same actions; only rounding differs. See :mod:`upslope.fast.kernels`.

Between two environment steps Python has little to do but call the kernel; finding addresses, making tensors and checking
them costs more than the kernel does. So a :class:`Tape` does that once for all steps of a recording of one size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.native import Library
from upslope.fast.plan import MLPLayout, Plan, kernel_can_read
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
        return type(self.policy).act(self, *arguments, **options)

    def _actor(self, inputs: Mapping[str, Tensor]) -> Tensor:
        observation = inputs["observation"]
        if not kernel_can_read(observation, None, self.parts):
            return self.policy._actor(inputs)
        output = torch.empty(*observation.shape[:-1], self.parts.outputs)
        self.run(observation, None, at.OUTPUT, None, None, output, None, None)
        return self.policy._with_log_std(output)


class Tape:
    """Time-major room for ``num_steps`` steps of ``num_envs``: ``observation [T, N, d]``, ``action``, ``log_prob [T, N]``.

    The random numbers of a recording are drawn at once: the same as by :meth:`CompiledPolicy.sample` step by step, and so the actions.

    Write ``rows[t]`` (NumPy, ``[N, d]``), then :meth:`act` fills step t of the others. What it holds is overwritten by the next
    recording.
    """

    def __init__(self, library: Library, parts: MLPLayout, plan: Plan, num_envs: int, num_steps: int) -> None:
        self.library, self.plan = library, plan
        self.num_envs, self.num_steps = num_envs, num_steps
        self.continuous = parts.head == at.GAUSSIAN
        size = (num_steps, num_envs)
        self.observation = torch.zeros(*size, parts.inputs)
        self.log_prob = torch.zeros(*size)
        wide = (*size, parts.outputs) if self.continuous else size
        self.noise = torch.zeros(*wide)
        self.action = torch.zeros(*wide, dtype=torch.float32 if self.continuous else torch.int64)
        self.rows: list[NDArray[Any]] = list(self.observation.numpy())
        self.actions: tuple[Tensor, ...] = self.action.unbind(0)
        self.action_rows: list[NDArray[Any]] = list(self.action.numpy())
        self._noise = self.noise.unbind(0)
        self._arguments = [self._of_step(t) for t in range(num_steps)]
        self.outputs = torch.zeros(num_envs, parts.outputs)
        self._output_rows: NDArray[Any] = self.outputs.numpy()
        self._to_outputs = (self.observation[0].data_ptr(), num_envs, at.OUTPUT, False, 0, 0, 0, self.outputs.data_ptr(), 0, 0)
        self._generator: torch.Generator | None = None
        self._before: Tensor | None = None
        self._memory: tuple[int, int, int] = (0, 0, 0)

    def _of_step(self, t: int) -> tuple[int, ...]:
        """The kernel's arguments behind the policy's."""
        action = self.action[t].data_ptr()
        actions = (0, action) if self.continuous else (action, 0)
        asked = self.observation[t].data_ptr(), self.num_envs, at.SAMPLE, False, self.noise[t].data_ptr(), 0
        return *asked, *actions, self.log_prob[t].data_ptr(), 0

    def begin(self, generator: torch.Generator) -> None:
        """Start a recording whose actions come from this generator."""
        self._generator = generator
        self._memory = self.plan.addresses()
        if not self.continuous:  # torch draws uniform numbers one by one, so all at once they are the same ones
            self._before = generator.get_state()
            torch.rand(self.num_steps, self.num_envs, generator=generator, out=self.noise)

    def act(self, t: int) -> NDArray[Any]:
        """Draw the actions for the observations in ``rows[t]`` and return the stored actions ``[N, …]``."""
        if self.continuous:
            self._noise[t].normal_(generator=self._generator)
        self.library.step(*self._memory, *self._arguments[t])
        return self.action_rows[t]

    def greedy(self) -> NDArray[Any]:
        """The most probable stored actions ``[N, …]`` for the observations in ``rows[0]``; for evaluation, without ``begin``."""
        self.library.step(*self.plan.addresses(), *self._to_outputs)
        return self._output_rows if self.continuous else self._output_rows.argmax(1)

    def stop(self, t: int) -> None:
        """Leave the generator as if only the first t steps had been drawn."""
        if self._before is not None and self._generator is not None:
            self._generator.set_state(self._before)
            torch.rand(t, self.num_envs, generator=self._generator)
