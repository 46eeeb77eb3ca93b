"""One estimate of a gradient: an algorithm's two equations, its steps along a recorded episode, or a function, run on one recording."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from upslope.errors import UsageError, is_kind, require
from upslope.records import Batch, Metrics, Policy, Rollout, Transition
from upslope.tabular.enumeration import flat_gradient
from upslope.tabular.policies import SoftmaxPolicy
from upslope.testing.contract import user_errors
from upslope.testing.probes import Probe, recording_of


class RecordedStream:
    """Row ``row`` of a recording as the stream that an online algorithm plays in; the actions are those recorded."""

    def __init__(self, rollout: Rollout, row: int) -> None:
        self.rollout, self.row, self.t = rollout, row, 0

    @property
    def num_steps(self) -> int:
        return int(self.rollout.mask[self.row].sum())

    def at(self, x: Tensor, t: int) -> Tensor:
        return x[self.row, t : t + 1]

    def observe(self, policy: Policy) -> dict[str, Tensor]:
        return {"observation": self.at(self.rollout.inputs["observation"], self.t)}

    def act(self, policy: Policy, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.at(self.rollout.inputs["action"], self.t)

    def step(self, policy: Policy, action: Tensor) -> Transition:
        """S′ is a state that has the recorded value of the true successor: nothing else of it is asked for."""
        r, t = self.rollout, self.t
        self.t += 1
        assert r.next_value is not None
        alike = (cast(Tensor, cast(SoftmaxPolicy, policy).values()).detach() - r.next_value[self.row, t]).abs().argmin()
        return Transition(
            reward=float(r.reward[self.row, t]),
            terminated=bool(r.terminated[self.row, t]),
            truncated=bool(r.truncated[self.row, t]),
            next_inputs={"observation": alike.unsqueeze(0)},
        )

    def metrics(self) -> Metrics:
        return {}


def online_update(algorithm: Any, policy: Policy, rollout: Rollout) -> list[Tensor]:
    """What an online algorithm adds to the parameters over the rows of a recording, divided by its step size and their number.

    The policy stays as it is meanwhile (offline updates, SB section 12.1), so that the sum over an episode has an expectation that
    can be compared with ∇J. The critic's steps are not counted.
    """
    if hasattr(algorithm, "average_reward_rate"):  # the rewards it is shown have had their average taken off
        algorithm = replace(algorithm, average_reward_rate=0.0)
    sums = [torch.zeros_like(p) for p in policy.parameters()]
    for row in range(len(rollout.mask)):
        state = algorithm.start(policy, seed=0)
        state.targets = sums
        algorithm.learn(policy, RecordedStream(rollout, row), state)
    return [x.detach() / (algorithm.learning_rate * len(rollout.mask)) for x in sums]


OFF: dict[str, Any] = {
    "normalize_advantage": False,
    "scale_advantage": False,
    "entropy_coef": 0.0,
    "kl_coef": 0.0,
    "reference_kl_coef": 0.0,
    "adaptive_kl": None,
}
"""Settings that add something to ∇J or scale it by what the whole batch holds: off while expectations are compared with ∇J."""


@dataclass(frozen=True)
class Estimate:
    """A gradient for the policy's preferences ``[P]`` and its critic ``[C]``; ``value`` where a number was differentiated."""

    gradient: Tensor
    critic: Tensor
    value: float | None


@dataclass(frozen=True)
class Moments:
    """Over all batches of ``size`` rows: the mean ``[P]`` and the total variance of an estimate."""

    mean: Tensor
    variance: float
    size: int


class Estimator:
    """Runs what a user gave: an algorithm (``estimate`` and ``objective``, or ``learn``), or ``function(policy, rollout)``.

    A function returns a number to be differentiated, one such number for each row (they are averaged), or a gradient for all of
    ``policy.parameters()``, flat or as a sequence. If it has a parameter ``gamma`` it is given the discount factor.

    Raises:
        UsageError: it raises, or returns something else or nothing that depends on the policy.
    """

    def __init__(self, estimator: Any, gamma: float | None = None, group: bool = False) -> None:
        self.given = estimator
        self.is_algorithm = hasattr(estimator, "estimate") and hasattr(estimator, "objective")
        self.is_online = hasattr(estimator, "learn") and hasattr(estimator, "learning_rate")
        known = self.is_algorithm or self.is_online
        self.name = type(estimator).__name__ if known else getattr(estimator, "__name__", type(estimator).__name__)
        what = "learns action values, which is no policy gradient: there is no ∇J to compare it with"
        require(not getattr(estimator, "action_values", False), f"estimator: {self.name} {what}")
        fits = not isinstance(estimator, type) and (known or callable(estimator))
        require(fits, f"estimator: expected an algorithm or a function (policy, rollout), found {describe_result(estimator)}")
        self.is_continuing = self.is_online and not hasattr(estimator, "gamma")
        self.takes_gamma = not self.is_algorithm and "gamma" in parameter_names(estimator)
        candidates = (getattr(estimator, "gamma", None) if known else None, gamma, 0.9 if self.takes_gamma else 1.0)
        self.gamma = float(next(x for x in candidates if x is not None))
        self.group = group
        self.leak: str | None = None
        """what in an algorithm's batch was found to carry gradient"""
        self.not_finite: str | None = None
        """the recording on which the gradient was not finite"""

    def plain(self, kept: Collection[str] = ()) -> Estimator:
        """The same without bonuses, penalties and scaling by the batch, where these are settings (:data:`OFF`) and not ``kept``."""
        if not (self.is_algorithm and is_dataclass(self.given)):
            return self
        names = {f.name for f in fields(self.given) if f.init}
        changes = {name: value for name, value in OFF.items() if name in names.difference(kept) and getattr(self.given, name) != value}
        return Estimator(replace(self.given, **changes), self.gamma, self.group) if changes else self  # pyright: ignore[reportArgumentType]

    def __call__(self, policy: Policy, rollout: Rollout) -> Estimate:
        with user_errors(self.name, f" on a rollout of shape {list(rollout.mask.shape)}, unit {rollout.unit!r}"):
            found = self._found(policy, rollout)
        flat = self._gradient(policy, rollout, found)
        split = sum(p.numel() for p in cast(SoftmaxPolicy, policy).preferences.parameters())
        gradient, critic = flat[:split], flat[split:]
        if not bool(gradient.isfinite().all()):
            self.not_finite = f"on a rollout of shape {[*rollout.mask.shape]}, rewards {[*map(float, rollout.reward[rollout.mask])]}"
            gradient = torch.zeros_like(gradient)
        return Estimate(gradient, critic, float(found.detach().mean()) if isinstance(found, Tensor) and found.requires_grad else None)

    def value(self, policy: Policy, batch: Batch) -> Tensor:
        """The objective of a batch or a part of one, 0-d."""
        found = self.given.objective(policy, batch)
        pair = is_kind(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)
        require(pair, f"{self.name}.objective: expected (value, metrics), found {describe_result(found)}")
        value: Tensor = found[0]
        expected = f"expected a 0-d value, found shape {list(value.shape)}; return F.weighted_sum(…, batch.weight)"
        require(value.dim() == 0, f"{self.name}.objective: {expected}")
        return value

    def _found(self, policy: Policy, rollout: Rollout) -> Any:
        if not self.is_algorithm:
            if self.is_online:
                return online_update(self.given, policy, rollout)
            return self.given(policy, rollout, gamma=self.gamma) if self.takes_gamma else self.given(policy, rollout)
        batch = self.given.estimate(policy, rollout)
        where = f"{self.name}.estimate"
        require(isinstance(batch, Batch), f"{where}: expected a Batch, found {type(batch).__name__}; return Batch.of(rollout, …)")
        for item in ("advantage", "weight", "behavior_log_prob", "returns"):
            x: Tensor | None = getattr(batch, item)
            if x is None:
                continue
            shapes = f"expected shape {list(rollout.mask.shape)}, like the rollout's, found {list(x.shape)}"
            require(x.shape[: batch.mask.dim()] == rollout.mask.shape, f"{where}: batch.{item}: {shapes}")
            if x.requires_grad and item != "behavior_log_prob":
                self.leak = item
        batch = batch.by_unit()
        return self.value(policy, batch) if batch.num_units else nothing(policy)

    def _gradient(self, policy: Policy, rollout: Rollout, found: Any) -> Tensor:
        parameters = list(policy.parameters())
        count, batch = sum(p.numel() for p in parameters), rollout.mask.shape[:-1]
        expected = f"expected a number to differentiate, one for each row {list(batch)}, or a gradient for the {count} parameters"
        if is_kind(found, Sequence) and found and all(isinstance(x, Tensor) for x in found):
            fits = [x.shape for x in found] == [p.shape for p in parameters]
            require(fits, f"{self.name}: {expected}, found tensors of shapes {[list(x.shape) for x in found]}")
            found = torch.cat([x.detach().reshape(-1) for x in found])
        if not isinstance(found, Tensor):
            raise UsageError(f"{self.name}: {expected}, found {describe_result(found)}")
        if found.requires_grad or found.shape != (count,):
            require(found.shape in (torch.Size(), batch, batch[-1:]), f"{self.name}: {expected}, found {describe_result(found)}")
            message = f"{self.name}: the value does not depend on the policy's parameters; score the actions with policy.evaluate"
            require(found.requires_grad, message)
            found = flat_gradient(found.mean(), policy)
        return found.double()

    def on(self, probe: Probe, index: Sequence[int], **changes: Any) -> Tensor:
        """The gradient ``[P]`` on these rows of a problem."""
        return self(probe.policy, recording_of(probe.rollout, index, self.group, **changes)).gradient

    def moments(self, probe: Probe, size: int) -> Moments:
        """The exact mean and variance over all batches of ``size`` rows; batches without a finite estimate count as 0."""
        mean, square = torch.zeros((), dtype=torch.float64), 0.0
        for index, probability in probe.batches(size):
            gradient = self.on(probe, index)
            mean = mean + probability * gradient
            square += probability * float(gradient @ gradient)
        return Moments(mean, square - float(mean @ mean), size)


def nothing(policy: Policy) -> Tensor:
    """An objective of no steps."""
    return sum((0.0 * p.sum() for p in policy.parameters()), torch.zeros(()))  # pyright: ignore[reportReturnType]


def describe_result(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {list(found.shape)}"
    return f"the class {found.__name__}; give an instance" if isinstance(found, type) else f"an object of type {type(found).__name__}"


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Names of a function's parameters; none where it has no signature."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
