"""Measure 1: four exact gradients agree, and every estimator's enumerated expectation is what FORMULAS section 4 says."""

from functools import partial

import pytest
import torch

from tests.tabular.made import case, equal, scrambled
from upslope import PPO, REINFORCE, UsageError, tabular
from upslope.algorithms.reinforce import RETURNS, full_trajectory, to_go, to_go_discounted, to_go_undiscounted
from upslope.tabular import exact
from upslope.tabular.gradients import central_differences


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_four_exact_gradients_agree_on_a_hundred_problems(gamma):
    for seed in range(100):
        mdp, policy = case(seed, time_limit=3)
        ends = mdp.unrolled()  # where the limit is an end of the problem, trajectories are all there is
        theorem = tabular.gradient(ends, policy, gamma)
        assert float(theorem.abs().max()) > 1e-3
        equal(tabular.gradient_by_autograd(ends, policy, gamma), theorem)
        equal(tabular.gradient_by_enumeration(mdp, policy, gamma), theorem)
        if seed % 10 == 0:
            equal(tabular.gradient_by_differences(ends, policy, gamma), theorem, 1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_without_a_horizon_three_ways_agree(gamma):
    for seed in range(100):
        mdp, policy = case(seed)
        theorem = tabular.gradient(mdp, policy, gamma)
        equal(tabular.gradient_by_autograd(mdp, policy, gamma), theorem)
        if seed % 10 == 0:
            equal(tabular.gradient_by_differences(mdp, policy, gamma), theorem, 1e-6)


@pytest.mark.parametrize(
    "make", [tabular.linear_policy, partial(tabular.polynomial_policy, degree=1), partial(tabular.network_policy, hidden_sizes=(3,))]
)
def test_every_kind_of_preferences(make):
    mdp = tabular.random_mdp(3, 3, seed=1, time_limit=3)
    policy = scrambled(make(mdp), 1)
    theorem = tabular.gradient(mdp.unrolled(), policy, 0.9)
    equal(tabular.gradient_by_enumeration(mdp, policy, 0.9), theorem)
    equal(tabular.gradient_by_differences(mdp.unrolled(), policy, 0.9), theorem, 1e-6)


def test_the_gradient_needs_no_derivative_of_the_visits():
    for seed in range(5):
        mdp, policy = case(seed)
        through_visits, through_reward = tabular.product_rule(mdp, policy, 0.9)
        assert float(through_visits.abs().max()) > 1e-3  # the visits do change
        equal(through_visits + through_reward, tabular.gradient(mdp, policy, 0.9), 1e-8)  # 1e-8: finite differences


def reinforce(form, gamma, **options):
    return REINFORCE(returns=form, gamma=gamma, normalize_advantage=False, **{"baseline": False, **options})


@pytest.mark.parametrize(
    "form,gamma,objective_gamma",
    [
        (to_go, 1.0, 1.0),
        (to_go_undiscounted, 0.9, 1.0),
        (to_go_discounted, 0.9, 0.9),
        (full_trajectory, 1.0, 1.0),
        (full_trajectory, 0.9, 0.9),
    ],
)
def test_the_unbiased_rows(form, gamma, objective_gamma):
    for seed in range(3):
        mdp, policy = case(seed, time_limit=3)
        expected = tabular.gradient(mdp.unrolled(), policy, objective_gamma)
        found = tabular.expected_gradient(reinforce(form, gamma), policy, *tabular.enumerate_rollouts(mdp, policy))
        equal(found, expected, 1e-12)
        biased = tabular.expected_gradient(reinforce(to_go, 0.9), policy, *tabular.enumerate_rollouts(mdp, policy))
        assert float((biased - expected).abs().max()) > 1e-3


def test_to_go_as_everybody_ships_it_is_the_gradient_of_nothing_but_what_it_says():
    """``Σ_t E[∇log π_t G_t^γ]``: Q_γ with undiscounted visits (Nota & Thomas 2020)."""
    mdp, policy = case(0, time_limit=3)
    ends = mdp.unrolled()
    found = tabular.expected_gradient(reinforce(to_go, 0.9), policy, *tabular.enumerate_rollouts(mdp, policy))
    eta, q = exact.visitation(ends, policy, 1.0).detach(), exact.action_value(ends, policy, 0.9).detach()
    equal(found, tabular.flat_gradient((eta[:, None] * q * tabular.policy_table(ends, policy)).sum(), policy), 1e-12)


def test_a_baseline_changes_nothing_in_expectation():
    """Any function of the state may be subtracted; with a critic, a truncated episode goes on with the critic's value."""
    mdp, policy = case(2, critic=True, time_limit=3)
    ends = mdp.unrolled()
    rollouts = tabular.enumerate_rollouts(mdp, policy)
    with torch.no_grad():
        end_value = policy.values()[mdp.observation].masked_fill(mdp.terminal, 0.0).repeat(4)
    bootstrap = ends.reward.clone()
    bootstrap[2 * 4 : 3 * 4] += 0.9 * (mdp.transition @ end_value[:4])  # the last step's pay now holds what the critic adds
    with_critic = tabular.MDP(
        ends.transition, bootstrap.masked_fill(ends.terminal[:, None], 0.0), ends.start, ends.terminal, observation=ends.observation
    )
    found = tabular.expected_gradient(reinforce(to_go_discounted, 0.9, baseline=True, value_coef=0.0), policy, *rollouts)
    equal(found, tabular.gradient(with_critic, policy, 0.9), 1e-12)


def test_the_three_averages_differ_from_the_sum_by_a_factor_or_not_at_all():
    """`constant` divides by the longest length, which is a scale; `expected_gradient` leaves the scale out."""
    mdp, policy = case(0, time_limit=3)
    rollout, probability = tabular.enumerate_rollouts(mdp, policy)
    gradient = tabular.gradient(mdp.unrolled(), policy, 1.0)

    def constant(policy, rollout):
        credit, _, _ = to_go(rollout, 1.0, None)
        return (policy.evaluate(**rollout.inputs).log_prob * credit).where(rollout.mask, 0.0).sum(-1) / rollout.max_steps

    equal(3.0 * tabular.expected_gradient(constant, policy, rollout, probability), gradient, 1e-12)

    def own_mean(policy, rollout):
        return constant(policy, rollout) * 3.0 / rollout.mask.sum(-1)

    assert float((3.0 * tabular.expected_gradient(own_mean, policy, rollout, probability) - gradient).abs().max()) > 1e-3


def test_ppo_at_its_first_step_is_the_gradient_too():
    mdp, policy = case(4, critic=True, time_limit=3)
    with torch.no_grad():
        policy.value.table.zero_()
    ppo = PPO(gamma=1.0, gae_lambda=1.0, value_coef=0.0, normalize_advantage=False)
    found = tabular.expected_gradient(ppo, policy, *tabular.enumerate_rollouts(mdp, policy))
    equal(found, tabular.gradient(mdp.unrolled(), policy, 1.0), 1e-12)


def test_what_cannot_be_enumerated_says_so():
    mdp, policy = case(0)
    with pytest.raises(UsageError, match="no longest length; give horizon"):
        tabular.enumerate_rollouts(mdp, policy)
    with pytest.raises(UsageError, match="more than 1000000 trajectories"):
        tabular.enumerate_rollouts(mdp, policy, 20)
    with pytest.raises(UsageError, match="normalize_advantage"):
        tabular.expected_gradient(REINFORCE(baseline=False), policy, *tabular.enumerate_rollouts(mdp, policy, 2))
    with pytest.raises(UsageError, match=r"one number for each episode, shape \[\d+\], found \[\]"):
        tabular.expected_gradient(lambda policy, rollout: rollout.reward.sum(), policy, *tabular.enumerate_rollouts(mdp, policy, 2))


def test_all_return_forms_are_covered_here():
    assert set(RETURNS.values()) == {to_go, to_go_undiscounted, to_go_discounted, full_trajectory}


def test_probabilities_of_all_trajectories_sum_to_one():
    mdp, policy = case(3, time_limit=4)
    rollout, probability = tabular.enumerate_rollouts(mdp, policy)
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((rollout.terminated | rollout.truncated).sum(-1).eq(1).all())
    returns = (probability * rollout.reward.sum(-1)).sum()
    equal(returns, exact.objective(mdp.unrolled(), policy, 1.0).detach(), 1e-12)


def test_what_has_no_gradient_says_so():
    mdp, policy = case(0, time_limit=2)
    table = [[0.5, 0.5]] * 4
    for function in (tabular.gradient, tabular.gradient_by_autograd, tabular.gradient_by_differences):
        with pytest.raises(UsageError, match="policy: a gradient needs a policy with parameters, found list"):
            function(mdp, table, 0.9)
    with pytest.raises(UsageError, match="policy: expected one with evaluate, found list"):
        tabular.gradient_by_enumeration(mdp, table, 0.9)
    for step in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="step: expected a"):
            tabular.gradient_by_differences(mdp, policy, 0.9, step=step)


def test_differences_leave_the_parameters_as_they_were_when_the_function_raises():
    _, policy = case(0)
    before = policy.preferences.table.detach().clone()
    with pytest.raises(ZeroDivisionError):
        central_differences(lambda: 1 / 0, policy)
    assert torch.equal(policy.preferences.table, before)


@pytest.mark.parametrize(
    "estimator,message",
    [
        (None, r"estimator: expected an algorithm or a function \(policy, rollouts\), found None"),
        (lambda policy, rollout: 1 / 0, r"estimator: raised ZeroDivisionError \(division by zero\)"),
        (lambda policy, rollout: rollout.reward.sum(-1) * torch.nan, "estimator: expected finite numbers, found nan for episode 0"),
        (lambda policy, rollout: rollout.reward, r"estimator: expected one number for each episode, shape \[\d+\], found \[\d+, 2\]"),
    ],
)
def test_what_is_no_estimator_says_so(estimator, message):
    mdp, policy = case(0, time_limit=2)
    with pytest.raises(UsageError, match=message):
        tabular.expected_gradient(estimator, policy, *tabular.enumerate_rollouts(mdp, policy))
