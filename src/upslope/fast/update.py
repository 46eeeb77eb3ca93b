"""The compiled twin of ``Ascent.__call__`` for MLP policies: one call of machine code per update, the algorithm's objective inside.

It shuffles as its twin does (the permutations come from the same generator), works on the same parameters and the same Adam
state, stops for the same reasons and returns the same metrics; only rounding differs. See :mod:`upslope.fast.kernels`.

Below a network that the kernels do not have, a user's module under a known head, forward and backward stay in torch; between them head,
objective and derivative, some 60 operations on a few numbers, are one call (:func:`upslope.fast.kernels.differentiate`) from outputs and
values to ∂objective/∂outputs and ∂objective/∂values.
"""

import itertools
import math
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import Diverged
from upslope.fast import layout as at
from upslope.fast.graph import NotLowered
from upslope.fast.native import Library
from upslope.fast.objective import CompiledObjective, Objectives
from upslope.fast.plan import Columns, MLPLayout, Plan, Rows, rounded, split
from upslope.records import Algorithm, Batch, HasObjective, Metrics, Policy, map_tensors
from upslope.updates.ascent import Ascent, AscentState
from upslope.updates.checks import RATIO_TOLERANCE, check_first_ratio, diagnosis, gradient_not_finite
from upslope.updates.state import BETAS
from upslope.updates.trust_region import NaturalState

Array = NDArray[Any]
ROWS_PER_CALL = 2**16
"""Rows that one call of the kernel scores at most, or one epoch: some 50 ms, after which Python may hear a signal."""


class CompiledUpdate:
    """Called like an :class:`Ascent`: for MLP policies, with the algorithm's objective compiled."""

    def __init__(self, library: Library, parts: MLPLayout) -> None:
        self.library, self.parts = library, parts
        self.objectives = Objectives()
        self.plan = Plan(parts)

    def __call__(self, algorithm: Algorithm, policy: Policy, batch: Batch, state: AscentState) -> Metrics:
        state.check()
        ascent = cast(Ascent, algorithm.update)
        try:
            base, scratch, _ = self.addresses(state)
            objective = self.objective(algorithm, policy, batch)
            rows = Rows(batch, self.parts, objective.columns)
        except NotLowered:
            return algorithm.update(algorithm, policy, batch, state)
        if batch.returns is not None:
            cast(Any, policy).follow_returns(batch.returns[batch.mask])
        objective = self.objective(algorithm, policy, batch)  # the units of the critic have moved
        minibatches = min(ascent.num_minibatches, rows.num_units)
        bounds = rows.size * split(rows.num_units, minibatches)
        options = options_of(ascent, state, masked=rows.masked)
        results = np.zeros(at.NUM_RESULTS + len(objective.values))
        exp_avg, exp_avg_sq = state.moments[0]
        networks, addresses = objective.written_into(self.plan.networks), rows.addresses()
        # as many epochs in one call as pay; with target_kl one, so that an early stop leaves the generator where its twin does
        several = 1 if ascent.target_kl is not None else max(1, ROWS_PER_CALL // int(bounds[-1]))
        permutations = (torch.randperm(rows.num_units, generator=state.generator) for _ in range(ascent.num_epochs))
        started, skipped = state.num_updates, 0
        call = base, exp_avg, exp_avg_sq, scratch, networks, options, addresses, objective.table
        while results[at.STATUS] == at.FINISHED and (chunk := [p.numpy() for p in itertools.islice(permutations, several)]):
            order, first = rows.order(np.concatenate(chunk)), 0
            while True:
                before = int(results[at.STEPPED])
                self.library.update(*call, order, bounds, first, len(chunk), minibatches, results)
                taken, first = int(results[at.STEPPED]), int(results[at.REACHED])
                state.num_updates, state.skipped = started + taken, 0 if taken > before else state.skipped
                if results[at.STATUS] not in (at.RATIO_NOT_ONE, at.NOT_FINITE):
                    break
                epoch, part = divmod(first, minibatches)  # it has moved nothing
                seen = flat_part(batch, np.split(order, len(chunk))[epoch][bounds[part] : bounds[part + 1]])
                if results[at.STATUS] == at.RATIO_NOT_ONE:
                    check_first_ratio(float(results[at.MAX_LOG_RATIO]), policy, seen)
                    options[at.RATIO_TOLERANCE] = math.inf
                else:
                    finite = math.isfinite(objective.values[0])
                    state.skip(gradient_not_finite(state) if finite else Diverged(diagnosis(state, seen, policy)), seen)
                    skipped, first = skipped + 1, first + 1
        metrics = objective.averaged(results[at.NUM_RESULTS :], results[at.SCORED])
        if results[at.STEPPED]:
            metrics["gradient_norm"] = float(results[at.GRADIENT_NORM] / results[at.STEPPED])
        metrics |= {"skipped_steps": float(skipped)} if skipped else {}
        return {**metrics, "num_minibatches": float(results[at.STEPPED])}

    def objective(self, algorithm: Algorithm, policy: Policy, batch: Batch) -> CompiledObjective:
        if batch.sampler_log_prob is not None or cast(Ascent, algorithm.update).micro_batch_size is not None:
            raise NotLowered
        restored = (cast(Any, policy).value_scale or (lambda value: value)) if self.parts.critic else None
        return self.objectives(algorithm, policy, batch, restored)

    def addresses(self, state: AscentState) -> tuple[int, int, int]:
        """Where the plan's numbers lie; the state's parameters must be those of the parts, in one buffer."""
        flat, ours = state.flat, self.parts.parameters
        if flat is None or flat.data.device.type != "cpu" or list(map(id, flat.parameters)) != list(map(id, ours)):
            raise NotLowered
        return self.plan.addresses()


class CompiledNatural:
    """Called like a :class:`~upslope.updates.TrustRegion`: its step, and the critic's fit as a :class:`CompiledUpdate`.

    The step of the policy is some twenty large matrix products in torch, which nothing here makes faster; the fit is hundreds of small
    ones.
    """

    def __init__(self, library: Library, parts: MLPLayout) -> None:
        self.fit = CompiledUpdate(library, replace(parts, actor=(), log_std=None))

    def __call__(self, algorithm: Algorithm, policy: Policy, batch: Batch, state: NaturalState) -> Metrics:
        return cast(Any, algorithm.update)(algorithm, policy, batch, state, ascend=self.fit)


def options_of(ascent: Ascent, state: AscentState, *, masked: bool) -> Array:
    options = np.zeros(at.NUM_OPTIONS)
    options[at.MASKED] = masked
    options[at.MAX_GRAD_NORM] = math.inf if ascent.max_grad_norm is None else ascent.max_grad_norm
    options[at.TARGET_KL] = math.inf if ascent.target_kl is None else ascent.target_kl
    options[at.LEARNING_RATE], options[at.EPS] = state.learning_rate, ascent.eps
    options[at.BETA1], options[at.BETA2] = BETAS
    options[at.STEP] = state.num_updates
    options[at.RATIO_TOLERANCE] = RATIO_TOLERANCE
    return options


def flat_part(batch: Batch, rows: Array) -> Batch:
    return map_tensors(batch, lambda t: t.reshape(-1, *t.shape[batch.mask.dim() :])).select(torch.from_numpy(rows))


MAX_PARAMETERS = 2**20
"""Beyond this the arithmetic of a step is what costs, and torch may spread it over several threads."""


class HeadPlan:
    """Integers and scratch memory for a head whose outputs some other network computes."""

    def __init__(self, head: int, outputs: int) -> None:
        self.head, self.outputs = head, outputs
        networks = self.networks = np.zeros(at.LAYERS_AT, np.int64)
        networks[at.OUTPUTS], networks[at.HEAD], networks[at.ACTOR_LAYERS], networks[at.CRITIC_LAYERS] = outputs, head, 1, 1
        room, used = rounded(outputs, 4) * at.BLOCK, 0
        sizes = {at.OUT_AT: room, at.VALUE_OUT_AT: at.BLOCK, at.DELTA_AT: room, at.VALUE_DELTA_AT: at.BLOCK, at.GRADIENT_AT: room}
        for place, size in sizes.items():
            networks[place], used = used, used + size
        self.scratch, self.options = np.zeros(used, np.float32), np.zeros(at.NUM_OPTIONS)


@dataclass(frozen=True, kw_only=True)
class HeadAscent(Ascent):
    """An :class:`~upslope.updates.Ascent` whose objective is one call between a network's forward and backward."""

    library: Library
    plan: HeadPlan
    objectives: Objectives

    def backward(self, algorithm: HasObjective, policy: Any, part: Batch, state: AscentState, *, first: bool) -> dict[str, Tensor]:
        try:
            objective = self.objectives(algorithm, policy, part, None if part.value is None else lambda value: value)
            columns = Columns(part, self.plan.head, self.plan.outputs, objective.columns)
        except NotLowered:
            return super().backward(algorithm, policy, part, state, first=first)
        outputs, value = policy._run(part.inputs)
        ends = [outputs, value] if "value" in objective.uses else [outputs]
        if not all(can_be_read(end, part.mask) for end in ends):
            return super().backward(algorithm, policy, part, state, first=first)
        slopes = self.slopes(policy, ends, columns, objective)
        if not math.isfinite(objective.values[0]):
            raise Diverged(diagnosis(state, part, policy))
        if first and objective.sums[0] > RATIO_TOLERANCE:
            check_first_ratio(float(objective.sums[0]), policy, part)
        # the minus sign of Ascent: Adam minimizes
        reached = [(end, -slope) for end, slope in zip(ends, slopes, strict=True) if end.requires_grad]  # a part may be frozen
        torch.autograd.backward([end for end, _ in reached], [slope for _, slope in reached], inputs=state.parameters)
        return dict(zip(objective.metrics, torch.from_numpy(objective.values).float().unbind(), strict=True))

    def step(self, state: AscentState, gradients: list[Tensor]) -> Tensor:
        """The twin of :meth:`Ascent.step`, where the parameters lie in one buffer and are few."""
        flat, critic = state.flat, critic_stretch(state)
        if flat is None or critic is None or flat.data.device.type != "cpu" or flat.data.numel() > MAX_PARAMETERS:
            return super().step(state, gradients)
        networks, options, results = self.plan.networks.copy(), options_of(self, state, masked=False), np.zeros(at.NUM_RESULTS)
        networks[at.NUM_PARAMETERS], (networks[at.CRITIC_AT], networks[at.CRITIC_SIZE]) = flat.data.numel(), critic
        gradient, (exp_avg, exp_avg_sq) = -gradients[0], state.moments[0]  # of the objective itself, which the kernel ascends
        self.library.clip_and_step(networks, options, flat.data, exp_avg, exp_avg_sq, gradient, results)
        if results[at.STATUS] == at.NOT_FINITE:
            raise gradient_not_finite(state)
        state.num_updates, state.skipped = state.num_updates + 1, 0
        return torch.tensor(results[at.GRADIENT_NORM], dtype=torch.float32)

    def slopes(self, policy: Any, ends: list[Tensor], columns: Columns, objective: CompiledObjective) -> list[Tensor]:
        """∂objective/∂outputs and, where it has a part, ∂objective/∂values."""
        plan, rows = self.plan, columns.tensors["mask"].numel()
        plan.options[at.MASKED] = columns.masked
        given = [end.detach().contiguous() for end in ends]
        slopes = [torch.empty_like(end) for end in given]
        (outputs, values), (output_slopes, value_slopes) = ([*some, None][:2] for some in (given, slopes))
        planned = plan.scratch, objective.written_into(plan.networks), plan.options, policy.log_std, columns.addresses(), np.arange(rows)
        self.library.differentiate(*planned, rows, outputs, given[0].shape[-1], values, output_slopes, value_slopes, objective.table)
        return slopes


def critic_stretch(state: AscentState) -> tuple[int, int] | None:
    """Where the parameters that only the critic has begin in the flat vector, and how many they are; None where they are scattered."""
    sizes = [p.numel() for p in state.parameters]
    critics = [i for i, critic in enumerate(state.critic) if critic]
    if critics != list(range(critics[0], critics[-1] + 1)) if critics else False:
        return None
    return (sum(sizes[: critics[0]]), sum(sizes[critics[0] : critics[-1] + 1])) if critics else (0, 0)


def can_be_read(end: Tensor | None, mask: Tensor) -> bool:
    return end is not None and end.dtype == torch.float32 and end.device.type == "cpu" and end.shape[: mask.dim()] == mask.shape


class HeadUpdate:
    """Called like an :class:`~upslope.updates.Ascent`, for a user's network below a known head."""

    def __init__(self, library: Library, head: int, outputs: int) -> None:
        self.parts = {"library": library, "plan": HeadPlan(head, outputs), "objectives": Objectives()}

    def __call__(self, algorithm: Algorithm, policy: Policy, batch: Batch, state: AscentState) -> Metrics:
        ascent = cast(Ascent, algorithm.update)
        if batch.sampler_log_prob is None and ascent.micro_batch_size is None:
            ascent = HeadAscent(**{field.name: getattr(ascent, field.name) for field in fields(ascent)}, **self.parts)
        return ascent(algorithm, policy, batch, state)
