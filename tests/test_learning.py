"""Methods learn: several seeds each, greedy policy on fresh episodes."""

import pytest

from upslope import PPO, Ascent, control, train

pytestmark = pytest.mark.learning


def learned(algorithm, collector, size, seed, iterations):
    envs = control.make("CartPole-v1", num_envs=8, seed=seed)
    policy = control.MLPPolicy.for_envs(envs, seed=seed)
    train(algorithm, policy, collector(envs, size), iterations=iterations, seed=seed)
    return control.evaluate(policy, "CartPole-v1", episodes=10, seed=1000 + seed).return_mean


@pytest.mark.parametrize("seed", range(3))
def test_ppo_solves_cartpole(seed):
    algorithm = PPO(gamma=0.98, update=Ascent(learning_rate=3e-3, num_epochs=10, num_minibatches=4))
    assert learned(algorithm, control.Steps, 32, seed, iterations=90) >= 475
