"""Natural gradients and trust regions: the Fisher matrix from scores, conjugate gradient, the bound, the exact way back."""

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from upslope import NPG, TRPO, Diverged, NaturalGradient, TrustRegion, UsageError, control, train
from upslope.control import ActorCritic, MLPPolicy
from upslope.control.heads import Gaussian
from upslope.records import Batch
from upslope.updates.fisher import NEEDED, conjugate_gradient, detach, distribution_of, fisher_product, flatten, mean_kl, reached
from upslope.updates.state import MAX_SKIPPED

SEEN = spaces.Box(-1, 1, (3,))
ACTIONS = {
    "categorical": spaces.Discrete(3),
    "gaussian": spaces.Box(-1, 1, (2,)),
    "multi-categorical": spaces.MultiDiscrete([2, 3]),
    "bernoulli": spaces.MultiBinary(2),
    "squashed": spaces.Box(-1, 1, (2,)),
    "beta": spaces.Box(-1, 1, (2,)),
}


def hessian_product(policy, batch, parameters):
    """``v ↦ ∇((∇ mean-KL)ᵀ v)``, ``[P] → [P]``: the definition."""
    new = distribution_of(policy, batch.inputs, otherwise=NEEDED)
    slope = flatten(torch.autograd.grad(mean_kl(detach(new), new, batch), parameters, create_graph=True), parameters)
    return lambda v: flatten(torch.autograd.grad(slope @ v, parameters, retain_graph=True), parameters)


PRODUCTS = [fisher_product, hessian_product]


def made(kind="categorical", *, dtype=torch.float64, rows=4, steps=5, unit="step", seed=0, masked=False):
    """A small policy (its last layer not the near-zero one it starts from) and a batch of its own actions, some rows masked."""
    distribution = kind if kind in ("squashed", "beta") else "gaussian"
    policy = MLPPolicy((SEEN, ACTIONS[kind]), hidden_sizes=(4,), distribution=distribution, log_std=0.3, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=dtype), alpha=0.3)
    inputs = {"observation": torch.randn(rows, steps, 3, generator=generator, dtype=dtype)}
    if masked:
        inputs["action_mask"] = torch.rand(rows, steps, 3, generator=generator) < 0.7
        inputs["action_mask"][..., 0] = True
    sample = policy.sample(inputs, generator=generator)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    mask[1, 3:] = mask[3, :2] = False
    weight = torch.rand(rows, steps, generator=generator, dtype=dtype) * mask
    batch = Batch(
        inputs={**inputs, "action": sample.action},
        behavior_log_prob=sample.log_prob,
        mask=mask,
        weight=weight / weight.sum(),
        unit=unit,
        advantage=torch.randn(rows, steps, generator=generator, dtype=dtype),
        returns=torch.randn(rows, steps, generator=generator, dtype=dtype),
    )
    return policy, batch


def vector(parameters):
    return torch.cat([p.detach().reshape(-1) for p in parameters]).clone()


def actor_of(policy, batch):
    return reached(policy.distribution(**batch.inputs).parameters, tuple(policy.parameters()))


def draws(policy, observation):
    """Every action with its probability; for a Gaussian the nodes of a quadrature that is exact for scores times scores."""
    if not isinstance(policy.head, Gaussian):
        return [(torch.tensor(a), p) for a, p in enumerate(policy.distribution(observation=observation).parameters.softmax(-1).detach())]
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    mean, log_std = policy.distribution(observation=observation).parameters.detach().chunk(2, -1)
    pairs = itertools.product(zip(nodes, weights / weights.sum(), strict=True), repeat=2)
    return [(mean + log_std.exp() * torch.tensor([a[0] for a in pair]), math.prod(a[1] for a in pair)) for pair in pairs]


def explicit_fisher(policy, batch, parameters):
    """``Σ_t w_t Σ_a π(a|s_t) ∇log π ∇log πᵀ``, one score after the other."""
    total = 0.0
    for index in batch.mask.nonzero().tolist():
        row = tuple(index)
        observation = batch.inputs["observation"][row]
        for action, probability in draws(policy, observation):
            log_prob = policy.evaluate(observation=observation[None], action=action[None]).log_prob
            found = torch.autograd.grad(log_prob.sum(), parameters, allow_unused=True)
            score = torch.cat([g.reshape(-1) for g in found])
            total = total + batch.weight[row] * probability * torch.outer(score, score)
    return total / batch.weight.sum()


def as_matrix(product, size):
    return torch.stack([product(column) for column in torch.eye(size, dtype=torch.float64)], 1)


@pytest.mark.parametrize("make", PRODUCTS)
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_fisher_products_equal_the_matrix_made_of_scores(kind, make):
    policy, batch = made(kind)
    actor = actor_of(policy, batch)
    explicit = explicit_fisher(policy, batch, actor)
    assert torch.allclose(as_matrix(make(policy, batch, actor), len(explicit)), explicit, rtol=0, atol=1e-12)
    assert explicit.diagonal().max() > 0.01


@pytest.mark.parametrize("kind, masked", [*((kind, False) for kind in ACTIONS), ("categorical", True)])
def test_both_products_agree_for_every_head(kind, masked):
    policy, batch = made(kind, masked=masked)
    actor = actor_of(policy, batch)
    v = torch.randn(vector(actor).numel(), dtype=torch.float64)
    fast, readable = (make(policy, batch, actor)(v) for make in PRODUCTS)
    assert torch.allclose(fast, readable, rtol=0, atol=1e-12) and readable.norm() > 0.01


def test_conjugate_gradient_solves():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix, g = root @ root.T + torch.eye(12), torch.randn(12, generator=generator, dtype=torch.float64)
    calls = []
    x = conjugate_gradient(lambda v: calls.append(1) or matrix @ v, g, num_steps=20, tolerance=1e-24)
    assert torch.allclose(matrix @ x, g, rtol=0, atol=1e-10) and len(calls) <= 14
    rough = conjugate_gradient(lambda v: matrix @ v, g, num_steps=4)
    assert 0 < (rough - x).norm() < x.norm()
    assert torch.equal(conjugate_gradient(lambda v: matrix @ v, 0 * g, num_steps=5), 0 * g)
    assert torch.equal(conjugate_gradient(lambda v: 0 * v, g, num_steps=5), 0 * g)  # nothing to go by: no NaN


# ---------------------------------------------------------------------------------------------------------- one step


def stepped(algorithm, policy, batch):
    state = algorithm.update.start(policy, seed=0)
    return algorithm.update(algorithm, policy, batch, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_step_climbs_inside_the_region(kind, dtype):
    policy, batch = made(kind, dtype=dtype)
    algorithm = TRPO(update=TrustRegion(damping=1e-3, max_kl=0.01))
    old = policy.frozen()
    metrics = stepped(algorithm, policy, batch)
    kl = mean_kl(old.distribution(**batch.inputs), policy.distribution(**batch.inputs), batch).item()
    assert metrics["accepted"] == 1 and 0.002 < kl <= 0.01
    assert metrics["kl"] == pytest.approx(kl, abs=1e-6)
    ratio = (policy.evaluate(**batch.inputs).log_prob - batch.behavior_log_prob).exp()
    gain = ((ratio - 1) * batch.advantage * batch.weight).sum().item()
    assert gain > 0.01 and metrics["improvement"] == pytest.approx(gain, abs=1e-6)


def test_natural_steps_are_inverse_fisher_times_gradient():
    for update in (
        NaturalGradient(learning_rate=0.3, num_cg_steps=60, damping=0.01),
        NaturalGradient(num_cg_steps=60, damping=0.01, max_kl=0.02),
    ):
        policy, batch = made()
        actor = actor_of(policy, batch)
        before = vector(actor)
        matrix = explicit_fisher(policy, batch, actor) + 0.01 * torch.eye(len(before), dtype=torch.float64)
        g = vector(torch.autograd.grad(NPG().objective(policy, batch)[0], actor))
        stepped(NPG(update=update), policy, batch)
        step, x = vector(actor) - before, torch.linalg.solve(matrix, g)
        length = 0.3 if update.learning_rate else math.sqrt(2 * 0.02 / (x @ g))
        # conjugate gradient ends at a relative residual of 1e-5, the damping makes at most a hundred times that of it
        assert torch.allclose(step, length * x, rtol=0, atol=1e-3 * float(step.norm()))
        if not update.learning_rate:
            assert 0.5 * float(step @ matrix @ step) == pytest.approx(0.02, rel=1e-3)


@dataclass(frozen=True, kw_only=True)
class Trap(TRPO):
    """Once the parameters have moved, the objective is ``elsewhere``, or raises."""

    elsewhere: float | None = -1e9

    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        if bool(metrics["log_ratio"].any()):
            if self.elsewhere is None:
                raise KeyboardInterrupt
            value = value * 0 + self.elsewhere
        return value, metrics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("elsewhere", [-1e9, math.nan, None])
def test_a_failed_line_search_restores_every_parameter_exactly(elsewhere, dtype):
    policy, batch = made("gaussian", dtype=dtype)
    batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob.detach())
    algorithm = Trap(update=TrustRegion(num_value_epochs=0), elsewhere=elsewhere)
    before = [p.detach().clone() for p in policy.parameters()]
    if elsewhere is None:
        with pytest.raises(KeyboardInterrupt):
            stepped(algorithm, policy, batch)
    else:
        metrics = stepped(algorithm, policy, batch)
        assert (metrics["accepted"], metrics["kl"], metrics["line_search_steps"]) == (0, 0, 10)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_a_step_is_refused_where_only_the_bound_is_broken():
    """Every point is said to climb, so nothing but the KL sends the line search back."""
    policy, batch = made()
    batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob.detach())
    metrics = stepped(Trap(update=TrustRegion(max_kl=2.0, damping=0.0, num_cg_steps=30, num_backtracks=30), elsewhere=1e9), policy, batch)
    assert metrics["line_search_steps"] > 1 and metrics["accepted"] == 1 and 0.1 < metrics["kl"] <= 2.0


@dataclass(frozen=True, kw_only=True)
class Patient(TRPO):
    """Refuses the first ``refused`` points that it is asked about away from the start."""

    refused: int
    seen: list = field(default_factory=list)

    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        self.seen.append(bool(metrics["log_ratio"].any()))
        return (value if sum(self.seen) > self.refused or not self.seen[-1] else value - 1e9), metrics


@pytest.mark.parametrize("refused", [0, 1, 3])
def test_the_line_search_starts_at_the_longest_step(refused):
    """The first try is the whole natural step, each further one backtrack_factor times the one before."""
    steps = []
    for algorithm in (NPG(update=NaturalGradient(max_kl=0.01)), Patient(update=TrustRegion(max_kl=0.01), refused=refused)):
        policy, batch = made()
        batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob.detach())
        before = vector(policy.actor.parameters())
        metrics = stepped(algorithm, policy, batch)
        steps.append(vector(policy.actor.parameters()) - before)
    assert (metrics["accepted"], metrics["line_search_steps"]) == (1, refused + 1)
    torch.testing.assert_close(steps[1], 0.8**refused * steps[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [NPG, TRPO])
def test_an_entropy_bonus_spreads_the_policy(make):
    policy, batch = made()
    batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob.detach(), advantage=0 * batch.advantage)

    def entropy():
        return (policy.evaluate(**batch.inputs).entropy * batch.weight).sum().item()

    before = entropy()
    value, _ = make(entropy_coef=0.3).objective(policy, batch)
    assert value.item() == pytest.approx(0.3 * before, abs=1e-12)
    stepped(make(entropy_coef=0.3), policy, batch)
    assert entropy() > before + 0.01


def test_no_gradient_means_no_step():
    policy, batch = made()
    batch = replace(batch, advantage=torch.zeros_like(batch.advantage))
    before = vector(policy.parameters())
    metrics = stepped(TRPO(update=TrustRegion(num_value_epochs=0)), policy, batch)
    assert metrics["gradient_norm"] == 0 and "kl" not in metrics and torch.equal(vector(policy.parameters()), before)


@pytest.mark.parametrize("unit", ["step", "sequence"])
def test_masked_rows_carry_nothing(unit):
    found = []
    for garbage in (0.0, 7.0):
        policy, batch = made(unit=unit)
        hidden = ~batch.mask
        inputs = {**batch.inputs, "observation": batch.inputs["observation"].masked_fill(hidden[..., None], garbage)}
        wrong = {n: getattr(batch, n).masked_fill(hidden, garbage) for n in ("advantage", "returns", "behavior_log_prob")}
        metrics = stepped(TRPO(), policy, replace(batch, inputs=inputs, **wrong))
        found.append((vector(policy.parameters()), metrics))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    assert not torch.equal(found[0][0], vector(made(unit=unit)[0].parameters()))


def test_nothing_but_masked_rows():
    policy, batch = made()
    assert stepped(TRPO(), policy, replace(batch, mask=batch.mask & False, weight=batch.weight * 0)) == {}


# ---------------------------------------------------------------------------------------------------------- the critic


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_and_fit_move_their_own_parameters_only(dtype):
    policy, batch = made("gaussian", dtype=dtype)
    actor, critic = [*policy.actor.parameters(), policy.log_std], list(policy.critic.parameters())
    before = vector(actor), vector(critic)
    stepped(TRPO(update=TrustRegion(num_value_epochs=0)), policy, batch)
    assert not torch.equal(vector(actor), before[0]) and torch.equal(vector(critic), before[1])
    policy, batch = made("gaussian", dtype=dtype)
    actor, critic = [*policy.actor.parameters(), policy.log_std], list(policy.critic.parameters())
    stepped(TRPO(), policy, replace(batch, advantage=0 * batch.advantage))
    assert torch.equal(vector(actor), before[0]) and not torch.equal(vector(critic), before[1])


def test_the_fit_is_adam_on_the_squared_error():
    policy, batch = made(dtype=torch.float32)
    mirror, _ = made(dtype=torch.float32)
    policy.value_scale = None
    update = TrustRegion(num_value_epochs=3, num_value_minibatches=2, value_learning_rate=0.01)
    stepped(TRPO(update=update), policy, batch)
    adam = torch.optim.Adam(mirror.critic.parameters(), lr=0.01, eps=1e-5)
    generator, rows = torch.Generator().manual_seed(0), batch.by_unit()
    for _ in range(3):
        for units in torch.randperm(rows.num_units, generator=generator).tensor_split(2):
            part = rows.select(units)
            value = mirror.evaluate(**part.inputs).value
            adam.zero_grad()
            ((value - part.returns).square() * part.weight * rows.num_units / len(units)).sum().backward()
            adam.step()
    assert torch.allclose(vector(policy.critic.parameters()), vector(mirror.critic.parameters()), rtol=0, atol=1e-6)


class Shared(nn.Module):
    """One trunk for both heads."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.trunk, self.actor, self.critic = nn.Linear(inputs, 4), nn.Linear(4, outputs), nn.Linear(4, 1)

    def forward(self, x):
        x = self.trunk(x).tanh()
        return self.actor(x), self.critic(x).squeeze(-1)


class Tied(Shared):
    """The value is a function of the logits."""

    def forward(self, x):
        logits = self.actor(self.trunk(x).tanh())
        return logits, logits.logsumexp(-1)


def test_a_shared_trunk_belongs_to_the_policy():
    _, batch = made(dtype=torch.float32)
    policy = ActorCritic(Shared, (SEEN, ACTIONS["categorical"]))
    batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob.detach())
    old = policy.frozen()
    stepped(TRPO(), policy, replace(batch, advantage=0 * batch.advantage))  # the fit alone
    new, old = (p.distribution(**batch.inputs).parameters for p in (policy, old))
    assert torch.equal(new, old)
    metrics = stepped(TRPO(), policy, batch)
    assert metrics["accepted"] == 1 and metrics["kl"] <= 0.01


# ---------------------------------------------------------------------------------------------------- whole trainings


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_no_accepted_step_of_a_training_leaves_the_region(env_id, fast):
    envs = control.make(env_id, num_envs=4, seed=0)
    policy = MLPPolicy.for_envs(envs, hidden_sizes=(16,), seed=0)
    before, seen = [policy.frozen()], []

    def check(state):
        inputs = state.rollout.inputs
        weight = state.rollout.mask / state.rollout.mask.sum()
        kl = (before[0].distribution(**inputs).kl(policy.distribution(**inputs)) * weight).sum().item()
        assert kl == pytest.approx(state.metrics["kl"], abs=1e-6)
        seen.append((state.metrics["accepted"], kl))
        before[0] = policy.frozen()

    update = TrustRegion(max_kl=0.02, damping=1e-3, num_value_epochs=2)
    train(TRPO(update=update), policy, control.Steps(envs, 64), iterations=12, callbacks=[check], fast=fast)
    assert all(kl <= 0.02 for _, kl in seen)
    assert sum(accepted for accepted, _ in seen) >= 10 and max(kl for _, kl in seen) > 0.005


# ---------------------------------------------------------------------------------------------------------- bad input


class Mute(nn.Module):
    """A policy without a distribution."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        self.evaluate = policy.evaluate


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TrustRegion(max_kl=0.0), "max_kl: expected a number > 0, found 0.0"),
        (lambda: TrustRegion(damping=-1.0), "damping: expected a number ≥ 0, found -1.0"),
        (lambda: TrustRegion(num_cg_steps=0), "num_cg_steps: expected an integer ≥ 1 and at most 1,000,000, found 0"),
        (lambda: TrustRegion(num_backtracks=0), "num_backtracks: expected an integer ≥ 1 and at most 1,000,000, found 0"),
        (lambda: TrustRegion(backtrack_factor=1.0), "backtrack_factor: expected a number between 0 and 1, found 1.0"),
        (lambda: TrustRegion(num_value_epochs=-1), "num_value_epochs: expected an integer from 0"),
        (lambda: TrustRegion(num_value_minibatches=0), "num_value_minibatches: expected an integer ≥ 1 and at most 1,000,000, found 0"),
        (lambda: TrustRegion(value_learning_rate=-1.0), "value_learning_rate: expected a number ≥ 0, found -1.0"),
        (lambda: NaturalGradient(max_kl=math.nan), "max_kl: expected a number > 0, found nan"),
        (lambda: NaturalGradient(learning_rate=-1.0), "learning_rate: expected a number ≥ 0 or none, found -1.0"),
        (lambda: TRPO(gamma=2.0), "gamma: expected a number in [0, 1], found 2.0"),
        (lambda: TrustRegion().start(nn.Identity(), seed=0), "policy: it has no trainable parameter"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_policies():
    policy, batch = made(dtype=torch.float32)
    with pytest.raises(UsageError, match=r"Mute has no distribution\(\).*; take ppo or a2c"):
        stepped(TRPO(), Mute(policy), batch)
    policy.distribution = lambda **inputs: torch.distributions.Categorical(logits=torch.zeros(20, 3))
    with pytest.raises(UsageError, match=r"distribution\(\) returned Categorical; return a dataclass"):
        stepped(TRPO(), policy, batch)
    policy, batch = made(dtype=torch.float32)
    policy.actor.requires_grad_(False)
    with pytest.raises(UsageError, match="no trainable parameter moves its distribution"):
        stepped(TRPO(), policy, batch)
    policy = ActorCritic(Tied, (SEEN, ACTIONS["categorical"]))
    batch = replace(batch, behavior_log_prob=policy.evaluate(**batch.inputs).log_prob.detach())
    with pytest.raises(UsageError, match="give the critic some"):
        stepped(TRPO(), policy, batch)
    policy, batch = made(dtype=torch.float32)
    state = TrustRegion().start(policy, seed=0)
    policy.critic.requires_grad_(False)
    with pytest.raises(UsageError, match="frozen after training began"):
        TrustRegion()(TRPO(), policy, batch, state)


def test_divergence_is_named():
    policy, batch = made(dtype=torch.float32)
    trap = Trap(update=NaturalGradient(), elsewhere=math.nan)
    for algorithm, given, words in (
        (TRPO(), replace(batch, advantage=batch.advantage / 0), "advantage is not finite"),
        (trap, batch, "not finite after the step"),
    ):
        before, state = vector(policy.parameters()), algorithm.update.start(policy, seed=0)
        actor = before[: sum(p.numel() for p in policy.actor.parameters())]
        state.skipped = MAX_SKIPPED - 2
        assert algorithm.update(algorithm, policy, given, state)["skipped_steps"] == 1.0
        assert torch.equal(vector(policy.parameters())[: len(actor)], actor)
        with pytest.raises(Diverged, match=words):
            algorithm.update(algorithm, policy, given, state)
