"""The kernels run twice: compiled, and as the ordinary Python that they are."""

import numpy as np
import pytest

from tests.fast.cases import make_batch, make_policy
from upslope import PPO, Ascent
from upslope.fast import kernels, policy_kernels
from upslope.fast import layout as at
from upslope.fast.native import library
from upslope.fast.networks import tanh
from upslope.fast.plan import Plan, anatomy
from upslope.fast.rows import Rows, split
from upslope.fast.twins import compiled_update

pytest.importorskip("llvmlite")


def address(argument):
    return argument.ctypes.data if isinstance(argument, np.ndarray) else argument


def parameters_of(policy):
    return np.concatenate([p.detach().numpy().reshape(-1) for p in policy.parameters()])


@pytest.mark.parametrize("head,activation", [("categorical", "tanh"), ("gaussian", "relu")])
def test_an_update(head, activation):
    policy = make_policy(head, inputs=2, outputs=2, hidden_sizes=(3,), activation=activation)
    algorithm = PPO(entropy_coef=0.1, value_clip_range=0.3, dual_clip=1.5, update=Ascent(learning_rate=0.05, num_minibatches=2))
    batch = make_batch(policy, (70,), action_mask=head == "categorical")
    state = algorithm.update.start(policy, seed=0)
    run = compiled_update(algorithm, policy)
    plan, rows = run.prepared(state), Rows(batch, run.parts, value_error=True, value_clip=True)
    options = run.options(run.describe(algorithm), algorithm.update, state, masked="legal" in rows.tensors)
    order, bounds = rows.order(np.random.default_rng(0).permutation(rows.num_units)), split(rows.num_units, 2)
    columns = [rows.tensors[name].numpy().reshape(-1) if name in rows.tensors else np.zeros(1) for name in at.COLUMNS]
    columns = [column.view(np.uint8) if column.dtype == bool else column for column in columns]
    outcomes = []
    for compiled in (True, False):
        memory = [parameters_of(policy), *(np.zeros(len(parameters_of(policy)), np.float32) for _ in range(2)), np.zeros_like(plan.scratch)]
        results = np.zeros(2 * at.NUM_RESULTS)
        if compiled:
            table = np.array([column.ctypes.data for column in columns])
            arguments = [*memory, plan.networks, options, table, order, bounds, 1, 2, results]
            library().update(*map(address, arguments))
        else:
            kernels.update(*memory, plan.networks, options, columns, order, bounds, 1, 2, results)
        outcomes.append((*memory[:3], results))
    assert outcomes[0][-1][at.STATUS] == at.FINISHED and outcomes[0][-1][at.STEPPED] == 2
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)  # float32 sums of 35 rows in another order, and Adam


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
@pytest.mark.parametrize("mode", [at.SAMPLE, at.SAMPLE_AND_EVALUATE, at.OUTPUT, at.EVALUATE])
def test_a_step(head, mode):
    policy = make_policy(head, inputs=2, outputs=3, hidden_sizes=(3, 2))
    generator = np.random.default_rng(0)
    rows = 70
    state = Ascent().start(policy, seed=0)
    plan, parameters = Plan(anatomy(policy), state.flat.data.data_ptr(), 0), state.flat.data.numpy()
    observation = generator.standard_normal((rows, 2)).astype(np.float32).reshape(-1)
    legal = np.ones(rows * 3, np.uint8)
    legal[generator.integers(0, rows, 20) * 3 + 1] = 0
    noise = generator.random(rows * 3).astype(np.float32)
    outcomes = []
    for kernel in (library().step, policy_kernels.step):
        targets = [np.zeros(rows, np.int64), np.zeros(rows * 3, np.float32), np.zeros(rows, np.float32), np.zeros(rows, np.float32)]
        arguments = [parameters, plan.scratch, plan.networks, observation, rows, mode, True, noise, legal, *targets]
        kernel(*(map(address, arguments) if kernel is not policy_kernels.step else arguments))
        outcomes.append(targets)
    assert any(np.any(target) for target in outcomes[0])
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_an_evaluation_and_its_derivative(head):
    policy = make_policy(head, inputs=2, outputs=3, hidden_sizes=(3,))
    state = Ascent().start(policy, seed=0)
    plan, parameters = Plan(anatomy(policy), state.flat.data.data_ptr(), 0), state.flat.data.numpy()
    batch = make_batch(policy, (66,))
    observation, action = (batch.inputs[name].numpy().reshape(-1) for name in ("observation", "action"))
    discrete, continuous = (action, np.zeros(1, np.float32)) if head == "categorical" else (np.zeros(1, np.int64), action)
    slopes = np.random.default_rng(0).standard_normal((3, 66)).astype(np.float32)
    outcomes = []
    for kernel, twin in ((library(), None), (None, policy_kernels)):
        given = [parameters, plan.scratch, plan.networks, observation, 66, False, discrete, continuous, np.zeros(1, np.uint8)]
        results, gradient = [np.zeros(66, np.float32) for _ in range(3)], np.zeros_like(parameters)
        for name, rest in (("evaluate", results), ("pull_back", [*slopes, gradient])):
            if kernel is not None:
                getattr(kernel, name)(*map(address, [*given, *rest]))
            else:
                getattr(twin, name)(*given, *rest)
        outcomes.append([*results, gradient])
    for ours, theirs in zip(*outcomes, strict=True):
        assert np.any(ours)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # sums of 66 float32 terms in another order


def test_the_rational_tanh():
    x = np.concatenate([np.linspace(-12, 12, 4096), [0.0, 1e-30, -1e-8, 1e30]]).astype(np.float32)
    assert np.abs(tanh(x) - np.tanh(x.astype(np.float64))).max() < 4e-7
    assert np.abs(tanh(x)).max() <= 1.0
    assert np.isnan(tanh(np.array([np.nan], np.float32)))[0]
