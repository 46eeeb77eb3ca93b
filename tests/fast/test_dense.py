"""An evaluation as one node of the graph against ``MLPPolicy.evaluate`` under autograd."""

import pytest
import torch

from tests.fast.cases import close, close_to_rounding, make_batch, make_policy, twice, vector
from upslope import PPO, Ascent
from upslope.fast.dense import DensePolicy, DenseUpdate
from upslope.fast.twins import dense_policy, fast_update

pytest.importorskip("llvmlite")


def gradients(policy, batch, objective):
    evaluation = policy.evaluate(**batch.inputs)
    value = objective(evaluation)
    return evaluation, torch.autograd.grad(value, list(policy.parameters()), allow_unused=True)


OBJECTIVES = {
    "log_prob": lambda e: (e.log_prob * torch.arange(e.log_prob.numel()).reshape(e.log_prob.shape)).mean(),
    "entropy": lambda e: e.entropy.square().sum() / 10,
    "value": lambda e: e.value.sin().mean(),
    "everything": lambda e: (e.log_prob.exp() * e.value - e.entropy).mean(),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
@pytest.mark.parametrize("head", ["categorical", "gaussian"])
@pytest.mark.parametrize("activation,hidden_sizes", [("tanh", (64, 64)), ("relu", (17, 33, 8)), ("tanh", (5,)), ("relu", ())])
def test_values_and_gradients(objective, head, activation, hidden_sizes):
    policy = make_policy(head, inputs=7, outputs=3, activation=activation, hidden_sizes=hidden_sizes)
    Ascent().start(policy, seed=0)
    batch = make_batch(policy, (5, 27), action_mask=head == "categorical")
    dense = dense_policy(policy)
    assert isinstance(dense, DensePolicy)
    (ours, our_gradients), (theirs, their_gradients) = (gradients(p, batch, objective) for p in (dense, policy))
    assert "_Evaluate" in type(ours.value.grad_fn).__name__
    for name in ("log_prob", "entropy", "value"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape and close(a, b, atol=4e-6)  # log-densities of the size of 10
    assert any(g is not None and float(g.abs().max()) > 1e-3 for g in their_gradients)
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        assert close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def test_a_policy_without_a_critic():
    policy = make_policy(critic=False)
    Ascent().start(policy, seed=0)
    batch = make_batch(policy)
    ours, theirs = dense_policy(policy).evaluate(**batch.inputs), policy.evaluate(**batch.inputs)
    assert ours.value is None
    (g,), (h,) = (torch.autograd.grad(e.log_prob.sum(), [policy.actor[0].weight]) for e in (ours, theirs))
    assert close(g, h, atol=1e-5)


def test_two_evaluations_in_one_objective():
    policy = make_policy()
    Ascent().start(policy, seed=0)
    one, two = make_batch(policy, seed=1), make_batch(policy, (11,), seed=2)
    found = []
    for p in (dense_policy(policy), policy):
        value = p.evaluate(**one.inputs).log_prob.mean() * p(**two.inputs).value.mean()
        found.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(policy.parameters()))]))
    assert close(*found)


def mine(log_prob, behavior_log_prob, advantage, mask, clip_range):
    """A surrogate of a user's own: a smooth clip."""
    return 0.2 * torch.tanh(((log_prob - behavior_log_prob).exp() - 1.0) / 0.2) * advantage


@pytest.mark.parametrize("head", ["categorical", "gaussian"])
@pytest.mark.parametrize(
    "options", [{"surrogate": mine}, {"kl_coef": 0.5}, {"surrogate": mine, "value_clip_range": 0.1, "entropy_coef": 0.1}]
)
def test_an_update_with_an_objective_of_ones_own(head, options):
    algorithm = PPO(update=Ascent(learning_rate=3e-3, num_epochs=3, num_minibatches=4, micro_batch_size=5), **options)
    policy = make_policy(head)
    batch = make_batch(policy)
    if algorithm.kl_coef:
        with torch.no_grad():
            old = policy.distribution(**batch.inputs).parameters.clone()
        batch = type(batch)(**{**vars(batch), "behavior_parameters": old})
    outcomes = []
    for own, fast in zip(twice(policy), (True, False), strict=True):
        state = algorithm.update.start(own, seed=1)
        update = fast_update(algorithm, own) if fast else algorithm.update
        assert isinstance(update, DenseUpdate) == fast
        metrics = update(algorithm, own, batch, state)
        outcomes.append((vector(own), state.moments[0], metrics))
    (ours, our_moments, our_metrics), (theirs, their_moments, their_metrics) = outcomes
    assert close(ours, theirs, atol=4e-6)  # Adam divides small gradients, and their rounding, by their size
    assert all(close_to_rounding(a, b) for a, b in zip(our_moments, their_moments, strict=True))
    assert our_metrics.keys() == their_metrics.keys() and all(close(our_metrics[k], their_metrics[k], atol=4e-6) for k in our_metrics)


def test_what_it_does_not_know_the_policy_evaluates():
    policy = make_policy()
    dense = dense_policy(policy)
    batch = make_batch(policy)
    scattered = dense.evaluate(**batch.inputs)  # parameters that are not in one piece
    assert close(scattered.log_prob, policy.evaluate(**batch.inputs).log_prob)
    Ascent().start(policy, seed=0)
    observation = batch.inputs["observation"].clone().requires_grad_()
    value = dense.evaluate(observation=observation, action=batch.inputs["action"]).value
    (slope,) = torch.autograd.grad(value.sum(), [observation])
    assert float(slope.abs().max()) > 0


def test_no_second_derivative():
    policy = make_policy()
    Ascent().start(policy, seed=0)
    value = dense_policy(policy).evaluate(**make_batch(policy).inputs).value.square().sum()
    (slope,) = torch.autograd.grad(value, [policy.critic[0].weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
