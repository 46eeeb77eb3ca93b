"""What a run and its world ask of each other: the protocols between the session and control, language, or a world of tomorrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from upslope.records import Collector, Policy, Stream
from upslope.run.evaluations import Point
from upslope.run.folder import RunFolder
from upslope.run.methods import Needs
from upslope.run.report import Field
from upslope.run.train import RunState


class Config(Protocol):
    """Everything that decides a run's result: :class:`~upslope.run.config.RunConfig`, as worlds and sessions read it."""

    @property
    def name(self) -> str: ...

    @property
    def env_id(self) -> str | None: ...

    @property
    def algorithm(self) -> Any: ...

    @property
    def collector(self) -> Any: ...

    @property
    def policy(self) -> Any: ...

    @property
    def problem(self) -> Any: ...

    @property
    def settings(self) -> Any: ...

    @property
    def needs(self) -> Needs: ...

    @property
    def family(self) -> str: ...

    def parts(self) -> tuple[Any, ...]: ...

    def replaced(self, values: Mapping[str, Any]) -> Self: ...

    def with_policy(self, policy: object) -> Self: ...

    def config(self) -> dict[str, Any]: ...

    def prepare(self) -> World: ...


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation: the ``mean`` that policies are compared by (None: there is none), its spread, and what is written of it.

    ``row`` goes into ``metrics.jsonl``, ``headline`` into ``summary.json``; ``note`` says what was unusual about it;
    ``may_be_best``: also where it is the only one.
    """

    mean: float | None
    std: float
    episodes: int
    complete: bool = True
    row: Mapping[str, float] = field(default_factory=dict[str, float])
    headline: Mapping[str, Any] = field(default_factory=dict[str, Any])
    note: str = ""
    may_be_best: bool = False

    def point(self, total_steps: int) -> Point | None:
        """What is remembered of it."""
        return None if self.mean is None else Point(total_steps, self.mean, self.std, self.episodes, self.complete)


class Watch(Protocol):
    """The session as its world sees it, before training and after each iteration."""

    @property
    def stopped(self) -> bool:
        """Whether a signal has asked for the end."""
        ...

    def note(self, text: str) -> None:
        """Say something beside the progress."""
        ...

    def save_in_time(self) -> None:
        """Save the policy if it is time to."""
        ...


class World(Protocol):
    """The living parts of a run, and everything about it that another world would do otherwise."""

    @property
    def config(self) -> Config:
        """The configuration as it is carried out, with all that preparing it has decided."""
        ...

    @property
    def policy(self) -> Policy: ...

    @property
    def collect(self) -> Collector | Stream: ...

    @property
    def target(self) -> str:
        """What is learned, for titles and the folder's name."""
        ...

    @property
    def budget(self) -> Mapping[str, int]:
        """``{"total_steps": 100_000}`` or ``{"iterations": 20}``."""
        ...

    @property
    def fields(self) -> Sequence[Field]:
        """What progress shows of an iteration."""
        ...

    @property
    def kept(self) -> Sequence[str]:
        """What of each row the learning curve needs."""
        ...

    @property
    def good(self) -> float | None:
        """From where on nobody minds that a policy has become certain."""
        ...

    @property
    def action_dims(self) -> int:
        """Continuous actions, 0 where they are discrete."""
        ...

    def recorded(self) -> dict[str, Any]:
        """``config.json``."""
        ...

    def save(self, folder: RunFolder, name: str, progress: Mapping[str, int]) -> None:
        """Write the policy, with how far it is."""
        ...

    def plan(self) -> list[str]:
        """The run in words before it starts: a title, and lines of detail."""
        ...

    def begin(self, watch: Watch) -> list[Point]:
        """What comes before the first iteration; the evaluation of the policy that training begins with, where there is one."""
        ...

    def follow(self, state: RunState, folder: RunFolder, watch: Watch) -> None:
        """What the world does after each iteration."""
        ...

    def samples(self) -> list[str]:
        """Lines to show with progress."""
        ...

    def due(self, before: int, state: RunState) -> int:
        """Episodes to evaluate on after an iteration that began at ``before`` steps; 0 where it is not time."""
        ...

    def evaluate(self, episodes: int | None = None) -> Evaluated | None:
        """The policy as it is now on fresh episodes; None where there is nothing to measure it on."""
        ...

    def evaluate_last(self) -> Evaluated | None:
        """The final policy."""
        ...

    def reached(self, points: Sequence[Point]) -> bool:
        """Whether these evaluations reach the goal that ends the run."""
        ...

    def headline(self, result: Evaluated | None, points: Sequence[Point], *, reached: bool, failed: bool) -> dict[str, Any]:
        """What ``summary.json`` says of this world: what was learned, the result, and whether it is ``solved``."""
        ...

    def draw(self, path: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        """The learning curve."""
        ...

    def closing(self, summary: Mapping[str, Any], folder: Path) -> str:
        """The result in words, and what to try next."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...
