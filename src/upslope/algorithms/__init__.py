"""The algorithms: each one frozen dataclass with ``estimate``, ``objective`` and ``update``, in one short file."""

from upslope.algorithms.a2c import A2C
from upslope.algorithms.grpo import GRPO
from upslope.algorithms.ppo import PPO
from upslope.algorithms.reinforce import REINFORCE

ALGORITHMS = {"reinforce": REINFORCE, "a2c": A2C, "ppo": PPO, "grpo": GRPO}
"""The names that the command line and run folders know."""

__all__ = ["A2C", "ALGORITHMS", "GRPO", "PPO", "REINFORCE"]
