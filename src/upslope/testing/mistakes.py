"""What an estimator's expectation would be if it made a known mistake, on a problem whose trajectories are all listed.

Most correct estimators have the same expectation, whatever their baseline, trace decay or return form; so has most of what is
wrong with them, and a mistake can be recognized without knowing how the estimator was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from upslope import functional as F
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


def on_whole_episodes(probe: Probe, lambdas: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    """``(law, expectation)`` of every known mistake that shows where all episodes end by themselves."""
    r = probe.rollout
    never = torch.zeros_like(r.terminated)
    assert r.value is not None and r.next_value is not None
    value, after = r.value, r.next_value.masked_fill(r.terminated, 0.0)
    for form in FORMS:
        gamma, weight = weights(probe, form)
        g = returns(probe, gamma)

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
        for trace in lambdas:
            shifted = F.gae(later(r.reward), value, after, r.terminated, r.truncated, gamma, trace, r.mask)
            open_ended = F.gae(r.reward, value, r.next_value, never, r.terminated, gamma, trace, r.mask)
            signs = F.gae(r.reward, -value, -after, r.terminated, r.truncated, gamma, trace, r.mask)
            late = F.gae(r.reward, value, after, r.terminated, r.truncated, gamma, trace, r.mask)
            yield "reward of the next step", mean(shifted)
            yield "termination taken for truncation", mean(open_ended)
            yield "temporal-difference sign", mean(signs)
            yield "off by one", mean(later(late))


def on_truncated_episodes(probe: Probe, form: str, lambdas: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    """``(law, expectation)`` where some recordings stop before the episode does."""
    gamma, weight = weights(probe, form)
    r = probe.rollout
    assert r.value is not None and r.next_value is not None
    ended, none = r.terminated | r.truncated, torch.zeros_like(r.truncated)
    for trace in lambdas:
        cut = F.gae(r.reward, r.value, r.next_value, ended, none, gamma, trace, r.mask)
        open_ended = F.gae(r.reward, r.value, r.next_value, none, ended, gamma, trace, r.mask)
        yield "truncation taken for termination", probe.expectation(cut, weight)
        yield "termination taken for truncation", probe.expectation(open_ended, weight)


def of_another_policy(probe: Probe) -> Iterator[tuple[str, Tensor]]:
    """``(law, expectation)`` where another policy acted, on problems of one decision; both signs of the ratio's exponent."""
    r = probe.rollout
    assert r.reference_log_prob is not None and r.value is not None
    ratio = (r.reference_log_prob - r.behavior_log_prob).exp()
    for credit in (r.reward, r.reward - r.value):
        yield "ratio inverted", probe.expectation(credit / ratio)
        yield "ratio inverted", -probe.expectation(credit / ratio)
        yield "importance weight missing", probe.expectation(credit)
        yield "importance weight missing", probe.expectation(credit * ratio.clamp(max=1.0))


def by_length(probe: Probe, average_over: F.AverageOver) -> Tensor:
    """The expectation over groups of two, each row's score less the other's, steps averaged over ``steps`` or ``sequences``, ``[P]``."""
    r = probe.rollout
    index, probability = zip(*probe.batches(2), strict=True)
    at = torch.tensor(index)  # [batches, 2]
    score = r.reward.sum(-1)[at]
    share = torch.stack([F.average_weight(mask, average_over, dtype=torch.float64) for mask in r.mask[at]])
    credit = (score - score.flip(-1)).unsqueeze(-1) * share
    return torch.einsum("b,bnt,bntp->p", torch.tensor(probability, dtype=torch.float64), credit, probe.score[at])
