"""The single checks of an estimator: each changes one thing and knows what a correct estimator makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from upslope import functional as F
from upslope.errors import UsageError
from upslope.testing import probes
from upslope.testing.bare import Alone, Bonus, WithoutBonus
from upslope.testing.contract import EXACT, factor, same
from upslope.testing.estimates import Estimator
from upslope.testing.mistakes import FORMS, explained, on_truncated_episodes, target, weights
from upslope.testing.probes import Probe, mapped, probe, rows

Found = tuple[str, str]
"""A mistake's name, and the numbers that show it."""
SCALED = 1e-4
"""Spread with an eps beside it (F.group_relative) is proportional to the rewards up to that eps."""


@dataclass(frozen=True)
class Case:
    """An estimator and what is known about it before it is judged."""

    full: Estimator
    plain: Estimator
    main: Probe
    independent: bool
    """rows do not see each other, so that batches of one row say it all"""
    scale_free: bool
    """twice the reward gives the same estimate: it divides by a spread"""
    uses_critic: bool
    bootstraps: bool
    """it asks for the value of what follows"""
    uses_behavior: bool
    in_large_batch: bool = False
    """its rows do see each other, and ``plain`` is what each becomes where the batch is large (:class:`Alone`)"""
    sign: float = 1.0
    """−1 once it has been found to point down"""

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
        return SCALED if self.in_large_batch or self.scale_free else EXACT

    def mean(self, probe: Probe, size: int) -> Tensor:
        """The exact expectation on a problem, turned up if it points down."""
        return self.sign * self.plain.moments(probe, size).mean


def case_of(full: Estimator, off_policy: bool | None) -> Case:
    """Look at an estimator from outside: what does it react to?"""
    plain, group = full.plain(), full.group
    main = probe(probes.graded if group else probes.steps, full.gamma)
    sample = rows(main.rollout, (0, 1, 2) if group else (0, 3, 5), group)
    first = plain(main.policy, sample).gradient
    if not torch.equal(first, plain(main.policy, sample).gradient):
        raise UsageError(f"{full.name}: two calls on the same rollout differ; draw random numbers from a generator seeded inside the call")
    noise = torch.cos(torch.arange(sample.reward.numel(), dtype=torch.float64)).view_as(sample.reward)
    assert sample.value is not None and sample.next_value is not None

    def reacts(**changes: Tensor) -> bool:
        return not same(plain(main.policy, replace(sample, **changes)).gradient, first)

    other = replace(sample, reward=sample.reward + noise.where(sample.mask, 0.0))
    double = replace(sample, reward=2 * sample.reward, value=2 * sample.value, next_value=2 * sample.next_value)
    scale_free = (
        bool(first.norm() > 0)
        and same(plain(main.policy, double).gradient, first, SCALED)
        and not same(plain(main.policy, other).gradient, first, SCALED)
    )
    return Case(
        full,
        plain,
        probe(probes.scored, full.gamma) if group and scale_free else main,  # the spread of two rows is always the same there
        independent=not group and separate(plain, main),
        scale_free=scale_free,
        uses_critic=full.is_online or reacts(value=sample.value + noise, next_value=sample.next_value - noise),
        bootstraps=full.is_online or reacts(next_value=sample.next_value - noise) or bootstraps_where_cut(plain),
        uses_behavior=reacts(behavior_log_prob=sample.behavior_log_prob + 0.01 * noise) if off_policy is None else off_policy,
    )


def bootstraps_where_cut(plain: Estimator) -> bool:
    """Whether the value of what follows a truncation is asked for."""
    p = probe(probes.truncated, plain.gamma)
    sample = rows(p.rollout, (1, 3), plain.group)
    assert sample.next_value is not None
    noise = torch.cos(torch.arange(sample.reward.numel(), dtype=torch.float64)).view_as(sample.reward)
    other = replace(sample, next_value=sample.next_value + noise)
    return not same(plain(p.policy, other).gradient, plain(p.policy, sample).gradient)


def separate(plain: Estimator, main: Probe) -> bool:
    """Whether the estimate of two rows is the sum or the mean of the estimates of one."""
    try:
        pieces = [plain(main.policy, rows(main.rollout, (i,), False)).gradient for i in (1, 6)]
    except UsageError:
        return False
    both = plain(main.policy, rows(main.rollout, (1, 6), False)).gradient
    total = pieces[0] + pieces[1]
    return bool(total.norm() > 0) and separately(both, total)


def separately(both: Tensor, total: Tensor) -> bool:
    """Whether the estimate of two rows is the sum of the single ones, or their mean."""
    return same(both, total) or same(both, total / 2)


def main_expectation(case: Case, mean: Tensor) -> tuple[str | None, list[Found]]:
    """What the expectation on whole episodes of equal length is the gradient of, and the mistake that explains it if of nothing."""
    for form in FORMS:
        c = factor(mean, target(case.main, form), case.tolerance)
        if c is None:
            continue
        seen = f"expectation {c:.4g} × the gradient"
        found = [("wrong sign", seen)] if c < 0 else []
        if form == "unweighted":
            found.append(("missing discount weight", f"gamma = {case.gamma:g}"))
        return form, found
    if (mistake := explanation(case, mean)) is not None:
        return None, [(mistake, "its expectation is exactly that mistake's")]
    return None, [("biased by no known mistake", "")]


def explanation(case: Case, mean: Tensor) -> str | None:
    """The mistake behind a biased expectation. With exact values several look alike, so the critic is made wrong first."""
    mistake = explained(case.main, mean, case.tolerance)
    if case.uses_critic and not case.full.is_online:
        wrong = misjudged(case.main)
        mistake = explained(wrong, case.mean(wrong, case.size), case.tolerance) or mistake
    if mistake is not None:
        return mistake
    everything = list(case.main.batches(case.size))[:4]
    largest = max(float(case.plain(case.main.policy, rows(case.main.rollout, i, case.group)).gradient.norm()) for i, _ in everything)
    return "baseline depends on the action" if float(mean.norm()) <= EXACT * largest else None


def misjudged(p: Probe) -> Probe:
    """The same recordings with a critic that is off by another amount in each state."""
    off = 0.7 * torch.cos(1.9 * torch.arange(p.mdp.num_observations, dtype=torch.float64))
    seen = p.rollout.inputs["observation"]
    after = torch.cat([seen[:, 1:], seen[:, -1:]], -1)  # nobody may ask for what follows the last step: it has terminated
    assert p.rollout.value is not None and p.rollout.next_value is not None
    return replace(p, rollout=replace(p.rollout, value=p.rollout.value + off[seen], next_value=p.rollout.next_value + off[after]))


def bare(case: Case) -> tuple[Case, list[str]]:
    """The case without an entropy bonus and without the batch's own mean and spread, and a note for each."""
    notes: list[str] = []
    weight = entropy_weight(case)
    if weight is not None:
        case = replace(case, plain=WithoutBonus(case.plain))
        notes.append(f"an entropy bonus of {weight:.3g} is set aside: its gradient is not ∇J's")
    if case.independent or case.group:
        return case, notes
    if case.scale_free:
        notes.append("divided by the spread of the batch: the scale is lost, and the direction is what is compared")
    notes.append("its rows see each other: what a batch's own mean and spread add is a bias of the order 1 / batch, set aside here")
    return replace(case, plain=Alone(case.plain), in_large_batch=True, independent=True, scale_free=False), notes


def entropy_weight(case: Case) -> float | None:
    """The weight of an entropy bonus, weighted by γ^t or not, where that is all that is left when nothing is paid."""
    p = case.main
    bonus = Bonus(case.plain)
    if not bool(bonus(p.policy, rows(p.rollout, range(case.size), case.group)).gradient.any()):
        return None
    left = bonus.moments(p, case.size).mean
    table = next(p.policy.preferences.parameters())
    entropy = F.categorical_entropy(table[p.rollout.inputs["observation"]]).where(p.rollout.mask, 0.0)
    for form in FORMS[:2]:
        _, weight = weights(p, form)
        (whole,) = torch.autograd.grad((p.probability.unsqueeze(-1) * weight * entropy).sum(), table, retain_graph=True)
        if (c := factor(left, whole.reshape(-1))) is not None:
            return c
    return None


def bonus_of_the_action(case: Case) -> Iterator[Found]:
    """A bonus of −log π of the action taken moves every estimate, and its expectation by nothing."""
    run, p = Bonus(case.full.plain(("entropy_coef",))), case.main
    left = run.moments(p, case.size)
    if float(left.mean.norm()) > EXACT * left.variance**0.5 or left.variance < EXACT**2:
        return
    index = range(1, 1 + case.size)
    found = run(p.policy, rows(p.rollout, index, case.group)).gradient
    for form in FORMS[:2]:
        _, weight = weights(p, form)
        c = factor(found, -(weight.unsqueeze(-1) * p.score)[list(index)].sum((0, 1)))
        if c is not None and c > 0:
            yield "entropy of the action taken", f"with no reward at all it is −{c:.3g} ∇log π, and 0 in expectation"
            return


def alike(case: Case) -> Iterator[Found]:
    """Rows that are all alike have no spread; the estimate is finite none the less."""
    p = probe(probes.arms, case.gamma)
    case.full(p.policy, rows(p.rollout, (0, 0), case.group))
    if case.full.not_finite is not None:
        yield "not finite", case.full.not_finite


def cut_short(case: Case, form: str) -> Iterator[Found]:
    """Recordings that stop before their episodes do."""
    p = probe(probes.truncated, case.gamma)
    mean = case.mean(p, case.size)
    if (c := factor(mean, target(p, form), case.tolerance)) is not None and c > 0:
        return
    yield on_truncated_episodes(p, form, mean, case.tolerance) or "biased by no known mistake", "where a recording stops before its episode"


def padding(case: Case) -> Iterator[Found]:
    """Other things in masked columns, and more of them, change nothing."""
    p = probe(probes.ragged, case.gamma)
    clean = rows(p.rollout, (0, 1, 2, 0), case.group, max_steps=6)

    def stuffed(x: Tensor) -> Tensor:
        return torch.cat([x, x[..., -1:], x[..., -1:], x[..., -1:]], -1)

    dirty = mapped(clean, stuffed)
    mask = clean.mask
    hole = torch.cat([~mask, torch.ones_like(dirty.mask[..., : dirty.mask.shape[-1] - mask.shape[-1]])], -1)
    dirty = replace(
        dirty,
        inputs={"observation": dirty.inputs["observation"].masked_fill(hole, 3), "action": dirty.inputs["action"].masked_fill(hole, 0)},
        mask=dirty.mask & ~hole,
        reward=dirty.reward.masked_fill(hole, 0.0),
        terminated=dirty.terminated & ~hole,
        truncated=dirty.truncated & ~hole,
        **{
            name: getattr(dirty, name).masked_fill(hole, 0.37)
            for name in ("value", "next_value", "behavior_log_prob", "reference_log_prob")
        },
    )
    other = replace(dirty, inputs={**dirty.inputs, "action": dirty.inputs["action"].masked_fill(hole, 1)})
    a, b, c = (case.full(p.policy, x).gradient for x in (clean, dirty, other))
    if same(a, b) and same(a, c):
        return
    leaked, leaked_by_other = (x.view(-1, 2)[3] for x in (b, c))
    of_actions = not same(leaked, leaked_by_other) or bool(leaked.norm() == 0)  # an entropy does not ask for the action
    change = float((a - b).norm() / a.norm().clamp(min=1e-12))
    yield "padding leaks" if of_actions else "entropy on masked steps", f"three masked columns more change it by {change:.2g} of its length"


def average_reward(full: Estimator, size: int) -> tuple[Tensor, Tensor]:
    """``(expectation, ∇r̄)`` on a task without end, started from its stationary distribution."""
    p = probes.continuing()
    return full.moments(replace(p, policy=deepcopy(p.policy)), size).mean, p.gradients[1.0]
