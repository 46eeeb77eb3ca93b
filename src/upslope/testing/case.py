"""An estimator under test: what is known about it before it is judged, what the checks have found so far, and what is set aside.

Set aside is what it adds to the gradient (a bonus), and what it takes from the other rows of its batch. Both are found from outside: a
bonus is what is left when nothing is paid, and a batch's mean and spread are those of other rows as soon as these are many times larger,
cancel each other, and stand in a state whose parameters nobody looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError
from upslope.records import Policy, Rollout, concatenate
from upslope.tabular import flat_gradient
from upslope.testing import probes
from upslope.testing.contract import EXACT, factor, nearly_equal, norm_of
from upslope.testing.estimates import Estimate, Estimator
from upslope.testing.mistakes import FORMS, weights
from upslope.testing.probes import Probe, probe, recording_of, wave

LARGE = 4096.0
"""Reward of the rows that make a batch's spread. The row that is looked at changes it by some 1e-8 of itself."""


class Around(Estimator):
    """An estimator run in another way; everything else about it stays."""

    def __init__(self, inner: Estimator) -> None:
        self.__dict__.update(inner.__dict__)
        self.inner = inner


class WithoutBonus(Around):
    """``ĝ(τ) − ĝ(τ with rewards and values 0)``: whatever does not depend on what is paid, an entropy bonus say, is gone."""

    def __init__(self, inner: Estimator) -> None:
        super().__init__(inner)
        self.bonus = Bonus(inner)

    def __call__(self, policy: Policy, rollout: Rollout) -> Estimate:
        whole, bonus = self.inner(policy, rollout), self.bonus(policy, rollout)
        return Estimate(whole.gradient - bonus.gradient, whole.critic - bonus.critic, None)


class Bonus(Around):
    """The estimate where nothing is paid and the critic expects nothing."""

    def __init__(self, inner: Estimator) -> None:
        super().__init__(copy(inner))  # no rewards, no spread: what is not finite here does not count

    def __call__(self, policy: Policy, rollout: Rollout) -> Estimate:
        return self.inner(without_critic(policy), paying(rollout, torch.zeros_like))


class Alone(Around):
    """The estimate of rows that do not see each other: what it is in a batch that is large.

    Each row ``[T]`` gets five others beside it, all of them in the last state, whose parameters are left out: its mirror image, with the
    opposite rewards and values, which takes its part of every mean away; two with rewards ±``LARGE``, which make the spread; and two with
    none, as long as the first two are short, so that every batch has as many steps. The critic is 0.
    """

    def __call__(self, policy: Policy, rollout: Rollout) -> Estimate:
        alone = without_critic(policy)
        states = len(alone.features)
        found = self.inner(alone, concatenate([rollout, *companions(alone, rollout, states - 1)]))
        gradient = found.gradient.view(states, -1).clone()
        gradient[-1] = 0.0
        return replace(found, gradient=gradient.reshape(-1))


def without_critic(policy: Policy) -> Any:
    """The policy with a critic that says 0, so that what a row is compared with is in its recording and has a mirror image."""
    copied: Any = deepcopy(policy)
    for p in copied.value.parameters():
        p.detach().zero_()
    return copied


def paying(rollout: Rollout, change: Callable[[Tensor], Tensor], **changes: Tensor) -> Rollout:
    paid = {name: change(x) for name in ("reward", "value", "next_value") if (x := getattr(rollout, name)) is not None}
    return replace(rollout, **{**paid, **changes})


def companions(policy: Policy, rollout: Rollout, state: int) -> list[Rollout]:
    """The rows that stand beside each row, see :class:`Alone`."""
    assert rollout.reference_log_prob is not None
    inputs = {"observation": torch.full_like(rollout.inputs["observation"], state), "action": rollout.inputs["action"]}
    with torch.no_grad():
        log_prob = policy.evaluate(**inputs).log_prob
    here = replace(rollout, inputs=inputs, reference_log_prob=log_prob, behavior_log_prob=log_prob)
    mirror = paying(here, torch.neg, behavior_log_prob=log_prob - (rollout.reference_log_prob - rollout.behavior_log_prob))
    width = rollout.mask.shape[-1]
    column = torch.arange(width).expand_as(rollout.mask)

    def constant(length: Tensor | int, pay: float) -> Rollout:
        """One episode in each row, of this length, with the same reward at every step."""
        mask = column < length
        reward = torch.full_like(rollout.reward, pay).where(mask, 0.0)
        ends = {"terminated": column == length - 1, "truncated": torch.zeros_like(mask)}
        return paying(here, torch.zeros_like, reward=reward, mask=mask, **ends)

    nothing = constant(width + 1 - rollout.mask.sum(-1, keepdim=True), 0.0)
    return [mirror, constant(width, LARGE), constant(width, -LARGE), nothing, nothing]


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
    sample = recording_of(main.rollout, (0, 1, 2) if group else (0, 3, 5), group)
    first = plain(main.policy, sample).gradient
    if not torch.equal(first, plain(main.policy, sample).gradient):
        raise UsageError(f"{full.name}: two calls on the same rollout differ; draw random numbers from a generator seeded inside the call")
    noise = wave(sample.reward)
    assert sample.value is not None and sample.next_value is not None

    def reacts(tolerance: float = EXACT, **changes: Tensor) -> bool:
        return not nearly_equal(plain(main.policy, replace(sample, **changes)).gradient, first, tolerance)

    scale_free = (
        norm_of(first) > 0
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
    next_value = recording_of(p.rollout, index, plain.group).next_value
    assert next_value is not None
    return not nearly_equal(plain.on(p, index, next_value=next_value + wave(next_value)), plain.on(p, index))


def separate(plain: Estimator, main: Probe) -> bool:
    """Whether the estimate of two rows is the sum or the mean of the estimates of one."""
    try:
        total = plain.on(main, (1,)) + plain.on(main, (6,))
    except UsageError:
        return False
    return norm_of(total) > 0 and separately(plain.on(main, (1, 6)), total)


def separately(both: Tensor, total: Tensor) -> bool:
    """Whether the estimate of two rows is the sum of the single ones, or their mean."""
    return nearly_equal(both, total) or nearly_equal(both, total / 2)


def bare(case: Case, log: Log) -> Case:
    """The case without an entropy bonus and without the batch's mean and spread, and a note for each."""
    bonus = Bonus(case.plain)
    there = bool(bonus.on(case.main, range(case.size)).any())
    if there and (weight := entropy_weight(case.main, bonus.moments(case.main, case.size).mean)) is not None:
        case = replace(case, plain=WithoutBonus(case.plain))
        log.notes.append(f"an entropy bonus of {weight:.3g} is set aside: its gradient is not ∇J's")
    if case.independent or case.group:
        return case
    if case.scale_free:
        log.notes.append("divided by the spread of the batch: the scale is lost, and the direction is what is compared")
    log.notes.append("its rows see each other: what the batch's mean and spread add is a bias of the order 1 / batch, set aside here")
    return replace(case, plain=Alone(case.plain), in_large_batch=True, independent=True, scale_free=False)


def entropy_weight(p: Probe, left: Tensor) -> float | None:
    """The weight of an entropy bonus, weighted by γ^t or not, where that is all that is left when nothing is paid; < 0: a penalty."""
    for form in FORMS[:2]:
        entropy = F.categorical_entropy(p.table[p.rollout.inputs["observation"]]).where(p.rollout.mask, 0.0)
        whole = flat_gradient((p.probability.unsqueeze(-1) * weights(p, form)[1] * entropy).sum(), p.policy.preferences)
        if (c := factor(left, whole)) is not None:
            return c
    return None
