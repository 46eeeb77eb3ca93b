"""Policies of which a part does not learn."""

import torch

from upslope import PPO, control, train


def test_a_policy_whose_actor_is_frozen_still_trains_its_critic():
    envs = control.make("CartPole-v1", num_envs=2, seed=0)
    policy = control.MLPPolicy.for_envs(envs, seed=0, hidden_sizes=(4,))
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("critic" in name)
    before = [p.detach().clone() for p in policy.parameters()]
    for fast in (False, True):
        train(PPO(), policy, control.Steps(envs, num_steps=8), iterations=1, fast=fast)
    moved = [not torch.equal(p, old) for p, old in zip(policy.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in policy.parameters()]
