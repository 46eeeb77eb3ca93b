"""The one table of methods: which class, in which worlds, how it collects there, and the settings that a world asks for.

A shipped algorithm is a file in :mod:`upslope.algorithms`, a row here, its exports, and its presets. What a method needs of a run it
declares itself (:class:`Needs`), so a user's class is asked the same questions.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from upslope.errors import UsageError, require, unknown
from upslope.run.control_settings import DataSettings, EpisodesSettings, GroupedEpisodesSettings, StepsSettings
from upslope.run.language_settings import CompletionsSettings, RecordedSettings
from upslope.run.settings import instance_of, load_object

if TYPE_CHECKING:  # it loads PyTorch, which no help page needs
    from upslope.records import EitherAlgorithm


@dataclass(frozen=True)
class Start:
    """Where a run of a method begins in a world: how it collects, and flat settings that differ from the class's."""

    collector: Any
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Method:
    """A row: ``module:Class`` in :mod:`upslope.algorithms`, and the worlds that it trains in, each with how it starts there."""

    path: str
    control: Start | None = None
    language: Start | None = None

    @property
    def place(self) -> tuple[str, str]:
        """The module's full name, importing which loads PyTorch, and the class's."""
        module, _, name = self.path.partition(":")
        return f"upslope.algorithms.{module}", name

    def load(self) -> type:
        return getattr(importlib.import_module(self.place[0]), self.place[1])


ONE_STREAM = Start(StepsSettings(num_envs=1, num_steps=512))
STEPS, SHORT_STEPS, EPISODES = Start(StepsSettings()), Start(StepsSettings(num_steps=16)), Start(EpisodesSettings())
SAMPLED, RECORDED = Start(CompletionsSettings()), Start(RecordedSettings())
FRESH_NETWORK = {"learning_rate": 3e-3, "max_grad_norm": 0.5, "eps": 1e-5}
"""For a small network that starts from nothing, where the class's settings are for text."""
GROUPS = Start(GroupedEpisodesSettings(), FRESH_NETWORK)

METHODS: dict[str, Method] = {
    "a2c": Method("a2c:A2C", SHORT_STEPS),
    "all-actions": Method("all_actions:AllActions", SHORT_STEPS),
    "npg": Method("trpo:NPG", STEPS),
    "actor-critic": Method("actor_critic:OnlineActorCritic", ONE_STREAM),
    "continuing-actor-critic": Method("actor_critic:ContinuingActorCritic", ONE_STREAM),
    "off-policy": Method("off_policy:OffPolicyGradient", Start(DataSettings(num_steps=32))),
    "ppo": Method(
        "ppo:PPO",
        Start(StepsSettings(), {"learning_rate": 1e-3, "schedule": "linear"}),
        Start(CompletionsSettings(), {"gamma": 1.0, "gae_lambda": 1.0, "num_epochs": 2, "num_minibatches": 2, "max_grad_norm": 1.0}),
    ),
    "sarsa": Method("sarsa:SARSA", ONE_STREAM),
    "reinforce": Method(
        "reinforce:REINFORCE",
        EPISODES,
        Start(CompletionsSettings(), {"gamma": 1.0, "baseline": False, "max_grad_norm": 1.0}),  # rewards come at a text's end
    ),
    **dict.fromkeys(("grpo", "dr-grpo"), Method("grpo:GRPO", GROUPS, SAMPLED)),
    "dapo": Method("grpo:GRPO", GROUPS, Start(CompletionsSettings(), {"refill": 3})),
    **dict.fromkeys(("gspo", "cispo", "reinforce-pp"), Method("grpo:GRPO", GROUPS, SAMPLED)),
    "rloo": Method("rloo:RLOO", GROUPS, SAMPLED),
    "trpo": Method("trpo:TRPO", STEPS),
    "sft": Method("sft:SFT", language=RECORDED),
    "dpo": Method("dpo:DPO", language=RECORDED),
    "kto": Method("kto:KTO", language=RECORDED),
    "reward-model": Method("reward_model:RewardModeling", language=RECORDED),
}
"""Name → method. Several names share a class where the class's module says what sets them apart (``RELATIVES``)."""

STARTS: dict[str, dict[str, Start]] = {
    "control": {"steps": STEPS, "episodes": EPISODES, "groups": Start(GroupedEpisodesSettings()), "stream": ONE_STREAM},
    "language": dict.fromkeys(["steps", "episodes", "groups"], SAMPLED) | dict.fromkeys(["pairs", "labels", "demonstrations"], RECORDED),
}
"""World → how a user's class collects there, by what it learns from."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an algorithm asks of a run, from class attributes of these names."""

    learns_from: str = "steps"
    """steps, episodes, groups (of one start or prompt), stream (it learns at every step), pairs, labels or demonstrations"""
    needs_critic: bool = False
    """a language model gets a value head (policies of environments have a critic anyway, but for groups)"""
    needs_reference: bool = False
    """a frozen copy of the policy scores what is learned from"""
    scores_texts: bool = False
    """the head's output is what is learned: nothing is said, so there is nothing to chat with or to sample"""

    @classmethod
    def of(cls, algorithm: Any) -> Needs:
        """Those of an algorithm, or of its class."""
        found: dict[str, Any] = {item.name: getattr(algorithm, item.name) for item in fields(cls) if hasattr(algorithm, item.name)}
        if hasattr(algorithm, "learn"):
            found = {"learns_from": "stream"} | found
        return cls(**found)


def methods_in(world: str) -> dict[str, Method]:
    return {name: method for name, method in METHODS.items() if getattr(method, world) is not None}


def relative(name: str) -> dict[str, Any]:
    """What makes a published relative of its class (``dapo`` of GRPO); nothing for the class itself, or for a user's."""
    return getattr(importlib.import_module(METHODS[name].place[0]), "RELATIVES", {}).get(name, {}) if name in METHODS else {}


def row_of(kind: type) -> str | None:
    return next((name for name, method in METHODS.items() if method.place == (kind.__module__, kind.__name__)), None)


def family_of(algorithm: EitherAlgorithm) -> str | None:
    """The first row whose class the algorithm is of, or comes from; None for one that has nothing to do with ours."""
    return next((name for base in type(algorithm).__mro__ if (name := row_of(base)) is not None), None)


def name_of(algorithm: EitherAlgorithm) -> str:
    """The name on the command line: that of its row, else ``module:Class``."""
    return row_of(type(algorithm)) or f"{type(algorithm).__module__}:{type(algorithm).__qualname__}"


def start_of(name: str, algorithm: EitherAlgorithm, world: str) -> Start:
    """How a method starts in a world where it trains; a user's class as the shipped one does that it comes from."""
    row = METHODS.get(name) or METHODS.get(family_of(algorithm) or "")
    found = STARTS[world].get(Needs.of(algorithm).learns_from) if row is None else getattr(row, world)
    if found is None:
        raise UsageError(f"{name}: it learns from {Needs.of(algorithm).learns_from}, which {WITHOUT[world]}")
    return found


WITHOUT = {
    "control": "no environment gives; train a language model with it: --model, and --task or --pairs",
    "language": "no language model gives; train it on an environment",
}


def algorithm_named(name: str, world: str) -> Any:
    """A fresh algorithm; ``module:Class`` is imported."""
    if ":" in name:
        return made(load_object(name, "algorithm"), name)
    if name not in (known := methods_in(world)):
        raise unknown("algorithm", name, known)
    return METHODS[name].load()(**relative(name))


def made(found: Any, name: str) -> Any:
    """The algorithm that a user's name stands for: an instance, or a class with a default for every field; UsageError for what it lacks."""
    algorithm = instance_of(found, f"algorithm: {name}", "give every field a default")
    check_method(algorithm, name)
    return algorithm


def check_method(algorithm: EitherAlgorithm, name: str) -> None:
    wanted = ("learn", "start") if hasattr(algorithm, "learn") else ("estimate", "objective", "update")
    missing = [member for member in wanted if not hasattr(algorithm, member)]
    require(not missing, f"algorithm: {name} has no {' and no '.join(missing)}; an algorithm has {', '.join(wanted)}, as PPO does")
    what = "no dataclass, so nothing says what its settings are; write @dataclass(frozen=True) above it"
    require(is_dataclass(algorithm), f"algorithm: {name} is {what}")
