"""Exact quantities against published numbers and against each other."""

import math
from itertools import pairwise

import pytest
import torch

from tests.tabular.made import case, equal, scrambled
from upslope import UsageError, tabular
from upslope.tabular import exact

BEST = 2.0 - math.sqrt(2.0)


def corridor_value(p):
    return float(exact.objective(tabular.short_corridor(), [[1.0 - p, p]] * 4, 1.0))


def test_the_corridor():
    """SB Example 13.1."""
    assert corridor_value(BEST) == pytest.approx(-(6.0 + 4.0 * math.sqrt(2.0)), abs=1e-12)
    assert round(corridor_value(0.05), 1) == -82.1 and round(corridor_value(0.95), 1) == -44.2
    for p in (0.1, 0.4, 0.7):
        assert corridor_value(p) == pytest.approx(2.0 * (p - 2.0) / (p * (1.0 - p)), abs=1e-10)
        assert corridor_value(p) < corridor_value(BEST)


def test_ascent_finds_the_corridors_optimum():
    mdp = tabular.short_corridor()
    policy = tabular.tabular_policy(mdp)
    history = tabular.ascend(mdp, policy, 1.0, learning_rate=0.05, num_steps=100)
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(history))
    assert policy.probabilities()[0, 1].item() == pytest.approx(BEST, abs=1e-8)
    assert history[-1] == pytest.approx(-11.656854, abs=1e-6)


def test_the_worked_softmax():
    """Preferences (3, 2, 4, 5, 1)."""
    policy = tabular.tabular_policy(tabular.bandit([0.0] * 5))
    with torch.no_grad():
        policy.preferences.table[0] = torch.tensor([3.0, 2.0, 4.0, 5.0, 1.0])
    assert [round(p, 3) for p in policy.probabilities()[0].tolist()] == [0.086, 0.032, 0.234, 0.636, 0.012]
    distribution = policy.distribution(observation=torch.tensor([0]))
    equal(distribution.probabilities[0], policy.probabilities()[0].detach(), 0.0)
    equal(distribution.entropy(), -(distribution.probabilities * distribution.probabilities.log()).sum(-1).detach())


def test_the_score_has_mean_zero_and_is_features_times_indicator_less_probability():
    mdp, _ = case(0)
    policy = scrambled(tabular.linear_policy(mdp, torch.randn(4, 2, generator=torch.Generator().manual_seed(0))))
    total = torch.zeros(4, dtype=torch.float64)
    p = policy.probabilities().detach()
    for action in range(2):
        log_prob = policy.evaluate(observation=torch.tensor([1]), action=torch.tensor([action])).log_prob.sum()
        score = tabular.flat_gradient(log_prob, policy)
        by_hand = torch.outer(policy.features[1], torch.eye(2, dtype=torch.float64)[action] - p[1])
        equal(score, by_hand.reshape(-1), 1e-12)
        total += p[1, action] * score
    equal(total, torch.zeros(4), 1e-14)


def test_the_gridworld_of_the_book():
    """SB Figure 4.1: the uniform policy's values."""
    v = exact.value(tabular.gridworld(), torch.full((16, 4), 0.25), 1.0)
    equal(v, [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0])


def test_values_fit_together():
    for seed in range(10):
        mdp, policy = case(seed)
        for gamma in (0.0, 0.9, 1.0):
            with torch.no_grad():
                table = tabular.policy_table(mdp, policy)
                v, q = exact.value(mdp, policy, gamma), exact.action_value(mdp, policy, gamma)
                eta, objective = exact.visitation(mdp, policy, gamma), exact.objective(mdp, policy, gamma)
                equal((table * q).sum(-1), v)
                equal((table * exact.advantage(mdp, policy, gamma)).sum(-1), torch.zeros_like(v))
                equal((eta.unsqueeze(-1) * table * mdp.reward).sum(), objective)
                equal(exact.on_policy_distribution(mdp, policy, gamma).sum(), 1.0)
                equal(exact.value(mdp, table, gamma), v)
                assert float(v[-1]) == 0.0 and float(eta[-1]) == 0.0


def test_visits_are_counted():
    """``Σ η`` is the mean length of an episode; a straight line of three states is visited once each, weighted by γ^t."""
    transition = torch.zeros(4, 1, 4)
    transition[[0, 1, 2], 0, [1, 2, 3]] = 1.0
    line = tabular.MDP(transition, [[1.0], [2.0], [4.0], [0.0]], [1.0, 0.0, 0.0, 0.0], [False, False, False, True])
    equal(exact.visitation(line, torch.ones(4, 1), 1.0), [1.0, 1.0, 1.0, 0.0], 0.0)
    equal(exact.visitation(line, torch.ones(4, 1), 0.5), [1.0, 0.5, 0.25, 0.0], 0.0)
    equal(exact.value(line, torch.ones(4, 1), 0.5), [3.0, 4.0, 4.0, 0.0], 0.0)
    mdp, policy = case(1)
    rollout = tabular.Episodes(mdp, 4000, seed=0)(policy)
    seen = rollout.inputs["observation"][rollout.mask]
    counts = torch.bincount(seen, minlength=4) / 4000.0
    eta = exact.visitation(mdp, policy, 1.0).detach()
    assert float((counts - eta).abs().max()) < 0.05 * float(eta.sum())  # some standard errors of 4000 sampled episodes


def test_the_performance_difference():
    for seed in range(10):
        mdp, new = case(seed)
        old = scrambled(tabular.tabular_policy(mdp), seed + 100)
        for gamma in (0.9, 1.0):
            difference = exact.objective(mdp, new, gamma) - exact.objective(mdp, old, gamma)
            equal(exact.performance_difference(mdp, new, old, gamma), difference)
            assert abs(difference.item()) > 1e-4


def test_the_regularized_optimum_is_the_maximum():
    reward, reference = torch.tensor([1.0, 0.0, 2.0]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    best = exact.regularized_optimum(reward, reference, 0.7)

    def objective(p):
        return float((p * reward).sum() - 0.7 * (p * (p / reference).log()).sum())

    assert objective(best) == pytest.approx(0.7 * float((reference * (reward / 0.7).exp()).sum().log()), abs=1e-12)
    for shift in torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double():
        assert objective((best.log() + 0.1 * shift).softmax(-1)) < objective(best)
    for wrong in (reference - 0.4, 2.0 * reference, reference * math.nan):
        with pytest.raises(UsageError, match="reference: expected probabilities"):
            exact.regularized_optimum(reward, wrong, 1.0)
    with pytest.raises(UsageError, match="reward: expected finite numbers"):
        exact.regularized_optimum(reward / 0.0, reference, 1.0)
    with pytest.raises(UsageError, match="kl_coef: expected a finite number, found 'a'"):
        exact.regularized_optimum(reward, reference, "a")
    with pytest.raises(UsageError, match="kl_coef"):
        exact.regularized_optimum(reward, reference, 0.0)
    with pytest.raises(UsageError, match=r"reference: expected shape \[3\]"):
        exact.regularized_optimum(reward, reference[:1], 1.0)


def test_no_end_and_no_discount_is_refused():
    ring, corridor = tabular.ring(), tabular.short_corridor()
    always_left = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    policy = tabular.tabular_policy(ring)
    for function in (exact.value, exact.action_value, exact.objective, exact.visitation, exact.on_policy_distribution, tabular.gradient):
        with pytest.raises(UsageError, match=r"gamma: 1 without termination: .*give gamma < 1, or take the average-reward functions$"):
            function(ring, policy, 1.0)
    with pytest.raises(UsageError, match="from state 0 this policy may go on for ever"):
        exact.value(corridor, always_left, 1.0)
    with pytest.raises(UsageError, match=r"or take mdp\.unrolled\(\)"):
        exact.value(tabular.ring(time_limit=10), policy, 1.0)
    assert float(exact.objective(corridor, always_left, 0.9)) == pytest.approx(-10.0, abs=1e-9)


def test_an_endless_state_that_no_episode_meets_has_no_value_and_spoils_nothing():
    """State 1 stays for ever, and is met only by an action that the policy never takes."""
    transition = torch.zeros(3, 2, 3)
    transition[0, 0, 2] = transition[0, 1, 1] = transition[1, :, 1] = 1.0
    mdp = tabular.MDP(transition, [[1.0, 0.0], [-1.0, -1.0], [0.0, 0.0]], [1.0, 0.0, 0.0], [False, False, True])
    table = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    v, q = exact.value(mdp, table, 1.0), exact.action_value(mdp, table, 1.0)
    assert float(v[0]) == 1.0 and math.isnan(v[1]) and float(v[2]) == 0.0
    assert float(q[0, 0]) == 1.0 and math.isnan(q[0, 1])
    assert float(exact.objective(mdp, table, 1.0)) == 1.0
    equal(exact.visitation(mdp, table, 1.0), [1.0, 0.0, 0.0], 0.0)


def test_arguments_are_checked():
    mdp, policy = case(0)
    with pytest.raises(UsageError, match="gamma: expected a number in"):
        exact.value(mdp, policy, 1.5)
    for gamma in ("a", None, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"gamma: expected a number in \[0, 1\], found"):
            exact.value(mdp, policy, gamma)
    with pytest.raises(UsageError, match="gamma: expected a number in"):
        tabular.gradient_by_enumeration(mdp, policy, -1.0, horizon=2)
    with pytest.raises(UsageError, match=r"horizon: expected an integer ≥ 1 or none, found 1\.5"):
        tabular.gradient_by_enumeration(mdp, policy, 0.9, horizon=1.5)
    with pytest.raises(UsageError, match="policy: expected an array of numbers, found str"):
        exact.value(mdp, "x", 0.9)
    with pytest.raises(UsageError, match=r"policy: the probabilities in state 0 are \[nan, nan\]"):
        exact.value(mdp, torch.full((4, 2), math.nan), 0.9)
    table = torch.full((4, 2), 0.5, requires_grad=True)
    assert exact.objective(mdp, table, 0.9).requires_grad  # a table is not copied away from its graph
    with pytest.raises(UsageError, match=r"policy: expected a table \[4, 2\] by state, found \[2, 2\]"):
        exact.value(mdp, torch.full((2, 2), 0.5), 0.9)
    with pytest.raises(UsageError, match=r"policy: the probabilities in state 0 are \[0\.5, 0\.6\]"):
        exact.value(mdp, [[0.5, 0.6]] * 4, 0.9)
    with pytest.raises(UsageError, match=r"policy: expected probabilities of shape \[4, 2\]"):
        exact.value(mdp, tabular.tabular_policy(tabular.bandit()), 0.9)
    with pytest.raises(UsageError, match=r"features: expected shape \[4, d\]"):
        tabular.linear_policy(mdp, [[1.0]])
    for features, message in (([[math.nan]] * 4, "features: expected finite"), (torch.zeros(4, 0), r"features: expected shape \[4, d\]")):
        with pytest.raises(UsageError, match=message):
            tabular.linear_policy(mdp, features)
    with pytest.raises(UsageError, match=r"degree: expected an integer ≥ 0, found 1\.5"):
        tabular.polynomial_policy(mdp, 1.5)
    with pytest.raises(UsageError, match="hidden_sizes: expected an integer ≥ 1, found 0"):
        tabular.network_policy(mdp, (0,))
    with pytest.raises(UsageError, match="hidden_sizes: expected a width for each layer, found 5"):
        tabular.network_policy(mdp, 5)
    with pytest.raises(UsageError, match="num_observations: expected an integer ≥ 0, found 'a'"):
        tabular.SoftmaxPolicy(tabular.Table(2, 2), num_observations="a")
    for options, message in (({"learning_rate": math.nan}, "learning_rate"), ({"num_steps": -1}, "num_steps: expected an integer ≥ 0")):
        with pytest.raises(UsageError, match=message):
            tabular.ascend(mdp, policy, 0.9, **{"learning_rate": 0.1, "num_steps": 1, **options})
    with pytest.raises(UsageError, match="features: give features"):
        tabular.SoftmaxPolicy(tabular.Table(2, 2))


def test_visit_counts_of_the_source_documents_are_a_distribution():
    """10, 3, 50, 5 and 3 visits in 71 steps."""
    counts = torch.tensor([10, 3, 50, 5, 3])
    rollout = torch.repeat_interleave(torch.arange(5), counts)
    mu = torch.bincount(rollout) / len(rollout)
    assert [round(x, 3) for x in mu.tolist()] == [0.141, 0.042, 0.704, 0.07, 0.042]
