"""Change one equation: a surrogate of your own, checked against the contract, then trained with."""

import torch

from upslope import PPO, Ascent, control, train
from upslope import functional as F
from upslope.testing import check_surrogate


def soft_clipped(log_prob, behavior_log_prob, advantage, mask, clip_range):
    """A smooth clip: ``A · (1 + ε tanh((ratio − 1) / ε))``. At ratio 1 its gradient is ``A ∇log π``, far away it vanishes."""
    low, high = F.clip_bounds(clip_range)
    epsilon = (high - low) / 2
    excess = F.token_ratio(log_prob, behavior_log_prob, mask) - 1
    return advantage.masked_fill(~mask, 0.0) * (1 + epsilon * torch.tanh(excess / epsilon))


check_surrogate(soft_clipped)

envs = control.make("CartPole-v1", num_envs=8, seed=0)
policy = control.MLPPolicy.for_envs(envs, seed=0)
algorithm = PPO(surrogate=soft_clipped, gamma=0.98, update=Ascent(learning_rate=3e-3, num_epochs=4, num_minibatches=4))
train(algorithm, policy, control.Steps(envs, num_steps=128), iterations=24, seed=0)
print(f"greedy return {control.evaluate(policy, 'CartPole-v1', episodes=10, seed=100).return_mean:.1f}")
