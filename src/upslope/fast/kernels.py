"""A whole update of an MLP policy, every epoch and minibatch, as one compiled entry point.

``update`` is the readable ``Ascent.__call__`` with ``PPO.objective``, ``A2C.objective`` or ``REINFORCE.objective`` inside,
differentiated by hand (FORMULAS sections 1, 6 and 8). It works on the policy's own memory, the flat parameters and Adam's
moments, so one can change between the twins at any update; it allocates nothing and raises nothing.

What the integers, options and results mean is in :mod:`upslope.fast.layout`.
"""

from __future__ import annotations

import math

from upslope.fast import layout as at
from upslope.fast.formulas import head_backward, head_forward, measure, surrogate_of, value_error_of
from upslope.fast.layout import BLOCK
from upslope.fast.networks import backward, forward, padded
from upslope.fast.registers import Doubles, Floats, Integers, Table, flags, floats, integers, shift, single, square_root


def gather(batch: Table, inputs: int, order: Integers, rows: int, x: Floats) -> None:
    """The block's observations as ``[inputs, BLOCK]``; masked rows become 0, whatever they hold."""
    observation, mask = floats(batch, at.OBSERVATION), flags(batch, at.MASK)
    for j in range(rows):
        row = shift(observation, order[j] * inputs)
        seen = mask[order[j]] != 0
        for k in range(inputs):
            x[k * BLOCK + j] = row[k] if seen else single(0.0)


def adam(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradient: Floats, count: int, scale: float, step: float, options:
    Doubles,
) -> None:  # fmt: skip
    """torch's Adam on **minus** ``scale · gradient``: it minimizes."""
    beta1, beta2 = options[at.BETA1], options[at.BETA2]
    size = single(options[at.LEARNING_RATE] / (1.0 - math.pow(beta1, step)))
    correction = single(1.0 / math.sqrt(1.0 - math.pow(beta2, step)))
    sign, eps = single(-scale), single(options[at.EPS])
    keep1, keep2 = single(1.0 - beta1), single(beta2)
    new2 = single(1.0 - beta2)
    for i in range(count):
        g = sign * gradient[i]
        m = exp_avg[i] + keep1 * (g - exp_avg[i])
        v = keep2 * exp_avg_sq[i] + new2 * g * g
        exp_avg[i] = m
        exp_avg_sq[i] = v
        parameters[i] -= size * m / (square_root(v) * correction + eps)


def score_block(
    networks: Integers, options: Doubles, parameters: Floats, scratch: Floats, batch: Table, order: Integers, rows: int, scale: float,
    sums: Doubles,
) -> None:  # fmt: skip
    """Score one block's recorded actions: add to the sums, leave ∂objective/∂outputs in the two ``delta``s."""
    outputs = networks[at.OUTPUTS]
    critic = networks[at.CRITIC_LAYERS] > 0
    last = networks[at.ACTOR_LAYERS] - 1
    out = shift(scratch, networks[at.LAYERS_AT + last * at.LAYER + 5])
    value_out = out
    if critic:
        value_out = shift(scratch, networks[at.LAYERS_AT + (last + networks[at.CRITIC_LAYERS]) * at.LAYER + 5])
    delta, value_delta = shift(scratch, networks[at.DELTA_AT]), shift(scratch, networks[at.VALUE_DELTA_AT])
    log_std = shift(parameters, networks[at.LOG_STD])
    gradient = shift(scratch, networks[at.GRADIENT_AT] + networks[at.LOG_STD])
    action, continuous, legal = integers(batch, at.ACTION), floats(batch, at.CONTINUOUS), flags(batch, at.LEGAL)
    behavior, weight, mask = floats(batch, at.BEHAVIOR_LOG_PROB), floats(batch, at.WEIGHT), flags(batch, at.MASK)
    returns, old_value = floats(batch, at.RETURNS), floats(batch, at.VALUE)
    masked = options[at.MASKED] != 0.0
    for j in range(rows):
        row = order[j]
        z, d, allowed, chosen = shift(out, j), shift(delta, j), shift(legal, row * outputs), shift(continuous, row * outputs)
        if mask[row] == 0:
            for i in range(outputs):
                d[i * BLOCK] = 0.0
            value_delta[j] = 0.0
            continue
        taken = 0 if networks[at.HEAD] == at.GAUSSIAN else action[row]
        log_prob, entropy, normalizer = head_forward(networks, log_std, z, taken, chosen, allowed, masked)
        moved = log_prob - behavior[row]
        advantage = floats(batch, at.ADVANTAGE)[row]
        objective, slope = surrogate_of(log_prob, moved, advantage, options)
        measure(moved, advantage, options, sums)
        sums[at.ENTROPY] += entropy
        w = weight[row] * scale
        error, value_slope = 0.0, 0.0
        if critic:
            error, value_slope = value_error_of(value_out[j], returns[row], old_value[row], options[at.VALUE_CLIP])
            sums[at.VALUE_ERROR] += error
        if w != 0.0:  # a weight of 0 hides whatever stands there
            sums[at.OBJECTIVE] += w * (objective - options[at.VALUE_COEF] * error + options[at.ENTROPY_COEF] * entropy)
        else:
            slope, value_slope = 0.0, 0.0
        value_delta[j] = -w * options[at.VALUE_COEF] * value_slope
        from_entropy = w * options[at.ENTROPY_COEF]
        head_backward(networks, log_std, z, taken, chosen, allowed, masked, entropy, normalizer, w * slope, from_entropy, d, gradient)


def differentiate(
    scratch: Floats, networks: Integers, options: Doubles, log_std: Floats, batch: Table, order: Integers, rows: int, outputs: Floats,
    width: int, values: Floats, output_slopes: Floats, value_slopes: Floats, sums: Doubles,
) -> None:  # fmt: skip
    """``score_block`` for networks that are not the kernels': their ``outputs [rows, width]`` and values come in, slopes go out.

    A Gaussian's log standard deviations follow the means in a row; their slopes, summed over the rows, go to the first row.
    """
    count = networks[at.OUTPUTS]
    out, delta = shift(scratch, networks[at.LAYERS_AT + 5]), shift(scratch, networks[at.DELTA_AT])
    value_out, value_delta = shift(scratch, networks[at.LAYERS_AT + at.LAYER + 5]), shift(scratch, networks[at.VALUE_DELTA_AT])
    gradient = shift(scratch, networks[at.GRADIENT_AT])
    critic = networks[at.CRITIC_LAYERS] > 0
    for i in range(count):
        gradient[i] = 0.0
    for i in range(at.NUM_RESULTS):
        sums[i] = 0.0
    for i in range(rows * width):
        output_slopes[i] = 0.0
    for start in range(0, rows, BLOCK):
        size = min(BLOCK, rows - start)
        for j in range(size):
            for i in range(count):
                out[i * BLOCK + j] = outputs[(start + j) * width + i]
            if critic:
                value_out[j] = values[start + j]
        score_block(networks, options, log_std, scratch, batch, shift(order, start), size, 1.0, sums)
        for j in range(size):
            for i in range(count):
                output_slopes[(start + j) * width + i] = delta[i * BLOCK + j]
            if critic:
                value_slopes[start + j] = value_delta[j]
    if networks[at.HEAD] == at.GAUSSIAN:
        for i in range(count):
            output_slopes[count + i] = gradient[i]


def score_minibatch(
    networks: Integers, options: Doubles, parameters: Floats, scratch: Floats, batch: Table, order: Integers, size: int, scale: float,
    sums: Doubles,
) -> None:  # fmt: skip
    """The sums and the gradient of one minibatch, block by block."""
    gradient, x = shift(scratch, networks[at.GRADIENT_AT]), shift(scratch, networks[at.OBSERVATION_AT])
    rowwise, product = shift(scratch, networks[at.ROWWISE_AT]), shift(scratch, networks[at.PRODUCT_AT])
    delta, other = shift(scratch, networks[at.DELTA_AT]), shift(scratch, networks[at.OTHER_AT])
    value_delta = shift(scratch, networks[at.VALUE_DELTA_AT])
    kind, actor_layers, critic_layers = networks[at.ACTIVATION], networks[at.ACTOR_LAYERS], networks[at.CRITIC_LAYERS]
    actor = shift(networks, at.LAYERS_AT)
    critic = shift(actor, actor_layers * at.LAYER)
    for i in range(networks[at.NUM_PARAMETERS]):
        gradient[i] = 0.0
    for i in range(at.NUM_RESULTS):
        sums[i] = 0.0
    for start in range(0, size, BLOCK):
        rows = min(BLOCK, size - start)
        block = shift(order, start)
        gather(batch, networks[at.INPUTS], block, rows, x)
        forward(actor, actor_layers, parameters, scratch, padded(rows), kind)
        forward(critic, critic_layers, parameters, scratch, padded(rows), kind)
        score_block(networks, options, parameters, scratch, batch, block, rows, scale, sums)
        backward(actor, actor_layers, parameters, gradient, scratch, rows, kind, delta, other, rowwise, product)
        backward(critic, critic_layers, parameters, gradient, scratch, rows, kind, value_delta, other, rowwise, product)


def clip_and_step(
    networks: Integers, options: Doubles, parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradient: Floats, results: Doubles
) -> bool:
    """Norm clip, the critic's part of the gradient by itself, and Adam; False, and nothing moved, where it is not finite."""
    count, start, size = networks[at.NUM_PARAMETERS], networks[at.CRITIC_AT], networks[at.CRITIC_SIZE]
    behind = start + size
    critic = squares(shift(gradient, start), size)
    actor = squares(gradient, start) + squares(shift(gradient, behind), count - behind)
    norm = math.sqrt(actor + critic)
    if not math.isfinite(norm):
        return False
    step, scale = options[at.STEP] + results[at.STEPPED] + 1.0, clip_factor(math.sqrt(actor), options)
    adam(parameters, exp_avg, exp_avg_sq, gradient, start, scale, step, options)
    adam(
        shift(parameters, start), shift(exp_avg, start), shift(exp_avg_sq, start), shift(gradient, start), size,
        clip_factor(math.sqrt(critic), options), step, options,
    )  # fmt: skip
    adam(
        shift(parameters, behind), shift(exp_avg, behind), shift(exp_avg_sq, behind), shift(gradient, behind), count - behind, scale,
        step, options,
    )  # fmt: skip
    results[at.GRADIENT_NORM] += norm
    return True


def squares(gradient: Floats, count: int) -> float:
    """``Σ g²``."""
    total = 0.0
    for i in range(count):
        total += gradient[i] * gradient[i]
    return total


def clip_factor(norm: float, options: Doubles) -> float:
    """What ``torch.nn.utils.clip_grad_norm_`` multiplies a gradient of this norm by."""
    if not math.isfinite(options[at.MAX_GRAD_NORM]):
        return 1.0
    return min(1.0, options[at.MAX_GRAD_NORM] / (norm + 1e-6))


def descend(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradients: Table, sizes: Integers, critic: Integers, pieces: int, options:
    Doubles, norm: Floats,
) -> None:  # fmt: skip
    """``Ascent.step`` for a flat vector whose gradient (of **minus** the objective) comes in ``pieces``; its ``norm`` is a result.

    The pieces that are the ``critic``'s are clipped by a norm of their own. Nothing moves where the norm is not finite.
    """
    actors, critics = 0.0, 0.0
    for i in range(pieces):
        part = squares(floats(gradients, i), sizes[i])
        if critic[i] != 0:
            critics += part
        else:
            actors += part
    size = math.sqrt(actors + critics)
    norm[0] = size
    if not math.isfinite(size):  # nothing moves
        return
    for_actor, for_critic = -clip_factor(math.sqrt(actors), options), -clip_factor(math.sqrt(critics), options)
    start = 0
    for i in range(pieces):
        own, first, second = shift(parameters, start), shift(exp_avg, start), shift(exp_avg_sq, start)
        scale = for_critic if critic[i] != 0 else for_actor
        adam(own, first, second, floats(gradients, i), sizes[i], scale, options[at.STEP] + 1.0, options)
        start += sizes[i]


def update(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, scratch: Floats, networks: Integers, options: Doubles, batch: Table,
    order: Integers, bounds: Integers, epochs: int, minibatches: int, results: Doubles,
) -> None:  # fmt: skip
    """Every epoch and minibatch of one update, or the next ones of its epochs: ``results`` goes on where it is.

    ``order [epochs, rows]`` is the shuffled rows, ``bounds`` where minibatches end.
    """
    gradient = shift(scratch, networks[at.GRADIENT_AT])
    sums = shift(results, at.NUM_RESULTS)
    total = bounds[minibatches]
    for number in range(epochs * minibatches):
        epoch, part = number // minibatches, number % minibatches
        rows, size = shift(order, epoch * total + bounds[part]), bounds[part + 1] - bounds[part]
        score_minibatch(networks, options, parameters, scratch, batch, rows, size, total / size, sums)
        results[at.STATUS] = at.NOT_FINITE
        if not math.isfinite(sums[at.OBJECTIVE]):
            return
        if results[at.SCORED] == 0.0 and sums[at.MAX_LOG_RATIO] > options[at.RATIO_TOLERANCE]:
            results[at.MAX_LOG_RATIO] = sums[at.MAX_LOG_RATIO]
            results[at.STATUS] = at.RATIO_NOT_ONE
            return
        count = max(1.0, sums[at.SCORED])
        approx_kl = sums[at.APPROX_KL] / count
        results[at.OBJECTIVE] += sums[at.OBJECTIVE]
        results[at.APPROX_KL] += approx_kl
        results[at.CLIP_FRACTION] += sums[at.CLIP_FRACTION] / count
        results[at.DEAD_FRACTION] += sums[at.DEAD_FRACTION] / count
        results[at.ENTROPY] += sums[at.ENTROPY] / count
        results[at.VALUE_ERROR] += sums[at.VALUE_ERROR] / count
        results[at.SCORED] += 1.0
        if approx_kl > options[at.TARGET_KL]:
            results[at.STATUS] = at.STOPPED
            return
        if not clip_and_step(networks, options, parameters, exp_avg, exp_avg_sq, gradient, results):
            return
        results[at.STEPPED] += 1.0
    results[at.STATUS] = at.FINISHED
