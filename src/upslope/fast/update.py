"""The compiled twin of ``Ascent.__call__`` for MLP policies with a shipped objective: one call of machine code per update.

It shuffles as its twin does (the permutations come from the same generator), works on the same parameters and the same Adam
state, stops for the same reasons and returns the same metrics; only rounding differs. See :mod:`upslope.fast.kernels`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.errors import Diverged
from upslope.fast import layout as at
from upslope.fast.native import Library
from upslope.fast.objective import REPORTED, Objective
from upslope.fast.plan import Anatomy, Plan
from upslope.fast.rows import NotCompiled, Rows, split
from upslope.records import Batch, Metrics
from upslope.updates.adam import BETAS
from upslope.updates.ascent import RATIO_TOLERANCE, Ascent, AscentState, check_first_ratio, check_gradient, diagnosis
from upslope.updates.critic import follow_returns

Array = NDArray[Any]
ROWS_PER_CALL = 2**16
"""Rows that one call of the kernel scores at most, or one epoch: some 50 ms, after which Python may hear a signal."""


class CompiledUpdate:
    """Called like an :class:`Ascent`; ``describe`` turns the algorithm into an :class:`Objective`, or None."""

    def __init__(self, library: Library, parts: Anatomy, describe: Callable[[Any], Objective | None]) -> None:
        self.library, self.parts, self.describe = library, parts, describe
        self.kernel = library.update
        self.plan: Plan | None = None

    def __call__(self, algorithm: Any, policy: Any, batch: Batch, state: AscentState) -> Metrics:
        """One update on one batch; the metrics of :meth:`Ascent.__call__`."""
        objective = self.describe(algorithm)
        state.check()
        try:
            if objective is None:
                raise NotCompiled
            plan = self.prepared(state)
            rows = Rows(batch, self.parts, value_error=objective.value, value_clip=math.isfinite(objective.value_clip))
        except NotCompiled:
            return algorithm.update(algorithm, policy, batch, state)
        follow_returns(policy, batch)
        rows.in_units_of(policy)
        ascent: Ascent = algorithm.update
        minibatches = min(ascent.num_minibatches, rows.num_units)
        bounds = rows.size * split(rows.num_units, minibatches)
        options = self.options(objective, ascent, state, masked=rows.masked)
        results = np.zeros(2 * at.NUM_RESULTS)  # the second half holds a minibatch's sums
        exp_avg, exp_avg_sq = state.moments[0]
        networks = plan.networks
        if not objective.value:
            networks = networks.copy()
            networks[at.CRITIC_LAYERS] = 0
        addresses = rows.addresses()
        # as many epochs in one call as pay; with target_kl one, so that an early stop leaves the generator where its twin does
        several = 1 if ascent.target_kl is not None else max(1, ROWS_PER_CALL // int(bounds[-1]))
        permutations = ascent.permutations(rows.num_units, state)
        started = state.num_updates
        while results[at.STATUS] == at.FINISHED and (chunk := [p.numpy() for p in itertools.islice(permutations, several)]):
            order, before = rows.order(np.concatenate(chunk)), int(results[at.STEPPED])
            run = partial(
                self.kernel,
                *(plan.base, exp_avg.data_ptr(), exp_avg_sq.data_ptr(), plan.scratch.ctypes.data, networks.ctypes.data),
                *(options.ctypes.data, addresses.ctypes.data, order.ctypes.data, bounds.ctypes.data, len(chunk), minibatches),
                results.ctypes.data,
            )
            run()
            if results[at.STATUS] == at.RATIO_NOT_ONE:  # nothing has moved yet
                check_first_ratio(float(results[at.MAX_LOG_RATIO]), policy, flat_part(batch, order[: bounds[1]]))
                results[:], options[at.RATIO_TOLERANCE] = 0.0, math.inf
                run()
            taken = int(results[at.STEPPED])
            state.num_updates = started + taken
            if results[at.STATUS] == at.NOT_FINITE:
                epoch, part = divmod(taken - before, minibatches)
                rows_of_part = np.split(order, len(chunk))[epoch][bounds[part] : bounds[part + 1]]
                self.fail(results, policy, batch, state, rows_of_part)
        return averaged(results, objective)

    def prepared(self, state: AscentState) -> Plan:
        """The plan for the state's parameters, made anew where they have moved."""
        return self.planned(state, self.parts)

    def planned(self, state: AscentState, parts: Anatomy) -> Plan:
        """The plan for these parts, which must be all that the state holds."""
        flat = state.flat
        if flat is None or len(flat.parameters) != len(parts.parameters) or flat.data.device.type != "cpu":
            raise NotCompiled
        base = flat.data.data_ptr()
        if self.plan is None or self.plan.base != base:
            if any(p is not q for p, q in zip(flat.parameters, parts.parameters, strict=True)):
                raise NotCompiled
            self.plan = Plan(parts, base, flat.data.numel())
        return self.plan

    def options(self, objective: Objective, ascent: Ascent, state: AscentState, *, masked: bool) -> Array:
        """The numbers that the kernel goes by."""
        options = np.zeros(at.NUM_OPTIONS)
        objective.write(options, masked=masked)
        options[at.MAX_GRAD_NORM] = math.inf if ascent.max_grad_norm is None else ascent.max_grad_norm
        options[at.TARGET_KL] = math.inf if ascent.target_kl is None else ascent.target_kl
        options[at.LEARNING_RATE], options[at.EPS] = state.learning_rate, ascent.eps
        options[at.BETA1], options[at.BETA2] = BETAS
        options[at.STEP] = state.num_updates
        options[at.RATIO_TOLERANCE] = RATIO_TOLERANCE
        return options

    def fail(self, results: Array, policy: Any, batch: Batch, state: AscentState, rows: Array) -> None:
        """Raise what the readable twin raises."""
        if math.isfinite(results[at.NUM_RESULTS + at.OBJECTIVE]):
            check_gradient(math.nan, state)
        raise Diverged(diagnosis(state, flat_part(batch, rows), policy))


def flat_part(batch: Batch, rows: Array) -> Batch:
    """These steps of a batch, one after the other."""
    flat = batch._map(lambda t: t.reshape(-1, *t.shape[batch.mask.dim() :]))  # pyright: ignore[reportPrivateUsage]
    return flat.select(torch.from_numpy(rows))


def averaged(results: Array, objective: Objective) -> Metrics:
    """Sums over minibatches as the metrics that :func:`upslope.updates.ascent.averaged` returns."""
    metrics = {name: float(results[index] / results[at.SCORED]) for name, index in {"objective": at.OBJECTIVE, **REPORTED}.items()}
    if not objective.value:
        del metrics["value_error"]
    if results[at.STEPPED]:
        metrics["gradient_norm"] = float(results[at.GRADIENT_NORM] / results[at.STEPPED])
    metrics["num_minibatches"] = float(results[at.STEPPED])
    return metrics
