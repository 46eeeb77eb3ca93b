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

ALGORITHMS = {
    "reinforce": REINFORCE,
    "a2c": A2C,
    "npg": NPG,
    "trpo": TRPO,
    "actor-critic": OnlineActorCritic,
    "continuing-actor-critic": ContinuingActorCritic,
    "sarsa": SARSA,
    "ppo": PPO,
    "off-policy": OffPolicyGradient,
    "grpo": GRPO,
    "rloo": RLOO,
    "dpo": DPO,
    "kto": KTO,
    "sft": SFT,
    "reward-model": RewardModeling,
}
"""The names that the command line and run folders know."""

__all__ = [
    "A2C",
    "ALGORITHMS",
    "DPO",
    "GRPO",
    "KTO",
    "NPG",
    "PPO",
    "REINFORCE",
    "RLOO",
    "SARSA",
    "SFT",
    "TRPO",
    "AllActions",
    "ContinuingActorCritic",
    "OffPolicyGradient",
    "OnlineActorCritic",
    "RewardModeling",
]
