"""An objective that is traced, differentiated and compiled against the same objective under autograd; what is refused, and why."""

import random
import sys
import types
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as tf

from tests.fast.cases import close, make_batch, make_policy, twice, vector
from upslope import GRPO, PPO, RLOO, Ascent
from upslope import functional as F
from upslope.fast import layout as at
from upslope.fast import native
from upslope.fast import objective as objectives
from upslope.fast.graph import NotLowered
from upslope.fast.lower import NETWORK
from upslope.fast.objective import CompiledObjective, Objectives, lowered
from upslope.fast.trace import trace
from upslope.fast.twins import explain, fast_update
from upslope.records import Batch, Evaluation

pytest.importorskip("llvmlite")
ROWS = 40


@pytest.fixture(scope="module", autouse=True)
def _own_folder(tmp_path_factory):
    """The many objectives here are not kept beside the kernels."""
    native.library()
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("objectives")
        patch.setattr(native, "cache_folder", lambda: folder)
        yield


class Terms:
    """An algorithm that is nothing but an objective, from ``terms(new, batch) -> objective`` or ``-> (objective, metrics)``."""

    update = Ascent()

    def __init__(self, terms):
        self.terms = terms

    def objective(self, policy, batch):
        found = self.terms(policy.evaluate(**batch.inputs), batch)
        return found if isinstance(found, tuple) else (found, {})


class Given:
    """A policy whose evaluation is a leaf of the graph."""

    def __init__(self, evaluation):
        self.evaluation = evaluation

    def evaluate(self, **inputs):
        return self.evaluation


def sample(unit="step", shape=(ROWS,), seed=0):
    """A batch and an evaluation of it, of independent numbers."""
    generator = torch.Generator().manual_seed(seed)

    def numbers():
        return torch.randn(shape, generator=generator)

    mask = torch.rand(shape, generator=generator) < 0.8
    batch = Batch(
        inputs={},
        mask=mask if unit != "step" else torch.ones_like(mask),
        weight=torch.rand(shape, generator=generator) / ROWS * mask,
        unit=unit,
        behavior_log_prob=numbers(),
        advantage=numbers(),
        returns=numbers(),
        value=numbers(),
        reference_log_prob=numbers(),
    )
    evaluation = Evaluation(log_prob=numbers(), entropy=numbers().abs(), value=numbers())
    return batch, evaluation


def compiled(algorithm, batch):
    return CompiledObjective(lowered(algorithm, None, batch, lambda value: value))


def run(objective, batch, evaluation):
    """The objective's values and ∂/∂(log π, entropy, value) of a whole batch, as the kernels would ask for them."""
    from ctypes import CFUNCTYPE, c_int64, c_void_p

    rows = batch.mask.numel()
    objective.read_settings()
    objective.numbers[:2], objective.sums[:] = (rows, 1.0), 0.0
    columns = [getattr(batch, name).contiguous() for name in objective.columns]
    table, order, slopes = np.array([c.data_ptr() for c in columns]), np.arange(rows), np.zeros((3, rows))
    call = [CFUNCTYPE(None, c_int64, *[c_void_p] * 6)(int(address)) for address in objective.table[:3]]
    memory = [a.ctypes.data for a in objective.memory]
    call[0](rows, order.ctypes.data, table.ctypes.data, *memory)
    each = objective.each.reshape(at.NUM_EACH, at.BLOCK)
    for start in range(0, rows, at.BLOCK):
        size = min(at.BLOCK, rows - start)
        for name, place in NETWORK.items():
            each[place, :size] = getattr(evaluation, name).detach().numpy().reshape(-1)[start : start + size]
        call[1](size, order[start:].ctypes.data, table.ctypes.data, *memory)
        slopes[:, start : start + size] = each[at.SLOPES : at.SLOPES + 3, :size]
    call[2](rows, order.ctypes.data, table.ctypes.data, *memory)
    return dict(zip(objective.metrics, objective.values.tolist(), strict=True)), slopes


def by_autograd(algorithm, batch, evaluation):
    leaves = [getattr(evaluation, name).clone().requires_grad_() for name in NETWORK]
    value, metrics = algorithm.objective(Given(Evaluation(**dict(zip(NETWORK, leaves, strict=True)))), batch)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    slopes = [torch.zeros(batch.mask.numel()) if g is None else g.reshape(-1) for g in found]
    return {"objective": value.item(), **{k: v.item() for k, v in metrics.items() if k != "log_ratio"}}, torch.stack(slopes).numpy()


def assert_as_autograd(terms, unit="step", shape=(ROWS,)):
    algorithm = terms if hasattr(terms, "objective") else Terms(terms)
    batch, evaluation = sample(unit, shape)
    values, slopes = run(compiled(algorithm, batch), batch, evaluation)
    expected, theirs = by_autograd(algorithm, batch, evaluation)
    assert np.abs(theirs).max() > 1e-4, "the case has no gradient"
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert close(values[name], value, atol=2e-6 * max(1.0, abs(value))), name
    np.testing.assert_allclose(slopes, theirs, rtol=2e-6, atol=2e-6 * np.abs(theirs).max())


def weighted(terms):
    return lambda new, batch: F.weighted_sum(terms(new, batch), batch.weight)


ELEMENTWISE = {
    "arithmetic": lambda new, b: (2 * new.log_prob - b.advantage / 3 + 1 - new.entropy * new.value) / (1 + new.entropy),
    "reflected": lambda new, b: 1 - new.log_prob + 2 / (2 + new.entropy) + 1.5 * new.value,
    "powers": lambda new, b: new.value**2 + new.entropy**1.5 + (1 + new.entropy) ** 0.5 + new.value**3 + 2**new.log_prob,
    "power of two terms": lambda new, b: (1 + new.entropy) ** new.value,
    "exponentials": lambda new, b: new.log_prob.exp() + torch.expm1(new.value) + (1 + new.entropy).log() + torch.log1p(new.entropy),
    "roots": lambda new, b: new.entropy.sqrt() + torch.sqrt(1 + new.value.square()) + (1 + new.entropy).reciprocal(),
    "squashing": lambda new, b: torch.sigmoid(new.log_prob) + torch.tanh(new.value) + new.entropy.sin() + new.entropy.cos(),
    "soft": lambda new, b: tf.softplus(new.log_prob) + tf.logsigmoid(new.value) + tf.relu(new.log_prob) + new.log_prob.relu(),
    "abs": lambda new, b: (new.log_prob - b.behavior_log_prob).abs() + torch.abs(new.value),
    "min and max": lambda new, b: torch.minimum(new.log_prob, new.value) + torch.max(new.value, b.returns) + torch.min(b.value, new.value),
    "ties": lambda new, b: (
        torch.maximum(new.value, new.value.detach()) + torch.minimum(new.log_prob, new.log_prob) + (new.entropy * 0).abs()
    ),
    "clamps": lambda new, b: new.log_prob.clamp(-0.5, 0.5) + new.value.clamp(min=0.1) + torch.clamp(new.entropy, max=0.3).clip(0.1),
    "clamped by a column": lambda new, b: new.value.clamp(b.value - 0.2, b.value + 0.2),
    "where": lambda new, b: torch.where(b.advantage < 0, new.log_prob, 2.0) + new.value.where(new.value > b.returns, new.entropy),
    "conditions": lambda new, b: new.log_prob * ((b.advantage >= 0) & (new.value < 1) | ~(b.returns <= 0.1)) + (b.value != 0) * new.value,
    "equals": lambda new, b: (
        new.value * ((b.value >= b.value) & (b.value <= b.value) & (b.value == b.value))
        + new.log_prob * ((b.value > b.value) | (b.value < b.value) | (b.value != b.value))
    ),
    "fill": lambda new, b: new.log_prob.masked_fill(b.advantage > 0.5, 1.0) + torch.zeros_like(new.value) + torch.ones_like(b.value),
    "detached": lambda new, b: new.log_prob.exp().detach() * new.log_prob + (new.value.data - new.value) ** 2,
    "no grad": lambda new, b: without_gradient(new.log_prob) * new.log_prob,
    "cast": lambda new, b: (b.advantage > 0).float() * new.log_prob + new.value.to(torch.float32).clone(),
    "squared error": lambda new, b: tf.mse_loss(new.value, b.returns, reduction="none"),
    "tensor of a number": lambda new, b: torch.minimum(new.log_prob, torch.tensor(0.3)) * torch.tensor(2.0),
    "finite": lambda new, b: torch.where(torch.isfinite(new.value) & ~torch.isnan(b.returns), new.value, 0.0),
    "constant factor 0": lambda new, b: 0.0 * new.log_prob + new.value,
}


@torch.no_grad()
def without_gradient(x):
    return x * 3


@pytest.mark.parametrize("terms", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_operations(terms):
    assert_as_autograd(weighted(terms))


REDUCED = {
    "mean": lambda new, b: (new.log_prob * b.advantage).mean() - 0.5 * ((new.value - b.returns) ** 2).mean() + 0.01 * new.entropy.mean(),
    "sum": lambda new, b: torch.sum(new.log_prob * b.advantage) / b.mask.sum() + new.value.sum(),
    "count": lambda new, b: new.log_prob.sum() / new.log_prob.numel(),
    "minus the loss": lambda new, b: (
        -((-new.log_prob * b.advantage).mean() + 0.5 * tf.mse_loss(new.value, b.returns, reduction="none").mean())
    ),
    "chosen": lambda new, b: (new.log_prob * b.advantage)[b.mask].mean() + new.value[b.mask].sum() / b.mask.sum(),
    "chosen twice": lambda new, b: (new.log_prob[b.mask] * b.advantage[b.mask] + 1).sum() / b.advantage[b.mask].numel(),
    "normalized": lambda new, b: (new.log_prob * (b.advantage - b.advantage.mean()) / (b.advantage.std() + 1e-8)).mean(),
    "normalized without correction": lambda new, b: (new.log_prob * b.advantage / b.advantage.var(correction=0)).mean(),
    "normalized where chosen": lambda new, b: (
        new.log_prob * (b.advantage - b.advantage[b.mask].mean()) / b.advantage[b.mask].std()
    ).mean(),
    "scaled by a sum": lambda new, b: (new.log_prob * b.weight).sum() / b.weight.sum() * b.returns.abs().mean().sqrt(),
    "flat": lambda new, b: (new.log_prob.flatten() * b.advantage.reshape(-1)).mean(),
    "metrics": lambda new, b: (
        (new.log_prob * b.weight).sum(),
        {
            "kl": (b.behavior_log_prob - new.log_prob).detach().mean(),
            "share": (new.value > 0).float().mean(),
            "constant": torch.tensor(2.0),
        },
    ),
}


@pytest.mark.parametrize("unit, shape", [("step", (ROWS,)), ("sequence", (9, 11)), ("group", (4, 3, 9))])
@pytest.mark.parametrize("terms", REDUCED.values(), ids=REDUCED.keys())
def test_sums_over_steps(terms, unit, shape):
    assert_as_autograd(terms, unit, shape)


LEAVES = ("new.log_prob", "new.value", "new.entropy", "b.advantage", "b.behavior_log_prob", "b.returns")
ONE = ("torch.tanh({})", "torch.sigmoid({})", "{}.abs()", "({}).clamp(-0.7, 0.9)", "torch.exp(-({}).abs())", "({}) ** 2", "({}).detach()",
       "tf.softplus({})", "torch.log1p(({}) ** 2)", "torch.sqrt(1 + ({}) ** 2)", "-({})")  # fmt: skip
TWO = ("({} + {})", "({} - {})", "({} * {})", "({} / (1.5 + torch.tanh({})))", "torch.minimum({}, {})", "torch.maximum({}, {})",
       "torch.where({} > 0.1, {}, 0.5)")  # fmt: skip


def composed(generator, depth):
    """A random expression."""
    if depth == 0:
        return generator.choice(LEAVES)
    if generator.random() < 0.5:
        return generator.choice(ONE).format(composed(generator, depth - 1))
    return generator.choice(TWO).format(composed(generator, depth - 1), composed(generator, depth - 1))


@pytest.mark.parametrize("seed", range(40))
def test_random_compositions(seed):
    generator = random.Random(seed)
    text = f"new.log_prob * b.advantage + 0.1 * new.value + {' + '.join(composed(generator, 4) for _ in range(2))}"
    assert_as_autograd(weighted(eval(f"lambda new, b: {text}", {"torch": torch, "tf": tf})))


SURROGATES = {
    "clipped": F.clipped_surrogate,
    "dual clip": partial(F.clipped_surrogate, dual_clip=1.5),
    "importance": F.importance_weighted,
    "truncated": F.truncated_score,
    "score": F.score_function,
    "penalized": partial(F.kl_penalized_surrogate, beta=0.3),
}


@pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES.keys())
@pytest.mark.parametrize("unit, shape", [("step", (ROWS,)), ("sequence", (9, 11))])
def test_shipped_surrogates(surrogate, unit, shape):
    def terms(new, b):
        total = surrogate(new.log_prob, b.behavior_log_prob, b.advantage, b.mask, 0.2)
        metrics = F.surrogate_metrics(new.log_prob, b.behavior_log_prob, b.advantage, b.mask, 0.2)
        return F.weighted_sum(total, b.weight), metrics

    assert_as_autograd(terms, unit, shape)


# ---------------------------------------------------------------------------------------------------------------- refusals


def branch(new, b):
    return (new.log_prob if b.advantage.mean() > 0 else new.value).mean()


def in_place(new, b):
    total = new.log_prob * 2
    total += b.advantage
    return total.mean()


def too_long(new, b):
    total = new.log_prob
    for _ in range(5000):
        total = total + 1.0
    return total.mean()


REFUSED = {
    "cumsum() is not compiled": lambda new, b: new.log_prob.cumsum(0).mean(),
    "it looks at a number while it runs (bool)": branch,
    "it looks at a number while it runs (item)": lambda new, b: new.log_prob.mean() * b.advantage.mean().item(),
    "it looks at a number while it runs (format)": lambda new, b: new.log_prob.mean() * len(f"{new.log_prob.mean():.3f}"),
    "it changes a tensor in place (add)": in_place,
    "it is not the same for minibatches of every size": lambda new, b: new.log_prob.sum() / len(new.log_prob),
    "or not the same each time": lambda new, b: new.log_prob.mean() * random.random(),
    "it uses a tensor that is not of the batch": lambda new, b: (new.log_prob * torch.ones(new.log_prob.shape)).mean(),
    "it uses batch.behavior_parameters": lambda new, b: (new.log_prob * b.behavior_parameters).mean(),
    "it uses batch.inputs['action']": lambda new, b: (new.log_prob * b.inputs["action"]).mean(),
    "it calls max() in a form that is not compiled": lambda new, b: new.log_prob.max() + new.value.mean(),
    "it calls to() in a form that is not compiled": lambda new, b: (new.log_prob * b.advantage.to(torch.int64)).mean(),
    "it takes the std of a part": lambda new, b: new.log_prob.mean() * b.advantage.std(False),
    "it picks single steps, ": lambda new, b: new.log_prob[b.mask][b.mask[b.mask]].mean(),
    "it is too long": too_long,
    "it picks single steps": lambda new, b: new.log_prob[0] + new.value.mean(),
    "unsqueeze() is not compiled": lambda new, b: new.log_prob.unsqueeze(-1).mean(),
    "joins different steps": lambda new, b: (new.log_prob[b.mask] + new.value).mean(),
    "its value is not a sum over steps": lambda new, b: new.log_prob,
    "that moves with the policy": lambda new, b: (new.log_prob / new.log_prob.exp().mean()).mean(),
    "it raises ZeroDivisionError": lambda new, b: new.log_prob.mean() / (1 // 0),
    "in a form that is not compiled": lambda new, b: torch.add(new.log_prob, new.value, alpha=2).mean(),
    "it reports something else than numbers": lambda new, b: (new.log_prob.mean(), {"ratio": new.log_prob.detach()}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused(reason):
    batch = replace(sample()[0], inputs={"action": torch.zeros(ROWS)}, behavior_parameters=torch.zeros(ROWS, 3))
    with pytest.raises(NotLowered) as refused:
        compiled(Terms(REFUSED[reason]), batch)
    assert reason.strip(", ") in str(refused.value)


@pytest.mark.parametrize(
    "terms", [lambda new, b: new.log_prob.sum(-1).exp().mean(), lambda new, b: new.log_prob.mean(-1, keepdim=True).mean()]
)
def test_a_sum_over_each_sequence_is_refused(terms):
    with pytest.raises(NotLowered, match="of a part of the steps, or of each sequence"):
        compiled(Terms(terms), sample("sequence", (4, 5))[0])


def test_a_policy_that_is_asked_for_more_than_its_evaluation_is_refused():
    class Asks(Terms):
        def objective(self, policy, batch):
            return policy.evaluate(**batch.inputs).log_prob.mean() + policy.distribution(**batch.inputs).entropy().mean(), {}

    class Other(Terms):
        def objective(self, policy, batch):
            return policy.evaluate(observation=batch.mask).log_prob.mean(), {}

    batch = make_batch(make_policy())
    with pytest.raises(NotLowered, match="it asks the policy for distribution"):
        trace(Asks(None), make_policy(), batch, None)
    with pytest.raises(NotLowered, match="it evaluates something else than the batch"):
        trace(Other(None), make_policy(), batch, None)


def test_an_objective_may_be_an_attribute():
    class Holder:
        def __init__(self):
            self.objective = Terms(lambda new, b: new.log_prob.mean()).objective

    batch, evaluation = sample()
    found = Objectives()(Holder(), None, batch, None)
    assert close(run(found, batch, evaluation)[0]["objective"], float(evaluation.log_prob.mean()))


def test_a_trace_leaves_the_generator_alone():
    state = torch.get_rng_state()
    compiled(Terms(lambda new, b: new.log_prob.mean() + 0.0 * torch.rand(()).item()), sample()[0])
    assert torch.equal(state, torch.get_rng_state())


# --------------------------------------------------------------------------------------------------------- what changes it


def test_settings_change_without_compiling_again(monkeypatch):
    made = []
    original = objectives.functions
    monkeypatch.setattr(objectives, "functions", lambda *arguments: made.append(arguments[0]) or original(*arguments))
    batch, evaluation = sample()
    for coef in (0.5, 0.25):
        algorithm = PPO(value_coef=coef, clip_range=coef)
        values, _ = run(compiled(algorithm, batch), batch, evaluation)
        assert close(values["objective"], by_autograd(algorithm, batch, evaluation)[0]["objective"])
    assert made[0] == made[1]


FACTOR = 2.0


def test_an_objective_is_traced_again_when_something_that_it_sees_has_changed(monkeypatch):
    batch, evaluation = sample()
    inside, tensor = {"factor": 2.0}, torch.tensor(2.0)
    closed = 2.0

    class Mutable(Terms):
        factor = 2.0

        def __init__(self):
            super().__init__(lambda new, b: new.log_prob.mean() * closed * FACTOR)
            self.own, self.inside, self.tensor = 2.0, inside, tensor

        def objective(self, policy, batch):
            value, metrics = super().objective(policy, batch)
            return value * self.own * self.inside["factor"] * self.tensor, metrics

    algorithm, known = Mutable(), Objectives()

    def value():
        found = known(algorithm, None, batch, lambda v: v)
        assert found is known(algorithm, None, batch, lambda v: v), "it is traced each time"
        return run(found, batch, evaluation)[0]["objective"] / float(evaluation.log_prob.mean())

    assert close(value(), 32.0, atol=1e-4)
    algorithm.own = 3.0
    assert close(value(), 48.0, atol=1e-4)
    inside["factor"] = 3.0
    assert close(value(), 72.0, atol=1e-4)
    tensor.fill_(3.0)
    assert close(value(), 108.0, atol=1e-4)
    closed = 3.0
    assert close(value(), 162.0, atol=1e-4)
    monkeypatch.setattr("tests.fast.test_trace.FACTOR", 3.0)
    assert close(value(), 243.0, atol=1e-4)
    monkeypatch.setattr(Mutable, "objective", Terms.objective)
    assert close(value(), 9.0, atol=1e-4)


class Numbers:
    factor = 2.0


TABLE, NESTED = {"factor": 2.0}, types.SimpleNamespace(factor=2.0)


def deep(x):
    return x * DEEP


def helper(x):
    return deep(x) * Numbers.factor * TABLE["factor"] * NESTED.factor * sys.modules[__name__].THERE


def closing(factor):
    return lambda x: x * factor


DEEP, THERE, closed_over = 2.0, 2.0, closing(2.0)


def test_what_deeper_functions_read_is_watched(monkeypatch):
    batch, evaluation = sample()

    class Helped(Terms):
        inherited = 2.0

        def objective(self, policy, batch):
            return self.scaled(closed_over(helper(policy.evaluate(**batch.inputs).log_prob.mean()))), {}

        def scaled(self, x):
            return x * self.inherited

    algorithm, known = Helped(None), Objectives()

    def value():
        found = known(algorithm, None, batch, lambda v: v)
        assert found is known(algorithm, None, batch, lambda v: v), "it is traced each time"
        return run(found, batch, evaluation)[0]["objective"] / float(evaluation.log_prob.mean())

    here, expected = sys.modules[__name__], 2.0**7
    assert close(value(), expected, atol=1e-3)
    changes = [
        lambda: monkeypatch.setattr(here, "DEEP", 3.0),
        lambda: monkeypatch.setattr(Numbers, "factor", 3.0),
        lambda: monkeypatch.setitem(TABLE, "factor", 3.0),
        lambda: monkeypatch.setattr(NESTED, "factor", 3.0),
        lambda: monkeypatch.setattr(Helped, "inherited", 3.0),
        lambda: monkeypatch.setattr(Helped, "scaled", lambda self, x: x * 3.0 * 1.5),
        lambda: monkeypatch.setattr(here, "deep", lambda x: x * DEEP * 1.5),
        lambda: monkeypatch.setattr(helper, "__code__", (lambda x: deep(x) * Numbers.factor * 1.5).__code__),
        lambda: monkeypatch.setattr(here, "closed_over", closing(3.0)),
    ]
    for number, change in enumerate(changes):
        change()
        expected *= 1.5 if number != 7 else 1.5 / (3.0 * 3.0 * 2.0)
        assert close(value(), expected, atol=1e-2), number


# -------------------------------------------------------------------------------------------------------------- whole updates


def smooth_clip(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return clip_range * torch.tanh(((log_prob - behavior_log_prob).exp() - 1.0) / clip_range) * advantage


def normalizing(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return (log_prob - behavior_log_prob).exp() * (advantage - advantage.mean()) / (advantage.std() + 1e-8)


@dataclass(frozen=True, kw_only=True)
class Halved(PPO):
    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        return 0.5 * value, {**metrics, "half": 0.5 * value.detach()}


@dataclass(frozen=True, kw_only=True)
class CleanRL(PPO):
    """A loss of means, as it is often written."""

    def objective(self, policy, batch):
        new = policy.evaluate(**batch.inputs)
        advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
        log_ratio = new.log_prob - batch.behavior_log_prob
        ratio = log_ratio.exp()
        with torch.no_grad():
            approx_kl = ((ratio - 1) - log_ratio).mean()
        loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - self.clip_range, 1 + self.clip_range)).mean()
        loss = loss + 0.5 * ((new.value - batch.returns) ** 2).mean() - self.entropy_coef * new.entropy.mean()
        return -loss, {"approx_kl": approx_kl, "log_ratio": log_ratio}


OWN = {
    "surrogate": PPO(surrogate=smooth_clip),
    "surrogate that normalizes": PPO(surrogate=normalizing),
    "partial": PPO(surrogate=partial(F.clipped_surrogate, dual_clip=1.1)),
    "lambda": PPO(surrogate=lambda log_prob, behavior, advantage, mask, clip_range: log_prob * advantage),
    "subclass": Halved(entropy_coef=0.1),
    "means": CleanRL(entropy_coef=0.01),
    "group": GRPO(surrogate=smooth_clip, entropy_coef=0.1),
    "group with a reference": GRPO(kl_coef=0.1),
    "leave one out with a reference": RLOO(kl_coef=0.1, kl_estimator="k2", kl_placement="objective"),
}


@pytest.mark.parametrize("algorithm", OWN.values(), ids=OWN.keys())
@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_updates_with_an_objective_of_ones_own(head, algorithm, monkeypatch):
    algorithm = replace(algorithm, update=Ascent(learning_rate=3e-3, num_epochs=3, num_minibatches=4))
    policy = make_policy(head)
    masked = 0.0 if isinstance(algorithm, CleanRL) else 0.1
    batch = make_batch(policy, masked=masked) if isinstance(algorithm, PPO) else make_batch(policy, (5, 3, 6), unit="group", masked=0.3)
    batch = replace(batch, reference_log_prob=batch.behavior_log_prob + 0.1 * batch.advantage)
    before, (ours, theirs) = vector(policy), twice(policy)
    expected = algorithm.update(algorithm, theirs, batch, algorithm.update.start(theirs, seed=5))
    monkeypatch.setattr(Ascent, "__call__", None)  # nothing is left to it
    monkeypatch.setattr("upslope.fast.agreement.fingerprint", lambda functions: None)  # so that it still counts as it was
    metrics = fast_update(algorithm, ours)(algorithm, ours, batch, algorithm.update.start(ours, seed=5))
    assert not close(before, vector(ours), atol=1e-4)
    assert close(vector(ours), vector(theirs), atol=4e-6)
    assert metrics.keys() == expected.keys() and all(close(metrics[name], expected[name], atol=2e-6) for name in metrics)


@pytest.mark.parametrize(
    "algorithm, reason",
    [
        (PPO(), "PPO.objective compiled with its gradient; --no-fast runs it in PyTorch"),
        (Halved(), "Halved.objective compiled with its gradient; --no-fast runs it in PyTorch"),
        (PPO(kl_coef=1.0), "PPO.objective in PyTorch: it asks the policy for distribution"),
        (GRPO(ratio=F.sequence_mean_ratio), "GRPO.objective in PyTorch: it takes the sum of a part of the steps, or of each sequence"),
        (PPO(update=Ascent(micro_batch_size=4)), "PPO.objective in PyTorch, which takes micro-batches"),
        (PPO(surrogate=lambda *given: given[0].cumsum(0)), "PPO.objective in PyTorch: cumsum() is not compiled"),
    ],
)
def test_a_plan_says_what_is_compiled_and_why_not(algorithm, reason):
    assert explain(algorithm, make_policy(), "group" if isinstance(algorithm, GRPO) else "step") == reason


def test_a_profiler_goes_on_and_an_objective_is_compiled_under_it():
    seen, policy = [], make_policy()
    sys.setprofile(lambda *_: seen.append(1))
    try:
        found = explain(PPO(clip_range=0.123), policy, "step")
        watching = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert found.startswith("PPO.objective compiled")
    assert watching is not None and seen


def test_functions_of_no_module_are_compiled():
    space = {}
    exec("def surrogate(log_prob, behavior_log_prob, advantage, mask, clip_range):\n    return log_prob * advantage", space)
    del space["__builtins__"]
    assert explain(PPO(surrogate=space["surrogate"]), make_policy(), "step").startswith("PPO.objective compiled")
