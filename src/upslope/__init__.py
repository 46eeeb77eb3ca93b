"""Policy gradients, from a bandit to a language model.

A method is two equations and an update rule; one loop trains every world::

    from upslope import PPO, control, train

    envs = control.make("CartPole-v1", num_envs=8, seed=0)
    policy = control.MLPPolicy.for_envs(envs, seed=0)
    train(PPO(), policy, control.Steps(envs, num_steps=32), iterations=100, seed=0)
"""

from __future__ import annotations

from importlib import import_module

from upslope._version import __version__

TYPE_CHECKING = False  # typing's own would import it, and with it what `python -m upslope` finds in the current folder first
if TYPE_CHECKING:
    from typing import Any

    from upslope import control, functional, language, tabular, testing
    from upslope.algorithms import (
        A2C,
        DPO,
        GRPO,
        KTO,
        NPG,
        PPO,
        REINFORCE,
        RLOO,
        SARSA,
        SFT,
        TRPO,
        AllActions,
        ContinuingActorCritic,
        OffPolicyGradient,
        OnlineActorCritic,
        RewardModeling,
    )
    from upslope.errors import Diverged, RunFault, UsageError
    from upslope.records import Batch, Evaluation, Rollout, Sample
    from upslope.run.load import Run
    from upslope.run.train import RunState, train
    from upslope.updates import Ascent, NaturalGradient, TrustRegion

# name → (module, attribute); loaded on first use, so that `import upslope` costs nothing that is not needed
_EXPORTS: dict[str, tuple[str, str | None]] = {
    "A2C": ("upslope.algorithms", "A2C"),
    "AllActions": ("upslope.algorithms", "AllActions"),
    "Ascent": ("upslope.updates", "Ascent"),
    "Batch": ("upslope.records", "Batch"),
    "ContinuingActorCritic": ("upslope.algorithms", "ContinuingActorCritic"),
    "DPO": ("upslope.algorithms", "DPO"),
    "Diverged": ("upslope.errors", "Diverged"),
    "Evaluation": ("upslope.records", "Evaluation"),
    "GRPO": ("upslope.algorithms", "GRPO"),
    "KTO": ("upslope.algorithms", "KTO"),
    "NaturalGradient": ("upslope.updates", "NaturalGradient"),
    "NPG": ("upslope.algorithms", "NPG"),
    "OffPolicyGradient": ("upslope.algorithms", "OffPolicyGradient"),
    "OnlineActorCritic": ("upslope.algorithms", "OnlineActorCritic"),
    "PPO": ("upslope.algorithms", "PPO"),
    "REINFORCE": ("upslope.algorithms", "REINFORCE"),
    "RLOO": ("upslope.algorithms", "RLOO"),
    "RewardModeling": ("upslope.algorithms", "RewardModeling"),
    "Rollout": ("upslope.records", "Rollout"),
    "Run": ("upslope.run.load", "Run"),
    "RunFault": ("upslope.errors", "RunFault"),
    "RunState": ("upslope.run.train", "RunState"),
    "SARSA": ("upslope.algorithms", "SARSA"),
    "SFT": ("upslope.algorithms", "SFT"),
    "Sample": ("upslope.records", "Sample"),
    "TRPO": ("upslope.algorithms", "TRPO"),
    "TrustRegion": ("upslope.updates", "TrustRegion"),
    "UsageError": ("upslope.errors", "UsageError"),
    "control": ("upslope.control", None),
    "functional": ("upslope.functional", None),
    "language": ("upslope.language", None),
    "tabular": ("upslope.tabular", None),
    "testing": ("upslope.testing", None),
    "train": ("upslope.run.train", "train"),
}

__all__ = [
    "A2C",
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
    "Ascent",
    "Batch",
    "ContinuingActorCritic",
    "Diverged",
    "Evaluation",
    "NaturalGradient",
    "OffPolicyGradient",
    "OnlineActorCritic",
    "RewardModeling",
    "Rollout",
    "Run",
    "RunFault",
    "RunState",
    "Sample",
    "TrustRegion",
    "UsageError",
    "__version__",
    "control",
    "functional",
    "language",
    "tabular",
    "testing",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'upslope' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    value = import_module(module) if attribute is None else getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
