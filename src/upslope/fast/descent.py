"""The compiled twin of ``Ascent.step``: clip and Adam on a flat parameter vector in one call instead of 18 operations.

It serves every policy whose parameters lie in one buffer, a user's own module for one: forward, backward and the objective
stay torch's. At minibatches of 64 that saves a tenth of an update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.native import Library
from upslope.records import Batch, Metrics
from upslope.updates import Ascent, AscentState
from upslope.updates.adam import BETAS
from upslope.updates.ascent import check_gradient

MOST_PARAMETERS = 2**20
"""Beyond this the arithmetic is what costs, and torch may spread it over several threads."""


@dataclass
class PieceState(AscentState):
    """A state whose gradient stays in pieces, in the order of the flat vector: the kernel needs them not joined."""

    def gather(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """One contiguous piece for each parameter; zeros where the objective does not reach."""
        return [torch.zeros_like(p) if g is None else g.contiguous() for g, p in zip(gradients, self.parameters, strict=True)]


@dataclass(frozen=True, kw_only=True)
class CompiledAscent(Ascent):
    """An :class:`~upslope.updates.Ascent` whose steps are one call."""

    library: Library
    memory: Memory

    def step(self, state: AscentState, gradients: list[Tensor]) -> Tensor:
        """The twin of :meth:`Ascent.step`."""
        flat, memory = state.flat, self.memory
        assert flat is not None
        whole = len(gradients) == 1  # else one for each parameter
        memory.addresses[:] = gradients[0].data_ptr() + 4 * memory.starts if whole else [g.data_ptr() for g in gradients]
        memory.options[at.STEP] = state.num_updates
        exp_avg, exp_avg_sq = state.moments[0]
        self.library.descend(flat.data.data_ptr(), exp_avg.data_ptr(), exp_avg_sq.data_ptr(), *memory.arguments)
        check_gradient(memory.norm.item(), state)
        state.num_updates += 1
        return memory.norm.clone()


class Memory:
    """What the kernel reads and writes beside the tensors: found and filled once for an update."""

    def __init__(self, ascent: Ascent, state: AscentState) -> None:
        sizes = [p.numel() for p in state.parameters]
        self.options = np.zeros(at.NUM_OPTIONS)
        self.options[at.MAX_GRAD_NORM] = math.inf if ascent.max_grad_norm is None else ascent.max_grad_norm
        self.options[at.LEARNING_RATE], self.options[at.EPS] = state.learning_rate, ascent.eps
        self.options[at.BETA1], self.options[at.BETA2] = BETAS
        self.addresses, self.sizes = np.zeros(len(sizes), np.int64), np.array(sizes, np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.critic = np.array(state.critic or [False] * len(sizes), np.int64)
        self.norm = torch.zeros(())
        arrays = (self.addresses, self.sizes, self.critic)
        self.arguments = *(a.ctypes.data for a in arrays), len(sizes), self.options.ctypes.data, self.norm.data_ptr()


class CompiledDescent:
    """Called like an :class:`~upslope.updates.Ascent`: the same loop, with compiled steps where the state allows them."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def __call__(self, algorithm: Any, policy: Any, batch: Batch, state: AscentState) -> Metrics:
        """One update on one batch; the metrics of :meth:`Ascent.__call__`."""
        if not compilable(state):
            return algorithm.update(algorithm, policy, batch, state)
        memory = Memory(algorithm.update, state)
        return run(self.ascent(algorithm, memory), algorithm, policy, batch, state, PieceState(**vars_of(state)))

    def ascent(self, algorithm: Any, memory: Memory) -> CompiledAscent:
        """What takes the algorithm's own update's place."""
        return CompiledAscent(library=self.library, memory=memory, **vars_of(algorithm.update))


def compilable(state: AscentState) -> bool:
    """Whether the parameters lie in one buffer that the kernel can read, and are few."""
    flat = state.flat
    return flat is not None and flat.data.device.type == "cpu" and flat.data.numel() <= MOST_PARAMETERS


def vars_of(item: Any) -> dict[str, Any]:
    """A dataclass's fields by name, not copied."""
    return {field.name: getattr(item, field.name) for field in fields(item)}


def run(ascent: CompiledAscent, algorithm: Any, policy: Any, batch: Batch, state: AscentState, own: AscentState) -> Metrics:
    """One update on a state of its own, which shares its tensors with the given one; the count of updates goes back to it."""
    try:
        return ascent(algorithm, policy, batch, own)
    finally:
        state.num_updates = own.num_updates
