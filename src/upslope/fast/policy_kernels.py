"""What an MLP policy does between updates, as a compiled entry point: ``MLPPolicy.sample`` from given random numbers, or the critic's
values of any number of rows."""

from __future__ import annotations

import math

from upslope.fast import layout as at
from upslope.fast.formulas import gaussian_log_prob, log_normalizer
from upslope.fast.layout import BLOCK
from upslope.fast.networks import forward, padded
from upslope.fast.registers import Flags, Floats, Integers, shift, single


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
