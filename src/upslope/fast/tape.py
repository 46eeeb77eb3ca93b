"""A recording of one size with every address prepared: what a collector of fixed length needs of a compiled policy.

Between two environment steps Python has little to do but call the kernel; finding addresses, making tensors and checking
them costs more than the kernel does. So a tape does that once for all its steps, and draws the random numbers of a whole
recording at once. Same numbers, same actions as :meth:`upslope.fast.step.CompiledPolicy.sample` step by step.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.native import Library
from upslope.fast.plan import MLPLayout, Plan


class Tape:
    """Time-major room for ``num_steps`` steps of ``num_envs``: ``observation [T, N, d]``, ``action``, ``log_prob [T, N]``.

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
        """The kernel's arguments behind the policy's own."""
        action = self.action[t].data_ptr()
        actions = (0, action) if self.continuous else (action, 0)
        return (
            *(self.observation[t].data_ptr(), self.num_envs, at.SAMPLE, False, self.noise[t].data_ptr(), 0),
            *(*actions, self.log_prob[t].data_ptr(), 0),
        )

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
