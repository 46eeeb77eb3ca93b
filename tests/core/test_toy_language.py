"""Every objective's expected gradient on an enumerated language, against the exact one or its documented biased form."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.core.toy_language import Language, expected_gradient, gradient, reweighted
from upslope import DPO, GRPO, PPO, REINFORCE, RLOO
from upslope import functional as F
from upslope.algorithms.grpo import group_centered
from upslope.algorithms.reinforce import full_trajectory
from upslope.updates.mismatch import at_old_policy

BETA = 0.3
ENDS, FIXED, WORD = Language(), Language(ends=False), Language(length=1, ends=False)
LANGUAGES = pytest.mark.parametrize("language", [ENDS, FIXED], ids=["ends", "fixed"])


def close(found, expected, tolerance=1e-10):
    assert expected.abs().max() > 1e-3  # a comparison of zeros would show nothing
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def apart(found, expected):
    assert (found - expected).abs().max() > 1e-3


def raw(score, mask):
    """A score as its own advantage."""
    return score


def along(found, expected):
    """Cosine of the angle between two gradients."""
    return torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0).item()


@LANGUAGES
def test_the_enumeration_is_the_language(language):
    assert len(language.rows) == (40 if language is ENDS else 64)
    policy = language.policy(1)
    assert language.probability(policy).sum().item() == pytest.approx(1.0, abs=1e-12)
    score = gradient((language.probability(policy).detach() * language.log_prob(policy).sum(-1)).sum(), policy)
    assert score.abs().max() < 1e-14  # E ∇ log π = 0: also k1 as an objective


def exact(language, policy, reference, beta=BETA):
    return gradient(language.expected_reward(policy, reference, beta), policy)


@LANGUAGES
@pytest.mark.parametrize("options", [{}, {"returns": full_trajectory}])
def test_reinforce(language, options):
    policy, reference = language.policy(1), language.policy(2)
    algorithm = REINFORCE(gamma=1.0, baseline=False, normalize_advantage=False, reference_kl_coef=BETA, **options)
    rollout = language.rollout(policy, reference)
    share = language.probability(policy).detach()
    total = language.mask.sum() / len(share)  # weights are 1 / all steps: undo it
    close(expected_gradient(algorithm, policy, rollout, share) * total, exact(language, policy, reference))


@LANGUAGES
@pytest.mark.parametrize("gae_lambda", [1.0, 0.6])
@pytest.mark.parametrize("surrogate", [F.clipped_surrogate, F.importance_weighted, F.truncated_score])
def test_ppo(language, gae_lambda, surrogate):
    """With any critic at λ = 1, with the true one at every λ."""
    policy, reference = language.policy(1), language.policy(2)
    rollout = language.rollout(policy, reference)
    share = language.probability(policy).detach()
    if gae_lambda < 1:
        value = true_value(language, policy, reference)[language.prefix].masked_fill(~language.mask, 0.0)
        following = torch.cat([value[:, 1:], value[:, :1]], -1).masked_fill(language.last | ~language.mask, 0.0)
        rollout = replace(rollout, value=value, next_value=following)
    algorithm = PPO(
        gamma=1.0, gae_lambda=gae_lambda, normalize_advantage=False, value_coef=0.0, reference_kl_coef=BETA, surrogate=surrogate
    )
    total = language.mask.sum() / len(share)
    close(expected_gradient(algorithm, policy, rollout, share) * total, exact(language, policy, reference))


def true_value(language, policy, reference):
    """Expected reward to go of each prefix, the KL of the steps to come included."""
    with torch.no_grad():
        p, penalty = language.probability(policy), BETA * (language.log_prob(policy) - language.log_prob(reference))
        value = torch.zeros(len(language.prefixes), dtype=torch.float64)
        for prefix, i in language.prefixes.items():
            below = torch.tensor([row[: len(prefix)] == prefix and len(row) > len(prefix) for row in language.rows])
            to_go = language.reward - penalty[:, len(prefix) :].sum(-1)
            value[i] = (p * to_go)[below].sum() / p[below].sum()
    return value


GROUPED = {
    "rloo": (RLOO(kl_coef=BETA), 1),
    "leave-one-out, clipped": (partial(GRPO, advantage=F.leave_one_out), 1),
    "leave-one-out, truncated score": (partial(GRPO, advantage=F.leave_one_out, surrogate=F.truncated_score), 1),
    "leave-one-out, score function": (partial(GRPO, advantage=F.leave_one_out, surrogate=F.score_function), 1),
    "group-centered": (partial(GRPO, advantage=group_centered), 0),
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", GROUPED)
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks(name, size):
    policy, reference = ENDS.policy(1), ENDS.policy(2)
    algorithm, whole = GROUPED[name]
    if isinstance(algorithm, partial):
        algorithm = algorithm(average_over="constant", kl_coef=BETA, kl_estimator="k1", kl_placement="reward")
    rollout = ENDS.rollout(policy, reference, index=ENDS.groups(size), unit="group")
    found = expected_gradient(algorithm, policy, rollout, ENDS.group_probability(policy, size)) * ENDS.length
    close(found, exact(ENDS, policy, reference) * (1 if whole else (size - 1) / size))


def test_division_by_the_spread_is_another_objective():
    """Scaled GRPO: E Â ∇log π with the group's own standard deviation; by hand for pairs, whose std is |r₁ − r₂| / √2."""
    policy = ENDS.policy(1)
    groups, share = ENDS.groups(2), ENDS.group_probability(policy, 2)
    found = expected_gradient(GRPO(average_over="constant"), policy, ENDS.rollout(policy, index=groups, unit="group"), share) * ENDS.length
    difference = ENDS.reward[groups[:, 0]] - ENDS.reward[groups[:, 1]]
    std = difference.abs() / 2**0.5
    advantage = torch.where(difference.abs() > 0, difference / 2 / (std + 1e-6), 0.0)
    score = ENDS.log_prob(policy).sum(-1)
    expected = gradient((share * advantage * (score[groups[:, 0]] - score[groups[:, 1]]) / 2).sum(), policy)
    close(found, expected)
    apart(found, exact(ENDS, policy, None))


def test_only_the_constant_average_is_proportional_to_the_gradient():
    policy, share = ENDS.policy(1), ENDS.group_probability(ENDS.policy(1), 2)
    rollout = ENDS.rollout(policy, index=ENDS.groups(2), unit="group")
    truth, p = exact(ENDS, policy, None), ENDS.probability(policy).detach()
    found = {
        name: expected_gradient(GRPO(advantage=F.leave_one_out, average_over=name), policy, rollout, share)
        for name in ("constant", "sequences")
    }
    close(found["constant"] * ENDS.length, truth)
    baseline = (p * ENDS.reward).sum()  # a step of a short row counts more: ∇ of E[(r − E r) log π / |o|]
    biased = gradient((p * (ENDS.reward - baseline) * ENDS.log_prob(policy).sum(-1) / ENDS.mask.sum(-1)).sum(), policy)
    close(found["sequences"], biased)
    assert along(found["sequences"], truth) < 0.99
    # steps: 1 / Σ mask depends on the batch; here for batches of one group, each with its own divisor
    batch = GRPO(advantage=F.leave_one_out, average_over="steps").estimate(policy, rollout)
    own = batch.mask / batch.mask.sum((-2, -1), keepdim=True).clamp(min=1)
    steps = gradient(GRPO(average_over="steps").objective(policy, replace(batch, weight=own * share.view(-1, 1, 1)))[0], policy)
    assert 0.9 < along(steps, truth) < 1 - 1e-4


def test_one_update_from_stale_samples():
    """Samples of b, gradients at π: whole-sequence ratios give ∇J exactly, the others their documented forms."""
    policy, behavior = ENDS.policy(1), ENDS.policy(3, 0.7)
    groups, share = ENDS.groups(2), ENDS.group_probability(behavior, 2)
    rollout = ENDS.rollout(behavior, index=groups, unit="group")
    plain = partial(GRPO, advantage=raw, surrogate=F.importance_weighted)
    found = expected_gradient(plain(ratio=F.sequence_ratio), policy, rollout, share)
    close(found, exact(ENDS, policy, None))

    b, mask = ENDS.probability(behavior).detach(), ENDS.mask
    delta = ENDS.log_prob(policy) - ENDS.log_prob(behavior).detach()
    mean = (delta.sum(-1) / mask.sum(-1)).exp()
    close(expected_gradient(plain(ratio=F.sequence_mean_ratio), policy, rollout, share), gradient((b * mean * ENDS.reward).sum(), policy))
    each = mean.detach().unsqueeze(-1) * (delta - delta.detach()).exp() * mask / mask.sum(-1, keepdim=True)
    token_form = gradient((b * each.sum(-1) * ENDS.reward).sum(), policy)
    close(expected_gradient(plain(ratio=F.sequence_mean_token_ratio), policy, rollout, share), token_form)

    # per step: ∇ of Σ_s d^b(s) Σ_a π(a|s) Q^b(s, a); CISPO: Σ_s d^b Σ_a b min(π/b, C) Q^b ∇log π
    visits, q = tables(ENDS, behavior)
    pi, old = policy.logits.softmax(-1), behavior.logits.softmax(-1).detach()
    per_step = gradient((visits.unsqueeze(-1) * pi * q).sum(), policy)
    close(expected_gradient(plain(average_over="constant"), policy, rollout, share) * ENDS.length, per_step)
    apart(per_step, exact(ENDS, policy, None))
    weight = (pi / old).detach().clamp(max=1.3)
    assert bool((weight == 1.3).any())
    capped = gradient((visits.unsqueeze(-1) * old * weight * q * policy.logits.log_softmax(-1)).sum(), policy)
    cispo = GRPO(advantage=raw, surrogate=F.truncated_score, clip_range=0.3, average_over="constant")
    close(expected_gradient(cispo, policy, rollout, share) * ENDS.length, capped)


def tables(language, policy):
    """Visits of each prefix and the value of each token after it, by summing over all sequences."""
    p = language.probability(policy).detach()
    visits = torch.zeros(len(language.prefixes), dtype=torch.float64)
    mass = torch.zeros(len(language.prefixes), 4, dtype=torch.float64)
    q = torch.zeros_like(mass)
    for i, row in enumerate(language.rows):
        for t, token in enumerate(row):
            s = language.prefixes[row[:t]]
            visits[s] += p[i]
            mass[s, token] += p[i]
            q[s, token] += p[i] * language.reward[i]
    return visits, q / mass


@pytest.mark.parametrize("language,cap", [(WORD, None), (ENDS, None), (ENDS, 1.1)], ids=["word", "sentence", "capped"])
@pytest.mark.parametrize("one_step", [True, False])
def test_the_truncated_weight_between_sampler_and_trainer(language, cap, one_step, monkeypatch):
    """Samples of μ, π_old = π kept apart: exact for one decision, per step for more, capped where π/μ is large."""
    monkeypatch.setattr("upslope.records.MISMATCH_CAP", 1e6 if cap is None else cap)
    policy, sampler = language.policy(1), language.policy(3, 0.5)
    groups, share = language.groups(2), language.group_probability(sampler, 2)
    rollout = language.rollout(policy, index=groups, unit="group")
    sampled = language.log_prob(sampler).detach()[groups]
    algorithm = GRPO(advantage=raw, average_over="constant")
    batch = algorithm.estimate(policy, replace(rollout, sampler_log_prob=sampled))
    batch = reweighted(batch, share)
    evaluated, batch = at_old_policy(policy, batch) if one_step else (policy, batch.with_old_policy(batch.behavior_log_prob))
    found = gradient(algorithm.objective(evaluated, batch)[0], policy) * language.length
    visits, q = tables(language, sampler)
    pi, mu = policy.logits.softmax(-1), sampler.logits.softmax(-1).detach()
    weight = (pi / mu).detach().clamp(max=1e6 if cap is None else cap)
    close(found, gradient((visits.unsqueeze(-1) * mu * weight * q * pi.log()).sum(), policy))
    if language is WORD:
        close(found, exact(WORD, policy, None))


@LANGUAGES
def test_kl_gradients_of_whole_sequences(language):
    """FORMULAS 10 on-policy: E∇k1 = 0, E∇k2 = ∇KL(π‖ref), E∇k3 = ∇KL(ref‖π), for Δ of the whole sequence; all values are KL."""
    policy, reference = language.policy(1, 0.5), language.policy(2, 0.5)
    p, r = language.probability(policy), language.probability(reference).detach()
    log_p = language.log_prob(policy).sum(-1)
    kl = (p * (p / r).log()).sum()
    for form, expected in ((F.kl_k2, kl), (F.kl_k3, (r * (r / p).log()).sum())):
        close(gradient((p.detach() * form(log_p, r.log())).sum(), policy), gradient(expected, policy))
    assert gradient((p.detach() * F.kl_k1(log_p, r.log())).sum(), policy).abs().max() < 1e-14
    for form in (F.kl_k1, F.kl_k3):
        assert (p * form(log_p, r.log())).sum().item() == pytest.approx(kl.item(), abs=1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("language", [WORD, ENDS], ids=["word", "sentence"])
def test_kl_per_step_in_the_objective(language, estimator):
    """Exact for one decision; for sequences it holds the distribution of prefixes fixed. k3's value is right, its gradient is not ∇KL."""
    policy, reference = language.policy(1, 0.5), language.policy(2, 0.5)
    blank = replace_rewards(language)
    share = language.group_probability(policy, 2)
    algorithm = GRPO(kl_coef=1.0, kl_estimator=estimator, average_over="constant")
    rollout = blank.rollout(policy, reference, index=language.groups(2), unit="group")
    batch = reweighted(algorithm.estimate(policy, rollout), share)
    value = algorithm.objective(policy, batch)[0]
    assert batch.metrics["dead_groups"] == 1.0 and bool(batch.mask.any())  # no spread, yet they carry the KL's gradient
    found = -gradient(value, policy) * language.length
    visits, _ = tables(language, policy)
    log_pi, log_ref = policy.logits.log_softmax(-1), reference.logits.log_softmax(-1).detach()
    forward, backward = (log_pi.exp() * (log_pi - log_ref)).sum(-1), (log_ref.exp() * (log_ref - log_pi)).sum(-1)
    close(found, gradient((visits * (forward if estimator == "k2" else backward)).sum(), policy))
    p, r = language.probability(policy), language.probability(reference).detach()
    kl = (p * (p / r).log()).sum()
    whole = gradient(kl if estimator == "k2" else (r * (r / p).log()).sum(), policy)
    if language is WORD:
        close(found, whole)
    else:
        apart(found, whole)
    if estimator == "k3":
        assert -value.item() * language.length == pytest.approx(kl.item(), abs=1e-10)


def replace_rewards(language):
    blank = Language(length=language.length, ends=language is ENDS)
    blank.reward = torch.zeros_like(blank.reward)
    return blank


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo(smoothing):
    """``β σ(−x) [∇log π(y_w) − ∇log π(y_l)]`` over all pairs, label noise mixing in the opposite."""
    policy, reference = ENDS.policy(1), ENDS.policy(2)
    pairs = ENDS.groups(2)
    share = torch.rand(len(pairs), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = share / share.sum()
    found = expected_gradient(DPO(label_smoothing=smoothing), policy, ENDS.rollout(policy, reference, index=pairs, unit="pair"), share)
    log_p = ENDS.log_prob(policy).sum(-1)
    h = (log_p - ENDS.log_prob(reference).sum(-1)).detach()
    x = 0.1 * (h[pairs[:, 0]] - h[pairs[:, 1]])
    slope = 0.1 * ((1 - smoothing) * (-x).sigmoid() - smoothing * x.sigmoid())
    expected = gradient((share * slope * (log_p[pairs[:, 0]] - log_p[pairs[:, 1]])).sum(), policy)
    close(found, expected)
