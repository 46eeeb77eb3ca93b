"""The one loop: collect → estimate → update → record. It knows the protocols only, never a world or a method.

A method that learns at every step plays by itself (``learn``); the loop then only counts, times and records.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from upslope import records
from upslope.errors import Diverged, RunFault, UsageError, require
from upslope.run.process import generators, set_generators
from upslope.run.report import Line, watched
from upslope.updates.checks import ADVICE

Callback = Callable[["RunState"], bool | None]
"""Called once after each iteration with the run's state; a true answer stops the run. Where it has ``begin``, that is called with the state
before the first one."""


@dataclass(repr=False)
class RunState:
    """Everything that a run is: what it started from, what it has become, and how far it is."""

    algorithm: records.EitherAlgorithm
    policy: records.Policy
    collect: records.Collector | records.Stream
    update_state: Any
    iterations: int | None = None
    planned_steps: int | None = None
    iteration: int = 0
    total_steps: int = 0
    train_seconds: float = 0.0
    metrics: records.Metrics = field(default_factory=dict[str, float])
    rollout: records.Rollout | None = None
    batch: records.Batch | None = None

    def __repr__(self) -> str:
        returned = "".join(f", {name}={self.metrics[name]:.4g}" for name in ("episode_return", "reward") if name in self.metrics)
        names = ", ".join(type(part).__name__ for part in (self.algorithm, self.policy, self.collect))
        return f"RunState({names}, iteration={self.iteration:,}, total_steps={self.total_steps:,}, {self.fraction:.0%} done{returned})"

    def state_dict(self) -> records.State:
        """Everything that the next iteration depends on: hand it to another :func:`train` as ``start``, with parts that are made alike.

        The tensors are the run's: write them to a file or copy them before training goes on. What is not in it: what callbacks, loggers,
        rewards and an environment's other generators than ``np_random`` remember.

        Raises:
            UsageError: a part does not say what it remembers (:class:`~upslope.records.Stateful`).
        """
        collect, update = self.remembering()
        state: records.State = {"algorithm": numbers_of(self.algorithm), "policy": policy_state(self.policy)}
        state["episodes"] = {name: module.episode_state() for name, module in modules_remembering(self.policy)}
        state |= {"collect": collect.state_dict(), "update": update.state_dict(), "generators": generators()}
        return state | {name: getattr(self, name) for name in COUNTED}

    def remembering(self) -> tuple[records.Stateful, records.Stateful]:
        """The collector and the update's state, which must say what they remember."""
        for name, part in {"collect": self.collect, "update_state": self.update_state}.items():
            records.require_members(name, part, records.Stateful)
        return cast(records.Stateful, self.collect), cast(records.Stateful, self.update_state)

    def load_state_dict(self, state: records.State) -> None:
        """Go on where another run was.

        Raises:
            UsageError: it is the state of another run, with other parts or other shapes.
        """
        try:
            self._load(state)
        except (RunFault, UsageError):
            raise
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError, ArithmeticError) as error:
            why = " ".join(str(error).split())
            raise UsageError(f"start: it is the state of another run ({type(error).__name__}: {why:.200})") from error

    def _load(self, state: records.State) -> None:
        changed = {name: value for name, value in state["algorithm"].items() if getattr(self.algorithm, name) != value}
        if changed:
            self.algorithm = replace(cast(Any, self.algorithm), **changed)
        load_policy_state(self.policy, state["policy"])
        for name, module in modules_remembering(self.policy):
            module.load_episode_state(state["episodes"][name])
        collect, update = self.remembering()
        collect.load_state_dict(state["collect"])
        update.load_state_dict(state["update"])
        for name in COUNTED:
            setattr(self, name, state[name])
        set_generators(state["generators"])  # last: environments that play their episodes again may draw from them

    @property
    def fraction(self) -> float:
        """How much of the planned run is done, in [0, 1]."""
        return min(1.0, max(self.iteration / (self.iterations or math.inf), self.total_steps / (self.planned_steps or math.inf)))

    @property
    def num_updates(self) -> int | None:
        """Gradient steps up to now, where that is counted: more than behind the last iteration are part of an update that was cut short."""
        return getattr(self.update_state, "num_updates", None)


COUNTED = ("iteration", "total_steps", "train_seconds", "metrics")


def numbers_of(algorithm: object) -> records.State:
    """The numbers among an algorithm's settings: those of an adaptive one change on the way."""
    if not is_dataclass(algorithm):
        return {}
    found = {item.name: getattr(algorithm, item.name) for item in fields(algorithm) if item.init}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def policy_state(policy: Any) -> records.State:
    """A module's tensors by name; of another policy its parameters in order."""
    if isinstance(policy, nn.Module):
        return dict(policy.state_dict())
    return {str(i): parameter.detach() for i, parameter in enumerate(policy.parameters())}


@torch.no_grad()
def load_policy_state(policy: Any, state: records.State) -> None:
    if isinstance(policy, nn.Module):
        policy.load_state_dict(state)
        return
    for i, parameter in enumerate(policy.parameters()):
        parameter.copy_(state[str(i)])


def modules_remembering(policy: object) -> list[tuple[str, records.RemembersEpisodes]]:
    """The parts of a policy that remember something of the episodes under way."""
    module: Any = policy if isinstance(policy, nn.Module) else nn.Identity()
    found: dict[str, object] = dict(module.named_modules())
    return [(name, part) for name, part in found.items() if records.offers(part, records.RemembersEpisodes)]


def train(
    algorithm: records.EitherAlgorithm,
    policy: records.Policy,
    collect: records.Collector | records.Stream,
    *,
    iterations: int | None = None,
    total_steps: int | None = None,
    seed: int = 0,
    start: records.State | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    fast: bool = True,
    progress: bool | None = None,
) -> RunState:
    """Train ``policy`` in place and return the final :class:`RunState`.

    Args:
        algorithm: ``estimate``, ``objective`` and ``update``: ``PPO()``, or a user's dataclass.
        policy: ``sample`` and ``evaluate``; see :class:`upslope.records.Policy`.
        collect: a callable ``policy -> Rollout``, ``control.Steps(envs, num_steps=32)`` for one; for a method that learns at
            every step ``control.Stream(envs)``.
        iterations, total_steps: when to stop, whichever comes first; total_steps (unmasked steps) rounds up to whole iterations.
        seed: of the update's shuffling; environments, initialization and sampling have others.
        start: the :meth:`RunState.state_dict` of a run that stopped; this one goes on from there, to the bit.
        callbacks: one or several, called after each iteration with the state; a true answer stops.
        fast: False turns every fast path off, for debugging.
        progress: draw a line that says how far the run is (none: in a terminal and in a notebook, unless callbacks may print).

    Raises:
        UsageError: no stopping rule, or a combination that cannot work.
        Diverged: the objective, an advantage or a parameter is no longer finite.
    """
    require(iterations is not None or total_steps is not None, "iterations: give iterations=… or total_steps=…, so that the run ends")
    for name, count in {"iterations": iterations, "total_steps": total_steps}.items():
        require(count is None or count >= 1, f"{name}: expected an integer ≥ 1, found {count}")
    callbacks = (callbacks,) if callable(callbacks) else tuple(callbacks)
    online = check_parts(algorithm, policy, collect)
    learner = cast(records.OnlineAlgorithm, algorithm) if online else cast(records.Algorithm, algorithm).update
    state = RunState(algorithm, policy, collect, learner.start(policy, seed=seed), iterations, total_steps)
    if start is not None:
        state.load_state_dict(start)
    follow: Any = getattr(collect, "follow", None)
    if follow is not None:  # a collector that wants to know how far the run is
        follow(state)
    for callback in callbacks:
        if hasattr(callback, "begin"):
            cast(Any, callback).begin(state)
    choose = compiled_paths().CompiledPaths() if fast else None
    with progress_shown(state, False if progress is None and callbacks else progress) as show:
        while state.fraction < 1.0:
            update: Any = getattr(state.algorithm, "update", None)
            actor: Any = state.policy
            if choose is not None:
                update, actor = choose(state.algorithm, state.policy)
            iterate(state, update, actor)
            show(state)
            stops = [callback(state) for callback in callbacks]  # every callback is called, whatever the others answer
            if any(stops):
                break
    return state


@contextlib.contextmanager
def progress_shown(state: RunState, progress: bool | None) -> Generator[Callable[[RunState], None]]:
    """What draws the progress after an iteration, and its end."""
    if progress is False or (progress is None and not watched()):
        yield lambda state: None
        return
    line = Line()
    try:
        yield line.update
    finally:
        line.close(state)


def iterate(state: RunState, update: Callable[..., records.Metrics], actor: Any) -> None:
    """Collect, estimate, update, count. ``actor`` is the policy or its fast twin."""
    algorithm, collect, started = cast(records.Algorithm, state.algorithm), cast(records.Collector, state.collect), time.perf_counter()
    if hasattr(algorithm, "learn"):
        num_steps, metrics = learn(state, actor)
    else:
        rollout = state.rollout = collect(actor)
        batch = state.batch = algorithm.estimate(state.policy, rollout)
        for name, tensor in {"advantage": batch.advantage, "returns": batch.returns, "behavior_log_prob": batch.behavior_log_prob}.items():
            if tensor is not None and not math.isfinite(float(tensor.where(batch.mask, 0.0).sum())):  # in one reduction
                raise Diverged(f"diverged: {name} is not finite in iteration {state.iteration + 1}; {ADVICE}")
        if hasattr(algorithm.update, "set_fraction"):
            cast(records.Scheduled, algorithm.update).set_fraction(state.update_state, state.fraction)
        metrics = {**rollout.metrics, **batch.metrics, **update(algorithm, state.policy, batch, state.update_state)}
        if hasattr(algorithm, "adapted") and getattr(algorithm, "adaptive_kl", True) is not None:
            state.algorithm = cast(records.Adaptive, algorithm).adapted(state.policy, batch)
        num_steps = int(rollout.mask.sum())
    for parameter in state.policy.parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise overflown(state, parameter)
    seconds = time.perf_counter() - started
    state.iteration, state.total_steps = state.iteration + 1, state.total_steps + num_steps
    state.train_seconds += seconds
    counts = {"iteration": state.iteration, "total_steps": state.total_steps, "train_seconds": state.train_seconds}
    state.metrics = {**counts, "steps_per_second": num_steps / seconds, **metrics}


def overflown(state: RunState, parameter: nn.Parameter) -> Diverged:
    """The last step of an iteration may leave what no objective has met yet."""
    named = state.policy.named_parameters() if isinstance(state.policy, nn.Module) else ()
    name = next((name for name, other in named if other is parameter), "a parameter")
    return Diverged(f"diverged: {name} is not finite after iteration {state.iteration + 1}; {ADVICE}")


def learn(state: RunState, actor: Any) -> tuple[int, records.Metrics]:
    """The part of an iteration that differs for a method that learns at every step: the number of steps, and what it reports."""
    stream, algorithm = cast(records.Stream, state.collect), cast(records.OnlineAlgorithm, state.algorithm)
    if hasattr(algorithm, "set_fraction"):
        cast(records.Scheduled, algorithm).set_fraction(state.update_state, state.fraction)
    return stream.num_steps, algorithm.learn(actor, stream, state.update_state)


def check_parts(algorithm: object, policy: object, collect: object) -> bool:
    """Refuse parts that lack a member that their protocol names, or do not fit; whether the algorithm learns at every step."""
    name, found, online = type(algorithm).__name__, type(collect).__name__, hasattr(algorithm, "learn")
    records.require_members("policy", policy, records.Policy)
    if online:
        records.require_members("algorithm", algorithm, records.OnlineAlgorithm)
        streams = records.offers(collect, records.Stream)
        require(streams, f"collect: {name} learns at every step and needs control.Stream(envs), found {found}")
    else:
        records.require_members("algorithm", algorithm, records.Algorithm)
        records.require_members("algorithm.update", cast(records.Algorithm, algorithm).update, records.Update)
        require(callable(collect), f"collect: {name} learns from recordings and needs a callable, control.Steps for one, found {found}")
    return online


def compiled_paths() -> ModuleType:
    """The module that chooses what of an update and of an acting policy is compiled (:mod:`upslope.fast.twins`)."""
    from upslope.fast import twins  # loads the compiler, and Gymnasium for the policies that it knows

    return twins


def compiled_text(algorithm: object, policy: object, collect: object, *, fast: bool) -> str:
    """What of an update is compiled, and why not the rest."""
    if not fast:
        return "in PyTorch, as --no-fast says"
    return compiled_paths().explain(algorithm, policy, "group" if hasattr(collect, "group_size") else "step")
