"""Gradient ascent on an algorithm's objective: epochs of shuffled minibatches, norm clip, Adam.

Adam minimises, so it is handed **minus** the objective's gradient: the one minus sign of the library stands here.
The compiled twin for MLP policies is ``upslope.fast``; a test holds both to the same parameters.

Left out: other optimizers (subclass :class:`Ascent` and replace ``step``), mixed precision, several update ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from torch import Tensor, nn

from upslope.errors import Diverged, RunFault, UsageError, require
from upslope.records import Batch, Metrics
from upslope.updates.adam import adam_descend
from upslope.updates.critic import follow_returns, of_critic
from upslope.updates.flat import FlatParameters
from upslope.updates.mismatch import at_old_policy
from upslope.updates.rounding import stochastically_rounded
from upslope.updates.schedules import SCHEDULES, Schedule, constant
from upslope.updates.watch import Watch

RATIO_TOLERANCE = 1e-3
"""Largest |log π − log π_behavior| on the first minibatch of an update that rounding can explain (float32 sums)."""
UNITS = 16
"""Units in the last place of an action, or of its mean, that the sums of a network may differ by."""
COARSEST = 0.1
"""Largest |log π − log π_behavior| of a very narrow policy that is let pass as rounding: beyond, updates would follow noise."""


@dataclass
class AscentState:
    """What an :class:`Ascent` remembers: Adam's moments, the shuffling generator, the current learning rate.

    ``targets`` are the tensors that move: the one flat buffer where the policy allows it, else its parameters one by one.
    ``critic`` says of each parameter whether only the critic has it.
    """

    parameters: tuple[nn.Parameter, ...]
    flat: FlatParameters | None
    targets: tuple[Tensor, ...]
    moments: tuple[tuple[Tensor, Tensor], ...]
    generator: torch.Generator
    learning_rate: float
    num_updates: int = 0
    rounding: torch.Generator | None = None
    """of the rounding of parameters in bfloat16, where there are some"""
    critic: tuple[bool, ...] = ()

    @classmethod
    def of(
        cls,
        parameters: tuple[nn.Parameter, ...],
        flat: FlatParameters | None,
        *,
        seed: int,
        learning_rate: float,
        critic: tuple[bool, ...] = (),
    ) -> Self:
        """Fresh state for these parameters, which lie in ``flat`` where there is one; moments are float32 at least."""
        targets = parameters if flat is None else (flat.data,)
        moments = tuple((torch.zeros_like(t, dtype=exact(t)), torch.zeros_like(t, dtype=exact(t))) for t in targets)
        rounded = next((t for t in targets if t.dtype == torch.bfloat16), None)
        rounding = None if rounded is None else torch.Generator(rounded.device).manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        return cls(parameters, flat, targets, moments, generator, learning_rate, rounding=rounding, critic=critic)

    def check(self) -> None:
        """Before an update: what was trainable at the start still is, and lies where it is expected."""
        if not all(p.requires_grad for p in self.parameters):
            raise UsageError("policy: a parameter was frozen after training began; freeze it before, so that its update can be left out")
        if self.flat is not None:
            self.flat.hold()

    def gather(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """One gradient per target from one per parameter; zeros where the objective does not reach."""
        pairs = zip(gradients, self.parameters, strict=True)
        filled = [torch.zeros_like(p, dtype=exact(p)) if g is None else g.to(exact(p)) for g, p in pairs]
        return filled if self.flat is None else [torch.cat([g.reshape(-1) for g in filled])]

    def apart(self, gradients: list[Tensor]) -> list[list[Tensor]]:
        """What is clipped together: the gradient of the critic's own parameters, and that of the others, as views."""
        if not any(self.critic):
            return [gradients]
        pieces: Sequence[Tensor] = gradients
        if self.flat is not None:
            ends = itertools.accumulate(p.numel() for p in self.parameters[:-1])
            pieces = gradients[0].tensor_split(list(ends))
        return [[g for g, own in zip(pieces, self.critic, strict=True) if own is critic] for critic in (False, True)]


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
        require(self.num_minibatches >= 1, f"num_minibatches: expected an integer ≥ 1, found {self.num_minibatches}")
        require(self.eps > 0, f"eps: expected a number > 0, found {self.eps}")
        for name in ("max_grad_norm", "target_kl"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}: expected a number > 0 or none, found {value}")
        size = self.micro_batch_size
        require(size is None or size >= 1, f"micro_batch_size: expected an integer ≥ 1 or none, found {size}")

    def start(self, policy: nn.Module, *, seed: int) -> AscentState:
        """Fresh state for a policy; its parameters move into one flat buffer where that is possible."""
        flat = FlatParameters.of(policy)
        parameters = trainable(policy, flat)
        return AscentState.of(parameters, flat, seed=seed, learning_rate=self.learning_rate, critic=of_critic(policy, parameters))

    def set_fraction(self, state: AscentState, fraction: float) -> None:
        """Follow the schedule: ``fraction`` of the run is done."""
        state.learning_rate = self.learning_rate * self.schedule(fraction)

    def permutations(self, num_units: int, state: AscentState) -> Iterator[Tensor]:
        """One shuffle of the units per epoch, from the state's own generator."""
        for _ in range(self.num_epochs):
            yield torch.randperm(num_units, generator=state.generator)

    def __call__(self, algorithm: Any, policy: Any, batch: Batch, state: AscentState) -> Metrics:
        """One update on one batch; means over its minibatches of what the objective reports."""
        state.check()
        batch = batch.by_unit()
        if batch.num_units == 0:  # nothing but reset steps was recorded
            return {"num_minibatches": 0.0}
        follow_returns(policy, batch)
        count = min(self.num_minibatches, batch.num_units)
        if not self.makes_one_step:
            batch = self.with_old_policy(policy, batch)
        watch = Watch(state)
        collected: defaultdict[str, list[Tensor]] = defaultdict(list)
        for permutation in self.permutations(batch.num_units, state):
            for part in batch.minibatches(permutation.to(batch.mask.device), count):
                gradients, metrics = self.accumulate(algorithm, policy, part, state, first=not collected)
                for name, value in metrics.items():
                    collected[name].append(value)
                if self.target_kl is not None and "approx_kl" in metrics and metrics["approx_kl"].item() > self.target_kl:
                    return averaged(collected) | watch.metrics()
                collected["gradient_norm"].append(self.step(state, gradients))
        return averaged(collected) | watch.metrics()

    @property
    def makes_one_step(self) -> bool:
        """Whether every batch is left after one gradient step, so that no ratio is needed."""
        return self.num_epochs * self.num_minibatches == 1

    @torch.no_grad()
    def with_old_policy(self, policy: Any, batch: Batch) -> Batch:
        """Where the sampler has other numerics than the policy, the batch with what the policy says before its first step."""
        if batch.sampler_log_prob is None:
            return batch
        pieces = micro_batches(batch, self.micro_batch_size)
        return batch.with_old_policy(torch.cat([policy.evaluate(**piece.inputs).log_prob for piece in pieces]))

    def accumulate(
        self, algorithm: Any, policy: Any, part: Batch, state: AscentState, *, first: bool
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Gradients of minus the objective on one minibatch, one per target, in micro-batches whose sums are the whole."""
        one_step = part.sampler_log_prob is not None and self.makes_one_step
        totals: defaultdict[str, Tensor] = defaultdict(lambda: part.weight.new_zeros(()))
        with gradients_of(state.parameters) as gradients:
            for piece in micro_batches(part, self.micro_batch_size):
                scorer, scored = at_old_policy(policy, piece) if one_step else (policy, piece)
                objective, metrics = algorithm.objective(scorer, scored)
                if not math.isfinite(objective.item()):
                    raise Diverged(diagnosis(state, part, policy))
                log_ratio = metrics.pop("log_ratio", None)
                if first and log_ratio is not None:
                    check_first_ratio(log_ratio.detach().abs().masked_fill(~piece.mask, 0.0).max().item(), policy, piece)
                # the only minus sign: Adam minimizes
                torch.autograd.backward(-objective, inputs=state.parameters)
                if piece is part:
                    return state.gather(gradients()), {"objective": objective.detach(), **metrics}
                gradients()
                totals["objective"] = totals["objective"] + objective.detach()  # a sum; the others are means over steps, or over pairs
                share = piece.num_units / part.num_units if part.unit == "pair" else int(piece.mask.sum()) / int(part.mask.sum())
                for name, value in metrics.items():
                    totals[name] = totals[name] + value * share
            return state.gather(gradients()), totals

    def step(self, state: AscentState, gradients: list[Tensor]) -> Tensor:
        """Clip the norms, move the targets; returns the norm of all before clipping. Nothing moves where it is not finite."""
        groups = state.apart(gradients)
        squares = [torch.stack([g.square().sum() for g in group]).sum() for group in groups]
        norm = torch.stack(squares).sum().sqrt()
        check_gradient(norm.item(), state)
        if self.max_grad_norm is not None:
            for group, square in zip(groups, squares, strict=True):
                if (factor := self.max_grad_norm / (math.sqrt(square.item()) + 1e-6)) < 1.0:
                    for g in group:
                        g.mul_(factor)
        state.num_updates += 1
        rates: dict[str, Any] = {"num_updates": state.num_updates, "learning_rate": state.learning_rate, "eps": self.eps}
        for target, gradient, (exp_avg, exp_avg_sq) in zip(state.targets, gradients, state.moments, strict=True):
            moved = target.to(exact(target))  # itself, unless it is half as wide
            adam_descend(moved, gradient, exp_avg, exp_avg_sq, **rates)
            if state.rounding is not None and target.dtype == torch.bfloat16:
                target.detach().copy_(stochastically_rounded(moved, state.rounding))
        return norm


def exact(tensor: Tensor) -> torch.dtype:
    """The precision to compute in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def trainable(policy: nn.Module, flat: FlatParameters | None) -> tuple[nn.Parameter, ...]:
    """The policy's parameters that require a gradient; raises :class:`UsageError` where there is none."""
    parameters = tuple(p for p in policy.parameters() if p.requires_grad) if flat is None else flat.parameters
    require(bool(parameters), "policy: it has no trainable parameter; pass one with requires_grad=True")
    return parameters


@contextlib.contextmanager
def gradients_of(parameters: Sequence[nn.Parameter]) -> Generator[Callable[[], list[Tensor | None]]]:
    """Backward passes inside this block add up in ``p.grad``, in place; what stood there before is put back after it.

    Of parameters in bfloat16 they add up in float32, at each call of what is yielded.
    """
    before = [p.grad for p in parameters]
    sums: dict[int, Tensor] = {}

    def collected() -> list[Tensor | None]:
        for i, p in enumerate(parameters):
            if p.grad is not None and p.dtype == torch.bfloat16:
                sums[i] = p.grad.float() if i not in sums else sums[i].add_(p.grad)
                p.grad = None
        return [sums.get(i, p.grad) for i, p in enumerate(parameters)]

    try:
        for p in parameters:
            p.grad = None
        yield collected
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient


def micro_batches(part: Batch, size: int | None) -> Iterator[Batch]:
    """A minibatch in pieces of ``size`` units; the weights are left alone, so the pieces' gradients add to the whole."""
    if size is None or size >= part.num_units:
        yield part
    else:
        for start in range(0, part.num_units, size):
            yield part.select(torch.arange(start, min(start + size, part.num_units), device=part.mask.device))


def averaged(collected: dict[str, list[Tensor]]) -> Metrics:
    """Means over minibatches; one transfer from the device per name."""
    means: Metrics = {name: torch.stack(values).mean().item() for name, values in collected.items()}
    means["num_minibatches"] = float(len(collected.get("gradient_norm", ())))
    return means


def check_first_ratio(max_log_ratio: float, policy: Any, part: Batch) -> None:
    """Before its first step the policy still is the one that sampled: π/π_behavior must be 1 (FORMULAS section 8).

    Where the policy is so narrow that the last digits of an action move log π, rounding is allowed for, up to a ratio of
    exp(±:data:`COARSEST`).
    """
    if max_log_ratio <= RATIO_TOLERANCE:
        return
    rounding = action_rounding(policy, part)
    if max_log_ratio > RATIO_TOLERANCE + UNITS * rounding:
        raise RunFault(
            f"ratio: expected 1 on the first minibatch of an update, found exp(±{max_log_ratio:.2g}); "
            "the policy must sample and score with the same distribution (temperature, masks, dropout, normalization)"
        )
    if max_log_ratio > COARSEST:
        raise RunFault(
            f"ratio: expected 1 on the first minibatch of an update, found exp(±{max_log_ratio:.2g}), which is rounding: the last digit of "
            f"an action moves log π by up to {rounding:.2g}, so narrow has the policy become; raise entropy_coef or lower the learning rate"
        )


def action_rounding(policy: Any, part: Batch) -> float:
    """By how much log π may change where a unit in the last place of an action does: ``max_t Σ_i |∂log π/∂a_i| · eps · max(|a_i|, 1)``.

    For a Gaussian that is ``|a − μ|/σ² · eps · max(|a|, 1)``. 0 for actions that are integers, which do not round.
    """
    action = part.inputs.get("action")
    if action is None or not action.is_floating_point():
        return 0.0
    action = action.detach().clone().requires_grad_()
    log_prob = policy.evaluate(**{**part.inputs, "action": action}).log_prob
    if not log_prob.requires_grad:
        return 0.0
    (slope,) = cast(Sequence[Tensor | None], torch.autograd.grad(log_prob.sum(), action, allow_unused=True))
    if slope is None:
        return 0.0
    moved = slope.abs() * torch.finfo(action.dtype).eps * action.detach().abs().clamp(min=1.0)
    each = moved.reshape(*log_prob.shape, -1).sum(-1)
    return each.masked_fill(~part.mask, 0.0).max().item()


ADVICE = "lower the learning rate, lower max_grad_norm, or scale what it learns from (rewards, observations) to about 1"
"""What helps in every world: texts have no observations, recorded ones no rewards."""


class Counted(Protocol):
    """The state of an update that counts its steps."""

    num_updates: int


def check_gradient(norm: float, state: Counted) -> None:
    """A finite objective may have a gradient that is not (a square root at 0, an overflow): stop before it spoils the parameters."""
    if not math.isfinite(norm):
        raise Diverged(f"diverged: the gradient is not finite at gradient step {state.num_updates + 1}; {ADVICE}")


def diagnosis(state: Counted, part: Batch, policy: Any) -> str:
    """One line that names the update and the first tensor that is not finite, or the states in which no action is possible."""
    if words := without_action(policy, part):
        return f"{words} (gradient step {state.num_updates + 1}); leave at least one action possible in every state"
    suspects: dict[str, Tensor | None] = {
        "advantage": part.advantage,
        "returns": part.returns,
        "behavior_log_prob": part.behavior_log_prob,
        **{f"inputs[{name!r}]": tensor for name, tensor in part.inputs.items() if tensor.is_floating_point()},
        **dict(policy.named_parameters() if isinstance(policy, nn.Module) else ()),
    }
    name = next((name for name, tensor in suspects.items() if tensor is not None and not finite(tensor, part.mask)), "objective")
    return f"diverged: {name} is not finite at gradient step {state.num_updates + 1}; {ADVICE}"


def finite(tensor: Tensor, mask: Tensor) -> bool:
    """Whether all entries are finite; where the tensor has the mask's axes, all unmasked entries."""
    seen = tensor[mask] if tensor.shape[: mask.dim()] == mask.shape else tensor
    return bool(torch.isfinite(seen).all())


def without_action(policy: Any, part: Batch) -> str:
    """Where a network gives every action that it may take a logit of −∞, in words, else ''; no learning rate would help."""
    distribution, action = getattr(policy, "distribution", None), part.inputs.get("action")
    if not callable(distribution) or action is None:
        return ""
    try:
        with torch.no_grad():
            found: Any = distribution(**part.inputs)
            parameters, log_prob = found.parameters, found.log_prob(action)
        hopeless: Tensor = (
            log_prob.isnan() & parameters.isneginf().any(-1) & ~(parameters.isnan() | parameters.isposinf()).any(-1) & part.mask
        )
    except Exception:  # a distribution of the user's own, of another form
        return ""
    if not hopeless.any():
        return ""
    how_many = f"{int(hopeless.sum())} of {int(part.mask.sum())} steps"
    observation: Any = part.inputs.get("observation")
    numbers: list[float] = (
        [] if observation is None else observation[hopeless][0].flatten().tolist()
    )  # rows are shuffled: their places say nothing
    shown = ", ".join(f"{number:.4g}" for number in numbers[:8]) + (", …" if len(numbers) > 8 else "")
    which = f", for one where the observation is [{shown}]" if numbers else ""
    return f"no legal action: the network gives all of them a logit of −∞ in {how_many}{which}"
