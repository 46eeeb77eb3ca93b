"""The average-reward setting: four gradients agree, and the ring has the optimum that it says it has."""

import itertools

import pytest
import torch

from tests.tabular.made import case, equal, scrambled
from upslope import UsageError, tabular
from upslope.tabular import average, exact


def test_four_exact_gradients_agree_on_a_hundred_problems():
    for seed in range(100):
        mdp, policy = case(seed, end=0.0)
        theorem = average.gradient(mdp, policy)
        assert float(theorem.abs().max()) > 1e-5
        equal(average.gradient_by_autograd(mdp, policy), theorem)
        for horizon in (1, 2, 3):
            equal(average.gradient_by_enumeration(mdp, policy, horizon), theorem)
        if seed % 10 == 0:
            equal(average.gradient_by_differences(mdp, policy), theorem, 1e-6)


def test_the_enumeration_needs_the_long_run_and_what_follows(monkeypatch):
    """Neither another first state nor a horizon without the differential value at its end gives the gradient."""
    mdp, policy = case(1, end=0.0)
    theorem = average.gradient(mdp, policy)
    for name, other in (("stationary_distribution", mdp.start), ("value", torch.zeros(3, dtype=torch.float64))):
        with monkeypatch.context() as patch:
            patch.setattr(average, name, lambda *_, other=other: other)
            assert float((average.gradient_by_enumeration(mdp, policy, 2) - theorem).abs().max()) > 1e-3


def test_states_that_look_alike_and_states_that_are_left_for_good():
    """Two looks for three states, the first of which nothing leads back to."""
    transition = torch.zeros(3, 2, 3)
    transition[0, :, 1] = transition[1, 0, 2] = transition[1, 1, 1] = transition[2, 0, 1] = transition[2, 1, 2] = 1.0
    reward = [[5.0, 0.0], [1.0, -1.0], [0.0, 2.0]]
    mdp = tabular.MDP(transition, reward, [1.0, 0.0, 0.0], [False] * 3, observation=[0, 1, 0])
    policy = scrambled(tabular.tabular_policy(mdp), 3)
    theorem = average.gradient(mdp, policy)
    assert float(theorem.abs().max()) > 1e-3
    equal(average.gradient_by_enumeration(mdp, policy, 3), theorem)
    equal(average.gradient_by_autograd(mdp, policy), theorem)


def test_values_fit_together():
    for seed in range(10):
        mdp, policy = case(seed, end=0.0)
        with torch.no_grad():
            transition, reward = tabular.chain(mdp, policy)
            d, v, r = average.stationary_distribution(mdp, policy), average.value(mdp, policy), average.objective(mdp, policy)
            equal(d @ transition, d)
            equal(d.sum(), 1.0)
            equal(v, reward - r + transition @ v)
            equal(d @ v, 0.0)
            table = tabular.policy_table(mdp, policy)
            equal((table * average.action_value(mdp, policy)).sum(-1), v)
            equal((table * average.advantage(mdp, policy)).sum(-1), torch.zeros_like(v))
            equal(average.advantage(mdp, policy) + v.unsqueeze(-1), average.action_value(mdp, policy))


def test_the_discounted_problem_tends_to_it():
    """``(1 − γ) J_γ → r̄`` and ``V_γ − r̄ / (1 − γ) → V`` up to a constant, as γ → 1; the error is of order 1 − γ."""
    mdp, policy = case(3, end=0.0)
    with torch.no_grad():
        equal(1e-7 * exact.objective(mdp, policy, 1.0 - 1e-7), average.objective(mdp, policy), 1e-6)
        v, limit = exact.value(mdp, policy, 1.0 - 1e-7), average.value(mdp, policy)
        equal(v - v[0], limit - limit[0], 1e-5)


@pytest.mark.parametrize("num_states,slip", [(2, 0.0), (3, 0.1), (4, 0.3)])
def test_the_rings_optimum(num_states, slip):
    """Of all deterministic policies, going everywhere is the best and earns what the docstring says."""
    ring = tabular.ring(num_states, slip=slip)
    earned = {}
    for choice in itertools.product((0, 1), repeat=num_states):
        table = torch.eye(2, dtype=torch.float64)[list(choice)]
        if sum(choice) >= num_states - 1:  # with two resting states the long run depends on the start
            earned[choice] = float(average.objective(ring, table))
    assert max(earned, key=earned.get) == (1,) * num_states
    assert earned[(1,) * num_states] == pytest.approx((1.0 - slip) / num_states, abs=1e-12)


def test_a_mixture_earns_less_than_the_optimum():
    ring = tabular.ring()
    for p in (0.3, 0.9, 0.999):
        assert float(average.objective(ring, [[1.0 - p, p]] * 5)) < 0.18


def test_what_has_no_average_reward_says_so():
    with pytest.raises(UsageError, match="mdp: it has terminal states"):
        average.objective(tabular.short_corridor(), torch.full((4, 2), 0.5))
    for horizon in (0, 1.5):
        with pytest.raises(UsageError, match=f"horizon: expected an integer ≥ 1, found {horizon}"):
            average.gradient_by_enumeration(*case(0, end=0.0), horizon)
    resting = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    with pytest.raises(UsageError, match="policy: its chain falls into 5 closed classes"):
        average.objective(tabular.ring(), resting)
    resting[:4] = torch.tensor([0.0, 1.0])
    assert float(average.objective(tabular.ring(), resting)) == pytest.approx(0.05, abs=1e-12)  # transient states do no harm
