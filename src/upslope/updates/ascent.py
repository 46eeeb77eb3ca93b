"""Gradient ascent on an algorithm's objective: epochs of shuffled minibatches, norm clip, Adam.

Adam minimises, so it is handed **minus** the objective's gradient: the one minus sign of the readable update stands here.
The compiled twin for MLP policies is ``upslope.fast``; a test holds both to the same parameters. It does not see an edit of this file:
train with ``--no-fast`` then.

Left out: other optimizers (subclass :class:`Ascent` and replace ``step``), mixed precision, several update ranks.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope.errors import Diverged, require, require_counts
from upslope.records import Batch, HasObjective, Metrics, Policy
from upslope.updates.checks import RATIO_TOLERANCE, check_first_ratio, diagnosis, gradient_not_finite
from upslope.updates.critic import of_critic
from upslope.updates.flat import FlatParameters
from upslope.updates.mismatch import at_old_policy
from upslope.updates.schedules import SCHEDULES, Schedule, constant
from upslope.updates.state import AscentState, trainable

Gradients = tuple[list[Tensor], dict[str, Tensor]]  # of each target, and what the objective reports


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """``θ ← θ + α · Adam(∇ objective)`` for ``num_epochs`` passes over a batch in ``num_minibatches`` parts."""

    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"schedule": SCHEDULES}

    learning_rate: float = 3e-4
    """step size of Adam"""
    schedule: Schedule = constant
    """how the learning rate moves over the run: constant or linear (to zero)"""
    num_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 1
    """parts that each pass is split into, one gradient step each"""
    max_grad_norm: float | None = 0.5
    """the gradient's norm is clipped to this, an actor's and a separate critic's each by itself (none: no clipping)"""
    target_kl: float | None = 0.03
    """stop the epochs of an update once a minibatch's approx KL exceeds this (none: never); it keeps a trained policy from coming apart"""
    micro_batch_size: int | None = None
    """units per backward pass, to save memory; never changes a result"""
    eps: float = 1e-5
    """Adam's eps"""

    def __post_init__(self) -> None:
        require(self.learning_rate >= 0, f"learning_rate: expected a number ≥ 0, found {self.learning_rate}")
        require(1 <= self.num_epochs <= 10**6, f"num_epochs: expected an integer from 1 to 1000000, found {self.num_epochs}")
        require_counts(self, "num_minibatches", "micro_batch_size")
        require(self.eps > 0, f"eps: expected a number > 0, found {self.eps}")
        for name in ("max_grad_norm", "target_kl"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}: expected a number > 0 or none, found {value}")

    def start(self, policy: Policy, *, seed: int) -> AscentState:
        """Fresh state for a policy; its parameters move into one flat buffer where that is possible."""
        flat = FlatParameters.of(policy)
        parameters = trainable(policy, flat)
        return AscentState.of(parameters, flat, seed=seed, learning_rate=self.learning_rate, critic=of_critic(policy, parameters))

    def set_fraction(self, state: AscentState, fraction: float) -> None:
        """Follow the schedule: ``fraction`` of the run is done."""
        state.learning_rate = self.learning_rate * self.schedule(fraction)

    def __call__(self, algorithm: HasObjective, policy: Policy, batch: Batch, state: AscentState) -> Metrics:
        """One update on one batch; means over its minibatches of what the objective reports."""
        state.check()
        batch = batch.by_unit()
        num_units, device = len(batch.mask), batch.mask.device
        if num_units == 0:  # nothing but reset steps was recorded
            return {"num_minibatches": 0.0}
        if batch.returns is not None and (follow := getattr(policy, "follow_returns", None)) is not None:
            follow(batch.returns[batch.mask])  # the critic's units, before it learns; its values stay what they are
        if batch.sampler_log_prob is not None and not self.makes_one_step:
            batch = self.with_old_policy(policy, batch)
        count, skipped = min(self.num_minibatches, num_units), 0
        before = [t.detach().reshape(-1)[:: max(1, t.numel() // SAMPLE)].clone() for t in state.targets]
        collected: defaultdict[str, list[Tensor]] = defaultdict(list)
        shuffles = (torch.randperm(num_units, generator=state.generator).to(device) for _ in range(self.num_epochs))
        for part in itertools.chain.from_iterable(batch.minibatches(shuffle, count) for shuffle in shuffles):
            try:
                if self.micro_batch_size is None or self.micro_batch_size >= part.num_units:
                    metrics = self.backward(algorithm, policy, part, state, first=not collected)
                    gradients = state.take_gradients()
                else:
                    gradients, metrics = self.accumulate(algorithm, policy, part, state, first=not collected)
                for name, value in metrics.items():
                    collected[name].append(value)
                if self.target_kl is not None and "approx_kl" in metrics and metrics["approx_kl"].item() > self.target_kl:
                    break
                norm = self.step(state, gradients)
                collected["gradient_norm"].append(norm)
            except Diverged as fault:  # nothing has moved
                state.skip(fault, part)
                skipped += 1
        means = {name: torch.stack(values).mean().item() for name, values in collected.items()}  # one transfer from the device per name
        means |= {"skipped_steps": float(skipped)} if skipped else {}
        return means | {"num_minibatches": float(len(collected["gradient_norm"]))} | weights_moved(state, before)

    @property
    def makes_one_step(self) -> bool:
        """Whether every batch is left after one gradient step, so that no ratio is needed."""
        return self.num_epochs * self.num_minibatches == 1

    @torch.no_grad()
    def with_old_policy(self, policy: Policy, batch: Batch) -> Batch:
        """Where the sampler has other numerics than the policy, the batch with what the policy says before its first step."""
        pieces = micro_batches(batch, self.micro_batch_size)
        return batch.with_old_policy(torch.cat([policy.evaluate(**piece.inputs).log_prob for piece in pieces]))

    def accumulate(self, algorithm: HasObjective, policy: Policy, part: Batch, state: AscentState, *, first: bool) -> Gradients:
        """Gradients of minus the objective on one minibatch, and what it reports: in micro-batches, whose sums are the whole."""
        totals: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        for piece in micro_batches(part, self.micro_batch_size):
            metrics = self.backward(algorithm, policy, piece, state, first=first)
            if state.rounding is not None:  # bfloat16 adds up in float32
                taken = state.take_gradients()
                gradients = [total.add_(g) for total, g in zip(gradients, taken, strict=True)] if gradients else taken
            # the objective is a sum, what is reported are means over steps, or over pairs
            share = piece.num_units / part.num_units if part.unit == "pair" else int(piece.mask.sum()) / int(part.mask.sum())
            shares = {name: value if name == "objective" else value * share for name, value in metrics.items()}
            totals = {name: totals.get(name, 0.0) + value for name, value in shares.items()}
        return gradients or state.take_gradients(), totals

    def backward(self, algorithm: HasObjective, policy: Policy, part: Batch, state: AscentState, *, first: bool) -> dict[str, Tensor]:
        """Add the gradient of minus the objective to ``p.grad``; what the objective reports, and its value."""
        scorer, scored = at_old_policy(policy, part) if part.sampler_log_prob is not None and self.makes_one_step else (policy, part)
        objective, metrics = algorithm.objective(scorer, scored)
        if not math.isfinite(objective.item()):
            raise Diverged(diagnosis(state, part, policy))
        log_ratio = metrics.pop("log_ratio", None)
        if first and log_ratio is not None and (largest := log_ratio.abs().masked_fill(~part.mask, 0.0).max().item()) > RATIO_TOLERANCE:
            check_first_ratio(largest, policy, part)
        torch.autograd.backward(-objective, inputs=state.parameters)  # the one minus sign, as Adam minimizes; the compiled twin has another
        return {"objective": objective.detach(), **metrics}

    def step(self, state: AscentState, gradients: list[Tensor]) -> Tensor:
        """Clip the norms, move the targets; returns the norm of all before clipping. Nothing moves where it is not finite."""
        groups = [gradients]
        if any(state.critic):
            pieces = gradients if state.flat is None else torch.split(gradients[0], [p.numel() for p in state.parameters])
            groups = [[g for g, of in zip(pieces, state.critic, strict=True) if of is critic] for critic in sorted(set(state.critic))]
        squares = [torch.stack([g.square().sum() for g in group]).sum() for group in groups]
        norm = torch.stack(squares).sum().sqrt()
        if not math.isfinite(norm.item()):
            raise gradient_not_finite(state)
        if self.max_grad_norm is not None:
            for group, square in zip(groups, squares, strict=True):
                if (factor := self.max_grad_norm / (math.sqrt(square.item()) + 1e-6)) < 1.0:
                    for g in group:
                        g.mul_(factor)
        state.descend(gradients, self.eps)
        return norm


def micro_batches(part: Batch, size: int | None) -> Iterator[Batch]:
    """A minibatch in pieces of ``size`` units; the weights are left alone, so the pieces' gradients add to the whole."""
    if size is None or size >= part.num_units:
        yield part
    else:
        for start in range(0, part.num_units, size):
            yield part.select(torch.arange(start, min(start + size, part.num_units), device=part.mask.device))


# A step smaller than half the distance to the next number of a weight's precision is lost: about 6e-8 of the weight in float32, 4e-3 in
# bfloat16. Weights in bfloat16 that are rounded stochastically move seldom by design and are not reported.
SAMPLE = 1024  # weights of each tensor that are looked at, evenly spread
ALMOST_NONE = 0.01  # share of weights below which an update is reported


def weights_moved(state: AscentState, before: Sequence[Tensor]) -> Metrics:
    """``weights_moved``, the share of the weights with a step that moved since ``before``, where it is almost none; else nothing."""
    if state.rounding is not None or state.learning_rate == 0:
        return {}
    moved, meant = 0, 0
    for old, target, (moment, _) in zip(before, state.targets, state.moments, strict=True):
        new, step = (t.detach().reshape(-1)[:: max(1, t.numel() // SAMPLE)] for t in (target, moment))
        moved, meant = moved + int(((new != old) & (step != 0)).sum()), meant + int((step != 0).sum())
    return {"weights_moved": moved / meant} if meant and moved < ALMOST_NONE * meant else {}
