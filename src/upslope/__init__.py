"""Policy gradients, from a bandit to a language model.

A method is two equations and an update rule; one loop trains every world::

    from upslope import PPO, control, train

    envs = control.make("CartPole-v1", num_envs=8, seed=0)
    policy = control.MLPPolicy.for_envs(envs, seed=0)
    train(PPO(), policy, control.Steps(envs, num_steps=32), iterations=100, seed=0)
"""

from __future__ import annotations

from importlib import import_module

from upslope._version import __version__ as __version__

TYPE_CHECKING = False  # that of typing would import it, and with it what `python -m upslope` finds in the current folder first
if TYPE_CHECKING:
    from typing import Any

    from upslope import control as control
    from upslope import functional as functional
    from upslope import language as language
    from upslope import tabular as tabular
    from upslope import testing as testing
    from upslope.algorithms import *  # noqa: F403
    from upslope.errors import Diverged as Diverged
    from upslope.errors import RunFault as RunFault
    from upslope.errors import UsageError as UsageError
    from upslope.records import Batch as Batch
    from upslope.records import Evaluation as Evaluation
    from upslope.records import Rollout as Rollout
    from upslope.records import Sample as Sample
    from upslope.run.config import RunConfig as RunConfig
    from upslope.run.load import Run as Run
    from upslope.run.train import RunState as RunState
    from upslope.run.train import train as train
    from upslope.updates import Ascent as Ascent
    from upslope.updates import NaturalGradient as NaturalGradient
    from upslope.updates import TrustRegion as TrustRegion

_EXPORTS = {
    "upslope.algorithms": (
        *("A2C", "AllActions", "ContinuingActorCritic", "DPO", "GRPO", "KTO", "NPG", "OffPolicyGradient", "OnlineActorCritic", "PPO"),
        *("REINFORCE", "RLOO", "RewardModeling", "SARSA", "SFT", "TRPO"),
    ),
    "upslope.errors": ("Diverged", "RunFault", "UsageError"),
    "upslope.records": ("Batch", "Evaluation", "Rollout", "Sample"),
    "upslope.run.config": ("RunConfig",),
    "upslope.run.load": ("Run",),
    "upslope.run.train": ("RunState", "train"),
    "upslope.updates": ("Ascent", "NaturalGradient", "TrustRegion"),
}
"""Module → public names; each is loaded when it is first used, so that `import upslope` costs nothing that is not needed."""
_PACKAGES = ("control", "functional", "language", "tabular", "testing")
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__: list[str] = sorted(("__version__", *_PACKAGES, *_MODULES))  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"upslope.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'upslope' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
