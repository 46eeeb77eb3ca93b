"""Evaluation: one episode for each seed, fresh ones at each call, frozen normalization, an interval that means something."""

import gymnasium
import numpy as np
import pytest
import torch

from tests.control.worlds import Critic, Loop, Ruled, SeededLength
from upslope import UsageError, control
from upslope.control.evaluate import CUT_AFTER
from upslope.control.heads import Categorical, Distribution
from upslope.intervals import bootstrap


class Chooser(Critic):
    """Prefers action 1; draws action 0 one time in five."""

    def distribution(self, observation, action_mask=None):
        return Distribution(Categorical(2), torch.tensor([0.2, 0.8]).log().expand(len(observation), 2), action_mask)

    def sample(self, inputs, *, generator=None):
        sample = super().sample(inputs, generator=generator)
        return type(sample)(action=self.distribution(**inputs).sample(generator), log_prob=sample.log_prob)


class Paying(SeededLength):
    """SeededLength that pays the action."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action), *rest


def lengths_of(seeds):
    env, lengths = SeededLength(), []
    for seed in seeds:
        env.reset(seed=seed)
        lengths.append(float(env.length))
    return lengths


@pytest.mark.parametrize("num_envs", [None, 1, 3, 7, 50])
def test_exactly_one_episode_for_each_seed(num_envs):
    """Long episodes are a quarter; taking the first 20 to finish would all but lose them."""
    result = control.evaluate(Chooser(), SeededLength, episodes=20, seed=100, num_envs=num_envs)
    expected = lengths_of(range(100, 120))
    assert 40.0 in expected
    assert list(result.returns) == expected
    assert result.episodes == 20
    assert result.return_mean == result.length_mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert result.return_std == pytest.approx(np.std(expected, ddof=1), abs=1e-12)


def test_nobody_steps_an_environment_behind_its_episode():
    steps = []

    class Counted(SeededLength):
        def step(self, action):
            steps.append(1)
            return super().step(action)

    result = control.evaluate(Chooser(), Counted, episodes=20, num_envs=10)
    assert len(steps) == sum(result.returns)


def test_each_call_plays_other_episodes():
    with control.Evaluator(SeededLength, episodes=15, seed=7, num_envs=4) as evaluator:
        envs = evaluator.envs
        for call in range(3):
            assert list(evaluator(Chooser()).returns) == lengths_of(range(7 + 15 * call, 22 + 15 * call))
        assert evaluator.envs is envs


def test_vectorized_cartpole_plays_other_episodes_at_each_call():
    envs = control.make("CartPole-v1", 8)
    policy = control.MLPPolicy.for_envs(envs, seed=3)
    evaluator = control.Evaluator("CartPole-v1", episodes=20, seed=100)
    first, second = evaluator(policy), evaluator(policy)
    assert first.returns != second.returns
    assert first == control.evaluate(policy, "CartPole-v1", episodes=20, seed=100)
    assert len(set(first.returns)) > 1


def test_greedy_and_sampled():
    greedy = control.evaluate(Chooser(), Paying, episodes=40)
    assert greedy.return_mean == greedy.length_mean
    drawn = control.evaluate(Chooser(), Paying, episodes=40, greedy=False)
    # about 460 draws of a coin with p = 0.8: four standard errors are 0.075
    assert drawn.return_mean / drawn.length_mean == pytest.approx(0.8, abs=0.075)
    assert drawn == control.evaluate(Chooser(), Paying, episodes=40, greedy=False)


def test_a_policy_that_cannot_be_greedy_says_so():
    with pytest.raises(UsageError, match=r"neither act\(\) nor distribution\(\), so evaluate with greedy=False"):
        control.evaluate(Critic(), SeededLength)
    control.evaluate(Critic(), SeededLength, greedy=False, episodes=2)


def test_a_perfect_policy_on_cartpole():
    class Balance(torch.nn.Module):
        def act(self, observation, *, greedy=True, state=None, action_mask=None):
            return (observation @ np.array([0.1, 0.5, 5.0, 1.0]) > 0).astype(np.int64), state

    result = control.evaluate(Balance(), "CartPole-v1")
    assert (result.return_mean, result.return_std, result.return_interval, result.length_mean) == (500.0, 0.0, (500.0, 500.0), 500.0)


def test_the_return_is_the_environments_own_and_the_normalizer_is_left_alone():
    envs = control.make("Pendulum-v1", 2)
    policy = control.MLPPolicy.for_envs(envs, normalize_observation=True, normalize_reward=True, seed=0)
    control.Steps(envs, 20)(policy)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    result = control.evaluate(policy, "Pendulum-v1", episodes=2, seed=5)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    single, total, over = gymnasium.make("Pendulum-v1"), 0.0, False
    observation, _ = single.reset(seed=5)
    while not over:
        observation, reward, terminated, truncated, _ = single.step(policy.act(observation)[0])
        total, over = total + reward, terminated or truncated
    # the policy answers one row here and two there, in float32, and a pendulum remembers
    assert result.returns[0] == pytest.approx(total, rel=1e-3)


def test_masks_reach_a_greedy_policy():
    policy = control.MLPPolicy.for_envs(control.make(Ruled))
    assert control.evaluate(policy, Ruled, episodes=3).returns == (4.0, 4.0, 4.0)


def test_the_interval():
    assert np.isnan(bootstrap(np.array([3.0]))).all()
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = bootstrap(values)
    error = values.std(ddof=1) / 20
    # the normal interval; the percentiles of 2,000 resamples are good to about a tenth of a standard error
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap(values) == (low, high)


def test_the_interval_covers_the_mean():
    """Of 300 intervals from 30 values each, about 93 % hold the true mean (the bootstrap is a little short at this size)."""
    generator = np.random.default_rng(0)
    hits = sum(low <= 1.0 <= high for low, high in (bootstrap(generator.exponential(1.0, 30), resamples=300) for _ in range(300)))
    assert 0.86 <= hits / 300 <= 0.98


@pytest.mark.parametrize(
    "options, message", [({"episodes": 0}, "episodes: expected an integer ≥ 1"), ({"num_envs": 0}, "num_envs: expected")]
)
def test_sizes(options, message):
    with pytest.raises(UsageError, match=message):
        control.Evaluator(SeededLength, **options)


class Some(SeededLength):
    """SeededLength whose long episodes have no end."""

    def step(self, action):
        observation, reward, terminated, *rest = super().step(action)
        return observation, reward, terminated and self.length == 2, *rest


def test_an_episode_without_an_end_is_cut_off_and_counts_with_what_it_had():
    lengths = lengths_of(range(100, 120))
    result = control.evaluate(Chooser(), Some, episodes=20, seed=100, num_envs=3, cut_after=50)
    assert list(result.returns) == [2.0 if length == 2 else 50.0 for length in lengths]
    assert list(result.ended) == [length == 2 for length in lengths]
    assert result.episodes_ended == sum(length == 2 for length in lengths) and result.episodes == 20
    assert result.length_mean == result.return_mean and result.reward_per_step == 1.0
    endless = control.evaluate(Chooser(), lambda: Loop(limit=10**9), episodes=3, cut_after=7)
    assert (endless.returns, endless.ended) == ((7.0, 7.0, 7.0), (False, False, False))
    assert control.Evaluator(Loop, episodes=1).cut_after == CUT_AFTER


def test_a_time_limit_truncates_and_is_not_cut_off():
    result = control.evaluate(Chooser(), lambda: Loop(limit=10**9), episodes=3, max_episode_steps=9, cut_after=7)
    assert (result.returns, result.ended) == ((9.0, 9.0, 9.0), (True, True, True))


def test_no_more_environments_than_are_allowed():
    made = []

    class Counted(SeededLength):
        def __init__(self):
            made.append(self)
            super().__init__()

    with control.Evaluator(Counted, episodes=20, seed=100, num_envs=3) as evaluator:
        assert list(evaluator(Chooser()).returns) == lengths_of(range(100, 120)) and len(made) == 3
    control.evaluate(Chooser(), Counted, episodes=20)
    assert len(made) == 3 + 8
    with control.Evaluator("CartPole-v1", episodes=20, num_envs=1) as evaluator:  # rows of one array, and no environments
        assert evaluator.envs.num_envs == 20


def test_fewer_episodes_than_usual_start_from_the_same_seeds():
    with control.Evaluator(SeededLength, episodes=15, seed=7, num_envs=4) as evaluator:
        assert list(evaluator(Chooser(), 6).returns) == lengths_of(range(7, 13))
        assert list(evaluator(Chooser()).returns) == lengths_of(range(22, 37))


def test_given_environments_are_played_and_left_open():
    envs = control.make(SeededLength, 4)
    actions = np.zeros(4, np.int64)
    envs.reset()
    envs.step(actions)
    with control.Evaluator(envs, episodes=6, seed=100) as evaluator:
        assert list(evaluator(Chooser()).returns) == lengths_of(range(100, 106))
    ended = [item for _ in range(90) for item in envs.step(actions).finished]
    assert len(ended) > 4  # still there, and episodes follow upon one another as they did
