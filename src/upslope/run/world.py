"""What a run asks of its world: control, language, or one of tomorrow. The session is the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from torch import Tensor

from upslope.records import Policy, State
from upslope.run.evaluations import Point
from upslope.run.folder import RunFolder
from upslope.run.report import Field
from upslope.run.train import RunState

if TYPE_CHECKING:
    from upslope.run.config import RunConfig
    from upslope.run.session import Session

PolicyT = TypeVar("PolicyT", bound=Policy)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation: the ``mean`` that policies are compared by (None: there is none), its spread, and what is written of it.

    ``row`` goes into ``metrics.jsonl``, ``headline`` into ``summary.json``.
    """

    mean: float | None
    std: float
    episodes: int
    complete: bool = True
    row: Mapping[str, float] = field(default_factory=dict[str, float])
    headline: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def point(self, total_steps: int) -> Point | None:
        return None if self.mean is None else Point(total_steps, self.mean, self.std, self.episodes, self.complete)


def rates(state: RunState) -> dict[str, float]:
    """What an iteration learned with: its learning rate, and the standard deviation of Gaussian actions, the mean over dimensions."""
    rate: Any = getattr(state.update_state, "learning_rate", None)
    log_std: Any = getattr(state.policy, "log_std", None)
    found = {} if rate is None else {"learning_rate": float(rate)}
    return found | ({"action_std": float(log_std.detach().exp().mean())} if isinstance(log_std, Tensor) else {})


class World(Protocol[PolicyT]):
    """The living parts of a run, and everything about it that another world would do otherwise."""

    config: RunConfig  # as it is carried out, with all that preparing it has decided
    policy: PolicyT
    collect: Any  # Collector or Stream
    fields: Sequence[Field]  # what progress shows of an iteration
    kept: Sequence[str]  # what of each row the learning curve needs
    target: str  # what is learned, for titles and the folder's name
    budget: dict[str, int]  # {"total_steps": 100_000} or {"iterations": 20}
    good: float | None  # from where on nobody minds that a policy has become certain
    action_dims: int = 0  # continuous actions, 0 where they are discrete
    may_be_best: bool = False  # whether the final policy is kept as the best where its evaluation is the only one

    @classmethod
    def preset(cls, config: RunConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The tuned settings of a method on a task, flat; ``settings`` are those that the caller gives."""
        ...

    @classmethod
    def imports(cls, name: str, text: str) -> bool:
        """Whether a text with a colon among the settings names something to import."""
        return True

    @classmethod
    def settled(cls, config: RunConfig) -> RunConfig:
        """The configuration as it is recorded, with what follows from other settings where it was left open."""
        return config

    @classmethod
    def prepare(cls, config: RunConfig, stopped: Path | None = None) -> Self:
        """Make what the run needs; UsageError says in one line whatever cannot work, as far as it is known before the first step.

        ``stopped`` is the folder of the run that goes on, which holds the policy whatever it once began with.
        """
        ...

    def recorded(self) -> dict[str, Any]:
        """``config.json``."""
        return self.config.config()

    def save(self, folder: RunFolder, name: str, progress: Mapping[str, Any]) -> None:
        """Write the policy, with how far it is."""

    def plan(self) -> list[str]:
        """The run as lines before it starts: a title, and lines of detail."""
        ...

    def begin(self, session: Session) -> list[Point]:
        """What comes before the first iteration; the evaluation of the policy that training begins with, where there is one."""
        return []

    @property
    def lost(self) -> str:
        """What of a resumed run could not be brought back, in a sentence; empty where all was."""
        return ""

    def state_dict(self) -> State:
        """What it remembers beside policy and collector."""
        return {}

    def load_state_dict(self, state: State, folder: RunFolder) -> None:
        """Go on where the run in this folder was; there is no :meth:`begin` then."""

    def follow(self, state: RunState, session: Session) -> Mapping[str, float]:
        """What the world does after each iteration; what it has to add to the row of metrics."""
        return rates(state)

    def samples(self) -> list[str]:
        """Lines to show with progress."""
        return []

    def due(self, before: int, state: RunState) -> int:
        """Episodes to evaluate on after an iteration that began at ``before`` steps; 0 where it is not time."""
        ...

    def evaluate(self, episodes: int | None = None) -> Evaluated | None:
        """The policy as it is now on fresh episodes; None where there is nothing to measure it on."""

    def evaluate_last(self, session: Session) -> Evaluated | None:
        """The final policy."""
        return self.evaluate()

    def reached(self, points: Sequence[Point]) -> bool:
        """Whether these evaluations reach the goal that ends the run."""
        ...

    def headline(self, result: Evaluated | None, points: Sequence[Point], *, reached: bool, failed: bool) -> dict[str, Any]:
        """What ``summary.json`` says of this world: what was learned, the result, and whether it is ``solved``."""
        ...

    def draw(self, path: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        """The learning curve."""

    @staticmethod
    def outcome(summary: Mapping[str, Any]) -> list[str]:
        """The result, a line each."""
        ...

    def next_commands(self, summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
        """Commands to try next, each with what it is for."""
        ...

    def close(self) -> None:
        """Let go of everything."""
