"""Kernels serve only what says the same: heads that were edited, and objectives that leave something behind, run as they are written."""

from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch

from upslope import A2C, PPO, TRPO, Ascent, control, train
from upslope import functional as F
from upslope.control.heads import Categorical, EpsilonGreedy, Gaussian
from upslope.control.networks import MLP
from upslope.fast.agreement import BOUND, LOOP, agrees, difference, evaluates_as_made, fingerprint, step_agrees
from upslope.fast.linear import linear_twin
from upslope.fast.twins import explain, fast_policy
from upslope.records import Batch
from upslope.updates.state import AscentState

pytest.importorskip("llvmlite")
INFINITE = (-np.inf,) * 3, (np.inf,) * 3


def cartpole(**options):
    return control.MLPPolicy.for_envs(control.make("CartPole-v1", num_envs=4, seed=0), hidden_sizes=(8,), seed=0, **options)


def test_heads_agree_with_the_kernels_to_rounding():
    assert difference(Categorical(3), gaussian=False, masked=False) < 1e-6
    assert difference(Categorical(3), gaussian=False, masked=True) < 1e-6
    assert difference(Gaussian(3, *INFINITE), gaussian=True, masked=False) < BOUND / 2


def without_gradient(z, action, mask=None):
    log_prob = F.categorical_log_prob(z, action, mask)
    return log_prob.detach() + 0.0 * z.sum(-1)


EDITS = {
    "log_prob": lambda z, action, mask=None: 1.01 * F.categorical_log_prob(z, action, mask),
    "its gradient": without_gradient,
    "entropy": lambda z, mask=None: F.categorical_entropy(z, mask) + 0.01,
    "entropy of all actions, legal or not": lambda z, mask=None: F.categorical_entropy(z),
    "sample": lambda z, generator=None, mask=None: (z if mask is None else z.masked_fill(~mask, -torch.inf)).argmax(-1),
    "an error": lambda *_: 1 / 0,
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_head_runs_as_it_is_written(edit, monkeypatch):
    policy = cartpole()
    assert explain(PPO(), policy).startswith("PPO.objective compiled") and fast_policy(policy) is not policy
    name = {"its gradient": "log_prob", "an error": "entropy"}.get(edit, edit.partition(" ")[0])
    monkeypatch.setattr(Categorical, name, staticmethod(EDITS[edit]))
    assert not agrees(policy.head)
    assert explain(PPO(), policy) == "PPO.objective in PyTorch: its Categorical head computes something else than the kernels"
    assert fast_policy(policy) is policy
    linear = control.LinearPolicy.for_envs(control.make("Acrobot-v1"), features="tiles", num_tiles=2, num_tilings=2)
    assert linear_twin(linear) is None
    monkeypatch.undo()
    assert agrees(policy.head) and linear_twin(linear) is not None


def test_an_edited_gaussian_and_an_edited_rule_of_epsilon(monkeypatch):
    assert agrees(Gaussian(3, *INFINITE))
    monkeypatch.setattr(Gaussian, "functions", Gaussian.functions._replace(entropy=lambda mean, log_std: 2.0 * log_std.sum(-1)))
    assert not agrees(Gaussian(3, *INFINITE))
    envs = control.make("Acrobot-v1")
    policy = control.LinearPolicy.for_envs(envs, features="tiles", num_tiles=2, num_tilings=2, epsilon=0.3, critic=False)
    assert linear_twin(policy) is not None
    monkeypatch.setattr(EpsilonGreedy, "probabilities", lambda self, values, mask=None: values.softmax(-1))
    assert linear_twin(policy) is None


@pytest.mark.parametrize("edit", ["Adam", "the norm", "an error"])
def test_an_edited_step_runs_as_it_is_written(edit, monkeypatch):
    assert step_agrees()
    descend, step = AscentState.descend, Ascent.step
    if edit == "Adam":
        monkeypatch.setattr(AscentState, "descend", lambda self, gradients, eps: descend(self, gradients, 1.01 * eps + 1e-4))
    else:
        monkeypatch.setattr(
            Ascent, "step", lambda self, state, gradients: 1.1 * step(self, state, gradients) if edit == "the norm" else 1 / 0
        )
    assert not step_agrees()
    assert (
        explain(PPO(), cartpole())
        == "PPO.objective in PyTorch: its gradient step, or the loop around it, does something else than the kernels"
    )


# ------------------------------------------------------------------------------------ objectives that leave something behind

seen: list[torch.Tensor] = []
named: dict[int, torch.Tensor] = {}
count = 0


def counted():
    global count
    count += 1


class Remembers(PPO):
    def objective(self, policy, batch):
        seen.append(batch.advantage)
        return super().objective(policy, batch)


class Counts(PPO):
    def objective(self, policy, batch):
        counted()
        value, metrics = super().objective(policy, batch)
        return value * (1.0 if count < 6 else 0.0), metrics


class Names(PPO):
    def objective(self, policy, batch):
        named[len(named)] = batch.advantage
        return super().objective(policy, batch)


class OfTheClass(PPO):
    calls = 0

    def objective(self, policy, batch):
        type(self).calls += 1
        return super().objective(policy, batch)


def counting_surrogate():
    calls = 0

    def surrogate(log_prob, behavior_log_prob, advantage, mask, clip_range):
        nonlocal calls
        calls += 1
        return (log_prob - behavior_log_prob).exp() * advantage

    return surrogate, lambda: calls


@pytest.mark.parametrize("kind", ["list", "number", "dict", "class", "closure"])
def test_an_objective_that_leaves_something_behind_is_called_as_often_as_it_is_written(kind, monkeypatch):
    found, parameters = [], []
    for fast in (True, False):
        monkeypatch.setitem(globals(), "count", 0)
        monkeypatch.setattr(OfTheClass, "calls", 0)
        seen.clear(), named.clear()
        surrogate, calls = counting_surrogate()
        algorithm = {"list": Remembers, "number": Counts, "dict": Names, "class": OfTheClass, "closure": PPO}[kind]
        options = {"surrogate": surrogate} if kind == "closure" else {}
        made = algorithm(update=Ascent(num_epochs=2, num_minibatches=2, target_kl=None), **options)
        policy, envs = cartpole(), control.make("CartPole-v1", num_envs=4, seed=0)
        changed = {"list": "a list", "number": "count", "dict": "a dict", "class": "calls", "closure": "a variable of an outer function"}[
            kind
        ]
        assert explain(made, policy) == f"{algorithm.__name__}.objective in PyTorch: it changes {changed} when it is called"
        train(made, policy, control.Steps(envs, num_steps=16, seed=0), iterations=3, fast=fast, progress=False)
        assert all(type(each) is torch.Tensor for each in [*seen, *named.values()])
        found.append({"list": len(seen), "number": count, "dict": len(named), "class": OfTheClass.calls, "closure": calls()}[kind])
        parameters.append([p.detach().clone() for p in policy.parameters()])
    assert found == [12, 12]
    torch.testing.assert_close(*parameters, rtol=1e-5, atol=1e-6)


def test_a_number_that_is_looked_at_is_named_for_what_it_is():
    def surrogate(log_prob, behavior_log_prob, advantage, mask, clip_range):
        return (log_prob - behavior_log_prob).exp() * advantage * float(advantage.sum() > 0)

    assert explain(PPO(surrogate=surrogate), cartpole()).endswith("it looks at a number while it runs (float)")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_shipped_policies_evaluate_as_they_were_made_to(env_id):
    with control.make(env_id, num_envs=2) as envs:
        made = control.MLPPolicy.for_envs(envs), control.LinearPolicy.for_envs(envs, features="linear")
    assert all(map(evaluates_as_made, made))
    made[0].network.__class__ = Without
    assert not evaluates_as_made(made[0])


def without_the_last(said):
    preferences, value = said
    return preferences.masked_fill(torch.arange(preferences.shape[-1]) == preferences.shape[-1] - 1, -torch.inf), value


class Without(MLP):
    """Never takes the last action."""

    def forward(self, observation):
        return without_the_last(super().forward(observation))


def exchange(policy, how):
    """Put something else in the place of the policy's network, or of what it does."""
    network = policy.network
    if how == "network":
        policy.network = Without(4, 2, hidden_sizes=(8,))
        policy.network.load_state_dict(network.state_dict())
    elif how == "class":
        network.__class__ = Without
    else:
        network.forward = lambda observation: without_the_last(MLP.forward(network, observation))


@pytest.mark.parametrize("method", [PPO, A2C, TRPO])
@pytest.mark.parametrize("how", ["network", "class", "method"])
def test_a_network_that_was_put_in_is_the_one_that_runs(method, how):
    trained = []
    for fast in (True, False):
        envs = control.make("CartPole-v1", num_envs=4, seed=0)
        policy = control.MLPPolicy.for_envs(envs, hidden_sizes=(8,), seed=0)
        exchange(policy, how)
        state = train(method(), policy, control.Steps(envs, num_steps=16, seed=0), iterations=2, fast=fast, progress=False)
        assert not state.rollout.inputs["action"].any()
        trained.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
        envs.close()
    assert explain(PPO(), policy).startswith("PPO.objective and its head compiled")  # and the network is asked in PyTorch
    assert torch.allclose(*trained, atol=1e-6)


def test_a_policy_of_the_user_s_own_network_evaluates_as_its_class_says(monkeypatch):
    with control.make("CartPole-v1", num_envs=2) as envs:
        policy = control.ActorCritic(lambda inputs, outputs: MLP(inputs, outputs), envs)
    assert explain(PPO(), policy).startswith("PPO.objective and its head compiled")
    as_it_is = control.ActorCritic.evaluate

    def evaluate(self, **inputs):
        found = as_it_is(self, **inputs)
        return replace(found, entropy=3.0 * found.entropy)

    monkeypatch.setattr(control.ActorCritic, "evaluate", evaluate)
    assert explain(PPO(), policy).startswith("PPO.objective in PyTorch: ")


def test_the_loop_is_the_one_that_the_kernels_were_made_for(monkeypatch):
    """Where this fails the loop was edited: see that the compiled update still does the same, then write the new fingerprint down."""
    assert fingerprint((Ascent.__call__, Ascent.backward, Batch.minibatches)) == LOOP
    monkeypatch.setattr(Batch, "minibatches", lambda self, shuffle, count: iter([self]))
    assert not step_agrees()
    assert fingerprint((len,)) == ""


def test_a_wrapper_around_the_loop_is_an_edit(monkeypatch):
    whole = Ascent.backward

    @wraps(whole)
    def doubled(self, algorithm, policy, part, state, *, first):
        return whole(self, algorithm, policy, replace(part, weight=2.0 * part.weight), state, first=first)

    monkeypatch.setattr(Ascent, "backward", doubled)
    assert not step_agrees()
