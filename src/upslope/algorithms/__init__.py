"""The algorithms: each one frozen dataclass with ``estimate``, ``objective`` and ``update``, in one short file.

A file is loaded when its algorithm is first used: a run needs one of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_ELSEWHERE = {
    "AllActions": "all_actions",
    "ContinuingActorCritic": "actor_critic",
    "NPG": "trpo",
    "OffPolicyGradient": "off_policy",
    "OnlineActorCritic": "actor_critic",
    "RewardModeling": "reward_model",
}
"""Class → file, where that is not its name in small letters."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, name.lower())}"), name)


def __dir__() -> list[str]:
    return __all__
