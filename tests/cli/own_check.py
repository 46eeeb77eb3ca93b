"""What tests of ``upslope check`` name on the command line."""

import torch

from upslope import GRPO, PPO, tabular
from upslope import functional as F


def reinforce(policy, rollout, gamma):
    log_prob = policy.evaluate(**rollout.inputs).log_prob
    returns = F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, gamma, rollout.mask)
    return (log_prob * returns).where(rollout.mask, 0.0).sum(-1).mean()


def reduced(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return (log_prob * advantage).mean()


def falls_over(policy, rollout):
    raise ZeroDivisionError("by 0")


class NeedsMore(GRPO):
    def __init__(self, size):
        super().__init__()


class Mean(PPO):
    """Forgets the weights."""

    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        return value / batch.weight.sum(), metrics


def a_policy():
    return tabular.tabular_policy(tabular.bandit()), {"observation": torch.zeros(2, 1, dtype=torch.int64)}


grpo = GRPO()
number = 3
