"""The critic's fit of a natural-gradient method, every epoch and minibatch, as one compiled entry point.

``fit`` is the readable ``Ascent.__call__`` with ``ValueFit.objective`` inside. Its plan knows one network, the critic, which stands
where the actor does in the plans of :mod:`upslope.fast.kernels`; only the critic's own stretch of the flat parameters is touched.
"""

from __future__ import annotations

import math

from upslope.fast import layout as at
from upslope.fast.formulas import value_error_of
from upslope.fast.kernels import clip_and_step, gather
from upslope.fast.layout import BLOCK
from upslope.fast.networks import backward, forward, padded
from upslope.fast.registers import Doubles, Floats, Integers, Table, flags, floats, shift


def score_values(
    networks: Integers, options: Doubles, parameters: Floats, scratch: Floats, batch: Table, order: Integers, size: int, scale: float,
    sums: Doubles,
) -> None:  # fmt: skip
    """The sums and the gradient of ``−Σ weight · (V − R)²`` over one minibatch, block by block."""
    gradient, x = shift(scratch, networks[at.GRADIENT_AT]), shift(scratch, networks[at.OBSERVATION_AT])
    rowwise, product = shift(scratch, networks[at.ROWWISE_AT]), shift(scratch, networks[at.PRODUCT_AT])
    delta, other = shift(scratch, networks[at.DELTA_AT]), shift(scratch, networks[at.OTHER_AT])
    critic, layers, kind = shift(networks, at.LAYERS_AT), networks[at.ACTOR_LAYERS], networks[at.ACTIVATION]
    value = shift(scratch, networks[at.LAYERS_AT + (layers - 1) * at.LAYER + 5])
    returns, weight, mask = floats(batch, at.RETURNS), floats(batch, at.WEIGHT), flags(batch, at.MASK)
    for i in range(networks[at.NUM_PARAMETERS]):
        gradient[i] = 0.0
    for i in range(at.NUM_RESULTS):
        sums[i] = 0.0
    for start in range(0, size, BLOCK):
        rows = min(BLOCK, size - start)
        block = shift(order, start)
        gather(batch, networks[at.INPUTS], block, rows, x)
        forward(critic, layers, parameters, scratch, padded(rows), kind)
        for j in range(rows):
            row = block[j]
            delta[j] = 0.0
            if mask[row] != 0:
                error, slope = value_error_of(value[j], returns[row], 0.0, math.inf)
                sums[at.VALUE_ERROR] += error
                sums[at.SCORED] += 1.0
                w = weight[row] * scale
                if w != 0.0:  # a weight of 0 hides whatever stands there
                    sums[at.OBJECTIVE] -= w * error
                    delta[j] = -w * slope
        backward(critic, layers, parameters, gradient, scratch, rows, kind, delta, other, rowwise, product)


def fit(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, scratch: Floats, networks: Integers, options: Doubles, batch: Table,
    order: Integers, bounds: Integers, epochs: int, minibatches: int, results: Doubles,
) -> None:  # fmt: skip
    """Called like :func:`upslope.fast.kernels.update`."""
    gradient = shift(scratch, networks[at.GRADIENT_AT])
    sums = shift(results, at.NUM_RESULTS)
    total = bounds[minibatches]
    for number in range(epochs * minibatches):
        epoch, part = number // minibatches, number % minibatches
        rows, size = shift(order, epoch * total + bounds[part]), bounds[part + 1] - bounds[part]
        score_values(networks, options, parameters, scratch, batch, rows, size, total / size, sums)
        results[at.STATUS] = at.NOT_FINITE
        if not math.isfinite(sums[at.OBJECTIVE]):
            return
        results[at.OBJECTIVE] += sums[at.OBJECTIVE]
        results[at.VALUE_ERROR] += sums[at.VALUE_ERROR] / max(1.0, sums[at.SCORED])
        results[at.SCORED] += 1.0
        if not clip_and_step(networks, options, parameters, exp_avg, exp_avg_sq, gradient, results):
            return
        results[at.STEPPED] += 1.0
    results[at.STATUS] = at.FINISHED
