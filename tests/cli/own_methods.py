"""Algorithms and loggers as a user writes them, in a module of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope import DPO, PPO, Ascent, Batch, Rollout
from upslope import functional as F


@dataclass(frozen=True, kw_only=True)
class Bold(PPO):
    """PPO that likes what it has not tried."""

    bonus: float = 0.5
    """times the entropy, on top of the usual one"""

    def objective(self, policy: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = super().objective(policy, batch)
        entropy = policy.evaluate(**batch.inputs).entropy
        return value + self.bonus * F.weighted_sum(entropy, batch.weight), metrics | {"bonus": entropy.mean().detach()}


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A score function for whatever it is given, with nothing of ours above it."""

    gain: float = 1.0
    """of the advantage"""
    update: Ascent = field(default_factory=lambda: Ascent(learning_rate=1e-2))
    """how parameters move"""

    def estimate(self, policy: Any, rollout: Rollout) -> Batch:
        return Batch.of(rollout, advantage=self.gain * F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, 0.99))

    def objective(self, policy: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        new = policy.evaluate(**batch.inputs)
        return F.weighted_sum(new.log_prob * batch.need("advantage"), batch.weight), {"entropy": new.entropy.mean().detach()}


@dataclass(frozen=True, kw_only=True)
class InGroups(Plain):
    """The same on groups of episodes from one start."""

    learns_from: ClassVar[str] = "groups"


@dataclass(frozen=True, kw_only=True)
class Preferring(DPO):
    """DPO under another name."""


@dataclass(frozen=True, kw_only=True)
class Strange(Plain):
    """It learns from something that nobody gathers."""

    learns_from: ClassVar[str] = "dreams"


class Unfinished:
    """Half an algorithm."""

    def estimate(self, policy: Any, rollout: Rollout) -> Batch:
        return Batch.of(rollout)


@dataclass(frozen=True, kw_only=True)
class Demanding(Plain):
    """It cannot be made without being told something."""

    wish: str


class Bare(Plain):
    """No fields of its own, and that is fine."""


class Loose:
    """An algorithm that is no dataclass."""

    update = Ascent()
    estimate = objective = None


class Notes:
    """A logger that writes a file into the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.path, self.lines = folder / "notes.txt", [config["algorithm"]["name"]]

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.lines.append(str(row["iteration"]))

    def close(self) -> None:
        self.path.write_text("\n".join([*self.lines, "closed"]))


class Refusing:
    """A logger that cannot be made."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        raise OSError("no paper left")


@dataclass(frozen=True, kw_only=True)
class Clashing(Plain):
    """One of its fields is called like a setting of every run."""

    seed: int = 3


@dataclass(frozen=True, kw_only=True)
class Heavy(Plain):
    """A field that JSON does not know is recorded as text."""

    table: Tensor = field(default_factory=lambda: torch.zeros(2))


def halved(fraction: float) -> float:
    """A schedule."""
    return 1.0 - 0.5 * fraction


def ratio(log_prob: Tensor, behavior_log_prob: Tensor, advantage: Tensor, mask: Tensor, clip_range: Any) -> Tensor:
    """A surrogate."""
    return (log_prob - behavior_log_prob).exp() * advantage
