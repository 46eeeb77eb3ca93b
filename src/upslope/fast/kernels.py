"""A whole update of an MLP policy, every epoch and minibatch, as one compiled entry point; and what the policy does between updates.

``update`` is the readable ``Ascent.__call__``: the networks and heads, differentiated by hand, around the objective, which comes as
separate compiled functions (:mod:`upslope.fast.lower`). It works on the policy's memory, the flat parameters and Adam's
moments, so one can change between the twins at any update; it allocates nothing and raises nothing. ``step`` is ``MLPPolicy.sample``
from given random numbers, or the critic's values of any number of rows.

What the integers, options and results mean is in :mod:`upslope.fast.layout`.
"""

from __future__ import annotations

import math

from upslope.fast import layout as at
from upslope.fast.formulas import gaussian_log_prob, head_backward, head_forward, log_normalizer
from upslope.fast.layout import BLOCK
from upslope.fast.networks import backward, forward, padded
from upslope.fast.registers import Doubles, Flags, Floats, Integers, Table, invoke, shift, single, square_root


def gather(batch: Table, inputs: int, order: Integers, rows: int, x: Floats) -> None:
    """The block's observations as ``[inputs, BLOCK]``; what is not finite becomes 0 on masked rows."""
    observation: Floats = batch[at.OBSERVATION]
    mask: Flags = batch[at.MASK]
    for j in range(rows):
        row = shift(observation, order[j] * inputs)
        seen = mask[order[j]] != 0
        for k in range(inputs):
            x[k * BLOCK + j] = row[k] if seen or math.isfinite(row[k]) else single(0.0)


def adam(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradient: Floats, start: int, stop: int, scale: float, step: float, options:
    Doubles,
) -> None:  # fmt: skip
    """torch's Adam on **minus** ``scale · gradient``, which minimizes, for the parameters from ``start`` to ``stop``."""
    beta1, beta2 = options[at.BETA1], options[at.BETA2]
    size = single(options[at.LEARNING_RATE] / (1.0 - math.pow(beta1, step)))
    correction = single(1.0 / math.sqrt(1.0 - math.pow(beta2, step)))
    sign, eps = single(-scale), single(options[at.EPS])
    keep1, keep2 = single(1.0 - beta1), single(beta2)
    new2 = single(1.0 - beta2)
    for i in range(start, stop):
        g = sign * gradient[i]
        m = exp_avg[i] + keep1 * (g - exp_avg[i])
        v = keep2 * exp_avg_sq[i] + new2 * g * g
        exp_avg[i] = m
        exp_avg_sq[i] = v
        parameters[i] -= size * m / (square_root(v) * correction + eps)


def run(function: int, rows: int, order: Integers, batch: Table, objective: Table) -> None:
    columns = shift(batch, at.OBJECTIVE_COLUMNS)
    numbers, each, sums, values = objective[at.NUMBERS], objective[at.EACH], objective[at.SUMS], objective[at.VALUES]
    invoke(objective[function], rows, order, columns, numbers, each, sums, values)


def score_block(
    networks: Integers, options: Doubles, parameters: Floats, scratch: Floats, batch: Table, order: Integers, rows: int, objective: Table
) -> None:
    """Score one block's recorded actions: add to the objective's sums, leave ∂objective/∂outputs in the two ``delta``s.

    Between the heads' forward and backward stands the objective itself (:mod:`upslope.fast.lower`).
    """
    outputs, actor_layers, critic_layers = networks[at.OUTPUTS], networks[at.ACTOR_LAYERS], networks[at.CRITIC_LAYERS]
    out, value_out = shift(scratch, networks[at.OUT_AT]), shift(scratch, networks[at.VALUE_OUT_AT])
    delta, value_delta = shift(scratch, networks[at.DELTA_AT]), shift(scratch, networks[at.VALUE_DELTA_AT])
    log_std = shift(parameters, networks[at.LOG_STD])
    gradient = shift(scratch, networks[at.GRADIENT_AT] + networks[at.LOG_STD])
    each: Doubles = objective[at.EACH]
    masked = options[at.MASKED] != 0.0
    for j in range(rows):
        if actor_layers > 0:
            log_prob, entropy, normalizer = head_forward(networks, log_std, shift(out, j), batch, order[j], masked)
            each[j] = single(log_prob)  # as recorded
            each[at.ENTROPY * BLOCK + j] = entropy
            each[at.NORMALIZER * BLOCK + j] = normalizer
        if critic_layers > 0:
            each[at.VALUE * BLOCK + j] = value_out[j]
    run(at.BLOCK_OF_ROWS, rows, order, batch, objective)
    slopes = shift(each, at.SLOPES * BLOCK)
    for j in range(rows):
        value_delta[j] = slopes[at.VALUE * BLOCK + j]
        if actor_layers > 0:
            from_log_prob, from_entropy, d = slopes[j], slopes[at.ENTROPY * BLOCK + j], shift(delta, j)
            if from_log_prob == 0.0 and from_entropy == 0.0:  # whatever stands there
                for i in range(outputs):
                    d[i * BLOCK] = 0.0
            else:
                entropy, normalizer = each[at.ENTROPY * BLOCK + j], each[at.NORMALIZER * BLOCK + j]
                head_backward(
                    networks, log_std, shift(out, j), batch, order[j], masked, entropy, normalizer, from_log_prob, from_entropy, d, gradient
                )


def begin(networks: Integers, batch: Table, order: Integers, size: int, scale: float, objective: Table) -> None:
    numbers: Doubles = objective[at.NUMBERS]
    sums: Doubles = objective[at.SUMS]
    numbers[0] = 1.0 * size
    numbers[1] = scale
    for i in range(networks[at.NUM_SUMS]):
        sums[i] = 0.0
    run(at.BEFORE, size, order, batch, objective)


def differentiate(
    scratch: Floats, networks: Integers, options: Doubles, log_std: Floats, batch: Table, order: Integers, rows: int, outputs: Floats,
    width: int, values: Floats, output_slopes: Floats, value_slopes: Floats, objective: Table,
) -> None:  # fmt: skip
    """``score_minibatch`` for networks that are not the kernels': their ``outputs [rows, width]`` and values come in, slopes go out.

    A Gaussian's log standard deviations follow the means in a row; their slopes, summed over the rows, go to the first row.
    """
    count = networks[at.OUTPUTS]
    out, value_out = shift(scratch, networks[at.OUT_AT]), shift(scratch, networks[at.VALUE_OUT_AT])
    delta, value_delta = shift(scratch, networks[at.DELTA_AT]), shift(scratch, networks[at.VALUE_DELTA_AT])
    gradient = shift(scratch, networks[at.GRADIENT_AT])
    critic = networks[at.CRITIC_LAYERS] > 0
    for i in range(count):
        gradient[i] = 0.0
    for i in range(rows * width):
        output_slopes[i] = 0.0
    begin(networks, batch, order, rows, 1.0, objective)
    for start in range(0, rows, BLOCK):
        size = min(BLOCK, rows - start)
        for j in range(size):
            for i in range(count):
                out[i * BLOCK + j] = outputs[(start + j) * width + i]
            if critic:
                value_out[j] = values[start + j]
        score_block(networks, options, log_std, scratch, batch, shift(order, start), size, objective)
        for j in range(size):
            for i in range(count):
                output_slopes[(start + j) * width + i] = delta[i * BLOCK + j]
            if critic:
                value_slopes[start + j] = value_delta[j]
    run(at.AFTER, rows, order, batch, objective)
    if networks[at.HEAD] == at.GAUSSIAN:
        for i in range(count):
            output_slopes[count + i] = gradient[i]


def score_minibatch(
    networks: Integers, options: Doubles, parameters: Floats, scratch: Floats, batch: Table, order: Integers, size: int, scale: float,
    objective: Table,
) -> None:  # fmt: skip
    gradient, x = shift(scratch, networks[at.GRADIENT_AT]), shift(scratch, networks[at.OBSERVATION_AT])
    rowwise, product = shift(scratch, networks[at.ROWWISE_AT]), shift(scratch, networks[at.PRODUCT_AT])
    delta, other = shift(scratch, networks[at.DELTA_AT]), shift(scratch, networks[at.OTHER_AT])
    value_delta = shift(scratch, networks[at.VALUE_DELTA_AT])
    kind, actor_layers, critic_layers = networks[at.ACTIVATION], networks[at.ACTOR_LAYERS], networks[at.CRITIC_LAYERS]
    actor = shift(networks, at.LAYERS_AT)
    critic = shift(actor, actor_layers * at.LAYER)
    for i in range(networks[at.NUM_PARAMETERS]):
        gradient[i] = 0.0
    begin(networks, batch, order, size, scale, objective)
    for start in range(0, size, BLOCK):
        rows = min(BLOCK, size - start)
        block = shift(order, start)
        gather(batch, networks[at.INPUTS], block, rows, x)
        forward(actor, actor_layers, parameters, scratch, padded(rows), kind)
        forward(critic, critic_layers, parameters, scratch, padded(rows), kind)
        score_block(networks, options, parameters, scratch, batch, block, rows, objective)
        backward(actor, actor_layers, parameters, gradient, scratch, rows, kind, delta, other, rowwise, product)
        backward(critic, critic_layers, parameters, gradient, scratch, rows, kind, value_delta, other, rowwise, product)
    run(at.AFTER, size, order, batch, objective)


def clip_and_step(
    networks: Integers, options: Doubles, parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradient: Floats, results: Doubles
) -> bool:
    """Norm clip, the critic's part of the gradient by itself, and Adam; False, and nothing moved, where it is not finite."""
    count, start = networks[at.NUM_PARAMETERS], networks[at.CRITIC_AT]
    stop = start + networks[at.CRITIC_SIZE]
    critic = squares(gradient, start, stop)
    actor = squares(gradient, 0, start) + squares(gradient, stop, count)
    norm = math.sqrt(actor + critic)
    if not math.isfinite(norm):
        results[at.STATUS] = at.NOT_FINITE
        return False
    results[at.GRADIENT_NORM] += norm
    step, scale = options[at.STEP] + results[at.STEPPED] + 1.0, clip_factor(math.sqrt(actor), options)
    adam(parameters, exp_avg, exp_avg_sq, gradient, 0, start, scale, step, options)
    adam(parameters, exp_avg, exp_avg_sq, gradient, start, stop, clip_factor(math.sqrt(critic), options), step, options)
    adam(parameters, exp_avg, exp_avg_sq, gradient, stop, count, scale, step, options)
    return True


def squares(gradient: Floats, start: int, stop: int) -> float:
    total = 0.0
    for i in range(start, stop):
        total += gradient[i] * gradient[i]
    return total


def clip_factor(norm: float, options: Doubles) -> float:
    """What ``torch.nn.utils.clip_grad_norm_`` multiplies a gradient of this norm by."""
    if not math.isfinite(options[at.MAX_GRAD_NORM]):
        return 1.0
    return min(1.0, options[at.MAX_GRAD_NORM] / (norm + 1e-6))


def update(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, scratch: Floats, networks: Integers, options: Doubles, batch: Table,
    objective: Table, order: Integers, bounds: Integers, first: int, epochs: int, minibatches: int, results: Doubles,
) -> None:  # fmt: skip
    """Every epoch and minibatch of one update, or the next ones of its epochs, from the ``first`` on: ``results`` goes on where it is.

    ``order [epochs, rows]`` is the shuffled rows, ``bounds`` where minibatches end.
    """
    gradient = shift(scratch, networks[at.GRADIENT_AT])
    sums: Doubles = objective[at.SUMS]
    values: Doubles = objective[at.VALUES]
    kl, total = networks[at.KL_AT], bounds[minibatches]
    for number in range(first, epochs * minibatches):
        epoch, part = number // minibatches, number % minibatches
        rows, size = shift(order, epoch * total + bounds[part]), bounds[part + 1] - bounds[part]
        score_minibatch(networks, options, parameters, scratch, batch, rows, size, total / size, objective)
        results[at.REACHED] = number
        if not math.isfinite(values[0]):
            results[at.STATUS] = at.NOT_FINITE
            return
        if results[at.SCORED] == 0.0 and sums[0] > options[at.RATIO_TOLERANCE]:
            results[at.MAX_LOG_RATIO] = sums[0]
            results[at.STATUS] = at.RATIO_NOT_ONE
            return
        for i in range(networks[at.NUM_VALUES]):
            results[at.NUM_RESULTS + i] += values[i]
        results[at.SCORED] += 1.0
        if kl > 0 and values[kl] > options[at.TARGET_KL]:
            results[at.STATUS] = at.STOPPED
            return
        if not clip_and_step(networks, options, parameters, exp_avg, exp_avg_sq, gradient, results):
            return
        results[at.STEPPED] += 1.0
    results[at.STATUS] = at.FINISHED


def spread_out(observation: Floats, inputs: int, rows: int, x: Floats) -> None:
    """A block's observations as ``[inputs, BLOCK]``."""
    for j in range(rows):
        for k in range(inputs):
            x[k * BLOCK + j] = observation[j * inputs + k]


def draw(
    networks: Integers, parameters: Floats, out: Floats, rows: int, masked: bool, noise: Floats, legal: Flags, action: Integers,
    continuous: Floats, log_prob: Floats,
) -> None:  # fmt: skip
    """Actions of one block from given random numbers, as the heads' ``sample`` draws them, and their log-probabilities."""
    outputs = networks[at.OUTPUTS]
    log_std = shift(parameters, networks[at.LOG_STD])
    for row in range(rows):
        z = shift(out, row)
        if networks[at.HEAD] == at.GAUSSIAN:
            chosen = shift(continuous, row * outputs)
            for i in range(outputs):
                chosen[i] = z[i * BLOCK] + math.exp(log_std[i]) * noise[row * outputs + i]
            log_prob[row] = gaussian_log_prob(z, log_std, outputs, chosen)
        else:
            allowed = shift(legal, row * outputs)
            normalizer = log_normalizer(z, outputs, allowed, masked)
            cumulative = 0.0
            drawn = 0
            reached = 0
            for a in range(outputs):
                before = single(cumulative)  # in float32, as torch has it
                if not masked or allowed[a] != 0:
                    cumulative += single(math.exp(z[a * BLOCK] - normalizer))
                if single(cumulative) > before:
                    reached = a
                if single(cumulative) <= noise[row]:  # F(a) ≤ u: the draw lies behind a
                    drawn = a + 1
            drawn = min(drawn, reached)
            action[row] = drawn
            log_prob[row] = z[drawn * BLOCK] - normalizer


def step(
    parameters: Floats, scratch: Floats, networks: Integers, observation: Floats, rows: int, mode: int, masked: bool, noise: Floats,
    legal: Flags, action: Integers, continuous: Floats, log_prob: Floats, value: Floats,
) -> None:  # fmt: skip
    """What ``mode`` asks for, of ``rows`` observations: sampled actions and their log-probabilities, the actor's outputs (into
    ``continuous``), the critic's values, or actions and values."""
    inputs, outputs, kind = networks[at.INPUTS], networks[at.OUTPUTS], networks[at.ACTIVATION]
    actor_layers, critic_layers = networks[at.ACTOR_LAYERS], networks[at.CRITIC_LAYERS]
    actor = shift(networks, at.LAYERS_AT)
    critic = shift(actor, actor_layers * at.LAYER)
    out, value_out = shift(scratch, networks[at.OUT_AT]), shift(scratch, networks[at.VALUE_OUT_AT])
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        spread_out(shift(observation, start * inputs), inputs, count, shift(scratch, networks[at.OBSERVATION_AT]))
        if mode != at.EVALUATE:
            forward(actor, actor_layers, parameters, scratch, padded(count), kind)
        if mode == at.OUTPUT:
            for j in range(count):
                for i in range(outputs):
                    continuous[(start + j) * outputs + i] = out[i * BLOCK + j]
        elif mode != at.EVALUATE:
            numbers = start if networks[at.HEAD] == at.CATEGORICAL else start * outputs
            draw(
                networks, parameters, out, count, masked, shift(noise, numbers), shift(legal, start * outputs), shift(action, start),
                shift(continuous, start * outputs), shift(log_prob, start),
            )  # fmt: skip
        if mode == at.EVALUATE or mode == at.SAMPLE_AND_EVALUATE:
            forward(critic, critic_layers, parameters, scratch, padded(count), kind)
            for j in range(count):
                value[start + j] = value_out[j]
