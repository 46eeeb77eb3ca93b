"""A policy of your own: any ``nn.Module`` from an observation to (parameters, value); the library adds the distribution."""

import torch
from torch import nn

from upslope import PPO, Ascent, control, train


class Residual(nn.Module):
    """One trunk for actor and critic, with a skip connection. It is made with the sizes that the spaces ask for."""

    def __init__(self, num_inputs, num_parameters):
        super().__init__()
        self.first, self.second = nn.Linear(num_inputs, 64), nn.Linear(64, 64)
        self.actor, self.critic = nn.Linear(64, num_parameters), nn.Linear(64, 1)

    def forward(self, observation):
        hidden = torch.tanh(self.first(observation))
        hidden = hidden + torch.tanh(self.second(hidden))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)  # [N, P] and [N]


envs = control.make("CartPole-v1", num_envs=8, seed=0)
policy = control.ActorCritic(Residual, envs, seed=0)
algorithm = PPO(gamma=0.98, update=Ascent(learning_rate=2e-3, num_epochs=10, num_minibatches=4))
train(algorithm, policy, control.Steps(envs, num_steps=32), iterations=60, seed=0)
print(f"greedy return {control.evaluate(policy, 'CartPole-v1', episodes=10, seed=100).return_mean:.1f}")

# The weights are saved as they are; to build the policy again, its own class has to be given.
description, weights = policy.describe(), policy.state_dict()
again = control.policy_from_description(description, network=Residual)
again.load_state_dict(weights)
