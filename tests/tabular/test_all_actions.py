"""The all-actions gradient: exact with exact action values, whatever is subtracted from them in a state; learned ones; bad input."""

from types import SimpleNamespace

import pytest
import torch

from tests.tabular.made import case, equal
from upslope import AllActions, Ascent, UsageError, control, tabular, train
from upslope import functional as F
from upslope.tabular import exact


def exactly(mdp, policy, gamma):
    """q̂ = the exact Q of this policy; the column of a recording is the time of the unrolled problem."""
    table = exact.action_value(mdp.unrolled(), policy, gamma).detach()
    return lambda inputs: table[torch.arange(inputs["observation"].shape[-1]) * mdp.num_states + inputs["observation"]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_its_expectation_is_the_exact_gradient(seed, gamma):
    mdp, policy = case(seed, num_actions=3, time_limit=3)
    rollouts, probability = tabular.enumerate_rollouts(mdp, policy)
    q, theorem = exactly(mdp, policy, gamma), tabular.gradient(mdp.unrolled(), policy, gamma)

    def expectation(values, **options):
        return tabular.expected_gradient(AllActions(q=values, **options), policy, rollouts, probability)

    equal(expectation(q, state_discount=gamma), theorem)
    equal(expectation(lambda inputs: q(inputs) - 7.0 * inputs["observation"].unsqueeze(-1) ** 2, state_discount=gamma), theorem)
    if gamma < 1:  # what everybody ships is neither gradient
        assert float((expectation(q) - theorem).abs().max()) > 1e-3


def test_it_varies_less_than_the_sampled_score():
    """One state: the estimate is the exact gradient, whatever was drawn."""
    mdp = tabular.bandit((0.1, 0.5, 0.9))
    policy = tabular.tabular_policy(mdp)
    rollouts, _ = tabular.enumerate_rollouts(mdp, policy, 1)
    q = lambda inputs: mdp.reward[inputs["observation"]]  # noqa: E731
    for row in torch.eye(3, dtype=torch.float64):
        equal(tabular.expected_gradient(AllActions(q=q), policy, rollouts, row), tabular.gradient(mdp, policy, 1.0))


def test_what_is_masked_is_not_looked_at():
    mdp, policy = case(1, time_limit=3)
    rollouts, probability = tabular.enumerate_rollouts(mdp, policy)
    q = exactly(mdp, policy, 1.0)
    spoiled = lambda inputs: q(inputs).masked_fill(~rollouts.mask.unsqueeze(-1), torch.nan)  # noqa: E731
    clean, other = (tabular.expected_gradient(AllActions(q=f), policy, rollouts, probability) for f in (q, spoiled))
    assert not rollouts.mask.all() and torch.equal(clean, other)


@pytest.mark.parametrize(
    "q, message",
    [
        (lambda inputs: inputs["observation"].double(), "q: expected a tensor with a value for every action"),
        (lambda inputs: None, "q: expected a tensor with a value for every action"),
        (lambda inputs: torch.full((*inputs["observation"].shape, 2), torch.inf), "q: it returned a value that is not finite"),
    ],
    ids=["one value a state", "nothing", "infinite"],
)
def test_values_that_do_not_fit(q, message):
    mdp, policy = case(1, time_limit=2)
    rollouts, _ = tabular.enumerate_rollouts(mdp, policy)
    with pytest.raises(UsageError, match=message):
        AllActions(q=q).estimate(policy, rollouts)


@pytest.mark.parametrize("num_values", [1, 3])
def test_as_many_values_as_actions(num_values):
    mdp, policy = case(1, time_limit=2)
    rollouts, probability = tabular.enumerate_rollouts(mdp, policy)
    algorithm = AllActions(q=lambda inputs: torch.ones(*inputs["observation"].shape, num_values))
    with pytest.raises(UsageError, match=f"q: it values {num_values} actions"):
        tabular.expected_gradient(algorithm, policy, rollouts, probability)


def test_a_policy_without_a_distribution_is_refused():
    mdp, policy = case(1, time_limit=2)
    rollouts, _ = tabular.enumerate_rollouts(mdp, policy)
    with pytest.raises(
        UsageError,
        match=r"policy: SimpleNamespace has no distribution; expected distribution\(\*\*inputs\) -> Any, as HasDistribution says",
    ):
        AllActions(q=exactly(mdp, policy, 1.0)).estimate(SimpleNamespace(), rollouts)
    with pytest.raises(UsageError, match=r"policy: SoftmaxPolicy has no action_values; expected action_values\(\*\*inputs\) -> Tensor"):
        AllActions().estimate(policy, rollouts)
    with pytest.raises(UsageError, match="gae_lambda: expected a number in"):
        AllActions(gae_lambda=2.0)
    with pytest.raises(UsageError, match="q: expected a function of inputs"):
        AllActions(q=3)
    with pytest.raises(UsageError, match="one pass over each batch"):
        AllActions(q=exactly(mdp, policy, 1.0), update=Ascent(num_epochs=2))


def test_it_trains_an_mlp_policy():
    """Values that prefer one action: it is learned, by the readable path and by the compiled one."""
    q = lambda inputs: torch.tensor([1.0, 0.0]).expand(*inputs["observation"].shape[:-1], 2)  # noqa: E731
    for fast in (False, True):
        envs = control.make("CartPole-v1", num_envs=4, seed=0)
        policy = control.MLPPolicy.for_envs(envs, critic=False, seed=0)
        algorithm = AllActions(q=q, update=Ascent(learning_rate=0.01))
        state = train(algorithm, policy, control.Steps(envs, num_steps=16), iterations=20, seed=0, fast=fast)
        assert state.metrics["entropy"] < 0.3 and (state.rollout.inputs["action"] == 0).float().mean() > 0.9


# ------------------------------------------------------------------------------------------------- a q̂ that is learned


def q_critic(**options):
    envs = control.make("CartPole-v1", num_envs=4, seed=0)
    policy = control.QCriticPolicy.for_envs(envs, hidden_sizes=(8,), seed=0, **options)
    collect = control.Steps(envs, num_steps=16)
    return policy, collect


def test_the_value_of_a_state_is_the_mean_over_its_actions():
    """``V = Σ_a π(a|s) q̂(s, a)``, wherever it is asked for; its gradient reaches q̂ alone; illegal actions have no part in it."""
    policy, collect = q_critic()
    rollout = collect(policy)
    inputs = rollout.inputs
    probability = policy.distribution(**inputs).parameters.softmax(-1)
    value = (probability * policy.action_values(**inputs)).sum(-1)
    equal(policy.evaluate(**inputs).value, value)
    equal(rollout.value, value.detach(), 1e-6)
    equal(policy.value(inputs), value.detach())
    policy.evaluate(**inputs).value.sum().backward()
    assert all(p.grad is None for p in policy.actor.parameters()) and all(p.grad is not None for p in policy.critic.parameters())
    mask = torch.tensor([True, False]).expand(*inputs["action"].shape, 2)
    equal(
        policy.evaluate(**{**inputs, "action": torch.zeros_like(inputs["action"]), "action_mask": mask}).value,
        policy.action_values(**inputs)[..., 0],
    )


def test_its_objective_by_hand():
    """The policy climbs ``Σ_a π q̂`` with q̂ a constant; q̂ of the action taken falls to ``GAE + V``, the others' stay."""
    policy, collect = q_critic()
    policy.value_scale = None
    torch.nn.init.normal_(policy.critic[-1].weight, generator=torch.Generator().manual_seed(0))
    rollout = collect(policy)
    algorithm = AllActions(gamma=0.9, gae_lambda=0.5, value_coef=0.7, entropy_coef=0.1)
    batch = algorithm.estimate(policy, rollout)
    steps = (rollout.reward, rollout.value, rollout.next_value, rollout.terminated, rollout.truncated, 0.9, 0.5, rollout.mask)
    returns = F.gae(*steps) + rollout.value
    parameters = tuple(policy.parameters())
    objective, metrics = algorithm.objective(policy, batch)
    found = torch.autograd.grad(objective, parameters)

    distribution, values = policy.distribution(**rollout.inputs), policy.action_values(**rollout.inputs)
    taken = values.gather(-1, rollout.inputs["action"].unsqueeze(-1)).squeeze(-1)
    climbed = (distribution.parameters.softmax(-1) * values.detach()).sum(-1) + 0.1 * distribution.entropy()
    total = ((climbed - 0.7 * (taken - returns) ** 2) * batch.weight)[batch.mask].sum()
    for ours, expected in zip(found, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(metrics["value_error"], ((taken - returns) ** 2)[batch.mask].mean().detach())


def test_values_of_actions_need_actions_to_count():
    envs = control.make("Pendulum-v1", num_envs=1, seed=0)
    with pytest.raises(UsageError, match="policy: a value for every action needs Discrete actions and a critic, found Box"):
        control.QCriticPolicy.for_envs(envs)
