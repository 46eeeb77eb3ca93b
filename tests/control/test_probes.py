"""Five environments with known answers, learned by every algorithm: what fails says where the bug is."""

import pytest
import torch

from upslope import A2C, PPO, REINFORCE, Ascent, control, train
from upslope.control.probes import ActionReward, ConstantReward, DelayedReward, MatchingReward, ObservationReward

GAMMA = 0.5
ALGORITHMS = {
    "ppo": PPO(gamma=GAMMA, update=Ascent(learning_rate=0.02, num_epochs=4, num_minibatches=2)),
    "a2c": A2C(gamma=GAMMA, update=Ascent(learning_rate=0.02)),
    "reinforce": REINFORCE(gamma=GAMMA, update=Ascent(learning_rate=0.02)),
}


def learn(name, probe):
    envs = control.make(probe, 8, seed=0)
    policy = control.MLPPolicy.for_envs(envs, hidden_sizes=(16,), seed=0)
    train(ALGORITHMS[name], policy, control.Steps(envs, 16), iterations=25 if name == "ppo" else 75, seed=0, fast=False)
    inputs = {"observation": torch.tensor([[-1.0], [0.0], [1.0]])}
    with torch.no_grad():
        return policy.value(inputs), policy.distribution(**inputs).parameters.softmax(-1)


@pytest.mark.learning
@pytest.mark.parametrize("name", ALGORITHMS)
class TestProbes:
    # a learned value: Adam at this rate stays within a hundredth or two of its target

    def test_constant_reward(self, name):
        value, _ = learn(name, ConstantReward)
        assert float(value[1]) == pytest.approx(1.0, abs=0.05)

    def test_observation_reward(self, name):
        value, _ = learn(name, ObservationReward)
        assert float(value[0]) == pytest.approx(-1.0, abs=0.05)
        assert float(value[2]) == pytest.approx(1.0, abs=0.05)

    def test_delayed_reward(self, name):
        value, _ = learn(name, DelayedReward)
        assert float(value[1]) == pytest.approx(GAMMA, abs=0.05)
        assert float(value[2]) == pytest.approx(1.0, abs=0.05)

    def test_action_reward(self, name):
        _, probability = learn(name, ActionReward)
        assert float(probability[1, 1]) > 0.95

    def test_matching_reward(self, name):
        value, probability = learn(name, MatchingReward)
        assert float(probability[0, 0]) > 0.95
        assert float(probability[2, 1]) > 0.95
        assert float(value[0]) == pytest.approx(1.0, abs=0.1)
