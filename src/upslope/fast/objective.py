"""Shipped objectives as numbers, and their compiled twin for networks that are not the kernels' own.

A user's network keeps its forward and backward in torch. Between them stand the head, the objective and what is reported of
it, some 60 operations on a few numbers: here one call (:func:`upslope.fast.kernels.differentiate`) from the network's outputs
and values to ∂objective/∂outputs and ∂objective/∂values, which autograd then carries on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import Diverged
from upslope.fast import layout as at
from upslope.fast.descent import CompiledAscent, CompiledDescent, Memory, vars_of
from upslope.fast.native import Library
from upslope.fast.plan import rounded
from upslope.fast.rows import Columns, NotCompiled
from upslope.records import Batch
from upslope.updates.ascent import AscentState, check_first_ratio, diagnosis
from upslope.updates.critic import value_scale

REPORTED = {
    "approx_kl": at.APPROX_KL,
    "clip_fraction": at.CLIP_FRACTION,
    "dead_fraction": at.DEAD_FRACTION,
    "entropy": at.ENTROPY,
    "value_error": at.VALUE_ERROR,
}
"""What is a mean over a minibatch's steps."""


@dataclass(frozen=True)
class Objective:
    """A shipped objective as numbers: which surrogate, its bounds, the weights of the terms. Infinite means off."""

    surrogate: int
    value: bool
    """whether the critic's error is part of it"""
    value_coef: float = 0.0
    entropy_coef: float = 0.0
    bounds: tuple[float, float] = (0.0, math.inf)
    """the ratios that are not clipped (for the clip fraction too)"""
    dual_clip: float = math.inf
    value_clip: float = math.inf

    def write(self, options: NDArray[np.float64], *, masked: bool) -> None:
        """Into the options of a kernel."""
        options[at.LOW], options[at.HIGH] = self.bounds
        options[at.DUAL_CLIP], options[at.VALUE_CLIP] = self.dual_clip, self.value_clip
        options[at.VALUE_COEF], options[at.ENTROPY_COEF] = self.value_coef, self.entropy_coef
        options[at.SURROGATE], options[at.MASKED] = self.surrogate, masked

    def columns(self, batch: Batch, head: int, outputs: int) -> Columns:
        """The columns of a batch that it needs."""
        return Columns(batch, head, outputs, value_error=self.value, value_clip=math.isfinite(self.value_clip))


class HeadPlan:
    """Integers and scratch memory for a head whose outputs some other network computes."""

    def __init__(self, head: int, outputs: int, *, critic: bool) -> None:
        self.head, self.outputs = head, outputs
        room = rounded(outputs, 4) * at.BLOCK
        networks = np.zeros(at.LAYERS_AT + 2 * at.LAYER, np.int64)
        networks[at.OUTPUTS], networks[at.HEAD], networks[at.ACTOR_LAYERS], networks[at.CRITIC_LAYERS] = outputs, head, 1, critic
        places = np.cumsum([0, room, at.BLOCK, room, at.BLOCK, room])
        networks[at.LAYERS_AT + 5], networks[at.LAYERS_AT + at.LAYER + 5] = places[:2]
        networks[at.DELTA_AT], networks[at.VALUE_DELTA_AT], networks[at.GRADIENT_AT] = places[2:5]
        self.networks, self.scratch = networks, np.zeros(places[5], np.float32)
        self.options, self.sums, self.order = np.zeros(at.NUM_OPTIONS), np.zeros(at.NUM_RESULTS), np.arange(0)
        self.fixed = self.scratch.ctypes.data, networks.ctypes.data, self.options.ctypes.data

    def rows(self, count: int) -> int:
        """The address of ``0, 1, 2, …``."""
        if len(self.order) < count:
            self.order = np.arange(count)
        return self.order.ctypes.data


@dataclass(frozen=True, kw_only=True)
class ObjectiveAscent(CompiledAscent):
    """An :class:`~upslope.updates.Ascent` whose objective is one call between a network's forward and backward."""

    objective: Objective
    plan: HeadPlan

    def accumulate(
        self, algorithm: Any, policy: Any, part: Batch, state: AscentState, *, first: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The twin of :meth:`Ascent.accumulate`."""
        try:
            columns = self.objective.columns(part, self.plan.head, self.plan.outputs)
        except NotCompiled:
            return super().accumulate(algorithm, policy, part, state, first=first)
        outputs, value = policy._run(part.inputs)
        ends = [outputs, value] if self.objective.value else [outputs]
        if not all(readable(end, part.mask) for end in ends):
            return super().accumulate(algorithm, policy, part, state, first=first)
        columns.in_units_of(policy)
        slopes = self.slopes(policy, ends, columns)
        sums = self.plan.sums
        if not math.isfinite(sums[at.OBJECTIVE]):
            raise Diverged(diagnosis(state, part, policy))
        if first:
            check_first_ratio(float(sums[at.MAX_LOG_RATIO]), policy, part)
        # the minus sign of Ascent: Adam minimizes
        reached = [(end, -slope) for end, slope in zip(ends, slopes, strict=True) if end.requires_grad]  # a part may be frozen
        found = torch.autograd.grad([end for end, _ in reached], state.parameters, [slope for _, slope in reached], allow_unused=True)
        means = torch.from_numpy(sums / max(1.0, sums[at.SCORED])).float().unbind()
        metrics = {name: means[index] for name, index in REPORTED.items() if name != "value_error" or self.objective.value}
        return state.gather(found), {"objective": torch.tensor(sums[at.OBJECTIVE], dtype=torch.float32), **metrics}

    def slopes(self, policy: Any, ends: list[Tensor], columns: Columns) -> list[Tensor]:
        """∂objective/∂outputs and, with a critic, ∂objective/∂values; the sums stay in the plan."""
        plan = self.plan
        self.objective.write(plan.options, masked=columns.masked)
        given, scale = [end.detach().contiguous() for end in ends], value_scale(policy)
        if self.objective.value and scale is not None:
            given[1] = scale.normalized(given[1])
        slopes = [torch.empty_like(end) for end in given]
        values, value_slopes = (given[1].data_ptr(), slopes[1].data_ptr()) if self.objective.value else (0, 0)
        log_std, addresses, rows = policy.log_std, columns.addresses(), columns.tensors["mask"].numel()
        self.library.differentiate(
            *(*plan.fixed, 0 if log_std is None else log_std.data_ptr(), addresses.ctypes.data, plan.rows(rows), rows),
            *(given[0].data_ptr(), given[0].shape[-1], values, slopes[0].data_ptr(), value_slopes, plan.sums.ctypes.data),
        )
        if self.objective.value and scale is not None:
            slopes[1] = slopes[1] / float(scale.std)  # V = mean + std · y
        return slopes


def readable(end: Tensor | None, mask: Tensor) -> bool:
    """Whether a network's output is numbers that the kernel can read, a row (or one value) for each step."""
    return end is not None and end.dtype == torch.float32 and end.device.type == "cpu" and end.shape[: mask.dim()] == mask.shape


class ObjectiveUpdate(CompiledDescent):
    """Called like an :class:`~upslope.updates.Ascent`, for a user's network below a known head and a shipped objective."""

    def __init__(self, library: Library, describe: Callable[[Any], Objective | None], head: int, outputs: int) -> None:
        super().__init__(library)
        self.describe = describe
        self.plans = {critic: HeadPlan(head, outputs, critic=critic) for critic in (False, True)}

    def ascent(self, algorithm: Any, memory: Memory) -> CompiledAscent:
        """With the compiled objective, where the algorithm still has one that is known."""
        objective = self.describe(algorithm)
        if objective is None or algorithm.update.micro_batch_size is not None:
            return super().ascent(algorithm, memory)
        own = vars_of(algorithm.update)
        return ObjectiveAscent(library=self.library, memory=memory, objective=objective, plan=self.plans[objective.value], **own)
