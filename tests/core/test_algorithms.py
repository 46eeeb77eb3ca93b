"""REINFORCE's return forms, A2C and PPO's options, each against its definition."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from tests.core.toy import Bandit, Pulls
from upslope import A2C, PPO, REINFORCE, UsageError
from upslope import functional as F
from upslope.algorithms.reinforce import full_trajectory, to_go_discounted, to_go_undiscounted
from upslope.testing import check_surrogate


@pytest.fixture
def rollout():
    return Pulls()(Bandit(torch.float64))


def test_the_four_return_forms(rollout):
    g = 0.9
    plain = {"normalize_advantage": False, "gamma": g, "baseline": False}
    to_go = F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, g, rollout.mask)
    steps = torch.arange(6.0, dtype=torch.float64)
    expected = {
        None: to_go,
        to_go_undiscounted: F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, 1.0, rollout.mask),
        to_go_discounted: to_go * g**steps,
        full_trajectory: (rollout.reward * g**steps * rollout.mask).sum(-1, keepdim=True).expand(4, 6),
    }
    for form, value in expected.items():
        algorithm = REINFORCE(**plain) if form is None else REINFORCE(**plain, returns=form)
        batch = algorithm.estimate(None, rollout)
        assert torch.allclose(batch.advantage[rollout.mask], value[rollout.mask], rtol=0, atol=1e-12)
        target = expected[to_go_undiscounted] if form is to_go_undiscounted else to_go  # what the critic learns
        assert torch.allclose(batch.returns[rollout.mask], target[rollout.mask], rtol=0, atol=1e-12)


def test_a_baseline_is_subtracted_inside_the_discount_weight(rollout):
    value = torch.full((4, 6), 0.7, dtype=torch.float64)
    with_value = replace(rollout, value=value)
    plain = {"normalize_advantage": False, "gamma": 0.9, "returns": to_go_discounted}
    difference = (
        REINFORCE(**plain, baseline=False).estimate(None, with_value).advantage - REINFORCE(**plain).estimate(None, with_value).advantage
    )
    expected = 0.7 * 0.9 ** torch.arange(6.0, dtype=torch.float64).expand(4, 6)
    assert torch.allclose(difference[rollout.mask], expected[rollout.mask], rtol=0, atol=1e-12)


def test_a_form_of_returns_says_what_the_critic_learns(rollout):
    with pytest.raises(UsageError, match=r"returns: expected a function that gives \(credit, weight, target\), found 2 values"):
        REINFORCE(returns=lambda rollout, gamma, after: (rollout.reward, rollout.reward), baseline=False).estimate(None, rollout)


def test_a_baseline_needs_a_critic(rollout):
    blind = replace(rollout, value=None, next_value=None)
    for algorithm in (REINFORCE(), A2C(), PPO()):
        with pytest.raises(UsageError, match="needs a critic"):
            algorithm.estimate(None, blind)
    REINFORCE(baseline=False).estimate(None, blind)


def test_at_ratio_one_ppo_a2c_and_reinforce_share_one_gradient(rollout):
    policy = Bandit(torch.float64)
    common = {"gamma": 0.9, "normalize_advantage": False, "value_coef": 0.3, "entropy_coef": 0.01}
    ppo = PPO(**common, gae_lambda=1.0)
    a2c = A2C(**common, gae_lambda=1.0)
    reinforce = REINFORCE(**common)
    batch = ppo.estimate(policy, rollout)
    gradients = []
    for algorithm in (ppo, a2c, reinforce, PPO(**common, gae_lambda=1.0, surrogate=F.importance_weighted)):
        policy.zero_grad()
        algorithm.objective(policy, batch)[0].backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in policy.parameters()]).clone())
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, rtol=0, atol=1e-12)


def test_value_clipping_gives_no_credit_beyond_the_range(rollout):
    policy = Bandit(torch.float64)
    with torch.no_grad():
        policy.value.fill_(0.5)
    batch = replace(PPO().estimate(policy, rollout), value=torch.zeros(4, 6, dtype=torch.float64), returns=torch.full((4, 6), 2.0).double())
    for clip, moves in ((0.1, False), (1.0, True)):
        policy.zero_grad()
        PPO(value_clip_range=clip, value_coef=1.0).objective(policy, batch)[0].backward()
        assert bool(policy.value.grad.abs() > 0) == moves


@pytest.mark.parametrize("kl,factor", [(0.001, 0.5), (0.01, 1.0), (0.1, 2.0)])
def test_the_kl_weight_adapts_by_halves_and_doubles(rollout, kl, factor):
    policy = Bandit(torch.float64)
    algorithm = PPO(surrogate=F.importance_weighted, kl_coef=0.4, adaptive_kl=0.01)
    batch = algorithm.estimate(policy, rollout)
    low, high = 0.0, 5.0
    for _ in range(80):  # move one logit until KL(π_old‖π), by k3 on this batch, is the wanted number
        middle = (low + high) / 2
        with torch.no_grad():
            policy.logits.copy_(torch.tensor([0.3 + middle, -0.2, 0.1]))
        found = F.kl_k3(batch.behavior_log_prob, policy.evaluate(**batch.inputs).log_prob)[batch.mask].mean()
        low, high = (middle, high) if found < kl else (low, middle)
    assert algorithm.adapted(policy, batch).kl_coef == pytest.approx(0.4 * factor)


def test_the_kl_penalty_is_exact_where_the_policy_offers_its_distribution(rollout):
    class Known(Bandit):
        def distribution(self, *, action):
            return Distribution(self.logits.expand(*action.shape, 3))

    policy = Known(torch.float64)
    algorithm = PPO(kl_coef=1.0, surrogate=F.importance_weighted, value_coef=0.0, normalize_advantage=False)
    batch = algorithm.estimate(policy, rollout)
    old = policy.logits.detach().clone()
    with torch.no_grad():
        policy.logits += torch.tensor([0.2, 0.0, -0.1])
    value = algorithm.objective(policy, batch)[0]
    ratio = (policy.evaluate(**batch.inputs).log_prob - batch.behavior_log_prob).exp()
    expected = (ratio * batch.advantage)[batch.mask].mean() - F.categorical_kl(old, policy.logits)
    assert torch.allclose(value, expected, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Distribution:
    parameters: torch.Tensor

    def kl(self, other):
        return F.categorical_kl(self.parameters, other.parameters)


@pytest.mark.parametrize(
    "surrogate,sequence",
    [
        (F.score_function, False),
        (F.importance_weighted, False),
        (F.clipped_surrogate, False),
        (partial(F.clipped_surrogate, dual_clip=3.0), False),
        (F.truncated_score, False),
        (partial(F.kl_penalized_surrogate, beta=0.5), False),
        (partial(F.clipped_surrogate, ratio=F.sequence_mean_token_ratio), True),
        (partial(F.importance_weighted, ratio=F.sequence_mean_ratio), True),
        (partial(F.importance_weighted, ratio=F.sequence_ratio), True),
    ],
)
def test_shipped_surrogates_keep_the_contract(surrogate, sequence):
    check_surrogate(surrogate, sequence=sequence)


def minus(lp, old, a, mask, clip):
    return -F.clipped_surrogate(lp, old, a, mask, clip)


def mean_reduced(lp, old, a, mask, clip):
    return F.clipped_surrogate(lp, old, a, mask, clip).mean()


def no_mask(lp, old, a, mask, clip):
    return (lp - old).exp() * a


def late_mask(lp, old, a, mask, clip):
    return ((lp - old).exp() * a) * mask


def scaled(lp, old, a, mask, clip):
    return 0.5 * F.clipped_surrogate(lp, old, a, mask, clip)


def coupled(lp, old, a, mask, clip):
    ratio = F.token_ratio(lp, old, mask)
    return ratio / ratio[mask].mean().detach() * a.where(mask, 0.0)


def constant(lp, old, a, mask, clip):
    return a.where(mask, 0.0)


def centered(lp, old, a, mask, clip):
    return F.importance_weighted(lp, old, a - a.where(mask, 0.0).mean(), mask, clip)


def in_place(lp, old, a, mask, clip):
    return F.clipped_surrogate(lp, old, a.mul_(2.0), mask, clip)


def float_only(lp, old, a, mask, clip):
    return F.clipped_surrogate(lp, old, a, mask, float(clip))


def single(lp, old, a, mask, clip):
    return F.clipped_surrogate(lp, old, a, mask, clip).float()


@pytest.mark.parametrize(
    "surrogate,mistake",
    [
        (minus, "sign is wrong"),
        (mean_reduced, "do not reduce"),
        (no_mask, "masked entries leak"),
        (late_mask, "masked entries leak"),
        (scaled, "not advantage"),
        (constant, "does not depend on log_prob"),
        (centered, "masked entries leak|rows influence|not advantage"),
        (in_place, "changed advantage in place"),
        (float_only, "raised TypeError"),
        (single, "expected dtype"),
        (coupled, "rows influence"),
    ],
)
def test_check_surrogate_names_the_broken_law(surrogate, mistake):
    with pytest.raises(AssertionError, match=mistake):
        check_surrogate(surrogate)
