"""The specification: every formula in plain loops over NumPy arrays, with gradients derived by hand.

Slow on purpose, and written from the definitions rather than from the fast code. Tests, documentation and examples import
it; the library itself does not. Read it next to the function of the same name in :mod:`upslope.functional`, and the trainer
next to its PyTorch twin, ``examples/02_bandit_torch.py``.
"""

from upslope.reference import (
    actor_critic,
    distributions,
    divergences,
    importance,
    objective,
    preferences,
    returns,
    sarsa,
    special,
    statistics,
    surrogates,
)
from upslope.reference.gradient_bandit import GradientBandit
from upslope.reference.problems import Bandit, ShortCorridor
from upslope.reference.reinforce import Reinforce, Step, play
from upslope.reference.softmax_policy import FlooredPolicy, SoftmaxPolicy

__all__ = [
    "Bandit", "FlooredPolicy", "GradientBandit", "Reinforce", "ShortCorridor", "SoftmaxPolicy", "Step", "actor_critic", "distributions",
    "divergences", "importance", "objective", "play", "preferences", "returns", "sarsa", "special", "statistics", "surrogates",
]  # fmt: skip
