"""measure_estimator: an expectation on a problem of one's own, exact or with an interval."""

import pytest
import torch

from tests.check.planted import descends, discounted_reinforce, group_with_leave_one_out, log_prob, plain_reinforce, total
from upslope import A2C, RLOO, UsageError, tabular
from upslope.testing import measure_estimator

CORRIDOR = tabular.short_corridor(time_limit=4)
PROBLEM = tabular.random_mdp(num_states=2, num_actions=2, seed=0, time_limit=2)


def squared(policy, rollout):
    return total(log_prob(policy, rollout) * rollout.reward**2, rollout)


def test_by_enumeration():
    found = measure_estimator(plain_reinforce, CORRIDOR)
    assert "by enumeration of 15 trajectories" in str(found) and found.interval["undiscounted"] == 0
    assert found.agrees("undiscounted") and found.bias["undiscounted"] < 1e-8
    assert not measure_estimator(descends, CORRIDOR).agrees("undiscounted")
    discounted = measure_estimator(discounted_reinforce, PROBLEM)
    assert discounted.agrees("discounted") and not discounted.agrees("undiscounted")
    # a group's comparison on the same problem, with the two rows of the group from one start
    assert measure_estimator(group_with_leave_one_out, CORRIDOR, group=True, batch_size=2).agrees("undiscounted")
    assert measure_estimator(RLOO(), CORRIDOR, batch_size=2).agrees("undiscounted")


def test_from_samples():
    arms = tabular.bandit((0.1, 0.5, 2.0))
    policy = tabular.tabular_policy(arms, critic=True)
    with torch.no_grad():
        policy.preferences.table[0] = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
    sound, wrong = (measure_estimator(f, arms, policy, batch_size=100, samples=100) for f in (plain_reinforce, squared))
    assert "from 100 batches of 100" in sound.method and 0 < sound.interval["undiscounted"] < 0.1
    assert sound.agrees("undiscounted") and not wrong.agrees("undiscounted")
    exact = measure_estimator(plain_reinforce, arms, policy)
    assert bool(((sound.mean - exact.mean).abs() <= 4 * sound.standard_error + 1e-12).all())
    assert sound.variance == pytest.approx(exact.variance / 100, rel=0.5)  # of a sample of 100: within a few times 14 %


def test_a_network_and_a_critic():
    policy = tabular.network_policy(CORRIDOR, (3,), seed=0, critic=True)
    found = measure_estimator(A2C(gamma=1.0), CORRIDOR, policy)
    assert found.mean.shape == found.gradient["undiscounted"].shape == (14,)


def test_an_estimate_that_is_zero_everywhere_misses_the_whole_gradient():
    measured = measure_estimator(lambda policy, rollout: 0.0 * total(log_prob(policy, rollout), rollout), PROBLEM)
    assert not measured.mean.any()
    for form, gradient in measured.gradient.items():
        assert measured.bias[form] == pytest.approx(gradient.norm().item()) and measured.bias[form] > 0.01


def test_bad_input():
    with pytest.raises(UsageError, match="gamma: 1 without termination"):
        measure_estimator(plain_reinforce, tabular.ring())
    with pytest.raises(UsageError, match="batch_size, samples"):
        measure_estimator(plain_reinforce, CORRIDOR, batch_size=0)
