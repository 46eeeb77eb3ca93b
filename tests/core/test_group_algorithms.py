"""GRPO, its relatives and RLOO: what is compared, what is skipped and counted, what is refused, and parts that add up."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.core.toy_language import Language, gradient
from upslope import GRPO, PPO, REINFORCE, RLOO, Ascent, UsageError
from upslope import functional as F
from upslope.algorithms.grpo import ADVANTAGES, RATIOS, RELATIVES, SURROGATES, group_centered
from upslope.records import Batch

ENDS, WORD = Language(), Language(length=1, ends=False)


@pytest.fixture
def policy():
    return ENDS.policy(1)


def drawn(language=ENDS, groups=6, size=4, seed=0, policy=None, reference=None):
    """A recording of random groups, with rewards that are small integers."""
    index = language.drawn((groups, size), seed)
    rollout = language.rollout(policy or language.policy(1), reference or language.policy(2), index=index, unit="group")
    score = torch.randint(0, 3, (groups, size), generator=torch.Generator().manual_seed(seed + 1)).double()
    return replace(rollout, reward=score.unsqueeze(-1) * rollout.terminated)


def missing(rollout, *rows):
    """The same recording with these rows masked entirely, as a collector does with a reward of None."""
    gone = torch.zeros(rollout.mask.shape[:-1], dtype=torch.bool)
    for group, row in rows:
        gone[group, row] = True
    hidden = {name: getattr(rollout, name).masked_fill(gone.unsqueeze(-1), 0) for name in ("reward", "terminated", "mask")}
    return replace(rollout, **hidden)


def slope(algorithm, policy, batch):
    return gradient(algorithm.objective(policy, batch)[0], policy)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_row_has_one_score_and_one_advantage(policy, name):
    rollout = drawn()
    batch = GRPO(advantage=ADVANTAGES[name]).estimate(policy, rollout)
    expected = ADVANTAGES[name](rollout.reward.sum(-1), None)
    assert torch.equal(batch.advantage, expected.unsqueeze(-1).expand_as(rollout.reward))
    assert batch.metrics["score_mean"] == pytest.approx(rollout.reward.sum(-1).mean().item())
    assert batch.metrics["missing_rows"] == 0.0


def test_the_penalty_is_in_the_score_before_rows_are_compared(policy):
    rollout = drawn()
    batch = GRPO(advantage=group_centered, kl_coef=0.3, kl_estimator="k1", kl_placement="reward").estimate(policy, rollout)
    kl = ((rollout.behavior_log_prob - rollout.reference_log_prob) * rollout.mask).sum(-1)
    expected = group_centered(rollout.reward.sum(-1) - 0.3 * kl)
    torch.testing.assert_close(batch.advantage[..., 0], expected, rtol=0, atol=1e-12)
    assert batch.metrics["reference_kl"] > 0


@pytest.mark.parametrize("algorithm", [GRPO(), RLOO(average_over="sequences")])
def test_groups_without_spread_are_dropped_counted_and_keep_their_weight(policy, algorithm):
    rollout = drawn()
    level = replace(rollout, reward=torch.where(torch.arange(6).view(6, 1, 1) < 2, 1.0 * rollout.terminated, rollout.reward))
    alive = level.reward.sum(-1).amax(-1) > level.reward.sum(-1).amin(-1)
    batch = algorithm.estimate(policy, level)
    assert batch.metrics["dead_groups"] == pytest.approx(1 - alive.double().mean().item())
    assert batch.by_unit().num_units == alive.sum() < 6
    assert (batch.weight[~alive] == 0).all() and not batch.mask[~alive].any()
    whole = F.average_weight(level.mask, "sequences", dtype=torch.float64)
    assert torch.equal(batch.weight[alive], whole[alive])  # as if the others were still there
    kept = replace(batch, mask=level.mask, weight=whole)
    torch.testing.assert_close(slope(algorithm, policy, batch.by_unit()), slope(algorithm, policy, kept), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {"kl_coef": 0.1},
        {"entropy_coef": 0.1},
        {"surrogate": partial(F.kl_penalized_surrogate, beta=0.5)},
    ],
)
def test_groups_without_spread_stay_where_they_carry_gradient(policy, options):
    rollout = drawn()
    flat = replace(rollout, reward=1.0 * rollout.terminated)
    algorithm = GRPO(**options)
    batch = algorithm.estimate(policy, flat)
    assert batch.metrics["dead_groups"] == 1.0 and batch.by_unit().num_units == 6
    moved = replace(batch, behavior_log_prob=batch.behavior_log_prob - 0.1)
    assert slope(algorithm, policy, moved).abs().max() > 1e-4
    assert GRPO(surrogate=partial(F.clipped_surrogate, dual_clip=3.0)).estimate(policy, flat).by_unit().num_units == 0


def test_a_batch_of_dead_groups_moves_nothing(policy):
    algorithm, before = GRPO(update=Ascent(learning_rate=1.0)), policy.logits.detach().clone()
    rollout = drawn()
    batch = algorithm.estimate(policy, replace(rollout, reward=1.0 * rollout.terminated))
    metrics = algorithm.update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))
    assert metrics == {"num_minibatches": 0.0} and torch.equal(policy.logits, before)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_rows_without_a_score_are_in_no_statistic(policy, name):
    rollout = missing(drawn(), (0, 1), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (5, 0), (5, 1), (5, 2), (5, 3))
    algorithm = GRPO(advantage=ADVANTAGES[name], average_over="constant")
    batch = algorithm.estimate(policy, rollout)
    score, present = rollout.reward.sum(-1), rollout.mask.any(-1)
    assert (batch.advantage[~present] == 0).all()
    if name != "batch-relative":
        for group in range(6):
            left = score[group][present[group]]
            if len(left) > 1:
                torch.testing.assert_close(batch.advantage[group, :, 0][present[group]], ADVANTAGES[name](left, None), rtol=0, atol=1e-12)
    assert (batch.advantage[3] == 0).all()  # one row left: nothing to compare it with
    assert batch.metrics["missing_rows"] == pytest.approx(10 / 24)
    assert batch.metrics["score_mean"] == pytest.approx(score[present].mean().item())
    torch.testing.assert_close(batch.weight[0], rollout.mask[0].double() / (14 * 3), rtol=1e-12, atol=0)  # N counts those with a score
    spoiled = replace(batch, behavior_log_prob=batch.behavior_log_prob.masked_fill(~rollout.mask, torch.nan))
    assert torch.equal(slope(algorithm, policy, spoiled), slope(algorithm, policy, batch))


def settings():
    yield "grpo", GRPO()
    yield from ((name, GRPO(**values)) for name, values in RELATIVES.items())
    yield "grpo, everything", GRPO(kl_coef=0.1, entropy_coef=0.02, dual_clip=2.0)
    yield "rloo", RLOO(kl_coef=0.1)
    yield "rloo, many steps", RLOO(kl_coef=0.1, kl_estimator="k2", kl_placement="objective", update=Ascent(num_minibatches=2))
    yield "sequence", GRPO(ratio=F.sequence_ratio)


@pytest.mark.parametrize("algorithm", [pytest.param(a, id=name) for name, a in settings()])
def test_parts_add_up(policy, algorithm):
    """Micro-batches add to the whole; minibatches, scaled by their share, average to it."""
    batch = algorithm.estimate(policy, drawn(groups=7)).by_unit()
    batch = replace(batch, behavior_log_prob=batch.behavior_log_prob - 0.05 * torch.randn(batch.mask.shape, dtype=torch.float64))
    whole = slope(algorithm, policy, batch)
    units = torch.arange(batch.num_units)
    micro = sum(slope(algorithm, policy, batch.select(units[i : i + 2])) for i in range(0, len(units), 2))
    torch.testing.assert_close(micro, whole, rtol=0, atol=1e-13)
    parts = list(batch.minibatches(torch.randperm(len(units), generator=torch.Generator().manual_seed(0)), 3))
    mini = sum(slope(algorithm, policy, part) * part.num_units / batch.num_units for part in parts)
    torch.testing.assert_close(mini, whole, rtol=0, atol=1e-13)
    assert whole.abs().max() > 1e-4


def test_the_mean_of_means_is_another_gradient(policy):
    """The accumulation trap: parts of unequal token counts, each averaged over its own tokens, are far from the whole."""
    algorithm = GRPO(average_over="steps")
    long, short = [i for i, row in enumerate(ENDS.rows) if len(row) == 3], [i for i, row in enumerate(ENDS.rows) if len(row) < 3]
    index = torch.tensor([short[:4], short[:4], long[:4], long[4:8]])
    score = torch.tensor([[0.0, 1, 1, 0], [2, 1, 1, 0], [0, 0, 0, 1], [0, 2, 0, 1]], dtype=torch.float64)
    rollout = ENDS.rollout(policy, index=index, unit="group")
    rollout = replace(rollout, reward=score.unsqueeze(-1) * rollout.terminated)
    batch = algorithm.estimate(policy, rollout).by_unit()
    parts = [batch.select(torch.tensor([0, 1])), batch.select(torch.tensor([2, 3]))]
    whole = slope(algorithm, policy, batch)
    own = [slope(algorithm, policy, replace(p, weight=p.weight / p.weight.sum())) for p in parts]
    torch.testing.assert_close(sum(slope(algorithm, policy, p) for p in parts), whole, rtol=0, atol=1e-14)
    assert ((own[0] + own[1]) / 2 - whole).norm() / whole.norm() > 0.1


def test_updates_do_not_depend_on_the_micro_batch_size():
    ends = []
    for size in (None, 1, 3):
        policy = ENDS.policy(1)
        algorithm = GRPO(kl_coef=0.1, update=Ascent(learning_rate=0.05, num_epochs=2, num_minibatches=2, micro_batch_size=size))
        batch = algorithm.estimate(policy, drawn(policy=policy))
        algorithm.update(algorithm, policy, batch, algorithm.update.start(policy, seed=3))
        ends.append(policy.logits.detach().clone())
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-12)


def test_length_bias_by_hand():
    """Two rows of 2 and 8 steps, |A| = 1, longest possible 10: a step's and a row's share under the three averages."""
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    table = {"steps": (1 / 10, 1 / 10), "sequences": (1 / 4, 1 / 16), "constant": (1 / 20, 1 / 20)}
    rows = {"steps": (0.2, 0.8), "sequences": (0.5, 0.5), "constant": (0.1, 0.4)}
    for name, (short, long) in table.items():
        weight = F.average_weight(mask.unsqueeze(0), name, 10, dtype=torch.float64)[0]
        torch.testing.assert_close(weight, torch.where(mask, torch.tensor([[short], [long]], dtype=torch.float64), 0.0), rtol=0, atol=1e-15)
        assert weight.sum(-1).tolist() == pytest.approx(rows[name], abs=1e-12)


def test_one_token_methods_are_the_bandit_method_to_the_bit():
    """One decision per row, L_max = 1, the same baseline: GRPO, RLOO, REINFORCE and PPO have one gradient."""
    policy = WORD.policy(1)
    rollout = drawn(WORD, size=2)
    score = rollout.reward.sum(-1)
    baseline = score.flip(-1).unsqueeze(-1)  # of two, the other one is the mean of the others
    bandit = replace(rollout, value=baseline, next_value=torch.zeros_like(baseline), unit="step")
    plain = {"gamma": 1.0, "normalize_advantage": False, "value_coef": 0.0}
    methods = {
        "reinforce": (REINFORCE(**plain), bandit),
        "ppo": (PPO(**plain, gae_lambda=1.0), bandit),
        "rloo": (RLOO(), rollout),
        "rloo, several epochs": (RLOO(update=Ascent(num_epochs=2)), rollout),
    }
    methods |= {f"grpo, {name}": (GRPO(advantage=F.leave_one_out, surrogate=s), rollout) for name, s in SURROGATES.items()}
    methods |= {f"grpo, {name}": (GRPO(advantage=F.leave_one_out, average_over=name), rollout) for name in ("steps", "constant")}
    methods |= {f"grpo, {name}": (GRPO(advantage=F.leave_one_out, ratio=r), rollout) for name, r in RATIOS.items()}
    found = {name: slope(algorithm, policy, algorithm.estimate(policy, r)) for name, (algorithm, r) in methods.items()}
    for name, other in found.items():
        assert torch.equal(other, found["reinforce"]), name


def test_the_coefficient_of_one_update_with_k3(policy):
    """``Â + kl_coef (π_ref/π − 1)`` times ∇log π at every step (FORMULAS 9)."""
    rollout = drawn(policy=policy)
    algorithm = GRPO(kl_coef=0.3)
    batch = algorithm.estimate(policy, rollout)
    coefficient = batch.advantage + 0.3 * ((rollout.reference_log_prob - rollout.behavior_log_prob).exp() - 1)
    log_prob = policy.evaluate(**rollout.inputs).log_prob
    expected = gradient((batch.weight * coefficient * log_prob).sum(), policy)
    torch.testing.assert_close(slope(algorithm, policy, batch), expected, rtol=0, atol=1e-14)


def test_the_kl_term_is_not_clipped(policy):
    """Far beyond the range the surrogate gives no gradient, the KL its whole."""
    rollout = drawn(policy=policy)
    batch = replace(GRPO(kl_coef=0.3).estimate(policy, rollout), advantage=torch.ones_like(rollout.reward))
    batch = replace(batch, behavior_log_prob=rollout.behavior_log_prob - 3.0)
    log_prob = policy.evaluate(**rollout.inputs).log_prob
    expected = gradient(-0.3 * (batch.weight * F.kl_k3(log_prob, rollout.reference_log_prob, rollout.mask)).sum(), policy)
    torch.testing.assert_close(slope(GRPO(kl_coef=0.3), policy, batch), expected, rtol=0, atol=1e-14)


def test_clip_fractions_are_those_of_the_ratio_that_is_clipped(policy):
    algorithm = GRPO(**RELATIVES["gspo"])
    batch = algorithm.estimate(policy, drawn(policy=policy))
    shift = torch.where(torch.arange(3) % 2 == 0, 0.1, -0.1).double()
    moved = replace(batch, behavior_log_prob=batch.behavior_log_prob + shift)
    ratio = F.sequence_mean_ratio(policy.evaluate(**moved.inputs).log_prob, moved.behavior_log_prob, moved.mask)
    outside = ((ratio < 1 - 3e-4) | (ratio > 1 + 4e-4))[moved.mask]
    metrics = algorithm.objective(policy, moved)[1]
    assert metrics["clip_fraction"].item() == pytest.approx(outside.double().mean().item())
    assert 0 < outside.double().mean() < 1


def test_relatives_are_what_their_papers_say():
    made = {name: GRPO(**values) for name, values in RELATIVES.items()}
    assert set(made) == {"dr-grpo", "dapo", "gspo", "cispo", "reinforce-pp"}
    assert made["dr-grpo"].advantage is group_centered and made["dr-grpo"].average_over == "constant"
    assert made["dapo"].clip_range == (0.2, 0.28) and made["dapo"].average_over == "steps"
    assert made["gspo"].ratio is F.sequence_mean_ratio and made["gspo"].clip_range == (3e-4, 4e-4)
    assert made["cispo"].surrogate is F.truncated_score
    assert made["reinforce-pp"].advantage is F.batch_relative and made["reinforce-pp"].kl_placement == "reward"


def mine(score, mask):
    return score.mean(-1)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"kl_estimator": "k1"}, "k1 in the objective has gradient 0"),
        ({"kl_placement": "reward"}, "k3 in the reward lacks the KL's derivative"),
        ({"kl_placement": "reward", "kl_estimator": "k2"}, "k2 in the reward lacks the KL's derivative"),
        ({"kl_estimator": "k4"}, "kl_estimator: expected 'k1', 'k2' or 'k3', found 'k4'"),
        ({"kl_placement": "loss"}, "kl_placement: expected 'objective' or 'reward', found 'loss'"),
        ({"kl_coef": -0.1}, "kl_coef: expected a number ≥ 0"),
        ({"entropy_coef": -0.1}, "entropy_coef: expected a number ≥ 0"),
        ({"clip_range": -0.1}, "clip_range: expected low in"),
        ({"clip_range": (0.1, 0.2, 0.3)}, "clip_range: expected a number or a tuple"),
        ({"dual_clip": 1.0}, "dual_clip: expected a number > 1"),
        ({"dual_clip": 2.0, "surrogate": F.truncated_score}, "dual_clip: it belongs to the clipped surrogate"),
        ({"ratio": F.sequence_ratio, "average_over": "constant"}, "would count it once per step"),
        ({"ratio": F.sequence_mean_ratio, "surrogate": F.truncated_score}, "ratio: it belongs to the clipped"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        GRPO(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"kl_placement": "objective"}, {"kl_estimator": "k3"}, {"kl_coef": -0.1}, {"clip_range": -0.1}])
def test_rloo_refuses_them_too(options):
    with pytest.raises(UsageError):
        RLOO(**options)


def test_rollouts_that_cannot_be_used_are_refused(policy):
    rollout = drawn()
    cases = [
        (GRPO(kl_coef=0.1), replace(rollout, reference_log_prob=None), "kl_coef: it needs a reference policy"),
        (RLOO(kl_coef=0.1), replace(rollout, reference_log_prob=None), "kl_coef: it needs a reference policy"),
        (GRPO(), replace(rollout, unit="sequence"), "the collector's unit is 'sequence'"),
        (RLOO(), replace(rollout, max_steps=None), "'constant' divides by the longest"),
        (GRPO(), drawn(size=1), "group_size: expected at least 2, found 1"),
        (RLOO(), drawn(size=1), "group_size: expected at least 2, found 1"),
        (GRPO(advantage=mine), rollout, "advantage: expected one value per row"),
        (PPO(reference_kl_coef=0.1), replace(rollout, reference_log_prob=None), "reference_kl_coef: it needs a reference policy"),
        (REINFORCE(reference_kl_coef=0.1), replace(rollout, reference_log_prob=None), "reference_kl_coef: it needs a reference policy"),
    ]
    for algorithm, given, message in cases:
        with pytest.raises(UsageError, match=message):
            algorithm.estimate(policy, given)


def test_rloo_clips_where_it_makes_several_steps(policy):
    batch = RLOO().estimate(policy, drawn(policy=policy))
    stale = replace(batch, behavior_log_prob=batch.behavior_log_prob - torch.tensor([0.4, 0.1, -0.4], dtype=torch.float64))
    forms = {name: GRPO(surrogate=SURROGATES[name], average_over="constant") for name in ("score-function", "clipped")}
    expected = {name: slope(algorithm, policy, stale) for name, algorithm in forms.items()}
    assert torch.equal(slope(RLOO(), policy, stale), expected["score-function"])
    for update in (Ascent(num_epochs=2), Ascent(num_minibatches=2)):
        assert torch.equal(slope(RLOO(update=update), policy, stale), expected["clipped"])
    assert not torch.equal(expected["score-function"], expected["clipped"])


def test_surrogates_of_ones_own_are_checked(policy):
    def reduced(log_prob, behavior_log_prob, advantage, mask, clip_range):
        return (log_prob * advantage).sum(-1)

    def still(log_prob, behavior_log_prob, advantage, mask, clip_range):
        return advantage

    batch = GRPO().estimate(policy, drawn())
    assert isinstance(batch, Batch)
    for surrogate, message in ((reduced, "expected one value per step"), (still, "does not depend on log_prob")):
        with pytest.raises(UsageError, match=message):
            GRPO(surrogate=surrogate).objective(policy, batch)
