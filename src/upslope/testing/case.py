"""An estimator under test: what is known about it before it is judged, and what the checks have found so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError
from upslope.tabular import flat_gradient
from upslope.testing import probes
from upslope.testing.bare import Alone, Bonus, WithoutBonus
from upslope.testing.contract import EXACT, factor, same
from upslope.testing.estimates import Estimator
from upslope.testing.mistakes import FORMS, weights
from upslope.testing.probes import Probe, probe, rows, wave

EPS = 1e-4
"""Relative difference that an eps beside a spread (F.group_relative) makes: an estimate is proportional to the rewards up to that."""


@dataclass(frozen=True)
class Case:
    """An estimator and what is known about it before it is judged."""

    full: Estimator
    plain: Estimator
    main: Probe
    independent: bool  # rows do not see each other, so that batches of one row say it all
    scale_free: bool  # twice the reward gives the same estimate: it divides by a spread
    uses_critic: bool
    bootstraps: bool  # it asks for the value of what follows
    uses_behavior: bool
    in_large_batch: bool = False
    """its rows do see each other, and ``plain`` is what each becomes where the batch is large (:class:`Alone`)"""
    sign: float = 1.0  # −1 once it has been found to point down
    form: str | None = None  # what its expectation is the gradient of, once that is known: one of FORMS

    @property
    def group(self) -> bool:
        return self.full.group

    @property
    def gamma(self) -> float:
        return self.full.gamma

    @property
    def size(self) -> int:
        return 1 if self.independent else 2

    @property
    def tolerance(self) -> float:
        """Relative difference that is taken for rounding: beside large rewards a user's float32 has fewer digits left for small ones."""
        return EPS if self.in_large_batch or self.scale_free else EXACT

    def mean(self, probe: Probe, size: int | None = None) -> Tensor:
        """The exact expectation on a problem, turned up if it points down."""
        return self.sign * self.plain.moments(probe, size or self.size).mean


@dataclass
class Log:
    """What happened while one estimator was checked."""

    found: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """each mistake's name, and the numbers that show it"""
    notes: list[str] = field(default_factory=list[str])
    checked: list[str] = field(default_factory=list[str])
    not_checked: list[str] = field(default_factory=list[str])  # what could not be checked, each with its mistakes
    left_out: list[str] = field(default_factory=list[str])
    """what does not apply, each with its mistakes and the reason"""

    def run(self, name: str, check: Callable[[Case, Log], None], case: Case) -> None:
        self.checked.append(name)
        check(case, self)

    def add(self, mistake: str, numbers: str = "") -> None:
        self.found.append((mistake, numbers))


def case_of(full: Estimator, off_policy: bool | None) -> Case:
    """Look at an estimator from outside: what does it react to?"""
    plain, group = full.plain(), full.group
    main = probe(probes.GRADED if group else probes.STEPS, full.gamma)
    sample = rows(main.rollout, (0, 1, 2) if group else (0, 3, 5), group)
    first = plain(main.policy, sample).gradient
    if not torch.equal(first, plain(main.policy, sample).gradient):
        raise UsageError(f"{full.name}: two calls on the same rollout differ; draw random numbers from a generator seeded inside the call")
    noise = wave(sample.reward)
    assert sample.value is not None and sample.next_value is not None

    def reacts(tolerance: float = EXACT, **changes: Tensor) -> bool:
        return not same(plain(main.policy, replace(sample, **changes)).gradient, first, tolerance)

    scale_free = (
        bool(first.norm() > 0)
        and not reacts(EPS, reward=2 * sample.reward, value=2 * sample.value, next_value=2 * sample.next_value)
        and reacts(EPS, reward=sample.reward + noise.where(sample.mask, 0.0))
    )
    return Case(
        full,
        plain,
        probe(probes.SCORED, full.gamma) if group and scale_free else main,  # the spread of two rows is always the same there
        independent=not group and separate(plain, main),
        scale_free=scale_free,
        uses_critic=full.is_online or reacts(value=sample.value + noise, next_value=sample.next_value - noise),
        bootstraps=full.is_online or reacts(next_value=sample.next_value - noise) or bootstraps_where_cut(plain),
        uses_behavior=reacts(behavior_log_prob=sample.behavior_log_prob + 0.01 * noise) if off_policy is None else off_policy,
    )


def bootstraps_where_cut(plain: Estimator) -> bool:
    """Whether the value of what follows a truncation is asked for."""
    p, index = probe(probes.TRUNCATED, plain.gamma), (1, 3)
    next_value = rows(p.rollout, index, plain.group).next_value
    assert next_value is not None
    return not same(plain.on(p, index, next_value=next_value + wave(next_value)), plain.on(p, index))


def separate(plain: Estimator, main: Probe) -> bool:
    """Whether the estimate of two rows is the sum or the mean of the estimates of one."""
    try:
        total = plain.on(main, (1,)) + plain.on(main, (6,))
    except UsageError:
        return False
    return bool(total.norm() > 0) and separately(plain.on(main, (1, 6)), total)


def separately(both: Tensor, total: Tensor) -> bool:
    """Whether the estimate of two rows is the sum of the single ones, or their mean."""
    return same(both, total) or same(both, total / 2)


def bare(case: Case, log: Log) -> Case:
    """The case without an entropy bonus and without the batch's mean and spread, and a note for each."""
    weight = entropy_weight(case)
    if weight is not None:
        case = replace(case, plain=WithoutBonus(case.plain))
        log.notes.append(f"an entropy bonus of {weight:.3g} is set aside: its gradient is not ∇J's")
    if case.independent or case.group:
        return case
    if case.scale_free:
        log.notes.append("divided by the spread of the batch: the scale is lost, and the direction is what is compared")
    log.notes.append("its rows see each other: what a batch's own mean and spread add is a bias of the order 1 / batch, set aside here")
    return replace(case, plain=Alone(case.plain), in_large_batch=True, independent=True, scale_free=False)


def entropy_weight(case: Case) -> float | None:
    """The weight of an entropy bonus, weighted by γ^t or not, where that is all that is left when nothing is paid."""
    p, bonus = case.main, Bonus(case.plain)
    if not bool(bonus.on(p, range(case.size)).any()):
        return None
    left = bonus.moments(p, case.size).mean
    for form in FORMS[:2]:
        entropy = F.categorical_entropy(p.table[p.rollout.inputs["observation"]]).where(p.rollout.mask, 0.0)
        whole = flat_gradient((p.probability.unsqueeze(-1) * weights(p, form)[1] * entropy).sum(), p.policy.preferences)
        if (c := factor(left, whole)) is not None:
            return c
    return None
