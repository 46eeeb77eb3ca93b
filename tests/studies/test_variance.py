"""The variance meter against what can be computed: a bandit's covariance, exact gradients, exact critics."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tabular.made import case, scrambled
from upslope import A2C, GRPO, PPO, REINFORCE, RLOO, OffPolicyGradient, UsageError, tabular
from upslope.algorithms.off_policy import per_decision
from upslope.algorithms.reinforce import to_go, to_go_discounted
from upslope.intervals import central
from upslope.records import map_tensors
from upslope.studies import variance
from upslope.studies.variance import Reference, concatenated, measure, unit_gradients, widening

PLAIN = {"normalize_advantage": False, "value_coef": 0.0}


def in_groups(rollout, size):
    return replace(map_tensors(rollout, lambda tensor: tensor.unflatten(0, (-1, size))), unit="group")


def test_a_bandit_of_known_variance():
    """g = r_a (e_a − p); where each arm was pulled once and p is uniform, the sample is the distribution."""
    means = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    mdp = tabular.bandit(means.tolist())
    policy = tabular.tabular_policy(mdp)
    rollout, _ = tabular.enumerate_rollouts(mdp, policy)
    rows = means.unsqueeze(1) * (torch.eye(3, dtype=torch.float64) - 1 / 3)
    trace = float(rows.square().sum(1).mean() - rows.mean(0).square().sum())
    reference = Reference.exact(tabular.gradient(mdp, policy, 1.0))
    (found,) = measure({"plain": REINFORCE(baseline=False, gamma=1.0, **PLAIN)}, policy, rollout, reference)
    assert found.variance == pytest.approx(trace * 3 / 2, abs=1e-12)  # K/(K − 1)
    assert found.bias == pytest.approx(0.0, abs=1e-7)  # the root of a rounded 0
    assert found.cosine == pytest.approx(1.0, abs=1e-12) and not found.biased and found.effective_sample_size is None
    signal = float(rows.mean(0).square().sum()) - found.variance / 3
    assert found.relative_variance == (pytest.approx(found.variance / signal) if signal > 0 else np.inf)


@pytest.mark.parametrize(
    "algorithm",
    [
        REINFORCE(baseline=False, **PLAIN),
        A2C(gae_lambda=0.5, normalize_advantage=False, value_coef=0.0),
        PPO(**PLAIN),
        RLOO(average_over="steps"),
        RLOO(),
        GRPO(),
        GRPO(average_over="constant"),
        OffPolicyGradient(estimator=per_decision, baseline=False, scale_advantage=False),
    ],
)
def test_units_add_up_to_the_batch(algorithm):
    mdp, policy = case(1, time_limit=4, critic=True)
    rollout = in_groups(tabular.Episodes(mdp, 12, seed=0)(policy), 3)
    whole = unit_gradients(algorithm, policy, rollout, units=1)
    assert float(whole.abs().max()) > 1e-3
    for units in (2, 4):
        torch.testing.assert_close(unit_gradients(algorithm, policy, rollout, units=units).mean(0), whole[0], rtol=0, atol=1e-12)


def test_an_episode_counts_as_in_the_formulas():
    """The gradient of one episode is Σ_t ∇log π_t G_t, however many others there are and however steps are averaged."""
    mdp, policy = case(2, time_limit=4)
    rollout = tabular.Episodes(mdp, 6, seed=0)(policy)
    found = unit_gradients(REINFORCE(baseline=False, gamma=1.0, **PLAIN), policy, rollout, units=6)
    for row in range(6):
        alone = map_tensors(rollout, lambda tensor, row=row: tensor[row : row + 1])
        expected = tabular.expected_gradient(REINFORCE(baseline=False, gamma=1.0, **PLAIN), policy, alone, torch.ones(1))
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-12)


def test_bias_and_a_baseline():
    mdp, policy = case(1, time_limit=5, critic=True)
    reward = 3.0 * mdp.reward + 3.0 * (~mdp.terminal).double().unsqueeze(1)
    mdp = tabular.MDP(mdp.transition, reward, mdp.start, mdp.terminal, mdp.time_limit)
    with torch.no_grad():  # right for the first step only, and any baseline will do
        policy.value.table.copy_(tabular.exact.value(mdp.unrolled(), policy, 0.7)[: mdp.num_observations, None])
    reference = Reference.exact(tabular.gradient(mdp.unrolled(), policy, 0.7))
    rollout = tabular.Episodes(mdp, 120, seed=1)(policy)
    ends = rollout.terminated | rollout.truncated  # here the limit is an end of the problem
    rollout = replace(rollout, terminated=ends, truncated=torch.zeros_like(ends))
    estimators = {
        "plain": REINFORCE(returns=to_go_discounted, baseline=False, gamma=0.7, **PLAIN),
        "baseline": REINFORCE(returns=to_go_discounted, gamma=0.7, **PLAIN),
        "as shipped": REINFORCE(returns=to_go, gamma=0.7, **PLAIN),
        "one step": A2C(gae_lambda=0.0, gamma=0.7, value_coef=0.0),
    }
    plain, baseline, shipped, one_step = measure(estimators, policy, rollout, reference, seed=0)
    assert baseline.variance < 0.3 * plain.variance and one_step.variance < shipped.variance
    assert baseline.variance_interval[0] < baseline.variance < baseline.variance_interval[1] < plain.variance_interval[0]
    assert not plain.biased and not baseline.biased and shipped.biased and one_step.biased
    assert baseline.relative_variance < 0.3 * plain.relative_variance
    assert baseline.cosine > 0.99 and baseline.cosine_interval[0] <= baseline.cosine <= baseline.cosine_interval[1]
    again = measure({"baseline": estimators["baseline"]}, policy, rollout, reference, seed=0)[0]
    assert (again.variance, again.bias) == (baseline.variance, baseline.bias)


def test_a_sampled_reference_knows_its_own_noise():
    mdp, policy = case(4, time_limit=4)
    algorithm = REINFORCE(baseline=False, gamma=1.0, **PLAIN)
    few, many = (Reference.sampled(algorithm, policy, tabular.Episodes(mdp, n, seed=9)(policy)) for n in (20, 640))
    rollout = tabular.Episodes(mdp, 100, seed=0)(policy)
    by_few, by_many = (measure({"x": algorithm}, policy, rollout, reference)[0] for reference in (few, many))
    assert len(few.parts) == 20 and len(many.parts) == 64
    assert by_few.bias_by_chance > 1.5 * by_many.bias_by_chance and not by_few.biased and not by_many.biased
    wrong_sign = measure({"x": algorithm}, policy, replace(rollout, reward=-rollout.reward), many)[0]
    assert wrong_sign.biased and wrong_sign.cosine == -by_many.cosine and wrong_sign.variance == by_many.variance


def test_the_direction_of_few_samples_is_not_known():
    """In one free direction the cosine is 1 or −1, the latter by chance as well."""
    mdp = tabular.short_corridor()
    policy = scrambled(tabular.tabular_policy(mdp))
    algorithm = REINFORCE(baseline=False, gamma=1.0, **PLAIN)
    exact = Reference.exact(tabular.gradient(mdp, policy, 1.0))
    few = [measure({"x": algorithm}, policy, tabular.Episodes(mdp, 8, seed=seed)(policy), exact)[0] for seed in range(12)]
    assert any(row.cosine < -0.999 for row in few) and not any(row.cosine < 0 and row.direction_known for row in few)
    rollout = tabular.Episodes(mdp, 3000, seed=0)(policy)
    right, wrong = (measure({"x": algorithm}, policy, replace(rollout, reward=s * rollout.reward), exact)[0] for s in (1, -1))
    assert right.direction_known and right.cosine == pytest.approx(1.0) and wrong.direction_known and wrong.cosine == pytest.approx(-1.0)


def test_samples_that_another_policy_took():
    mdp, policy = case(5, time_limit=4)
    behavior = tabular.tabular_policy(mdp)
    algorithm = OffPolicyGradient(estimator=per_decision, baseline=False, scale_advantage=False, gamma=1.0)
    exact = Reference.exact(tabular.gradient(mdp.unrolled(), policy, 1.0))
    on, off = (measure({"x": algorithm}, policy, tabular.Episodes(mdp, 150, seed=2)(b), exact)[0] for b in (policy, behavior))
    assert on.effective_sample_size == pytest.approx(1.0) and 0.0 < off.effective_sample_size < 0.95
    assert not on.biased and not off.biased and off.variance > on.variance


@pytest.mark.parametrize("count,t", [(7, 3.7074), (9, 3.3554), (31, 2.7500)])
def test_few_samples_prove_less(count, t):
    """t at 99.5 % with count − 1 degrees of freedom, as tables have it."""
    z = 2.5758
    assert widening(count) == pytest.approx((count / (count - 1)) ** 0.5 * t / z, rel=0.03)  # the expansion stops at 1/ν²
    assert widening(1) == 1.0 and widening(10_000) == pytest.approx(1.0, abs=1e-3)


def test_rollouts_below_each_other():
    mdp, policy = case(1, time_limit=6)
    parts = [tabular.Episodes(mdp, 4, seed=seed)(policy) for seed in range(3)]
    both = concatenated(parts)
    assert both.mask.shape == (12, max(part.mask.shape[1] for part in parts)) and both.num_steps == sum(p.num_steps for p in parts)
    algorithm = REINFORCE(baseline=False, **PLAIN)
    mean = sum(unit_gradients(algorithm, policy, part, units=1)[0] for part in parts) / 3
    torch.testing.assert_close(unit_gradients(algorithm, policy, both, units=1)[0], mean, rtol=0, atol=1e-12)


def test_mistakes(monkeypatch):
    mdp, policy = case(1, time_limit=6)
    exact, plain = Reference.exact(tabular.gradient(mdp, policy, 0.9)), {"plain": REINFORCE(baseline=False)}
    with pytest.raises(UsageError, match="samples: expected at least 2 episodes, found 1"):
        measure(plain, policy, tabular.Episodes(mdp, 1)(policy), exact)
    with pytest.raises(UsageError, match=r"row \(0,\) holds \d+ ends, expected 1: collect whole episodes"):
        measure(plain, policy, tabular.Steps(mdp, 4, 64)(policy), exact)
    rollout = tabular.Episodes(mdp, 4)(policy)
    monkeypatch.setattr(variance, "MAX_NUMBERS", 18)
    with pytest.raises(UsageError, match="samples: 4 gradients of 8 numbers each do not fit; take at most 2, or a smaller policy"):
        measure(plain, policy, rollout, exact)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="estimator 'a2c': policy: this algorithm needs a critic"):
        measure({"a2c": A2C()}, policy, rollout, exact)
    with pytest.raises(UsageError, match="estimator 'rloo': rollout: this algorithm compares the rows of a group"):
        measure({"rloo": RLOO()}, policy, rollout, exact)


def test_an_interval_holds_what_it_is_of():
    """Of a cosine near 1 nearly all resampled ones are lower, for they are noisier."""
    generator = np.random.default_rng(0)
    assert central(0.98 - 0.01 * generator.random(1000), 0.99)[1] == 0.99
    low, high = central(generator.normal(size=4000), 0.1)
    assert abs(low + 1.96) < 0.1 and abs(high - 1.96) < 0.1
