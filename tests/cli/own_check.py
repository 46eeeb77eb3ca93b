"""What tests of ``upslope check`` name on the command line."""

from upslope import GRPO
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


grpo = GRPO()
number = 3
