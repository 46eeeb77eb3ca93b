"""A linear policy's fast twin: the same draws, values and gradients, the same training; what it does not know, the policy answers."""

import pytest
import torch
from torch import nn

from tests.tabular.made import equal
from upslope import SARSA, ContinuingActorCritic, OnlineActorCritic, control, train
from upslope.algorithms.online import Rows
from upslope.fast.linear import FastLinear, linear_twin
from upslope.fast.twins import fast_policy

LIMITS = {"feature_low": (-2.4, -3.0, -0.21, -3.5), "feature_high": (2.4, 3.0, 0.21, 3.5)}
KINDS = {
    "tiles": ("CartPole-v1", {"features": "tiles", "num_tilings": 4, "num_tiles": 3, **LIMITS}),
    "fourier": ("CartPole-v1", {"features": "fourier", "fourier_order": 1, **LIMITS}),
    "numbers": ("CartPole-v1", {"features": "linear"}),
    "table": ("FrozenLake-v1", {"features": "linear"}),
    "Gaussian": ("Pendulum-v1", {"features": "tiles", "num_tilings": 4, "num_tiles": 3, "log_std": -0.5}),
}


def made(kind, epsilon=None, **options):
    env_id, features = KINDS[kind]
    envs = control.make(env_id, num_envs=1, seed=0)
    options = {"critic": epsilon is None, "epsilon": epsilon, **options}
    policy = control.LinearPolicy.for_envs(envs, seed=0, **features, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return envs, policy


def dense(gradient):
    if not isinstance(gradient, Rows):
        return gradient
    z = torch.zeros(gradient.shape)
    gradient.add_to(z, 1.0)
    return z


def states(envs, policy):
    """Inputs along a random walk."""
    envs.reset()
    for _ in range(30):
        inputs = policy.inputs(envs.observation)
        yield inputs
        envs.step(policy.head.to_env(policy.sample(inputs).action))


@pytest.mark.parametrize("kind, epsilon", [*((kind, None) for kind in KINDS), *((kind, 0.3) for kind in KINDS if kind != "Gaussian")])
def test_what_it_says_of_a_state(kind, epsilon):
    envs, policy = made(kind, epsilon)
    twin = fast_policy(policy)
    assert type(twin) is FastLinear
    for number, inputs in enumerate(states(envs, policy)):
        ours, theirs = (p.sample(inputs, generator=torch.Generator().manual_seed(number)) for p in (twin, policy))
        torch.testing.assert_close(ours.action, theirs.action, atol=1e-5, rtol=1e-5)
        equal(ours.log_prob, theirs.log_prob, 1e-5)
        if epsilon is None:
            equal(ours.value, theirs.value, 1e-5)
            equal(twin.value(inputs), policy.value(inputs), 1e-5)
            parameters = tuple(policy.parameters())
            found = twin.gradients(inputs, theirs.action, parameters)
            evaluation = policy.evaluate(**inputs, action=theirs.action)
            assert found[0] == pytest.approx(evaluation.value.item(), abs=1e-5)
            for output, gradients in ((evaluation.value, found[1]), (evaluation.log_prob, found[2])):
                expected = torch.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
                assert [g is None for g in gradients] == [g is None for g in expected]
                for ours_, theirs_ in zip(gradients, expected, strict=True):
                    assert ours_ is None or torch.allclose(dense(ours_), theirs_, atol=1e-4, rtol=1e-4)
        else:
            assert ours.value is None
            values = policy.action_values(**inputs)
            equal(twin.action_values(**inputs), values, 1e-5)
            q, (gradient,) = twin.action_gradient(inputs, theirs.action, tuple(policy.parameters()))
            assert q == pytest.approx(values[0, theirs.action].item(), abs=1e-5)
            equal(dense(gradient), torch.autograd.grad(values[0, theirs.action[0]], policy.network.actor)[0], 1e-5)


def test_every_action_is_drawn_as_often_as_the_policy_says():
    envs, policy = made("table")
    envs.reset()
    inputs, twin, generator = policy.inputs(envs.observation), fast_policy(policy), torch.Generator().manual_seed(0)
    drawn = torch.stack([twin.sample(inputs, generator=generator).action for _ in range(4000)])
    frequency = torch.bincount(drawn.flatten(), minlength=4) / 4000
    equal(frequency, policy.distribution(**inputs).parameters.softmax(-1)[0], 0.03)


METHODS = {
    "one step": (OnlineActorCritic(learning_rate=0.01, value_learning_rate=0.05), None),
    "traces": (OnlineActorCritic(learning_rate=0.01, value_learning_rate=0.05, trace_decay=0.9, value_trace_decay=0.8), None),
    "sarsa": (SARSA(learning_rate=0.02, trace_decay=0.9), 0.1),
}


@pytest.mark.parametrize("kind, method", [*((kind, m) for kind in ("tiles", "fourier") for m in METHODS), ("Gaussian", "traces")])
def test_training_is_the_same(kind, method):
    algorithm, epsilon = METHODS[method]
    steps = 100
    if kind == "Gaussian":  # the pendulum carries rounding away sooner
        algorithm, epsilon, steps = ContinuingActorCritic(learning_rate=1e-4, value_learning_rate=1e-3, trace_decay=0.5), None, 30
    found = []
    for fast in (True, False):
        envs, policy = made(kind, epsilon)
        state = train(algorithm, policy, control.Stream(envs, num_steps=steps, seed=3), iterations=3, fast=fast)
        found.append((state.metrics.get("episode_return"), [p.detach().clone() for p in policy.parameters()]))
    assert found[0][0] == found[1][0]
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert not torch.equal(found[0][1][0], made(kind, epsilon)[1].network.actor)  # something was learned


def test_other_actions_other_methods_and_other_inputs_are_the_policys_own():
    envs = control.make("Pendulum-v1", num_envs=1, seed=0)
    for options in ({"distribution": "beta"}, {"state_dependent_std": True}):
        own = control.LinearPolicy.for_envs(envs, features="tiles", num_tiles=2, num_tilings=2, **options)
        assert linear_twin(own) is None
    train(ContinuingActorCritic(), own, control.Stream(envs, num_steps=5), iterations=1)
    _, policy = made("numbers")
    assert linear_twin(policy.double()) is None
    policy.float()
    policy.network.register_forward_hook(lambda *_: None)
    assert linear_twin(policy) is None
    envs, policy = made("tiles")
    twin = fast_policy(policy)
    inputs = next(iter(states(envs, policy)))
    several = {"observation": inputs["observation"].expand(3, -1)}
    assert twin.sample(several).action.shape == (3,) and twin.value(several).shape == (3,)
    masked = {**inputs, "action_mask": torch.tensor([[False, True]])}
    assert twin.sample(masked).action.item() == 1
    frozen = tuple(p for p in policy.parameters())[:1]
    assert twin.gradients(inputs, torch.tensor([0]), frozen) is None
    assert twin.features is policy.features and twin.evaluate(**inputs, action=torch.tensor([0])).log_prob.shape == (1,)


def test_it_follows_the_parameters_wherever_they_go():
    envs, policy = made("tiles")
    twin = fast_policy(policy)
    inputs = next(iter(states(envs, policy)))
    equal(twin.value(inputs), policy.value(inputs), 1e-5)
    policy.network.critic.data = torch.zeros_like(policy.network.critic)
    assert twin.value(inputs).item() == 0.0
    policy.network.critic = nn.Parameter(torch.ones_like(policy.network.critic))
    assert twin.value(inputs).item() == 4.0
