"""What an estimator's expectation would be if it made a known mistake, on a problem whose trajectories are all listed.

Most correct estimators have the same expectation, whatever their baseline, trace decay or return form; so has most of what is
wrong with them, and a mistake can be recognized without knowing how the estimator was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from upslope import functional as F
from upslope.testing.contract import EXACT, points_along
from upslope.testing.probes import Probe

FORMS = ("undiscounted", "discounted", "unweighted")
"""What a correct estimator may be the gradient of: J with γ = 1, J with γ; the third lacks γ^t and is no gradient."""


def target(probe: Probe, form: str) -> Tensor:
    """The exact expectation of an estimator of this form, ``[P]``: ∇J, or what is left of it without γ^t."""
    if form == "unweighted":
        return probe.expectation(returns(probe, probe.gamma))
    return probe.gradients[1.0 if form == "undiscounted" else probe.gamma]


def returns(probe: Probe, gamma: float) -> Tensor:
    """``G_t``, bootstrapped at truncations, ``[N, T]``."""
    r = probe.rollout
    return F.returns_to_go(r.reward, r.terminated, r.truncated, gamma, r.mask, r.next_value)


def weights(probe: Probe, form: str) -> tuple[float, Tensor]:
    """The discount factor of the returns and the weight of each step in this form."""
    gamma = 1.0 if form == "undiscounted" else probe.gamma
    r = probe.rollout
    weight = F.discount_weight(r.terminated, r.truncated, probe.gamma if form == "discounted" else 1.0, r.mask, dtype=torch.float64)
    return gamma, weight


def later(x: Tensor) -> Tensor:
    """``x_{t+1}`` in the place of ``x_t``; 0 at the end."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], -1)


def earlier(x: Tensor) -> Tensor:
    """``x_{t−1}`` in the place of ``x_t``; 0 at the start."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], -1)


def explained(probe: Probe, mean: Tensor, tolerance: float = EXACT) -> str | None:
    """The known mistake that has this expectation where all episodes end by themselves, or None."""
    by_returns = (m for form in FORMS for m, mistaken in of_returns(probe, form) if points_along(mean, mistaken, tolerance))
    by_decay = (m for form in FORMS for m, mistaken in of_advantages(probe, form) if at_some_decay(mean, mistaken, tolerance))
    return next(chain(by_returns, by_decay), None)


def of_returns(probe: Probe, form: str) -> Iterator[tuple[str, Tensor]]:
    """``(mistake, expectation)`` of mistakes in what an action is credited with."""
    r = probe.rollout
    gamma, weight = weights(probe, form)
    g, after = returns(probe, gamma), successors(probe)
    assert r.next_value is not None

    def mean(credit: Tensor, weight: Tensor = weight) -> Tensor:
        return probe.expectation(credit, weight)

    yield "discount applied twice", mean(returns(probe, gamma**2))
    yield "discount applied twice", mean(g, weight * probe.gamma ** torch.arange(g.shape[1], dtype=g.dtype))
    yield "off by one", mean(later(g))
    yield "log-probabilities shifted", mean(earlier(g))
    yield "log-probabilities shifted", mean(earlier(g), earlier(weight))
    yield "later rewards left out", mean(r.reward)
    yield "baseline depends on the action", mean(g - after)
    yield "baseline depends on the action", mean(g - r.next_value)
    yield "baseline depends on the action", mean(g - later(g))


def of_advantages(probe: Probe, form: str) -> Iterator[tuple[str, Decay]]:
    """``(mistake, expectation for a trace decay)`` of mistakes in a generalized advantage, whose λ is not known."""
    r = probe.rollout
    gamma, weight = weights(probe, form)
    value, after = r.value, successors(probe)
    never = torch.zeros_like(r.terminated)
    assert value is not None and r.next_value is not None

    def advantage(reward: Tensor, v: Tensor, v_next: Tensor, ended: Tensor = r.terminated, gamma: float = gamma) -> Decay:
        ends = (ended, r.terminated | r.truncated)  # whatever bootstraps, the recursion is cut
        return lambda trace: probe.expectation(F.gae(reward, v, v_next, *ends, gamma, trace, r.mask), weight)

    yield "reward of the next step", advantage(later(r.reward), value, after)
    yield "termination taken for truncation", advantage(r.reward, value, r.next_value, never)
    yield "truncation taken for termination", advantage(r.reward, value, after, r.terminated | r.truncated)
    yield "temporal-difference sign", advantage(r.reward, -value, -after)
    yield "value of the same state", advantage(r.reward, value, value)
    yield "value of the same state", advantage(r.reward, value, value, never)
    yield "discount applied twice", advantage(r.reward, value, after, gamma=gamma**2)
    ends = (r.terminated, r.truncated)
    yield "off by one", lambda trace: probe.expectation(later(F.gae(r.reward, value, after, *ends, gamma, trace, r.mask)), weight)


def successors(probe: Probe) -> Tensor:
    """``V(s_{t+1})``, 0 after a termination."""
    assert probe.rollout.next_value is not None
    return probe.rollout.next_value.masked_fill(probe.rollout.terminated, 0.0)


Decay = Callable[[float], Tensor]
"""``λ -> expectation``: a polynomial in λ of degree 2 at most, for recordings of three steps."""


def at_some_decay(mean: Tensor, by_decay: Decay, tolerance: float = EXACT) -> bool:
    """Whether an expectation has this direction for some λ in [0, 1]: found by zooming in on the smallest angle."""
    low, middle, high = (by_decay(trace) for trace in (0.0, 0.5, 1.0))
    bend = 2 * low - 4 * middle + 2 * high
    center, width = 0.5, 0.5
    for _ in range(6):  # each look is 25 times closer than the one before
        trace = torch.linspace(center - width, center + width, 51, dtype=torch.float64).clamp(0.0, 1.0).unsqueeze(-1)
        curve = low + trace * (high - low - bend) + trace.square() * bend
        cosines = curve @ mean / curve.square().sum(-1).sqrt().clamp(min=1e-150)
        center, width = float(trace[int(cosines.argmax())]), width / 25
    return points_along(mean, low + center * (high - low - bend) + center**2 * bend, tolerance)


def on_truncated_episodes(probe: Probe, form: str, mean: Tensor, tolerance: float = EXACT) -> str | None:
    """The mistake that has this expectation where some recordings stop before the episode does, or None."""
    mistakes = ((m, by_decay) for m, by_decay in of_advantages(probe, form) if m.startswith("t") and " taken for " in m)
    return next((m for m, by_decay in mistakes if at_some_decay(mean, by_decay, tolerance)), None)


def of_another_policy(probe: Probe) -> Iterator[tuple[str, Tensor]]:
    """``(mistake, expectation)`` where another policy acted, on problems of one decision; both signs of the ratio's exponent."""
    r = probe.rollout
    assert r.reference_log_prob is not None and r.value is not None
    ratio = (r.reference_log_prob - r.behavior_log_prob).exp()
    centered = r.reward - probe.probability @ r.reward  # what a group's comparison amounts to
    for credit in (r.reward, r.reward - r.value, centered):
        yield "ratio inverted", probe.expectation(credit / ratio)
        yield "ratio inverted", -probe.expectation(credit / ratio)
        yield "importance weight missing", probe.expectation(credit)


def of_several_ratios(probe: Probe, form: str, mean: Tensor, tolerance: float = EXACT) -> str | None:
    """The ratios that were forgotten where another policy took several steps, or None.

    Returns are multiplied by what stands here; a baseline has no part in the expectation where the step's ratio does.
    """
    r = probe.rollout
    assert r.reference_log_prob is not None and r.value is not None
    gamma, weight = weights(probe, form)
    log = (r.reference_log_prob - r.behavior_log_prob).where(r.mask, 0.0)
    before = log.cumsum(-1)
    present, past, rest = log.exp(), before.exp(), (before[:, -1:] - before + log).exp()
    g, value, after, ends = returns(probe, gamma), r.value, successors(probe), (r.terminated, r.truncated)

    def by_decay(ratio: Tensor) -> Decay:
        return lambda trace: probe.expectation(ratio * F.gae(r.reward, value, after, *ends, gamma, trace, r.mask), weight)

    for mistake, ratio in (("past ratio missing", rest), ("per-step ratio", present), ("later ratios missing", past)):
        by_returns = points_along(mean, probe.expectation(ratio * g, weight), tolerance)
        if by_returns or (ratio is not rest and at_some_decay(mean, by_decay(ratio), tolerance)):
            return mistake
    return None


def by_length(probe: Probe, average_over: F.AverageOver) -> Tensor:
    """The expectation over groups of two, each row's score less the other's, steps averaged over ``steps`` or ``sequences``, ``[P]``."""
    r = probe.rollout
    index, probability = zip(*probe.batches(2), strict=True)
    at = torch.tensor(index)  # [batches, 2]
    score = r.reward.sum(-1)[at]
    share = torch.stack([F.average_weight(mask, average_over, dtype=torch.float64) for mask in r.mask[at]])
    credit = (score - score.flip(-1)).unsqueeze(-1) * share
    return torch.einsum("b,bnt,bntp->p", torch.tensor(probability, dtype=torch.float64), credit, probe.score[at])
