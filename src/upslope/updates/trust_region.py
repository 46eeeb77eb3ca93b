"""Steps along the natural gradient F⁻¹g (Kakade 2001), and inside a trust region (TRPO; Schulman et al. 2015).

    g = ∇ objective,  F = ∇² mean_s KL(π_old(·|s) ‖ π_θ(·|s)) + damping · 1,  F x = g by conjugate gradient
    θ ← θ + √(2 max_kl / xᵀFx) · x

The Fisher matrix is never formed, and the damping is part of F also in ``xᵀFx``. There is one step per batch, and it moves
only what the distribution depends on. The critic is fitted separately, by Adam on ``−(V − R)²`` over shuffled minibatches, and
that moves only what the value alone depends on: a trunk that both share belongs to the policy, else fitting would leave the region.

Left out: other norms than the KL's, K-FAC, micro-batches, several update ranks.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upslope import functional as F
from upslope.errors import Diverged, UsageError, require, require_counts
from upslope.records import Batch, HasObjective, Metrics, Policy, State
from upslope.updates.ascent import Ascent
from upslope.updates.checks import RATIO_TOLERANCE, check_first_ratio, diagnosis, gradient_not_finite
from upslope.updates.critic import value_error
from upslope.updates.fisher import NEEDED, conjugate_gradient, damped, detach, distribution_of, fisher_product, flatten, mean_kl, reached
from upslope.updates.flat import FlatParameters
from upslope.updates.state import AscentState, Trained, trainable


@dataclass
class NaturalState(Trained):
    """What a natural-gradient update remembers. ``critic`` and ``actor`` are distinguished on the first batch."""

    seed: int
    actor: tuple[nn.Parameter, ...] = ()
    critic: AscentState | None = None
    num_updates: int = 0

    def state_dict(self) -> State:
        """Everything but the parameters: which of them are the actor's, by their places, and how the critic's fit is."""
        actor = [i for i, p in enumerate(self.parameters) if any(p is q for q in self.actor)]
        fitted = None if self.critic is None else [i for i, p in enumerate(self.parameters) if any(p is q for q in self.critic.parameters)]
        critic = None if self.critic is None else {"parameters": fitted, **self.critic.state_dict()}
        return {"actor": actor, "critic": critic, "num_updates": self.num_updates, "skipped": self.skipped}

    def load_state_dict(self, state: State) -> None:
        actor: list[int] = state["actor"]
        self.actor = tuple(self.parameters[i] for i in actor)
        self.num_updates, self.skipped = state["num_updates"], state["skipped"]
        if state["critic"] is not None:
            fitted: list[int] = state["critic"]["parameters"]
            self.critic = self.critic_state(tuple(self.parameters[i] for i in fitted), learning_rate=0.0)
            self.critic.load_state_dict(state["critic"])

    def critic_state(self, critic: tuple[nn.Parameter, ...], *, learning_rate: float) -> AscentState:
        return AscentState.of(critic, None if self.flat is None else self.flat.part(critic), seed=self.seed, learning_rate=learning_rate)


@dataclass(frozen=True, kw_only=True)
class NaturalStep(ABC):
    """What :class:`NaturalGradient` and :class:`TrustRegion` share: the direction ``F⁻¹g``, and the critic's fit."""

    num_cg_steps: int = 10
    """iterations of conjugate gradient"""
    damping: float = 0.1
    """added to the diagonal of the Fisher matrix"""
    value_learning_rate: float = 1e-3
    """step size of Adam for the critic"""
    num_value_epochs: int = 10
    """passes of the critic over each batch"""
    num_value_minibatches: int = 4
    """parts that each pass is split into, one step of the critic each"""

    def __post_init__(self) -> None:
        require_counts(self, "num_cg_steps", "num_value_minibatches", most=10**6)
        require(self.damping >= 0, f"damping: expected a number ≥ 0, found {self.damping}")
        require(self.value_learning_rate >= 0, f"value_learning_rate: expected a number ≥ 0, found {self.value_learning_rate}")
        message = f"num_value_epochs: expected an integer from 0 to 1000000, found {self.num_value_epochs}"
        require(0 <= self.num_value_epochs <= 10**6, message)

    def start(self, policy: Policy, *, seed: int) -> NaturalState:
        """Fresh state for a policy; its parameters move into one flat buffer where that is possible."""
        flat = FlatParameters.of(policy)
        return NaturalState(trainable(policy, flat), flat, seed)

    def __call__(
        self, algorithm: HasObjective, policy: Policy, batch: Batch, state: NaturalState, *, ascend: Callable[..., Metrics] | None = None
    ) -> Metrics:
        """One step of the policy and one fit of the critic, on one batch; ``ascend`` is a fast twin of the critic's :class:`Ascent`."""
        state.check()
        batch = batch.by_unit()
        if batch.num_units == 0:  # nothing but reset steps was recorded
            return {}
        try:
            found = self.climb(algorithm, policy, batch, state)
        except Diverged as fault:  # nothing has moved
            state.skip(fault, batch)
            found = {"skipped_steps": 1.0}
        return found | self.fit(policy, batch, state, ascend)

    # ----------------------------------------------------------------------------------------------------- the policy

    def climb(self, algorithm: HasObjective, policy: Policy, batch: Batch, state: NaturalState) -> Metrics:
        """The step of the policy; of the other parameters none moves."""
        batch = batch.with_old_policy(batch.behavior_log_prob)
        objective, metrics = algorithm.objective(policy, batch)
        if not math.isfinite(objective.item()):
            raise Diverged(diagnosis(state, batch, policy))
        if "log_ratio" in metrics:
            largest = metrics["log_ratio"].detach().abs().masked_fill(~batch.mask, 0.0).max().item()
            if largest > RATIO_TOLERANCE:
                check_first_ratio(largest, policy, batch)
        if not state.actor:
            state.actor = reached(distribution_of(policy, batch.inputs, otherwise=NEEDED).parameters, state.parameters)
            require(bool(state.actor), "policy: no trainable parameter moves its distribution")
        g = flatten(torch.autograd.grad(objective, state.actor, allow_unused=True), state.actor)
        norm = float(g.square().sum().sqrt())
        if not math.isfinite(norm):
            raise gradient_not_finite(state)
        found: Metrics = {"gradient_norm": norm}
        if norm > 0:
            product = damped(fisher_product(policy, batch, state.actor), self.damping)
            x = conjugate_gradient(product, g, self.num_cg_steps)
            line = Line(algorithm, policy, batch, state.actor, x, float(objective.detach()))
            try:
                found |= self.move(line, float(x @ product(x)))
            except BaseException:  # whatever happened on the way, no half of a step stays
                line.back()
                raise
        state.num_updates, state.skipped = state.num_updates + 1, 0
        return found

    @abstractmethod
    def move(self, line: Line, curvature: float) -> Metrics:
        """Go along ``line``, on which ``xᵀFx = curvature``; what was found where it ends."""

    # ----------------------------------------------------------------------------------------------------- the critic

    def fit(self, policy: Policy, batch: Batch, state: NaturalState, ascend: Callable[..., Metrics] | None = None) -> Metrics:
        """The critic's epochs on one batch; of the policy's parameters none moves."""
        if batch.returns is None or self.num_value_epochs == 0:
            return {}
        if state.critic is None:
            state.critic = self.critic_state(policy, batch, state)
        epochs, parts = self.num_value_epochs, self.num_value_minibatches
        ascent = Ascent(learning_rate=self.value_learning_rate, num_epochs=epochs, num_minibatches=parts, max_grad_norm=None)
        metrics = (ascend or ascent)(ValueFit(update=ascent), policy, batch, state.critic)
        return {name: metrics[name] for name in ("value_error", "skipped_steps") if name in metrics}

    def critic_state(self, policy: Policy, batch: Batch, state: NaturalState) -> AscentState:
        """Adam's state for the parameters that the value depends on and the distribution does not."""
        value = policy.evaluate(**batch.inputs).value
        if value is None:
            raise UsageError("policy: evaluate() returned no value to fit; use a policy with a value head or set num_value_epochs to 0")
        critic = tuple(p for p in reached(value, state.parameters) if not any(p is q for q in state.actor))
        require(bool(critic), "policy: its value has no trainable parameter that its distribution does not share; give the critic some")
        return state.critic_state(critic, learning_rate=self.value_learning_rate)


@dataclass(frozen=True, kw_only=True)
class NaturalGradient(NaturalStep):
    """``θ ← θ + α F⁻¹g``, as long as the quadratic model of the KL allows, or with a fixed α; nothing is checked afterwards."""

    learning_rate: float | None = None
    """α (none: the step at which ½ αxᵀFαx is max_kl)"""
    max_kl: float = 0.01
    """mean KL(π_old‖π) that a step is scaled to, by its quadratic model"""

    def __post_init__(self) -> None:
        super().__post_init__()
        message = f"learning_rate: expected a number ≥ 0 or none, found {self.learning_rate}"
        require(self.learning_rate is None or self.learning_rate >= 0, message)
        require(self.max_kl > 0, f"max_kl: expected a number > 0, found {self.max_kl}")

    def move(self, line: Line, curvature: float) -> Metrics:
        """One step of the length that was asked for."""
        line.go(longest(self.max_kl, curvature) if self.learning_rate is None else self.learning_rate)
        found = line.look()
        if not math.isfinite(found["objective"]):
            raise Diverged("diverged: the objective is not finite after the step; lower the learning rate or max_kl")
        return found


@dataclass(frozen=True, kw_only=True)
class TrustRegion(NaturalStep):
    """The longest natural-gradient step that a backtracking line search finds to climb with a mean KL of at most ``max_kl``."""

    max_kl: float = 0.01
    """largest mean KL(π_old‖π) of a step"""
    num_backtracks: int = 10
    """lengths that the line search tries, each backtrack_factor times the one before"""
    backtrack_factor: float = 0.8
    """how much shorter each try is"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_kl > 0, f"max_kl: expected a number > 0, found {self.max_kl}")
        require_counts(self, "num_backtracks", most=10**6)
        require(0 < self.backtrack_factor < 1, f"backtrack_factor: expected a number between 0 and 1, found {self.backtrack_factor}")

    def move(self, line: Line, curvature: float) -> Metrics:
        """The first of the tries that climbs inside the region; without one, every parameter is what it was, bit for bit."""
        length = longest(self.max_kl, curvature)
        for tries in range(self.num_backtracks):
            line.go(length * self.backtrack_factor**tries)
            found = line.look()
            if found["improvement"] > 0 and found["kl"] <= self.max_kl:  # False for NaN
                return {**found, "accepted": 1.0, "line_search_steps": tries + 1.0}
        line.back()
        return {**line.look(), "accepted": 0.0, "line_search_steps": float(self.num_backtracks)}


def longest(max_kl: float, curvature: float) -> float:
    """``√(2 max_kl / xᵀFx)``, at which the quadratic model of the KL is ``max_kl``; 0 where rounding left no curvature. TRPO appendix C."""
    return math.sqrt(2.0 * max_kl / curvature) if curvature > 0 else 0.0


class Line:
    """The parameters ``θ_old + length · x``: go there, look at objective and KL, come back."""

    def __init__(
        self, algorithm: HasObjective, policy: Policy, batch: Batch, parameters: tuple[nn.Parameter, ...], direction: Tensor, before: float
    ) -> None:
        self.algorithm, self.policy, self.batch, self.before = algorithm, policy, batch, before
        self.parameters = parameters
        self.start = [p.detach().clone() for p in parameters]
        ends = list(itertools.accumulate(p.numel() for p in parameters))
        self.direction = [d.view_as(p) for d, p in zip(direction.tensor_split(ends[:-1]), parameters, strict=True)]
        self.old = detach(distribution_of(policy, batch.inputs, otherwise=NEEDED))

    @torch.no_grad()
    def go(self, length: float) -> None:
        for p, start, direction in zip(self.parameters, self.start, self.direction, strict=True):
            p.copy_(start + length * direction)

    @torch.no_grad()
    def back(self) -> None:
        """To its beginning, exactly."""
        for p, start in zip(self.parameters, self.start, strict=True):
            p.copy_(start)

    @torch.no_grad()
    def look(self) -> Metrics:
        """Objective, its improvement since the beginning, mean KL, and what the objective reports, here."""
        value, metrics = self.algorithm.objective(self.policy, self.batch)
        kl = mean_kl(self.old, distribution_of(self.policy, self.batch.inputs, otherwise=NEEDED), self.batch)
        metrics.pop("log_ratio", None)
        reported = {name: float(number) for name, number in metrics.items()}
        return {"objective": float(value), "improvement": float(value) - self.before, "kl": float(kl), **reported}


@dataclass(frozen=True)
class ValueFit:
    """The critic's part as an algorithm: its objective is ``−(V − R)²``."""

    update: Ascent

    def objective(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted and summed; reports the mean error."""
        error = value_error(policy, policy.evaluate(**batch.inputs).value, batch)
        return -F.weighted_sum(error, batch.weight), {"value_error": error.detach()[batch.mask].mean()}
