"""Values learned from experience: exact on cases worked by hand, and near the exact values after much of it."""

import math

import numpy as np
import pytest
import torch

from tests.tabular.made import case, equal
from upslope import UsageError, tabular
from upslope.tabular import Episode, exact

TWICE = [Episode([0, 1, 0, 2], [1.0, 2.0, 4.0], terminated=True)]


def test_first_and_every_visit_by_hand():
    """State 0 is visited with 7 and with 4 to come."""
    equal(tabular.monte_carlo(TWICE, 2, 1.0), [7.0, 6.0], 0.0)
    equal(tabular.monte_carlo(TWICE, 2, 1.0, first_visit=False), [5.5, 6.0], 0.0)
    equal(tabular.monte_carlo(TWICE, 2, 0.5), [1.0 + 1.0 + 1.0, 4.0], 0.0)
    assert math.isnan(tabular.monte_carlo(TWICE, 4, 1.0)[3])


def test_td_by_hand():
    # V(0) ← ½ · 1; V(1) ← ½ (2 + ½); V(0) ← ½ + ½ (4 − ½)
    equal(tabular.td(TWICE, 3, 1.0, learning_rate=0.5), [2.25, 1.25, 0.0], 0.0)
    # λ = 1: the traces are 1; 1, 1; 2, 1 and the errors 1; 2 + ½ − 0; 4 − 7/4
    equal(tabular.td(TWICE, 3, 1.0, trace_lambda=1.0, learning_rate=0.5), [1.75 + 2.25, 1.25 + 1.125, 0.0], 0.0)


def test_traces_fade_by_gamma_times_lambda():
    line = [Episode([0, 1, 2], [0.0, 1.0], terminated=True)]
    equal(tabular.td(line, 3, 0.5, trace_lambda=0.4, learning_rate=1.0), [0.2, 1.0, 0.0])


def test_a_truncated_episode_goes_on_and_a_terminated_one_does_not():
    start = [0.0, 10.0]
    for terminated, expected in ((True, 1.0), (False, 10.0)):
        one = [Episode([0, 1], [1.0], terminated=terminated)]
        equal(tabular.td(one, 2, 0.9, learning_rate=1.0, value=start), [expected, 10.0])
        equal(tabular.td_offline(one, 2, 0.9, trace_lambda=0.7, learning_rate=1.0, value=start), [expected, 10.0])
    assert start == [0.0, 10.0]


def test_a_truncated_return_goes_on_with_the_given_value_or_is_refused():
    """By hand: 1 + 0.5 · (2 + 0.5 · 8) = 4 for state 0, and 2 + 0.5 · 8 = 6 for state 1; the terminated one adds 3 for state 1."""
    data = [Episode([0, 1, 2], [1.0, 2.0], terminated=False), Episode([1, 2], [3.0], terminated=True)]
    found = tabular.monte_carlo(data, 3, 0.5, value=[100.0, 100.0, 8.0])
    assert found[:2].tolist() == [4.0, 4.5] and math.isnan(found[2])
    with pytest.raises(UsageError, match="data: episode 1 was truncated, so its return is not known; give value"):
        tabular.monte_carlo(data[::-1], 3, 0.5)


def test_monte_carlo_of_truncated_episodes_tends_to_the_exact_values_when_it_goes_on_with_them():
    mdp, policy = case(1, time_limit=3)
    with torch.no_grad():
        v = exact.value(mdp, policy, 0.9)
    data = tabular.episodes(mdp, policy, 4000, seed=0)
    assert sum(not episode.terminated for episode in data) > 2000
    assert float((tabular.monte_carlo(data, 3, 0.9, value=v[:3]) - v[:3]).abs().max()) < 0.1  # some standard errors, 1 / √4000 each
    assert float((tabular.monte_carlo(data, 3, 0.9, value=0.0 * v[:3]) - v[:3]).abs().max()) > 1.0


ONE = [Episode([0, 1], [1.0], terminated=True)]


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Episode([0, 1], [1.0, 2.0], True), r"rewards: expected one less than observations, found \[2\] rewards with \[2\]"),
        (lambda: Episode([0, 0.5], [1.0], True), "observations: expected whole numbers, found 0.5"),
        (lambda: Episode([0, 1], [math.nan], True), "rewards: expected finite numbers"),
        (lambda: Episode([0, 1], ["a"], True), "rewards: expected an array of numbers, found list"),
        (lambda: Episode([0, 1], [1.0], "no"), "terminated: expected True or False, found 'no'"),
        (lambda: tabular.monte_carlo([Episode([7, 1], [1.0], True)], 3, 0.9), "data: episode 0 saw 7, expected observations from 0 to 2"),
        (lambda: tabular.td([*ONE, Episode([0, -1], [1.0], False)], 3, 0.9, learning_rate=0.1), "data: episode 1 saw -1"),
        (lambda: tabular.td_offline(ONE[0], 2, 0.9, trace_lambda=0.5, learning_rate=0.1), "data: expected episodes, found Episode"),
        (lambda: tabular.td([3], 2, 0.9, learning_rate=0.1), "data: expected episodes, found int at index 0"),
        (lambda: tabular.td(ONE, 2, 0.9, learning_rate=math.nan), "learning_rate: expected a number ≥ 0, found nan"),
        (lambda: tabular.td(ONE, 2, 0.9, learning_rate=0.1, trace_lambda=2), r"trace_lambda: expected a number in \[0, 1\], found 2"),
        (lambda: tabular.td_offline(ONE, 2, 0.9, learning_rate=0.1, trace_lambda=-1), r"trace_lambda: expected a number in \[0, 1\]"),
        (
            lambda: tabular.td(ONE, 2, 0.9, learning_rate=0.1, value=[0]),
            r"value: expected shape \[2\], a number by observation, found \[1\]",
        ),
        (lambda: tabular.td(ONE, 2, 0.9, learning_rate=0.1, value=[0, math.nan]), "value: expected finite numbers"),
        (lambda: tabular.monte_carlo(ONE, 2, "a"), r"gamma: expected a number in \[0, 1\], found 'a'"),
        (lambda: tabular.monte_carlo(ONE, 0, 0.9), "num_observations: expected an integer ≥ 1, found 0"),
    ],
)
def test_what_is_no_experience_says_so_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_episode_of_arrays_is_one_of_lists():
    arrays = Episode(np.array([0.0, 1.0]), np.array([1.0], np.float32), np.True_)
    assert arrays == ONE[0]


def offline_td(data, value, gamma, trace_lambda, learning_rate):
    """The backward view with V fixed during the episode: traces and TD errors, added up at its end."""
    v = torch.tensor(value, dtype=torch.float64)
    for episode in data:
        trace, change = torch.zeros_like(v), torch.zeros_like(v)
        for t, reward in enumerate(episode.rewards):
            here, there = episode.observations[t], episode.observations[t + 1]
            over = episode.terminated and t == len(episode.rewards) - 1
            trace = gamma * trace_lambda * trace
            trace[here] += 1.0
            change += learning_rate * (reward + gamma * (0.0 if over else v[there]) - v[here]) * trace
        v = v + change
    return v


@pytest.mark.parametrize("trace_lambda", [0.0, 0.6, 1.0])
def test_the_two_views_of_lambda_are_one(trace_lambda):
    mdp, policy = case(1, time_limit=6)
    data = tabular.episodes(mdp, policy, 20, seed=0)
    assert {episode.terminated for episode in data} == {True, False}
    value = [0.3, -0.2, 0.5, 0.0]
    found = tabular.td_offline(data, 4, 0.9, trace_lambda=trace_lambda, learning_rate=0.1, value=value)
    equal(found, offline_td(data, value, 0.9, trace_lambda, 0.1), 1e-12)


def test_offline_lambda_one_is_monte_carlo():
    """One episode, step size 1 / visits: every-visit Monte Carlo."""
    found = tabular.td_offline(TWICE, 3, 0.9, trace_lambda=1.0, learning_rate=0.5)
    equal(found[:1], tabular.monte_carlo(TWICE, 1 + 1, 0.9, first_visit=False)[:1], 1e-12)


def test_all_come_near_the_exact_values():
    """4000 episodes; the bound is some standard errors of their mean return, about 2 / √4000, and the step's own noise."""
    mdp, policy = case(1, end=0.8)
    with torch.no_grad():
        v = exact.value(mdp, policy, 0.9)
    data = tabular.episodes(mdp, policy, 4000, seed=0)
    assert all(episode.terminated for episode in data)
    found = {
        "first": tabular.monte_carlo(data, 3, 0.9),
        "every": tabular.monte_carlo(data, 3, 0.9, first_visit=False),
    }
    for name, rate in {"td0": 0.0, "td-lambda": 0.8}.items():
        value = None
        for step_size in (0.05, 0.01, 0.003):
            value = tabular.td(data, 4, 0.9, trace_lambda=rate, learning_rate=step_size, value=value)
        found[name] = value[:3]
    offline = None
    for step_size in (0.05, 0.01, 0.003):
        offline = tabular.td_offline(data, 4, 0.9, trace_lambda=0.8, learning_rate=step_size, value=offline)
    found["offline"] = offline[:3]
    for name, value in found.items():
        assert float((value - v[:3]).abs().max()) < 0.15, name
