"""The compiled acting policy against ``MLPPolicy``: same draws, same log-probabilities, same values, same greedy actions."""

import copy

import numpy as np
import pytest
import torch

from tests.fast.cases import close, make_policy
from upslope import Ascent
from upslope.fast.step import CompiledPolicy
from upslope.fast.twins import fast_policy

pytest.importorskip("llvmlite")


def generators():
    return torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)


def observations(policy, *shape):
    return {"observation": torch.randn(*shape, policy.actor[0].in_features, generator=torch.Generator().manual_seed(1))}


def assert_equal_samples(policy, inputs, draws=1):
    twin = fast_policy(policy)
    assert isinstance(twin, CompiledPolicy)
    first, second = generators()
    for _ in range(draws):
        ours, theirs = twin.sample(inputs, generator=first), policy.sample(inputs, generator=second)
        assert ours.action.dtype == theirs.action.dtype
        if ours.action.dtype == torch.int64:
            assert torch.equal(ours.action, theirs.action)
        else:
            assert close(ours.action, theirs.action, atol=4e-6)  # values of the size of 10
        assert close(ours.log_prob, theirs.log_prob, atol=4e-6)
        assert (ours.value is None) == (theirs.value is None)
        assert ours.value is None or close(ours.value, theirs.value, atol=2e-6)
        assert ours.log_prob.shape == theirs.log_prob.shape and not ours.log_prob.requires_grad
    assert torch.equal(first.get_state(), second.get_state()), "as many numbers were drawn"


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
@pytest.mark.parametrize("shape", [(1,), (8,), (64,), (65,), (3, 5), (2, 3, 4)])
def test_the_same_draws(head, shape):
    policy = make_policy(head, inputs=5, outputs=3)
    assert_equal_samples(policy, observations(policy, *shape), draws=20)


@pytest.mark.parametrize("hidden_sizes", [(), (5,), (64, 64), (17, 33, 8)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("critic", [True, False])
def test_every_shape_of_network(hidden_sizes, activation, critic):
    policy = make_policy(inputs=19, outputs=7, hidden_sizes=hidden_sizes, activation=activation, critic=critic)
    assert_equal_samples(policy, observations(policy, 8))


def test_illegal_actions_are_never_drawn():
    policy = make_policy(outputs=5)
    inputs = observations(policy, 200)
    legal = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    legal[:, 2] |= ~legal.any(1)
    inputs["action_mask"] = legal
    assert_equal_samples(policy, inputs, draws=20)
    action = fast_policy(policy).sample(inputs).action
    assert legal.gather(1, action.unsqueeze(1)).all()


def test_a_number_at_the_edge_never_draws_what_has_no_probability(monkeypatch):
    """u = 0 below an action of probability 0, and u just below 1 behind one."""
    policy = make_policy(outputs=4, hidden_sizes=())
    with torch.no_grad():
        policy.actor[0].weight.zero_()
        policy.actor[0].bias.copy_(torch.tensor([-200.0, 1.0, 1.0, -200.0]))
    inputs = observations(policy, 2)
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.tensor([0.0, 1.0 - 2**-24]))
    assert fast_policy(policy).sample(inputs).action.tolist() == [1, 2]
    assert policy.sample(inputs).action.tolist() == [1, 2]


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
def test_values_and_greedy_actions(head):
    policy = make_policy(head, inputs=5, outputs=3)
    twin = fast_policy(policy)
    inputs = observations(policy, 4, 33)
    assert close(twin.value(inputs), policy.value(inputs), atol=2e-6)
    batch = inputs["observation"][:, 0].numpy()
    for observation in (batch, batch[0]):
        ours, theirs = twin.act(observation)[0], policy.act(observation)[0]
        assert np.shape(ours) == np.shape(theirs)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    first, second = generators()
    ours, theirs = twin.act(batch, greedy=False, generator=first)[0], policy.act(batch, greedy=False, generator=second)[0]
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert fast_policy(make_policy(inputs=5, critic=False)).value(inputs) is None


def test_a_legal_greedy_action():
    policy = make_policy(outputs=3)
    observation = observations(policy, 1)["observation"].numpy()
    best = int(policy.act(observation)[0][0])
    mask = np.ones((1, 3), bool)
    mask[0, best] = False
    assert int(fast_policy(policy).act(observation, action_mask=mask)[0][0]) == int(policy.act(observation, action_mask=mask)[0][0]) != best


def test_it_follows_the_parameters_wherever_they_go():
    policy = make_policy()
    twin = fast_policy(policy)
    inputs = observations(policy, 8)
    assert close(twin.value(inputs), policy.value(inputs))
    Ascent().start(policy, seed=0)  # moves them into one buffer
    assert close(twin.value(inputs), policy.value(inputs))
    with torch.no_grad():
        policy.critic[0].weight.add_(0.5)  # changes them in place
    assert close(twin.value(inputs), policy.value(inputs), atol=2e-6)
    policy.load_state_dict(make_policy(seed=9).state_dict())
    assert close(twin.value(inputs), policy.value(inputs), atol=2e-6)


def test_other_inputs_go_to_the_policy_and_draw_no_more_than_it():
    policy = make_policy()
    for inputs in (
        {"observation": observations(policy, 8, 2)["observation"].transpose(0, 1)},
        observations(policy, 8) | {"action_mask": torch.ones(8, 3, dtype=torch.bool).t().contiguous().t()},
    ):
        assert_equal_samples(policy, inputs)


def test_everything_else_is_answered_by_the_policy():
    policy = make_policy()
    twin = fast_policy(policy)
    assert twin.head is policy.head and twin.encoder is policy.encoder
    assert next(iter(twin.parameters())) is next(policy.parameters())
    assert copy.copy(twin).policy is policy
    with pytest.raises(AttributeError, match="no_such_thing"):
        twin.no_such_thing  # noqa: B018
