"""What tests of ``upslope check`` name on the command line."""

import torch

from upslope import GRPO, PPO, tabular
from upslope import functional as F
from upslope.records import Batch


def reinforce(policy, rollout, gamma):
    log_prob = policy.evaluate(**rollout.inputs).log_prob
    returns = F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, gamma, rollout.mask)
    return (log_prob * returns).where(rollout.mask, 0.0).sum(-1).mean()


def reduced(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return (log_prob * advantage).mean()


def short_names(lp, b, a, m, c):
    return maximum(lp, b, a, m, c)


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


class Metric(PPO):
    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        return value, {**metrics, "kl": 0.5}


class EstimateRaises(PPO):
    def estimate(self, policy, rollout):
        raise RuntimeError("boom")


class ObjectiveRaises(PPO):
    def objective(self, policy, batch):
        raise RuntimeError("bang")


class NoBatch(PPO):
    def estimate(self, policy, rollout):
        return 3


class OneColumn(PPO):
    def estimate(self, policy, rollout):
        return Batch.of(rollout, advantage=rollout.reward[..., :1])


class OneNumber(PPO):
    def objective(self, policy, batch):
        return super().objective(policy, batch)[0]


def maximum(log_prob, behavior_log_prob, advantage, mask, clip_range):
    low, high = F.clip_bounds(clip_range)
    ratio, advantage = F.token_ratio(log_prob, behavior_log_prob, mask), advantage.where(mask, 0.0)
    return torch.maximum(ratio * advantage, ratio.clamp(low, high) * advantage)


def not_a_number(policy, rollout):
    return policy.evaluate(**rollout.inputs).log_prob.sum() * float("nan")


def no_policy():
    raise ValueError("not today")


def three():
    return 3


def three_and_inputs():
    return 3, {"observation": torch.zeros(2, 1)}


def policy_and_three():
    return tabular.tabular_policy(tabular.bandit()), 3


def a_policy():
    return tabular.tabular_policy(tabular.bandit()), {"observation": torch.zeros(2, 1, dtype=torch.int64)}


grpo = GRPO()
number = 3
