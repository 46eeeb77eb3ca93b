"""Off-policy: learn from steps that somebody else took. What the estimators expect, and CartPole from random actions alone."""

import tempfile
from pathlib import Path

import torch

from upslope import Ascent, OffPolicyGradient, control, train
from upslope import functional as F

# A bandit: b draws the arm, π learns. Weighted by π/b, b's rewards are worth what π's would be.
behavior, policy = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
reward = torch.tensor([1.0, 2.0, 4.0])
arm = torch.multinomial(behavior, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
ratio = (policy / behavior)[arm]
print(f"mean reward of b {reward[arm].mean():.2f}, of π by weights {(ratio * reward[arm]).mean():.2f}, exact {policy @ reward:.2f}")
print(f"the {len(arm):,} draws are worth {F.effective_sample_size(ratio):,.0f} of π's")

# CartPole, from a file of random actions.
with control.make("CartPole-v1", num_envs=32, seed=0) as envs, tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "steps.safetensors"
    control.record(envs, control.RandomPolicy(envs), num_steps=300).save(path)
    data = control.Dataset.load(path)
    learner = control.MLPPolicy.for_envs(envs, seed=0)

episodes, mean = data.episodes()
print(f"{data.num_steps:,} steps, {episodes} whole episodes: random actions return {mean:.1f}")
algorithm = OffPolicyGradient(trace_lambda=0.95, update=Ascent(learning_rate=1e-3, num_minibatches=32))
state = train(algorithm, learner, control.Recorded(data), iterations=30)
print(f"effective sample size {state.metrics['effective_sample_size']:,.0f}, largest ratio {state.metrics['ratio_max']:.2f}")
print(f"greedy return {control.evaluate(learner, 'CartPole-v1', episodes=20, seed=100).return_mean:.1f}")
