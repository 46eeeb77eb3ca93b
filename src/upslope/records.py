"""What travels between the parts: ``Rollout`` → ``Batch``, and the protocols that everything else is written against.

Time is the last axis and everything before it is batch: ``[envs, T]``, ``[groups, G, T]``, ``[prompts, G, T]``.
``inputs`` is opaque to the core: whatever the policy's ``evaluate`` takes, each ``[*batch, T, *features]``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, Self, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from upslope import functional as F
from upslope.errors import UsageError
from upslope.outline import outline

Unit = Literal["step", "sequence", "group", "pair"]
"""The smallest piece that may not be split; it is what minibatches shuffle."""

ROW_AXES: dict[Unit, int] = {"step": 0, "sequence": 1, "group": 2, "pair": 2}
"""How many of the last axes of ``mask`` belong to one unit."""

MISMATCH_CAP = 2.0
"""Truncation of the importance weight between sampler and trainer; it is near 1 wherever both are sound."""

Metrics = dict[str, float]
State = dict[str, Any]
"""What a part of a run remembers: tensors, arrays, numbers, texts, None, and lists and dictionaries of them (:class:`Stateful`)."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What a collector recorded: one row per environment, group member or completion.

    ``terminated``: the problem ended with this action. ``truncated``: the recording stopped; the value of the true
    successor still counts. ``mask`` is False where there was no decision (padding, reset steps). ``next_value`` is the
    critic's value of the true successor of every step. ``first_step`` ``[*batch]`` is the number of steps that the
    episode in each row's first column had behind it when the recording began. ``max_steps`` is the longest that a row may
    ever be, where that is known. ``sampler_log_prob`` is kept where whoever sampled computes with other numerics than
    ``policy.evaluate`` (a bfloat16 decoder, a server); ``behavior_log_prob`` is then the policy's, as far as it is known.

    Each input is ``[*batch, T, *features]``. Where whole groups or pairs are the unit, an input may also be shared by the
    rows of a unit, ``[*units, *features]``: the prompt of a group.
    """

    inputs: dict[str, Tensor]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor
    behavior_log_prob: Tensor
    sampler_log_prob: Tensor | None = None
    value: Tensor | None = None
    next_value: Tensor | None = None
    reference_log_prob: Tensor | None = None
    first_step: Tensor | None = None
    max_steps: int | None = None
    unit: Unit = "step"
    policy_version: int = 0
    metrics: Metrics = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        shape, columns = self.reward.shape, {f"rollout.{f.name}": getattr(self, f.name) for f in fields(self) if f.name != "first_step"}
        F.check_shapes("reward", shape, **{name: x for name, x in columns.items() if isinstance(x, Tensor)})
        leading = shape[: len(shape) - ROW_AXES[self.unit]] if self.unit in ("group", "pair") else shape
        for name, tensor in self.inputs.items():
            if tensor.shape[: len(leading)] != leading:
                raise ValueError(f"rollout.inputs[{name!r}]: expected leading shape {tuple(leading)}, found {tuple(tensor.shape)}")
        if bool((((self.reward != 0) | self.terminated | self.truncated) & ~self.mask).any()):
            F.check_masked_rows(self.reward, self.terminated, self.truncated, self.mask)

    __repr__ = outline

    @property
    def num_steps(self) -> int:
        """Real decisions in the recording: unmasked steps."""
        return int(self.mask.sum())


SHARED = ("inputs", "behavior_log_prob", "mask", "unit", "value", "reference_log_prob", "sampler_log_prob")
"""What a batch has of its rollout."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What an objective sees: scored steps, each with its share ``weight`` of the whole batch's objective.

    The objective is ``(weight · value).sum()``; parts of a batch therefore add up to the whole.
    """

    inputs: dict[str, Tensor]
    behavior_log_prob: Tensor
    mask: Tensor
    weight: Tensor
    unit: Unit = "step"
    advantage: Tensor | None = None
    returns: Tensor | None = None
    value: Tensor | None = None
    reference_log_prob: Tensor | None = None
    sampler_log_prob: Tensor | None = None
    behavior_parameters: Tensor | None = None
    metrics: Metrics = field(default_factory=dict[str, float])

    __repr__ = outline

    @classmethod
    def of(cls, rollout: Rollout, *, average_over: F.AverageOver = "steps", **estimates: Any) -> Batch:
        """The batch of a rollout: what both have, a weight per step, and the estimates given by name."""
        weight = F.average_weight(rollout.mask, average_over, rollout.max_steps, dtype=rollout.behavior_log_prob.dtype)
        return cls(weight=weight, **{**{name: getattr(rollout, name) for name in SHARED}, **estimates})

    def need(self, name: str) -> Tensor:
        """An estimate that an objective cannot do without; raises :class:`UsageError` where ``estimate`` has not given it."""
        tensor = getattr(self, name)
        if tensor is None:
            raise UsageError(f"batch: the objective needs {name}, and estimate() gave none; return Batch.of(rollout, …, {name}=…)")
        return tensor

    def with_old_policy(self, log_prob: Tensor) -> Batch:
        """As objectives see it where the sampler rounds differently than the policy, which gave ``log_prob`` before its first step.

        That is π_old of every ratio, and each advantage is multiplied by the truncated weight ``sg(min(C, π_old / π_sampler))``
        (FORMULAS section 6); every surrogate is homogeneous in the advantage, so this weights the surrogate.
        """
        if self.sampler_log_prob is None:
            return self
        weight = F.truncated_importance_weight(log_prob, self.sampler_log_prob, MISMATCH_CAP, self.mask)
        return replace(self, behavior_log_prob=log_prob.detach(), advantage=None if self.advantage is None else self.advantage * weight)

    def by_unit(self) -> Batch:
        """The units with an unmasked step along a first axis: steps ``[units]``, sequences ``[units, T]``, groups ``[units, G, T]``."""
        dims, keep = self.mask.dim(), ROW_AXES[self.unit]
        if keep > dims:
            raise ValueError(f"batch.mask: unit {self.unit!r} needs at least {keep} axes, found {dims}")
        flat = map_tensors(self, lambda t: t.reshape(-1, *t.shape[dims - keep :]))
        alive = flat.mask.reshape(len(flat.mask), -1).any(1)
        return flat if bool(alive.all()) else map_tensors(flat, lambda t: t[alive])

    def select(self, units: Tensor) -> Batch:
        """The units with these indices (along the first axis)."""
        return map_tensors(self, lambda t: t[units])

    @property
    def num_units(self) -> int:
        """Length of the first axis: after :meth:`by_unit`, the number of units."""
        return self.mask.shape[0]

    def minibatches(self, permutation: Tensor, count: int) -> Iterator[Batch]:
        """Split by a permutation of the units into ``count`` parts, each weighted as the whole batch, whose gradient it then estimates."""
        shuffled, stop = map_tensors(self, lambda t: t[permutation]), 0  # one gather for the epoch; the parts are views into it
        for weight in shuffled.weight.tensor_split(count):
            part, stop = slice(stop, stop + len(weight)), stop + len(weight)
            yield map_tensors(shuffled, lambda t, part=part: t[part], weight=weight * (len(self.weight) / len(weight)))


Recording = TypeVar("Recording", Rollout, Batch)
P = TypeVar("P")


def map_tensors(recording: Recording, change: Callable[[Tensor], Tensor], **changes: Any) -> Recording:
    """A rollout or a batch with every tensor changed, and with ``changes``."""
    tensors = {f.name: change(t) for f in fields(recording) if isinstance(t := getattr(recording, f.name), Tensor)}
    return replace(recording, inputs={name: change(t) for name, t in recording.inputs.items()}, **{**tensors, **changes})


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """The rows of several rollouts, equally long, one below the other."""
    names = [f.name for f in fields(Rollout) if isinstance(getattr(rollouts[0], f.name), Tensor)]
    inputs = {name: torch.cat([rollout.inputs[name] for rollout in rollouts]) for name in rollouts[0].inputs}
    return replace(rollouts[0], inputs=inputs, **{name: torch.cat([getattr(rollout, name) for rollout in rollouts]) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One draw: ``action [*batch, *]``, its ``log_prob [*batch]``, and where the policy has one a value."""

    action: Tensor
    log_prob: Tensor
    value: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Recorded actions scored by the current parameters: each ``[*batch, T]``."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """What one environment answered to one action: R and S′, the true successor, whose inputs are ``[1, *features]``."""

    reward: float
    next_inputs: dict[str, Tensor]
    terminated: bool
    truncated: bool

    @property
    def ended(self) -> bool:
        """The next step begins another episode."""
        return self.terminated or self.truncated


class Policy(Protocol):
    """Scores recorded actions, by the distribution that it samples from: same temperature, same masks, dropout off in both.

    ``evaluate`` takes a batch's inputs by name, as it wants to name them.
    """

    def evaluate(self, *_: Any, **inputs: Any) -> Evaluation: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


class SamplingPolicy(Policy, Protocol):
    """A policy that draws its actions itself, an action for each row: what collectors that play need. Texts are drawn by an engine."""

    def sample(self, inputs: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Sample: ...


class Distribution(Protocol):
    """The action distribution in each state, a dataclass: what ``policy.distribution(**inputs)`` may return, and exact divergences ask for.

    ``parameters [*batch, T, P]`` decide it; ``dataclasses.replace`` makes the same kind of distribution from others. ``kl`` is the exact
    KL(self‖other) in each state, ``[*batch, T]``.
    """

    @property
    def parameters(self) -> Tensor: ...
    def kl(self, other: Self) -> Tensor: ...


class HasDistribution(Protocol):
    """A policy that gives its action distribution: exact divergences, TRPO and all-actions ask for it."""

    def distribution(self, *_: Any, **inputs: Any) -> Any: ...


class HasValue(Protocol):
    """A policy whose critic can be asked without an action: the value of each state, without a gradient; None without a critic."""

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor | None: ...


class HasActionValues(Protocol):
    """A policy that values every action of a state, ``[*batch, T, A]``: SARSA's, and the critic of all-actions."""

    def action_values(self, *_: Any, **inputs: Any) -> Tensor: ...


class HasScore(Protocol):
    """A model that gives one number to each row, ``[N, 2]`` for pairs: what a reward model learns."""

    def score(self, *_: Any, **inputs: Any) -> Tensor: ...


class ReturnScale(Protocol):
    """Running moments of ``count`` returns, in whose units a critic learns (:class:`upslope.control.normalize.ValueScale`)."""

    @property
    def mean(self) -> Tensor: ...
    @property
    def std(self) -> Tensor: ...
    @property
    def count(self) -> Tensor: ...


class HasReturnScale(Protocol):
    """A policy whose critic has normalized units: the moments, what moves them, and the parameters that only the critic has."""

    @property
    def value_scale(self) -> ReturnScale | None: ...
    def follow_returns(self, returns: Tensor) -> None: ...
    def critic_parameters(self) -> tuple[nn.Parameter, ...]: ...


class HasGradients(Policy, Protocol):
    """A policy that differentiates one step by hand, ``(v̂(S), ∇v̂(S), ∇log π(A|S))``; None where it has no formula."""

    def gradients(self, inputs: Mapping[str, Tensor], action: Tensor, parameters: Sequence[nn.Parameter]) -> Any: ...


class HasActionGradient(Protocol):
    """The same of the action's value: ``(q̂(S, A), ∇q̂(S, A))``; None where it has no formula."""

    def action_gradient(self, inputs: Mapping[str, Tensor], action: Tensor, parameters: Sequence[nn.Parameter]) -> Any: ...


class HasObjective(Protocol):
    """What an update climbs: a 0-d value, and what is reported of it, means over the steps of the batch, or ``log_ratio [..., T]``."""

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


class Algorithm(HasObjective, Protocol):
    """Two equations and an update rule."""

    @property
    def update(self) -> Update: ...
    def estimate(self, policy: Policy, rollout: Rollout) -> Batch: ...


class Adaptive(Protocol):
    """An algorithm that says what it is in the next iteration, an adaptive penalty for one."""

    def adapted(self, policy: Policy, batch: Batch) -> Algorithm: ...


class OnlineAlgorithm(Protocol):
    """Learns at every step, so that it plays by itself: its loop is the textbook's box."""

    def start(self, policy: Policy, *, seed: int) -> Any: ...
    def learn(self, policy: SamplingPolicy, stream: Stream, state: Any) -> Metrics: ...


EitherAlgorithm = Algorithm | OnlineAlgorithm


class Update(Protocol):
    """How parameters move."""

    def start(self, policy: Policy, *, seed: int) -> Any: ...
    def __call__(self, algorithm: HasObjective, policy: Policy, batch: Batch, state: Any) -> Metrics: ...


class Scheduled(Protocol):
    """An update, or a method that learns at every step, that follows the run: ``fraction`` of it is done."""

    def set_fraction(self, state: Any, fraction: float) -> None: ...


class Stateful(Protocol):
    """Collectors and the states of updates: what they remember, so that a run can go on where another one stopped, to the bit."""

    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> Any: ...


class RemembersEpisodes(Protocol):
    """A policy's module that remembers something of the episodes under way, which is not saved with the policy."""

    def episode_state(self) -> State: ...
    def load_episode_state(self, state: State) -> None: ...


class Stream(Protocol):
    """One environment, a step at a time: what an :class:`OnlineAlgorithm` plays in. Inputs and actions are ``[1, *]``."""

    @property
    def num_steps(self) -> int: ...
    def observe(self, policy: SamplingPolicy) -> dict[str, Tensor]: ...
    def act(self, policy: SamplingPolicy, inputs: Mapping[str, Tensor]) -> Tensor: ...
    def step(self, policy: SamplingPolicy, action: Tensor) -> Transition: ...
    def metrics(self) -> Metrics: ...


Collector = Callable[[Any], Rollout]
"""Gathers a rollout with a policy by playing, or from data."""
Surrogate = Callable[[Tensor, Tensor, Tensor, Tensor, Any], Tensor]
"""``(log_prob, behavior_log_prob, advantage, mask, clip_range) -> [..., T]``; bind further options with ``functools.partial``."""


def offers(thing: object, protocol: type[P]) -> TypeGuard[P]:
    """Whether an object has every member of a protocol; a layer called ``value`` is none of a policy's methods."""
    return missing_member(thing, protocol) is None


def missing_member(thing: object, protocol: type[Any]) -> str | None:
    """The first member of a protocol that an object lacks."""
    for name, member in members(protocol).items():
        found = getattr(thing, name, None)
        if isinstance(member, property) and not hasattr(thing, name):
            return name
        if callable(member) and (not callable(found) or isinstance(found, nn.Module)):
            return name
    return None


@functools.cache
def members(protocol: type[Any]) -> dict[str, Any]:
    """Methods and properties that a protocol declares, inherited ones among them."""
    declared = {name: member for kind in reversed(protocol.__mro__[:-3]) for name, member in vars(kind).items()}  # not Protocol, object
    return {name: member for name, member in declared.items() if name == "__call__" or not name.startswith("_")}


def require_members(name: str, thing: object, protocol: type[Any]) -> None:
    """Refuse an object that lacks a member of a protocol, with the member's signature."""
    if (member := missing_member(thing, protocol)) is not None:
        wanted = members(protocol)[member]
        signature = "" if isinstance(wanted, property) else str(inspect.signature(wanted))
        for hidden in ("'", "self, ", "*_: Any, ", ": Any"):
            signature = signature.replace(hidden, "")
        raise UsageError(f"{name}: {type(thing).__name__} has no {member}; expected {member}{signature}, as {protocol.__name__} says")
