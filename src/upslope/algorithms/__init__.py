"""The algorithms: each one frozen dataclass with ``estimate``, ``objective`` and ``update``, in one short file."""

from upslope.algorithms.a2c import A2C
from upslope.algorithms.actor_critic import ContinuingActorCritic, OnlineActorCritic
from upslope.algorithms.all_actions import AllActions
from upslope.algorithms.dpo import DPO
from upslope.algorithms.grpo import GRPO
from upslope.algorithms.kto import KTO
from upslope.algorithms.off_policy import OffPolicyGradient
from upslope.algorithms.ppo import PPO
from upslope.algorithms.reinforce import REINFORCE
from upslope.algorithms.reward_model import RewardModeling
from upslope.algorithms.rloo import RLOO
from upslope.algorithms.sarsa import SARSA
from upslope.algorithms.sft import SFT
from upslope.algorithms.trpo import NPG, TRPO

__all__ = [
    "A2C", "DPO", "GRPO", "KTO", "NPG", "PPO", "REINFORCE", "RLOO", "SARSA", "SFT", "TRPO", "AllActions", "ContinuingActorCritic",
    "OffPolicyGradient", "OnlineActorCritic", "RewardModeling",
]  # fmt: skip
