"""Whether a head, and a gradient step, are what the kernels make of them: looked at before they serve either.

``fast/formulas.py`` and the draws of ``fast/kernels.py`` are the only formulas of ``functional/`` that stand a second time, Adam and the
clipping of norms those of ``updates/``. The kernels are ordinary Python, so they are called as they are on a few numbers; draws,
log-probabilities, entropies and gradients are checked against the head's, moved parameters against the update's. What was edited
differs, and runs as it is written.
"""

import hashlib
import linecache
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from upslope.fast import layout as at
from upslope.fast.formulas import head_backward, head_forward
from upslope.fast.kernels import clip_and_step, draw
from upslope.records import Batch
from upslope.updates.ascent import Ascent
from upslope.updates.state import BETAS, AscentState

ROWS, OUTPUTS = 6, 3
LEGAL = ((True, False, True), (True, True, True), (False, True, True)) * 2
SLOPES = 1.0, 0.5
"""∂/∂log π and ∂/∂entropy of what is differentiated."""
BOUND = 1e-5
LOOP = "b0169fd9d393"
"""The :func:`fingerprint` of the loop over minibatches, whose draws, early stops and checks ``fast/update.py`` and the kernels follow.

Whoever edits the loop sees to it that they still do, and then writes the new one here."""
EVALUATING = "evaluate", "sample", "value", "distribution", "_run", "_outputs", "_actor", "_with_log_std"
"""Methods of a policy that kernels stand in for."""


def agrees(head: object) -> bool:
    """Whether a categorical head, or a Gaussian one whose spread does not depend on the state, is what the kernels compute."""
    return head_agrees(type(head), functions_of(head))


def functions_of(head: object) -> tuple[Any, ...]:
    return tuple(getattr(type(head), name, None) for name in ("sample", "log_prob", "entropy", "parts", "functions"))


@lru_cache(maxsize=64)
def head_agrees(head_class: Any, functions: tuple[Any, ...]) -> bool:
    heads = sys.modules["upslope.control.heads"]
    gaussian = head_class is heads.Gaussian
    bounds = (-np.inf,) * OUTPUTS, (np.inf,) * OUTPUTS
    head = head_class(OUTPUTS, *bounds) if gaussian else head_class(OUTPUTS)
    try:
        return all(difference(head, gaussian=gaussian, masked=masked) < BOUND for masked in ((False,) if gaussian else (False, True)))
    except Exception:  # it takes, or gives, something else; what, says the run that is made without kernels
        return False


def difference(head: Any, *, gaussian: bool, masked: bool) -> float:
    """The largest between what the kernels and what the head say of a few rows; inf where they draw other actions."""
    outputs = torch.linspace(-2.0, 2.5, ROWS * OUTPUTS).sin().mul(3.0).reshape(ROWS, OUTPUTS).requires_grad_()
    log_std = torch.tensor([-0.5, 0.1, 0.4], requires_grad=True)
    legal = torch.tensor(LEGAL) if masked else None
    with torch.enable_grad():
        parameters = torch.cat([outputs, log_std.expand_as(outputs)], -1) if gaussian else outputs
        action = head.sample(parameters.detach(), torch.Generator().manual_seed(0), legal)
        log_prob, entropy = head.log_prob(parameters, action, legal), head.entropy(parameters, legal)
        found = torch.autograd.grad((SLOPES[0] * log_prob + SLOPES[1] * entropy).sum(), [outputs, log_std], allow_unused=True)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(ROWS, OUTPUTS, generator=generator) if gaussian else torch.rand(ROWS, generator=generator)
    networks = np.zeros(at.LAYERS_AT, np.int64)
    networks[at.OUTPUTS], networks[at.HEAD] = OUTPUTS, at.GAUSSIAN if gaussian else at.CATEGORICAL
    z, delta, said = np.zeros(OUTPUTS * at.BLOCK, np.float32), np.zeros(OUTPUTS * at.BLOCK, np.float32), np.zeros(ROWS, np.float32)
    z.reshape(OUTPUTS, at.BLOCK)[:, :ROWS] = outputs.detach().numpy().T
    spread, gradient, flags = log_std.detach().numpy(), np.zeros(OUTPUTS, np.float32), np.array(LEGAL, np.uint8).reshape(-1)
    drawn, continuous = np.zeros(ROWS, np.int64), np.zeros(ROWS * OUTPUTS, np.float32)
    draw(networks, spread, z, ROWS, masked, noise.numpy().reshape(-1), flags, drawn, continuous, said)
    batch = {at.ACTION: drawn, at.CONTINUOUS: continuous, at.LEGAL: flags}
    away = [
        np.abs((continuous.reshape(ROWS, OUTPUTS) if gaussian else drawn) - action.numpy()).max(),
        np.abs(said - log_prob.detach().numpy()).max(),
    ]
    for row in range(ROWS):
        forward = head_forward(networks, spread, z[row:], batch, row, masked)
        head_backward(networks, spread, z[row:], batch, row, masked, *forward[1:], *SLOPES, delta[row:], gradient)
        away += [abs(forward[0] - log_prob[row].item()), abs(forward[1] - entropy[row].item())]
    away.append(np.abs(delta.reshape(OUTPUTS, at.BLOCK)[:, :ROWS].T - found[0].numpy()).max())
    if gaussian:
        away.append(np.abs(gradient - found[1].numpy()).max())
    return float(max(away)) if np.isfinite(away).all() else np.inf


def evaluates_as_made(policy: Any) -> bool:
    """Whether an ``MLPPolicy`` or a ``LinearPolicy`` evaluates as it was made to: its network's layers, and then its head.

    It does not where a network of another class was put in, or where the class's own source was edited.
    """
    return is_shipped(policy.network) and class_evaluates_as_made(type(policy), policy)


def class_evaluates_as_made(kind: Any, policy: Any) -> bool:
    """The same of the policies of a class with the head of this one, whatever its own network is."""
    forward = [network.forward for network in shipped_networks()]
    functions = *functions_of(policy.head), *forward, *(getattr(kind, name, None) for name in EVALUATING)
    return evaluations_agree(kind, functions, policy.log_std is not None)


def is_shipped(network: object) -> bool:
    """Whether a network is of the very class that an ``MLPPolicy`` or a ``LinearPolicy`` makes."""
    return type(network) in shipped_networks()


def shipped_networks() -> tuple[Any, ...]:
    return sys.modules["upslope.control.networks"].MLP, sys.modules["upslope.control.linear"].LinearNetwork


@lru_cache(maxsize=64)
def evaluations_agree(kind: Any, functions: tuple[Any, ...], continuous: bool) -> bool:
    spaces, options = sys.modules["gymnasium.spaces"], {"features": "linear"} if kind.__name__ == "LinearPolicy" else {"hidden_sizes": (4,)}
    seen, actions = spaces.Box(-1, 1, (OUTPUTS,)), spaces.Box(-1, 1, (OUTPUTS,)) if continuous else spaces.Discrete(OUTPUTS)
    try:
        return evaluation_difference(kind((seen, actions), **options)) < BOUND
    except Exception:  # what it takes or gives is not what it was
        return False


@torch.no_grad()
def evaluation_difference(policy: Any) -> float:
    """The largest between what a policy and what its layers and its head say of a few rows."""
    for parameter in policy.parameters():
        parameter.copy_(torch.linspace(-2.0, 2.5, parameter.numel()).sin().reshape(parameter.shape))
    network = policy.network
    is_linear = isinstance(network.actor, Tensor)
    x = torch.linspace(-1.0, 9.5, ROWS * (width := len(network.actor) if is_linear else OUTPUTS)).cos().reshape(ROWS, width)
    if not is_linear:
        outputs, value = network.actor(x), network.critic(x).squeeze(-1)
    else:
        outputs, value = x @ network.actor, x @ network.critic
    parameters = outputs if policy.log_std is None else torch.cat([outputs, policy.log_std.expand_as(outputs)], -1)
    value = value if policy.value_scale is None else policy.value_scale(value)
    action = policy.head.sample(parameters, torch.Generator().manual_seed(0))
    found = policy.evaluate(observation=x, action=action)
    drawn = policy.sample({"observation": x}, generator=torch.Generator().manual_seed(0))
    pairs = [
        (found.log_prob, policy.head.log_prob(parameters, action)),
        (found.entropy, policy.head.entropy(parameters)),
        *((said, value) for said in (found.value, drawn.value, policy.value({"observation": x}))),
        (policy.distribution(observation=x).parameters, parameters),
        (drawn.action, action),
        (drawn.log_prob, found.log_prob),
    ]
    return max(float((one - other).abs().max()) for one, other in pairs)


def step_agrees() -> bool:
    """Whether the loop over minibatches is the one that the kernels were made for, and clipped gradients and Adam move parameters alike."""
    loop = Ascent.__call__, Ascent.backward, Batch.minibatches
    return fingerprint(loop) in (LOOP, None) and steps_compared((Ascent.step, AscentState.descend))


@lru_cache(maxsize=64)
def fingerprint(functions: tuple[Any, ...]) -> str | None:
    """Of the source of some functions, comments apart; None where there is none. A wrapper counts as itself, not as what it wraps."""
    if not all(isinstance(function, FunctionType) for function in functions):
        return ""  # something else than a function of Python has been put there
    lines = [line for function in functions for line in source_of(cast(FunctionType, function).__code__)]
    kept = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12] if kept else None


def source_of(code: CodeType) -> list[str]:
    """The lines of a function, from its first to where its last expression ends; none where there is no file."""
    ends = [end or start or 0 for part in parts_of(code) for start, end, _, _ in part.co_positions()]  # no ends under -X no_debug_ranges
    return linecache.getlines(code.co_filename)[code.co_firstlineno - 1 : max(ends, default=0)]


def parts_of(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of all functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from parts_of(constant)


@lru_cache(maxsize=64)
def steps_compared(functions: tuple[Any, ...]) -> bool:
    """Two steps of seven parameters, three of them the critic's, from gradients of which only the actor's is clipped."""
    start = torch.linspace(-1.0, 2.0, 7)
    gradient = torch.tensor([3.0, -0.5, 0.1, -0.2, 0.05, 1.0, -2.0])
    ascent, parameters = Ascent(learning_rate=0.1, max_grad_norm=0.5), tuple(nn.Parameter(x) for x in start.split([2, 3, 2]))
    state = AscentState.of(parameters, None, seed=0, learning_rate=ascent.learning_rate, critic=(False, True, False))
    networks, options, results = np.zeros(at.LAYERS_AT, np.int64), np.zeros(at.NUM_OPTIONS), np.zeros(at.NUM_RESULTS)
    networks[at.NUM_PARAMETERS], networks[at.CRITIC_AT], networks[at.CRITIC_SIZE] = 7, 2, 3
    options[at.MAX_GRAD_NORM], options[at.LEARNING_RATE], options[at.EPS] = 0.5, ascent.learning_rate, ascent.eps
    options[at.BETA1], options[at.BETA2] = BETAS
    moved, exp_avg, exp_avg_sq = start.numpy().copy(), np.zeros(7, np.float32), np.zeros(7, np.float32)
    try:
        norms = [float(ascent.step(state, [*map(Tensor.clone, gradient.split([2, 3, 2]))])) for _ in range(2)]
    except Exception:  # whatever it is, the readable update will say it
        return False
    for _ in range(2):
        clip_and_step(networks, options, moved, exp_avg, exp_avg_sq, -gradient.numpy(), results)
        results[at.STEPPED] += 1.0
    away = np.abs(torch.cat([p.detach() for p in parameters]).numpy() - moved).max()
    return bool(away < BOUND and abs(sum(norms) - results[at.GRADIENT_NORM]) < BOUND)
