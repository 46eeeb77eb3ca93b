"""The two compiled entry points: a whole update (every epoch and minibatch) and a policy step, for MLP policies.

``update`` is the readable ``Ascent.__call__`` with ``PPO.objective``, ``A2C.objective`` or ``REINFORCE.objective`` inside,
differentiated by hand (FORMULAS sections 1, 6 and 8) and run in one call; ``step`` is ``MLPPolicy.sample`` from given
random numbers, and the critic's values of any number of rows. Both work on a policy's own memory: the flat parameters and
Adam's moments, so one can change between the twins at any update. They allocate nothing and raise nothing.
"""

from __future__ import annotations

import math

from upslope.fast import layout as at
from upslope.fast.layout import BLOCK
from upslope.fast.networks import backward, forward, padded
from upslope.fast.registers import Doubles, Flags, Floats, Integers, shift, single, square_root

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def clamp(x: float, low: float, high: float) -> float:
    """``x`` kept between the bounds."""
    return min(max(x, low), high)


def log_normalizer(logits: Floats, count: int, legal: Flags, masked: int) -> float:
    """``logsumexp`` of one row's legal logits, ``BLOCK`` entries apart."""
    largest = -math.inf
    for a in range(count):
        if not masked or legal[a] != 0:
            largest = max(largest, logits[a * BLOCK])
    total = 0.0
    for a in range(count):
        if not masked or legal[a] != 0:
            total += math.exp(logits[a * BLOCK] - largest)
    return largest + math.log(total)


def categorical_entropy(logits: Floats, count: int, legal: Flags, masked: int, normalizer: float) -> float:
    """``H = −Σ p log p`` over legal actions."""
    entropy = 0.0
    for a in range(count):
        if not masked or legal[a] != 0:
            log_p = logits[a * BLOCK] - normalizer
            entropy -= math.exp(log_p) * log_p
    return entropy


def categorical_backward(
    logits: Floats, delta: Floats, count: int, legal: Flags, masked: int, normalizer: float, entropy: float, action: int,
    from_log_prob: float, from_entropy: float,
) -> None:  # fmt: skip
    """``∂ log π_a/∂z_j = 1[j = a] − p_j`` and ``∂H/∂z_j = −p_j (log p_j + H)``."""
    for a in range(count):
        delta[a * BLOCK] = 0.0
        if not masked or legal[a] != 0:
            log_p = logits[a * BLOCK] - normalizer
            chosen = 1.0 if a == action else 0.0
            p = math.exp(log_p)
            delta[a * BLOCK] = from_log_prob * (chosen - p) - from_entropy * p * (log_p + entropy)


def gaussian_log_prob(mean: Floats, log_std: Floats, count: int, action: Floats) -> float:
    """``Σ −½ ((a − μ)/σ)² − log σ − ½ log 2π``."""
    total = 0.0
    for i in range(count):
        z = (action[i] - mean[i * BLOCK]) * math.exp(-log_std[i])
        total -= 0.5 * z * z + log_std[i] + HALF_LOG_TWO_PI
    return total


def gaussian_backward(
    mean: Floats, log_std: Floats, delta: Floats, gradient: Floats, count: int, action: Floats, from_log_prob: float, from_entropy:
    float,
) -> None:  # fmt: skip
    """``∂/∂μ = (a − μ)/σ²`` into ``delta``; ``∂/∂ log σ = (a − μ)²/σ² − 1``, and 1 for the entropy, into the gradient."""
    for i in range(count):
        inverse = math.exp(-log_std[i])
        z = (action[i] - mean[i * BLOCK]) * inverse
        delta[i * BLOCK] = from_log_prob * z * inverse
        gradient[i] += from_log_prob * (z * z - 1.0) + from_entropy


def surrogate_of(kind: int, log_prob: float, ratio: float, advantage: float, options: Doubles) -> tuple[float, float]:
    """A surrogate and its derivative by log π (FORMULAS section 6)."""
    if kind == at.SCORE:
        return log_prob * advantage, advantage
    if kind == at.TRUNCATED_SCORE:
        capped = min(ratio, options[at.HIGH]) * advantage
        return capped * log_prob, capped
    value = ratio * advantage
    if kind == at.IMPORTANCE:
        return value, value
    clipped = clamp(ratio, options[at.LOW], options[at.HIGH]) * advantage
    if advantage < 0.0 and ratio > options[at.DUAL_CLIP]:
        return options[at.DUAL_CLIP] * advantage, 0.0
    if clipped < value:
        return clipped, 0.0
    return value, value


def value_error_of(value: float, target: float, old: float, clip: float) -> tuple[float, float]:
    """``(V − R)²``, PPO-clipped where ``clip`` is finite, and its derivative by V."""
    error = value - target
    if math.isfinite(clip):
        moved = old + clamp(value - old, -clip, clip) - target
        if moved * moved > error * error:
            return moved * moved, 0.0
    return error * error, 2.0 * error


def gather(observation: Floats, inputs: int, order: Integers, mask: Flags, rows: int, x: Floats) -> None:
    """The block's observations as ``[inputs, BLOCK]``; masked rows become 0, whatever they hold."""
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
    networks: Integers, options: Doubles, parameters: Floats, scratch: Floats, order: Integers, rows: int, scale: float, action:
    Integers, continuous: Floats, legal: Flags, behavior: Floats, advantage: Floats, returns: Floats, old_value: Floats, weight:
    Floats, mask: Flags, surrogate: int, masked: int, sums: Doubles,
) -> None:  # fmt: skip
    """Score one block's recorded actions: add to the sums, leave ∂objective/∂outputs in the two ``delta``s."""
    outputs, critic = networks[at.OUTPUTS], networks[at.CRITIC_LAYERS] > 0
    last = networks[at.ACTOR_LAYERS] - 1
    out = shift(scratch, networks[at.LAYERS_AT + last * at.LAYER + 5])
    value_out = out
    if critic:
        value_out = shift(scratch, networks[at.LAYERS_AT + (last + networks[at.CRITIC_LAYERS]) * at.LAYER + 5])
    delta, value_delta = shift(scratch, networks[at.DELTA_AT]), shift(scratch, networks[at.VALUE_DELTA_AT])
    log_std = shift(parameters, networks[at.LOG_STD])
    gradient = shift(scratch, networks[at.GRADIENT_AT] + networks[at.LOG_STD])
    gaussian = networks[at.HEAD] == at.GAUSSIAN
    for j in range(rows):
        row = order[j]
        w = weight[row] * scale
        z, d, allowed = shift(out, j), shift(delta, j), shift(legal, row * outputs)
        chosen = shift(continuous, row * outputs)
        if mask[row] == 0:
            for i in range(outputs):
                d[i * BLOCK] = 0.0
            value_delta[j] = 0.0
            continue
        normalizer = 0.0
        if gaussian:
            log_prob = gaussian_log_prob(z, log_std, outputs, chosen)
            entropy = 0.0
            for i in range(outputs):
                entropy += log_std[i] + HALF_LOG_TWO_PI + 0.5
        else:
            normalizer = log_normalizer(z, outputs, allowed, masked)
            log_prob = z[action[row] * BLOCK] - normalizer
            entropy = categorical_entropy(z, outputs, allowed, masked, normalizer)
        moved = log_prob - behavior[row]
        excess = math.expm1(moved)  # ratio − 1
        objective, slope = surrogate_of(surrogate, log_prob, excess + 1.0, advantage[row], options)
        outside = excess < options[at.LOW] - 1.0 or excess > options[at.HIGH] - 1.0
        dead = outside and moved * advantage[row] > 0.0
        dead = dead or (excess > options[at.DUAL_CLIP] - 1.0 and advantage[row] < 0.0)
        sums[at.APPROX_KL] += excess - moved
        sums[at.CLIP_FRACTION] += 1.0 if outside else 0.0
        sums[at.DEAD_FRACTION] += 1.0 if dead else 0.0
        sums[at.MAX_LOG_RATIO] = max(sums[at.MAX_LOG_RATIO], abs(moved))
        sums[at.SCORED] += 1.0
        objective += options[at.ENTROPY_COEF] * entropy
        if w == 0.0:  # hides whatever stands there
            w, slope, objective, entropy = 0.0, 0.0, 0.0, 0.0
        if critic:
            error, value_slope = value_error_of(value_out[j], returns[row], old_value[row], options[at.VALUE_CLIP])
            if w == 0.0:
                error, value_slope = 0.0, 0.0
            objective -= options[at.VALUE_COEF] * error
            sums[at.VALUE_ERROR] += w * error
            value_delta[j] = -w * options[at.VALUE_COEF] * value_slope
        sums[at.OBJECTIVE] += w * objective
        sums[at.ENTROPY] += w * entropy
        sums[at.STEPPED] += w
        from_entropy = w * options[at.ENTROPY_COEF]
        if gaussian:
            gaussian_backward(z, log_std, d, gradient, outputs, chosen, w * slope, from_entropy)
        else:
            categorical_backward(z, d, outputs, allowed, masked, normalizer, entropy, action[row], w * slope, from_entropy)


def clip_and_step(
    networks: Integers, options: Doubles, parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradient: Floats, taken: float,
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
    adam(parameters, exp_avg, exp_avg_sq, gradient, count, scale, options[at.STEP] + taken + 1.0, options)
    results[at.GRADIENT_NORM] += norm
    return True


def score_minibatch(
    networks: Integers, options: Doubles, parameters: Floats, scratch: Floats, order: Integers, size: int, scale: float, observation:
    Floats, action: Integers, continuous: Floats, legal: Flags, behavior: Floats, advantage: Floats, returns: Floats, old_value:
    Floats, weight: Floats, mask: Flags, surrogate: int, masked: int, sums: Doubles,
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
        gather(observation, networks[at.INPUTS], block, mask, rows, x)
        forward(actor, actor_layers, parameters, scratch, padded(rows), kind)
        forward(critic, critic_layers, parameters, scratch, padded(rows), kind)
        score_block(
            networks, options, parameters, scratch, block, rows, scale, action, continuous, legal, behavior, advantage, returns, old_value,
            weight, mask, surrogate, masked, sums,
        )  # fmt: skip
        backward(actor, actor_layers, parameters, gradient, scratch, rows, kind, delta, other, rowwise, product)
        backward(critic, critic_layers, parameters, gradient, scratch, rows, kind, value_delta, other, rowwise, product)


def update(
    parameters: Floats, exp_avg: Floats, exp_avg_sq: Floats, scratch: Floats, networks: Integers, options: Doubles, observation:
    Floats, action: Integers, continuous: Floats, legal: Flags, behavior: Floats, advantage: Floats, returns: Floats, old_value:
    Floats, weight: Floats, mask: Flags, order: Integers, bounds: Integers, epochs: int, minibatches: int, surrogate: int, masked:
    int, results: Doubles,
) -> None:  # fmt: skip
    """Every epoch and minibatch of one update; ``order [epochs, rows]`` is the shuffled rows, ``bounds`` where minibatches end."""
    gradient = shift(scratch, networks[at.GRADIENT_AT])
    sums = shift(results, at.NUM_RESULTS)
    total = bounds[minibatches]
    for number in range(epochs * minibatches):
        epoch, part = number // minibatches, number % minibatches
        start, size = epoch * total + bounds[part], bounds[part + 1] - bounds[part]
        score_minibatch(
            networks, options, parameters, scratch, shift(order, start), size, total / size, observation, action, continuous, legal,
            behavior, advantage, returns, old_value, weight, mask, surrogate, masked, sums,
        )  # fmt: skip
        results[at.STATUS] = at.NOT_FINITE
        if not math.isfinite(sums[at.OBJECTIVE]):
            return
        if number == 0 and sums[at.MAX_LOG_RATIO] > options[at.RATIO_TOLERANCE]:
            results[at.MAX_LOG_RATIO] = sums[at.MAX_LOG_RATIO]
            results[at.STATUS] = at.RATIO_NOT_ONE
            return
        count, weights = max(1.0, sums[at.SCORED]), sums[at.STEPPED]
        results[at.OBJECTIVE] += sums[at.OBJECTIVE]
        results[at.APPROX_KL] += sums[at.APPROX_KL] / count
        results[at.CLIP_FRACTION] += sums[at.CLIP_FRACTION] / count
        results[at.DEAD_FRACTION] += sums[at.DEAD_FRACTION] / count
        results[at.ENTROPY] += sums[at.ENTROPY] / weights
        results[at.VALUE_ERROR] += sums[at.VALUE_ERROR] / weights
        results[at.MAX_LOG_RATIO] = max(results[at.MAX_LOG_RATIO], sums[at.MAX_LOG_RATIO])
        results[at.SCORED] += 1.0
        if sums[at.APPROX_KL] / count > options[at.TARGET_KL]:
            break
        if not clip_and_step(networks, options, parameters, exp_avg, exp_avg_sq, gradient, results[at.STEPPED], results):
            return
        results[at.STEPPED] += 1.0
    results[at.STATUS] = at.FINISHED


def draw(
    networks: Integers, parameters: Floats, out: Floats, rows: int, masked: int, noise: Floats, legal: Flags, action: Integers,
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
    parameters: Floats, scratch: Floats, networks: Integers, observation: Floats, rows: int, mode: int, masked: int, noise: Floats,
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
        if mode != at.VALUE:
            forward(actor, actor_layers, parameters, scratch, padded(count), kind)
        if mode == at.OUTPUT:
            for j in range(count):
                for i in range(outputs):
                    continuous[(start + j) * outputs + i] = out[i * BLOCK + j]
        elif mode != at.VALUE:
            numbers = start if networks[at.HEAD] == at.CATEGORICAL else start * outputs
            draw(
                networks, parameters, out, count, masked, shift(noise, numbers), shift(legal, start * outputs), shift(action, start),
                shift(continuous, start * outputs), shift(log_prob, start),
            )  # fmt: skip
        if mode == at.VALUE or mode == at.SAMPLE_AND_VALUE:
            forward(critic, critic_layers, parameters, scratch, padded(count), kind)
            last = shift(scratch, critic[(critic_layers - 1) * at.LAYER + 5])
            for j in range(count):
                value[start + j] = last[j]
