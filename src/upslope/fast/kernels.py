"""The two compiled entry points: a whole update (every epoch and minibatch) and a policy step, for MLP policies.

``update`` is the readable ``Ascent.__call__`` with ``PPO.objective``, ``A2C.objective`` or ``REINFORCE.objective`` inside,
differentiated by hand (FORMULAS sections 1, 6 and 8) and run in one call; ``step`` is ``MLPPolicy.sample`` from given
random numbers, and the critic's values of any number of rows. Both work on a policy's own memory: the flat parameters and
Adam's moments, so one can change between the twins at any update. They allocate nothing and raise nothing.

What the integers, options and results mean is in :mod:`upslope.fast.layout`.
"""

from __future__ import annotations

import math

from upslope.fast import layout as at
from upslope.fast.formulas import (
    HALF_LOG_TWO_PI,
    categorical_backward,
    categorical_entropy,
    gaussian_backward,
    gaussian_log_prob,
    log_normalizer,
    surrogate_of,
    value_error_of,
)
from upslope.fast.layout import BLOCK
from upslope.fast.networks import backward, forward, padded
from upslope.fast.registers import Doubles, Flags, Floats, Integers, Table, flags, floats, integers, shift, single, square_root


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
    gaussian, critic = networks[at.HEAD] == at.GAUSSIAN, networks[at.CRITIC_LAYERS] > 0
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
        normalizer, entropy = 0.0, 0.0
        if gaussian:
            log_prob = gaussian_log_prob(z, log_std, outputs, chosen)
            for i in range(outputs):
                entropy += log_std[i] + HALF_LOG_TWO_PI + 0.5
        else:
            normalizer = log_normalizer(z, outputs, allowed, masked)
            log_prob = z[action[row] * BLOCK] - normalizer
            entropy = categorical_entropy(z, outputs, allowed, masked, normalizer)
        moved = log_prob - behavior[row]
        advantage = floats(batch, at.ADVANTAGE)[row]
        objective, slope = surrogate_of(log_prob, moved, advantage, options)
        measure(moved, advantage, options, sums)
        w = weight[row] * scale
        error, value_slope = 0.0, 0.0
        if critic:
            error, value_slope = value_error_of(value_out[j], returns[row], old_value[row], options[at.VALUE_CLIP])
        if w != 0.0:  # a weight of 0 hides whatever stands there
            sums[at.OBJECTIVE] += w * (objective - options[at.VALUE_COEF] * error + options[at.ENTROPY_COEF] * entropy)
            sums[at.ENTROPY] += w * entropy
            sums[at.VALUE_ERROR] += w * error
            sums[at.STEPPED] += w
        else:
            slope, value_slope = 0.0, 0.0
        value_delta[j] = -w * options[at.VALUE_COEF] * value_slope
        from_entropy = w * options[at.ENTROPY_COEF]
        if gaussian:
            gaussian_backward(z, log_std, d, gradient, outputs, chosen, w * slope, from_entropy)
        else:
            categorical_backward(z, d, outputs, allowed, masked, normalizer, entropy, action[row], w * slope, from_entropy)


def measure(moved: float, advantage: float, options: Doubles, sums: Doubles) -> None:
    """Add one row to what is reported of how far the policy has moved (``F.surrogate_metrics``)."""
    excess = math.expm1(moved)  # ratio − 1
    outside = excess < options[at.LOW] - 1.0 or excess > options[at.HIGH] - 1.0
    dead = outside and moved * advantage > 0.0
    dead = dead or (excess > options[at.DUAL_CLIP] - 1.0 and advantage < 0.0)
    sums[at.APPROX_KL] += excess - moved
    sums[at.CLIP_FRACTION] += 1.0 if outside else 0.0
    sums[at.DEAD_FRACTION] += 1.0 if dead else 0.0
    sums[at.MAX_LOG_RATIO] = max(sums[at.MAX_LOG_RATIO], abs(moved))
    sums[at.SCORED] += 1.0


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
    networks: Integers, options: Doubles, parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradient: Floats,
    results: Doubles,
) -> bool:  # fmt: skip
    """Global-norm clip and Adam; False, and nothing moved, where the gradient is not finite."""
    count = networks[at.NUM_PARAMETERS]
    square = 0.0
    for i in range(count):
        square += gradient[i] * gradient[i]
    norm = math.sqrt(square)
    if not math.isfinite(norm):
        return False
    scale = 1.0
    if math.isfinite(options[at.MAX_GRAD_NORM]):
        scale = min(1.0, options[at.MAX_GRAD_NORM] / (norm + 1e-6))
    adam(parameters, exp_avg, exp_avg_sq, gradient, count, scale, options[at.STEP] + results[at.STEPPED] + 1.0, options)
    results[at.GRADIENT_NORM] += norm
    return True


def update(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, scratch: Floats, networks: Integers, options: Doubles, batch: Table,
    order: Integers, bounds: Integers, epochs: int, minibatches: int, results: Doubles,
) -> None:  # fmt: skip
    """Every epoch and minibatch of one update; ``order [epochs, rows]`` is the shuffled rows, ``bounds`` where minibatches end."""
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
        if number == 0 and sums[at.MAX_LOG_RATIO] > options[at.RATIO_TOLERANCE]:
            results[at.MAX_LOG_RATIO] = sums[at.MAX_LOG_RATIO]
            results[at.STATUS] = at.RATIO_NOT_ONE
            return
        count, weights = max(1.0, sums[at.SCORED]), sums[at.STEPPED]
        approx_kl = sums[at.APPROX_KL] / count
        results[at.OBJECTIVE] += sums[at.OBJECTIVE]
        results[at.APPROX_KL] += approx_kl
        results[at.CLIP_FRACTION] += sums[at.CLIP_FRACTION] / count
        results[at.DEAD_FRACTION] += sums[at.DEAD_FRACTION] / count
        results[at.ENTROPY] += sums[at.ENTROPY] / weights
        results[at.VALUE_ERROR] += sums[at.VALUE_ERROR] / weights
        results[at.SCORED] += 1.0
        if approx_kl > options[at.TARGET_KL]:
            break
        if not clip_and_step(networks, options, parameters, exp_avg, exp_avg_sq, gradient, results):
            return
        results[at.STEPPED] += 1.0
    results[at.STATUS] = at.FINISHED


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
            last = 0
            for a in range(outputs):
                if not masked or allowed[a] != 0:
                    last = a
                    cumulative += math.exp(z[a * BLOCK] - normalizer)
                if cumulative <= noise[row]:  # F(a) ≤ u: the draw lies behind a
                    drawn = a + 1
            drawn = min(drawn, last)
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
    x = shift(scratch, networks[at.OBSERVATION_AT])
    out = shift(scratch, actor[(actor_layers - 1) * at.LAYER + 5])
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        for j in range(count):
            for k in range(inputs):
                x[k * BLOCK + j] = observation[(start + j) * inputs + k]
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
            last = shift(scratch, critic[(critic_layers - 1) * at.LAYER + 5])
            for j in range(count):
                value[start + j] = last[j]
