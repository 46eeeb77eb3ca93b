"""The kernels run twice: compiled, and as the ordinary Python that they are."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.fast.cases import make_batch, make_policy
from upslope import PPO, Ascent
from upslope.fast import kernels, registers
from upslope.fast import layout as at
from upslope.fast.lower import FUNCTIONS
from upslope.fast.native import library
from upslope.fast.networks import tanh
from upslope.fast.plan import Plan, Rows, match_mlp_policy, split
from upslope.fast.update import CompiledUpdate, options_of
from upslope.updates.trust_region import ValueFit

pytest.importorskip("llvmlite")


def address(argument):
    return argument.ctypes.data if isinstance(argument, np.ndarray) else argument


def as_python(compiled):
    """The table of an objective for kernels that run as Python: its functions, which are Python too, and their memory."""
    names = {**vars(registers), "math": math, "inf": math.inf, "nan": math.nan}
    exec(compiled.source, names)
    return [*(names[name] for name in FUNCTIONS), *compiled.memory]


CASES = {
    "categorical": PPO(entropy_coef=0.1, value_clip_range=0.3, dual_clip=1.5, update=Ascent(learning_rate=0.05, num_minibatches=2)),
    "gaussian": PPO(entropy_coef=0.1, value_clip_range=0.3, dual_clip=1.5, update=Ascent(learning_rate=0.05, num_minibatches=2)),
    "critic": ValueFit(update=Ascent(learning_rate=0.05, num_minibatches=2, max_grad_norm=None)),
}


@pytest.mark.parametrize("kind", CASES)
def test_an_update(kind):
    algorithm, head = CASES[kind], "categorical" if kind == "categorical" else "gaussian"
    policy = make_policy(head, inputs=2, outputs=2, hidden_sizes=(3,), activation="tanh" if kind == "categorical" else "relu")
    batch, state = make_batch(policy, (70,), action_mask=kind == "categorical"), algorithm.update.start(policy, seed=0)
    parts = match_mlp_policy(policy)
    if kind == "critic":
        flat = state.flat.part(tuple(policy.critic.parameters()))
        state, parts = replace(state, flat=flat, parameters=flat.parameters), replace(parts, actor=(), log_std=None)
    run = CompiledUpdate(library(), parts)
    plan, objective = run.plan, run.objective(algorithm, policy, batch)
    rows, networks = Rows(batch, parts, objective.columns), objective.written_into(plan.networks)
    options = options_of(algorithm.update, state, masked=rows.masked)
    order, bounds = rows.order(np.random.default_rng(0).permutation(rows.num_units)), split(rows.num_units, 2)
    columns = [rows.tensors[name].numpy().reshape(-1) if name in rows.tensors else np.zeros(1) for name in at.BATCH_COLUMNS]
    columns += [getattr(batch, name).numpy().reshape(-1) for name in objective.columns]
    columns = [column.view(np.uint8) if column.dtype == bool else column for column in columns]
    outcomes, start = [], np.concatenate([p.detach().numpy().reshape(-1) for p in state.flat.parameters])
    for compiled in (True, False):
        memory = [start.copy(), np.zeros_like(start), np.zeros_like(start), np.zeros_like(plan.scratch)]
        results = np.zeros(at.NUM_RESULTS + len(objective.values))
        if compiled:
            table = np.array([column.ctypes.data for column in columns])
            library().update(*map(address, [*memory, networks, options, table, objective.table, order, bounds, 0, 1, 2, results]))
        else:
            kernels.update(*memory, networks, options, columns, as_python(objective), order, bounds, 0, 1, 2, results)
        outcomes.append((*memory[:3], results))
    assert outcomes[0][-1][at.STATUS] == at.FINISHED and outcomes[0][-1][at.STEPPED] == 2
    assert np.abs(outcomes[0][0] - start).max() > 1e-4
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)  # float32 sums of 35 rows in another order, and Adam


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
@pytest.mark.parametrize("mode", [at.SAMPLE, at.SAMPLE_AND_EVALUATE, at.OUTPUT, at.EVALUATE])
def test_a_step(head, mode):
    policy = make_policy(head, inputs=2, outputs=3, hidden_sizes=(3, 2))
    generator = np.random.default_rng(0)
    rows = 70
    state = Ascent().start(policy, seed=0)
    plan, parameters = Plan(match_mlp_policy(policy)), state.flat.data.numpy()
    observation = generator.standard_normal((rows, 2)).astype(np.float32).reshape(-1)
    legal = np.ones(rows * 3, np.uint8)
    legal[generator.integers(0, rows, 20) * 3 + 1] = 0
    noise = generator.random(rows * 3).astype(np.float32)
    outcomes = []
    for kernel in (library().step, kernels.step):
        targets = [np.zeros(rows, np.int64), np.zeros(rows * 3, np.float32), np.zeros(rows, np.float32), np.zeros(rows, np.float32)]
        arguments = [parameters, plan.scratch, plan.networks, observation, rows, mode, True, noise, legal, *targets]
        kernel(*(map(address, arguments) if kernel is not kernels.step else arguments))
        outcomes.append(targets)
    assert any(np.any(target) for target in outcomes[0])
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_rational_tanh():
    x = np.concatenate([np.linspace(-12, 12, 4096), [0.0, 1e-30, -1e-8, 1e30]]).astype(np.float32)
    assert np.abs(tanh(x) - np.tanh(x.astype(np.float64))).max() < 4e-7
    assert np.abs(tanh(x)).max() <= 1.0
    assert np.isnan(tanh(np.array([np.nan], np.float32)))[0]
