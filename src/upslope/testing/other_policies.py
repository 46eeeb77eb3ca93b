"""The checks of an estimator that bring in a second policy: one that acted, one to stay near to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from upslope.testing import probes
from upslope.testing.contract import EXACT, factor, same
from upslope.testing.mistakes import of_another_policy, target
from upslope.testing.probes import probe, rows
from upslope.testing.stages import Case, Found


def another_policy(case: Case) -> Iterator[Found]:
    """One decision that another policy took; near enough for no clip to act."""
    p = probe(probes.arms, case.gamma, drift=1e-4)
    mean = case.mean(p, case.size)
    if (c := factor(mean, target(p, "undiscounted"))) is None or c < 0:
        for law, prediction in of_another_policy(p):
            if (c := factor(mean, prediction)) is not None and c > 0:
                yield law, "steps of another policy"
                break
        else:
            if c is None:
                yield "biased by no known law", "on steps of another policy"
    yield from clip_side(case)


def clip_side(case: Case) -> Iterator[Found]:
    """A good action that has become rarer, a bad one that has become more frequent: both must still be moved."""
    p = probe(probes.choices, 1.0)
    sample = rows(p.rollout, (0, 2), case.group)
    assert sample.value is not None
    sample = replace(sample, value=torch.zeros_like(sample.value), next_value=torch.zeros_like(sample.value))

    def moved(ratios: tuple[float, float]) -> Tensor:
        shift = torch.tensor(ratios, dtype=torch.float64).log().view_as(sample.behavior_log_prob)
        return (
            case.plain(p.policy, replace(sample, behavior_log_prob=sample.behavior_log_prob - shift)).gradient.view(-1, 2).norm(dim=-1)[:2]
        )

    if bool((moved((1.0, 1.0)) == 0).any()):
        return
    if bool((moved((0.5, 2.0)) == 0).any()):
        yield "clip on the wrong side", "no gradient for A > 0 at ratio 0.5, or for A < 0 at ratio 2"


def reference(case: Case) -> Iterator[Found]:
    """Another reference policy that moves the objective's value has to move its gradient, too."""
    p = case.main
    sample = rows(p.rollout, (0, 1, 2), case.group)
    assert sample.reference_log_prob is not None
    noise = torch.cos(torch.arange(sample.reward.numel(), dtype=torch.float64)).view_as(sample.reward)
    near, far = (case.full(p.policy, replace(sample, reference_log_prob=sample.reference_log_prob - x * noise)) for x in (0.1, 0.4))
    moves = near.value is not None and far.value is not None and abs(near.value - far.value) > EXACT
    if moves and same(near.gradient, far.gradient):
        yield "k1 in the objective", "the reference moves the objective and not its gradient"
