"""An estimator without what it adds to the gradient (a bonus) and without what it takes from the other rows of its batch.

Both are found from outside: a bonus is what is left when nothing is paid, and a batch's mean and spread are those of other rows as soon
as these are many times larger, cancel each other, and stand in a state whose parameters nobody looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.records import Policy, Rollout, concatenate
from upslope.testing.estimates import Estimate, Estimator

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
    ratio = rollout.reference_log_prob - rollout.behavior_log_prob
    mirror = paying(here, torch.neg, behavior_log_prob=log_prob - ratio)
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
