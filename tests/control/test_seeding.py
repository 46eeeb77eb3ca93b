"""Seeds: distinct first observations, sub-environment i equal to a single environment, the same seed the same run."""

import gymnasium
import numpy as np
import pytest

from tests.control.worlds import SeededLength
from upslope import control


@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
def test_first_observations_differ(vectorization):
    with control.make("CartPole-v1", 6, seed=3, vectorization=vectorization) as envs:
        first = envs.reset()
        assert len({tuple(row) for row in first.tolist()}) == 6
        first = first.copy()
        assert not (envs.reset() == first).any()  # a later reset goes on with the generators
        with control.make("CartPole-v1", 6, seed=3, vectorization=vectorization) as again:
            assert (again.reset() == first).all()
        with control.make("CartPole-v1", 6, seed=4, vectorization=vectorization) as other:
            assert not (other.reset()[-1] == first[-1]).any()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_sub_environment_equals_a_single_one_with_its_seed(vectorization, env_id):
    """Over several episodes: the single environment's own resets come without a seed, like the vector environment's."""
    num_envs, seed = 3, 11
    with control.make(env_id, num_envs, seed=seed, vectorization=vectorization, env_kwargs={"max_episode_steps": 15}) as envs:
        singles = [gymnasium.make(env_id, max_episode_steps=15) for _ in range(num_envs)]
        expected = [env.reset(seed=seed + i)[0] for i, env in enumerate(singles)]
        np.testing.assert_array_equal(envs.reset(), expected)
        actions = np.random.default_rng(0).integers(2, size=(50, num_envs))
        num_ends = 0
        for action in actions:
            step = envs.step(action)
            for i, env in enumerate(singles):
                if not step.mask[i]:
                    np.testing.assert_array_equal(step.observation[i], env.reset()[0])
                    continue
                observation, reward, terminated, truncated, _ = env.step(action[i])
                np.testing.assert_array_equal(step.observation[i], observation)
                assert (step.reward[i], step.terminated[i], step.truncated[i]) == (reward, terminated, truncated)
                num_ends += terminated or truncated
        assert num_ends >= 6


def test_the_first_reset_alone_takes_the_seed():
    envs = control.make(SeededLength, 2, seed=5)
    first = envs.reset().copy()
    second = envs.reset().copy()
    assert (first != second).all()
    assert (envs.reset(seed=5) == first).all()


def test_the_same_seeds_give_the_same_rollouts():
    def play(env_seed, action_seed):
        envs = control.make("CartPole-v1", 4, seed=env_seed)
        collect = control.Steps(envs, 20, seed=action_seed)
        policy = control.MLPPolicy.for_envs(envs, seed=0)
        collect(policy)
        return collect(policy)

    one, two, other = play(0, 0), play(0, 0), play(0, 1)
    assert (one.inputs["observation"] == two.inputs["observation"]).all()
    assert (one.behavior_log_prob == two.behavior_log_prob).all()
    assert (one.inputs["action"] != other.inputs["action"]).any()
