"""Dynamic programming: three methods, one answer."""

import pytest
import torch

from tests.tabular.made import case, equal
from upslope import RunFault, UsageError, tabular
from upslope.tabular import exact


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_policy_and_value_iteration_agree(gamma):
    for seed in range(10):
        mdp = tabular.random_mdp(5, 3, seed=seed, end=0.5)
        table, v = tabular.policy_iteration(mdp, gamma)
        other, w = tabular.value_iteration(mdp, gamma)
        equal(v, w, 1e-9)  # 1e-9: sweeps stop when they move by 1e-12
        equal(table, other, 0.0)
        equal(exact.value(mdp, table, gamma), v)
        assert bool((exact.advantage(mdp, table, gamma) <= 1e-9).all())  # nothing is better: the optimality equation


def test_iterative_evaluation_is_the_linear_solve():
    for seed in range(5):
        mdp, policy = case(seed)
        with torch.no_grad():
            equal(tabular.policy_evaluation(mdp, policy, 0.9), exact.value(mdp, policy, 0.9))
    equal(tabular.policy_evaluation(tabular.gridworld(), torch.full((16, 4), 0.25), 1.0)[[1, 2, 3]], [-14.0, -20.0, -22.0], 1e-9)


def test_evaluation_keeps_no_graph_of_its_sweeps(recwarn):
    v = tabular.policy_evaluation(*case(0), 0.9)
    assert not v.requires_grad and not recwarn.list


def test_the_shortest_ways_of_a_gridworld():
    mdp = tabular.gridworld(3, 4, goals=((2, 3),), start=(0, 0))
    _, v = tabular.policy_iteration(mdp, 1.0)
    equal(v.reshape(3, 4), [[-5, -4, -3, -2], [-4, -3, -2, -1], [-3, -2, -1, 0]])


def test_planning_knows_the_state_where_a_policy_cannot():
    """Right, left, right: three steps, against 11.657 for the best that sees nothing."""
    table, v = tabular.value_iteration(tabular.short_corridor(), 1.0)
    assert float(v[0]) == -3.0 and table.argmax(-1).tolist()[:3] == [1, 0, 1]


def test_what_does_not_settle_says_so():
    ring = tabular.ring()
    with pytest.raises(RunFault, match="max_sweeps: values still moved after 50 sweeps"):
        tabular.value_iteration(ring, 1.0, max_sweeps=50)
    with pytest.raises(RunFault, match="max_sweeps: values still moved after 2 sweeps"):
        tabular.policy_evaluation(ring, torch.full((5, 2), 0.5), 0.9, max_sweeps=2)
    for method in (tabular.policy_iteration, lambda mdp, gamma: tabular.policy_evaluation(mdp, torch.full((5, 2), 0.5), gamma)):
        with pytest.raises(UsageError, match="gamma: 1 without termination"):
            method(ring, 1.0)
    for options in ({"tolerance": -1.0}, {"max_sweeps": 0}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}: expected"):
            tabular.value_iteration(ring, 0.9, **options)
    with pytest.raises(UsageError, match="gamma: expected"):
        tabular.value_iteration(ring, -0.1)
