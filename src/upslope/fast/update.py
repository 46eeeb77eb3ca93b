"""The compiled twin of ``Ascent.__call__`` for MLP policies: one call of machine code per update, the algorithm's objective inside.

It shuffles as its twin does (the permutations come from the same generator), works on the same parameters and the same Adam
state, stops for the same reasons and returns the same metrics; only rounding differs. See :mod:`upslope.fast.kernels`.
"""

import itertools
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.errors import Diverged
from upslope.fast import layout as at
from upslope.fast.graph import NotLowered
from upslope.fast.native import Library
from upslope.fast.objective import CompiledObjective, Objectives
from upslope.fast.plan import MLPLayout, Plan
from upslope.fast.rows import Rows, split
from upslope.records import Algorithm, Batch, Metrics, Policy, map_tensors
from upslope.updates.ascent import Ascent, AscentState
from upslope.updates.checks import RATIO_TOLERANCE, check_first_ratio, diagnosis, gradient_not_finite
from upslope.updates.state import BETAS
from upslope.updates.trust_region import NaturalState

Array = NDArray[Any]
ROWS_PER_CALL = 2**16
"""Rows that one call of the kernel scores at most, or one epoch: some 50 ms, after which Python may hear a signal."""


class CompiledUpdate:
    """Called like an :class:`Ascent`: for MLP policies, with the algorithm's own objective compiled."""

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
        """Where the plan's numbers lie; the state's parameters must be the parts' own, in one buffer."""
        flat, ours = state.flat, self.parts.parameters
        if flat is None or flat.data.device.type != "cpu" or list(map(id, flat.parameters)) != list(map(id, ours)):
            raise NotLowered
        return self.plan.addresses()


class CompiledNatural:
    """Called like a :class:`~upslope.updates.TrustRegion`: its own step, and the critic's fit as a :class:`CompiledUpdate`.

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
    flat = map_tensors(batch, lambda t: t.reshape(-1, *t.shape[batch.mask.dim() :]))
    return flat.select(torch.from_numpy(rows))
