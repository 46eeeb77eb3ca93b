"""Problems so small that every trajectory can be listed, each sensitive to other mistakes.

Their policy is a softmax table with fixed, uneven preferences; its critic knows the exact values, and holds junk for terminal
states, which nobody may look at. Masked steps show a terminal state, so whatever leaks from them moves parameters that nothing else moves.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from upslope import tabular
from upslope.records import Rollout, map_tensors
from upslope.tabular import MDP, SoftmaxPolicy, Table, average, exact


@dataclass(frozen=True, eq=False)
class Probe:
    """Every trajectory ``[N, T]`` of a problem with its probability ``[N]``."""

    mdp: MDP
    policy: SoftmaxPolicy
    gamma: float
    rollout: Rollout
    probability: Tensor
    gradients: dict[float, Tensor]
    """the exact ∇J for the preferences ``[P]``, by the policy gradient theorem, with γ and with 1"""

    @property
    def table(self) -> Tensor:
        """The policy's preferences, ``[O, A]``."""
        return next(self.policy.preferences.parameters())

    @cached_property
    @torch.no_grad()
    def score(self) -> Tensor:
        """``∂ log π_t / ∂ table``: ``e_a − π`` in the row of the state, ``[N, T, P]``; 0 where masked."""
        states, probability = self.rollout.inputs["observation"], self.policy.probabilities()
        chosen = one_hot(self.rollout.inputs["action"], probability.shape[1]).double() - probability[states]
        state = one_hot(states, len(probability)).double()
        return (state.unsqueeze(-1) * chosen.unsqueeze(-2)).flatten(-2) * self.rollout.mask.unsqueeze(-1)

    def expectation(self, credit: Tensor, weight: Tensor | None = None) -> Tensor:
        """``Σ_τ P(τ) Σ_t ∇log π_t · credit_t · weight_t`` with both ``[N, T]``: ``[P]``."""
        shown = (credit if weight is None else credit * weight).where(self.rollout.mask, 0.0)
        return torch.einsum("n,nt,ntp->p", self.probability, shown, self.score)

    def batches(self, size: int) -> Iterator[tuple[tuple[int, ...], float]]:
        """Every batch of ``size`` trajectories, whatever their order, with its probability."""
        for index in combinations_with_replacement(range(len(self.probability)), size):
            orders = factorial(size) // prod(factorial(k) for k in Counter(index).values())
            yield index, orders * prod(float(self.probability[i]) for i in index)


def recording_of(rollout: Rollout, index: Sequence[int], group: bool, **changes: Any) -> Rollout:
    """The recording of these trajectories, ``[B, T]``, or as one group ``[1, B, T]``."""
    at = torch.as_tensor(index)
    return map_tensors(rollout, lambda x: x[at].unsqueeze(0) if group else x[at], unit="group" if group else "step", **changes)


def wave(like: Tensor, frequency: float = 1.0, phase: float = 0.0) -> Tensor:
    """Numbers of that shape, no two alike: ``cos(frequency · i + phase)``."""
    return torch.cos(frequency * torch.arange(like.numel(), dtype=torch.float64) + phase).view_as(like)


def tree(levels: Sequence[Sequence[tuple[float, int]]], ends: int, time_limit: int | None = None, start: Sequence[float] = (1.0,)) -> MDP:
    """A problem with two actions: ``levels[s] = ((reward, next), (reward, next))``; the last ``ends`` states are terminal.

    ``start`` gives the probabilities of the first states.
    """
    n = len(levels) + ends
    transition, reward = torch.zeros(n, 2, n, dtype=torch.float64), torch.zeros(n, 2, dtype=torch.float64)
    for s, actions in enumerate(levels):
        for a, (pay, successor) in enumerate(actions):
            transition[s, a, successor] = 1.0
            reward[s, a] = pay
    return MDP(transition, reward, [*start, *[0.0] * (n - len(start))], torch.arange(n) >= len(levels), time_limit)


STEPS = tree([((0.7, 1), (-0.4, 2)), ((0.3, 3), (1.1, 4)), ((-0.8, 4), (0.5, 3)), ((1.3, 5), (-0.2, 6)), ((0.4, 6), (-1.0, 5))], ends=2)
"""Three decisions, always; two terminal states."""
TAILS = [((pay, 6), (pay, 6)) for pay in (1.7, -0.9, 0.6)]
TRUNCATED = tree([((0.7, 1), (-0.4, 2)), ((0.3, 3), (1.1, 6)), ((-0.8, 4), (0.5, 5)), *TAILS], ends=1, time_limit=2)
"""Two decisions are recorded; then it has ended, or goes on where no decision matters and a last reward is paid."""
RAGGED = tree([((1.0, 2), (0.4, 1)), ((-0.4, 3), (0.6, 2))], ends=2)
"""One decision or two; rewards that sum to 0 or 1, so that the spread of two rows is always the same."""
SCORED = tree([((0.3, 1), (-0.2, 2)), ((0.7, 3), (-0.3, 4)), ((0.2, 3), (1.2, 4))], ends=2)
"""Two decisions, always, and a sum of rewards that is 0 or 1."""
GRADED = tree([((0.3, 1), (-0.2, 2)), ((0.7, 3), (-0.9, 4)), ((0.2, 3), (1.9, 4))], ends=2)
"""Two decisions, always, and four sums of rewards, no three of them evenly spaced."""
THREE = tree([((0.0, 3), (0.0, 3))] * 3, ends=1, start=[0.25, 0.25, 0.5])
"""One decision in one of three states, whose rewards are to be filled in."""
ARMS = tree([((1.0, 2), (0.0, 2)), ((0.0, 2), (1.0, 2))], ends=1, start=[0.5, 0.5])
"""One decision in one of two states; in each another one pays 1, the other nothing."""
BANDIT = tree([((1.0, 1), (0.0, 1))], ends=1)
"""One decision that pays 1 or nothing."""
CHOICES = tree([((1.0, 2), (1.0, 2)), ((-1.0, 2), (-1.0, 2))], ends=1, start=[0.5, 0.5])
"""One decision in one of two states: the first pays 1, the second −1, whatever is done."""
ENDLESS = tree([((1.0, 1), (0.2, 0)), ((-0.5, 0), (0.8, 1))], ends=0)
"""Two states for ever."""


def probe(problem: MDP, gamma: float, drift: float = 0.0) -> Probe:
    """List a problem's trajectories. ``drift``: another policy acted, its log-probabilities about that far from the policy's.

    Listed once and kept; each caller gets a copy of the policy.
    """
    return fresh(enumerate_probe(problem, gamma, drift))


def continuing() -> Probe:
    """:data:`ENDLESS`, recorded for two steps from the stationary distribution; rewards less their average, differential values.

    ``gradients[1.0]`` is that of the average reward.
    """
    return fresh(listed_continuing())


def fresh(kept: Probe) -> Probe:
    return replace(kept, policy=deepcopy(kept.policy))


class ProbePolicy(SoftmaxPolicy):
    """A softmax table that knows its exact action values, for estimators that take a q̂: ``action_values(**inputs) [..., T, A]``."""

    exact_action_values: Tensor
    """``[O, A]``"""

    def action_values(self, *, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """The exact q of every action after each observation; a constant."""
        return self.exact_action_values[observation]


@cache
@torch.no_grad()
def enumerate_probe(mdp: MDP, gamma: float, drift: float) -> Probe:
    """:func:`probe`, computed."""
    policy = uneven(mdp)
    table, values = policy.parameters()
    junk = 1.5 + 0.8 * torch.arange(len(values), dtype=torch.float64)
    values.copy_(exact.value(mdp, policy, gamma).where(~mdp.terminal, junk).unsqueeze(-1))
    policy.exact_action_values = exact.action_value(mdp, policy, gamma)
    with torch.enable_grad():
        gradients = {g: tabular.gradient(mdp, policy, g)[: table.numel()] for g in {gamma, 1.0}}
    found = enumerated(mdp, policy, gamma, gradients)
    if not drift:
        return found
    before = table.clone()
    table += drift * wave(table, 2.3)
    acted, probability = tabular.enumerate_rollouts(mdp, policy)
    table.copy_(before)
    return replace(found, rollout=replace(found.rollout, behavior_log_prob=acted.behavior_log_prob), probability=probability)


@cache
@torch.no_grad()
def listed_continuing() -> Probe:
    """:func:`continuing`, computed."""
    policy = uneven(ENDLESS)
    table, values = policy.parameters()
    values.copy_(average.value(ENDLESS, policy).unsqueeze(-1))
    policy.exact_action_values = average.action_value(ENDLESS, policy)
    start, reward = average.stationary_distribution(ENDLESS, policy), ENDLESS.reward - average.objective(ENDLESS, policy)
    with torch.enable_grad():
        gradients = {1.0: average.gradient(ENDLESS, policy)[: table.numel()]}
    return enumerated(MDP(ENDLESS.transition, reward, start, ENDLESS.terminal, time_limit=2), policy, 1.0, gradients)


def enumerated(mdp: MDP, policy: SoftmaxPolicy, gamma: float, gradients: dict[float, Tensor], max_steps: int | None = None) -> Probe:
    """Every trajectory, acted by the policy itself, which is the reference policy as well."""
    rollout, probability = tabular.enumerate_rollouts(mdp, policy)
    rollout = replace(rollout, reference_log_prob=rollout.behavior_log_prob, max_steps=max_steps or rollout.max_steps)
    return Probe(mdp, policy, gamma, rollout, probability, gradients)


def uneven(mdp: MDP) -> ProbePolicy:
    """A table with fixed preferences of different size, and a critic."""
    size = mdp.num_observations
    policy = ProbePolicy(Table(size, mdp.num_actions), num_observations=size, value=Table(size, 1))
    table, _ = policy.parameters()
    with torch.no_grad():
        table.copy_(0.9 * torch.sin(1.7 * torch.arange(table.numel(), dtype=torch.float64) + 0.4).view_as(table))
    return policy
