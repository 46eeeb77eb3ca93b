"""DPO, KTO, supervised fine-tuning and reward models: values by hand, one weight per pair, parts that add up, refusals."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from tests.core.toy_language import Language, gradient
from upslope import DPO, KTO, SFT, Ascent, RewardModeling, UsageError
from upslope import functional as F
from upslope.algorithms.dpo import PREFERENCES

ENDS = Language()


@pytest.fixture
def policy():
    return ENDS.policy(1)


def pairs(count=6, seed=0, reference=None):
    index = ENDS.drawn((count, 2), seed)
    return ENDS.rollout(ENDS.policy(1), reference or ENDS.policy(2), index=index, unit="pair")


def labeled(labels=(1.0, -1.0, 1.0, -1.0, -1.0), seed=0, reference=None):
    index = ENDS.drawn((len(labels),), seed).unsqueeze(1)
    rollout = ENDS.rollout(ENDS.policy(1), reference or ENDS.policy(2), index=index, unit="pair")
    return replace(rollout, reward=torch.tensor(labels, dtype=torch.float64).view(-1, 1, 1) * rollout.terminated)


def h_of(policy, rollout):
    log_prob = policy.evaluate(**rollout.inputs).log_prob
    return ((log_prob - rollout.reference_log_prob) * rollout.mask).sum(-1)


@pytest.mark.parametrize(
    "options,formula",
    [
        ({}, lambda h, n: F.bradley_terry(0.1 * h)),
        ({"label_smoothing": 0.2}, lambda h, n: 0.8 * F.bradley_terry(0.1 * h) + 0.2 * F.bradley_terry(-0.1 * h)),
        ({"preference": F.ipo_preference}, lambda h, n: -(((h / n)[:, 0] - (h / n)[:, 1] - 5.0) ** 2)),
        ({"preference": F.hinge_preference}, lambda h, n: -(1 - 0.1 * (h[:, 0] - h[:, 1])).clamp(min=0)),
    ],
)
def test_the_objective_is_the_mean_over_pairs_whatever_their_lengths(policy, options, formula):
    rollout, algorithm = pairs(), DPO(**options)
    batch = algorithm.estimate(policy, rollout)
    assert torch.allclose(batch.weight.sum((-2, -1)), torch.full((6,), 1 / 6, dtype=torch.float64), rtol=0, atol=1e-15)
    value, metrics = algorithm.objective(policy, batch)
    h = h_of(policy, rollout)
    expected = formula(h, rollout.mask.sum(-1)).mean()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(value, policy), gradient(expected, policy), rtol=0, atol=1e-12)
    assert metrics["reward_chosen"].item() == pytest.approx(0.1 * h[:, 0].mean().item())
    assert metrics["reward_rejected"].item() == pytest.approx(0.1 * h[:, 1].mean().item())
    assert metrics["margin"].item() == pytest.approx(0.1 * (h[:, 0] - h[:, 1]).mean().item())
    assert metrics["accuracy"].item() == pytest.approx((h[:, 0] > h[:, 1]).double().mean().item())


def test_at_the_reference_dpo_is_minus_log_two(policy):
    algorithm = DPO(beta=0.7)
    value, metrics = algorithm.objective(policy, algorithm.estimate(policy, pairs(reference=policy)))
    assert value.item() == pytest.approx(-math.log(2), abs=1e-15)
    assert metrics["accuracy"] == 0.5 and metrics["margin"] == 0


def test_kto_by_hand(policy):
    rollout, algorithm = labeled(), KTO(beta=0.5, desirable_coef=0.8, undesirable_coef=1.2)
    batch = algorithm.estimate(policy, rollout)
    h = h_of(policy, rollout)[:, 0]
    z = h.detach().mean().clamp(min=0)
    good = torch.tensor([True, False, True, False, False])
    expected = torch.where(good, 0.8 * (0.5 * (h - z)).sigmoid(), 1.2 * (0.5 * (z - h)).sigmoid()).mean()
    value, metrics = algorithm.objective(policy, batch)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(value, policy), gradient(expected, policy), rtol=0, atol=1e-12)
    assert batch.metrics["reward_desirable"] == pytest.approx(0.5 * h[good].mean().item())
    assert batch.metrics["reward_undesirable"] == pytest.approx(0.5 * h[~good].mean().item())
    assert metrics["accuracy"].item() == pytest.approx(((h > z) == good).double().mean().item())


@pytest.mark.parametrize("above", [True, False])
def test_ktos_reference_point_is_a_mean_that_is_not_negative(policy, above):
    """π_ref with a lower or a higher likelihood everywhere on the data."""
    rollout = labeled(reference=policy)
    rollout = replace(rollout, reference_log_prob=rollout.reference_log_prob + (-0.3 if above else 0.3))
    batch = KTO().estimate(policy, rollout)
    wanted = 0.3 * rollout.mask.sum().item() / 5 if above else 0.0
    assert batch.metrics["kl"] == pytest.approx(wanted, abs=1e-12)
    assert (batch.value == batch.metrics["kl"]).all() and not batch.value.requires_grad


@pytest.mark.parametrize("average", ["steps", "sequences", "constant"])
def test_sft_is_the_weighted_log_likelihood(policy, average):
    rollout = ENDS.rollout(policy)
    algorithm = SFT(average_over=average)
    value, metrics = algorithm.objective(policy, algorithm.estimate(policy, rollout))
    log_prob, length = ENDS.log_prob(policy), ENDS.mask.sum(-1)
    expected = {
        "steps": log_prob.sum() / length.sum(),
        "sequences": (log_prob.sum(-1) / length).mean(),
        "constant": log_prob.sum() / (40 * 3),
    }
    torch.testing.assert_close(value, expected[average], rtol=0, atol=1e-12)
    assert metrics["log_prob"].item() == pytest.approx((log_prob.sum() / length.sum()).item())


def test_sft_learns_what_it_is_shown():
    algorithm, policy = SFT(update=Ascent(learning_rate=0.3)), ENDS.policy()
    state = algorithm.update.start(policy, seed=0)
    shown = ENDS.rollout(policy, index=torch.tensor([5, 5, 5, 17]))
    for _ in range(150):
        algorithm.update(algorithm, policy, algorithm.estimate(policy, shown), state)
    p = ENDS.probability(policy)
    assert p[5].item() == pytest.approx(0.75, abs=0.02) and p[17].item() == pytest.approx(0.25, abs=0.02)


class Scores(nn.Module):
    """A score per sequence: a table over its first token and its length."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))

    def score(self, *, token, prefix):
        return self.table[token[..., 0], (prefix > 0).sum(-1)]


def test_a_reward_model_learns_to_rank():
    truth = torch.tensor([0.0, 2.0, 1.0, 3.0], dtype=torch.float64)[ENDS.token[:, 0]]
    index = torch.cartesian_prod(torch.arange(40), torch.arange(40))
    index = index[truth[index[:, 0]] > truth[index[:, 1]]]
    model, algorithm = Scores(), RewardModeling(update=Ascent(learning_rate=0.1, num_minibatches=4))
    rollout = ENDS.rollout(ENDS.policy(1), index=index, unit="pair")
    batch = algorithm.estimate(model, rollout)
    assert algorithm.objective(model, batch)[0].item() == pytest.approx(-math.log(2))
    state = algorithm.update.start(model, seed=0)
    for _ in range(10):
        metrics = algorithm.update(algorithm, model, batch, state)
    assert metrics["accuracy"] > 0.99 and metrics["margin"] > 1.0
    score = model.score(**rollout.inputs)
    torch.testing.assert_close(algorithm.objective(model, batch)[0], (score[:, 0] - score[:, 1]).sigmoid().log().mean(), rtol=0, atol=1e-12)


OFFLINE = {
    "dpo": (DPO(label_smoothing=0.1), pairs),
    "ipo": (DPO(preference=F.ipo_preference), pairs),
    "hinge": (DPO(preference=F.hinge_preference), pairs),
    "kto": (KTO(), labeled),
    "sft": (SFT(), pairs),
    "sft, sequences": (SFT(average_over="sequences"), pairs),
}


@pytest.mark.parametrize("name", OFFLINE)
def test_parts_add_up(policy, name):
    algorithm, data = OFFLINE[name]
    batch = algorithm.estimate(policy, data()).by_unit()
    whole = gradient(algorithm.objective(policy, batch)[0], policy)
    assert whole.abs().max() > 1e-5
    units = torch.arange(batch.num_units)
    micro = [batch.select(units[i : i + 2]) for i in range(0, len(units), 2)]
    torch.testing.assert_close(sum(gradient(algorithm.objective(policy, p)[0], policy) for p in micro), whole, rtol=0, atol=1e-14)
    parts = list(batch.minibatches(units.flip(0), 2))
    mini = sum(gradient(algorithm.objective(policy, p)[0], policy) * p.num_units / batch.num_units for p in parts)
    torch.testing.assert_close(mini, whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", OFFLINE)
def test_updates_do_not_depend_on_the_micro_batch_size(name):
    algorithm, data = OFFLINE[name]
    ends = []
    for size in (None, 1, 3):
        policy = ENDS.policy(1)
        update = Ascent(learning_rate=0.05, num_epochs=2, num_minibatches=2, micro_batch_size=size)
        now = replace(algorithm, update=update)
        update(now, policy, now.estimate(policy, data()), update.start(policy, seed=0))
        ends.append(policy.logits.detach().clone())
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OFFLINE)
def test_what_stands_in_masked_steps_does_not_matter(policy, name):
    algorithm, data = OFFLINE[name]
    rollout = data()
    batch = algorithm.estimate(policy, rollout)
    spoiled = replace(rollout, reference_log_prob=rollout.reference_log_prob.masked_fill(~rollout.mask, torch.nan))
    spoiled = replace(spoiled, inputs=rollout.inputs | {"token": rollout.inputs["token"].masked_fill(~rollout.mask, 2)})
    for value in (0, 1):
        found = algorithm.objective(policy, algorithm.estimate(policy, spoiled))[0]
        expected = algorithm.objective(policy, batch)[0]
        assert torch.equal((found, gradient(found, policy))[value], (expected, gradient(expected, policy))[value])


def test_empty_pairs_are_left_out_and_empty_rows_count_as_nothing_said(policy):
    rollout = pairs()
    gone = torch.zeros(6, 2, 1, dtype=torch.bool)
    gone[0], gone[1, 1] = True, True
    hidden = {name: getattr(rollout, name).masked_fill(gone, 0) for name in ("reward", "terminated", "mask")}
    batch = DPO().estimate(policy, replace(rollout, **hidden))
    assert batch.by_unit().num_units == 5
    assert batch.weight.sum((-2, -1)).tolist() == pytest.approx([0.0] + [1 / 6] * 5, abs=1e-15)
    h = h_of(policy, replace(rollout, **hidden))
    expected = F.bradley_terry(0.1 * h)[1:].sum() / 6
    torch.testing.assert_close(DPO().objective(policy, batch.by_unit())[0], expected, rtol=0, atol=1e-12)
    kto = KTO().estimate(policy, missing_row(labeled()))
    assert kto.by_unit().num_units == 4 and kto.metrics["kl"] >= 0


def missing_row(rollout):
    gone = (torch.arange(5) == 2).view(5, 1, 1)
    return replace(rollout, **{name: getattr(rollout, name).masked_fill(gone, 0) for name in ("reward", "terminated", "mask")})


def summed(log_prob, reference_log_prob, mask, beta):
    return F.sigmoid_preference(log_prob, reference_log_prob, mask, beta).sum()


def test_a_preference_of_ones_own(policy):
    mine = partial(F.sigmoid_preference, label_smoothing=0.3)
    batch = DPO().estimate(policy, pairs())
    assert torch.equal(DPO(preference=mine).objective(policy, batch)[0], DPO(label_smoothing=0.3).objective(policy, batch)[0])
    with pytest.raises(UsageError, match="preference: expected one value per pair"):
        DPO(preference=summed).objective(policy, batch)
    assert set(PREFERENCES) == {"sigmoid", "ipo", "hinge"}


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: DPO(beta=0.0), "beta: expected a number > 0"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing: expected a number in"),
        (lambda: DPO(label_smoothing=0.1, preference=F.ipo_preference), "label_smoothing: it belongs to the sigmoid"),
        (lambda: KTO(beta=-1.0), "beta: expected a number > 0"),
        (lambda: KTO(desirable_coef=-1.0), "desirable_coef: expected a number ≥ 0"),
        (lambda: SFT(entropy_coef=-1.0), "entropy_coef: expected a number ≥ 0"),
        (lambda: DPO().estimate(None, replace(pairs(), reference_log_prob=None)), "dpo: it needs a reference policy"),
        (lambda: KTO().estimate(None, replace(labeled(), reference_log_prob=None)), "kto: it needs a reference policy"),
        (lambda: DPO().estimate(None, labeled()), "expected pairs"),
        (lambda: DPO().estimate(None, replace(pairs(), unit="group")), "expected pairs"),
        (lambda: KTO().estimate(None, replace(labeled(), unit="group")), "of unit 'pair', found unit 'group'"),
        (lambda: KTO().estimate(None, labeled((1.0, 0.0))), "one has reward 0"),
        (lambda: SFT(average_over="constant").estimate(None, replace(pairs(), max_steps=None)), "'constant' divides by the longest"),
        (lambda: RewardModeling().objective(ENDS.policy(1), RewardModeling().estimate(None, pairs())), "has none; add a score head"),
    ],
)
def test_what_cannot_be_right_is_refused(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_score_of_the_wrong_shape_is_refused():
    class Wide(Scores):
        def score(self, **inputs):
            return super().score(**inputs).unsqueeze(-1)

    with pytest.raises(UsageError, match="one number per row"):
        RewardModeling().objective(Wide(), RewardModeling().estimate(None, pairs()))


def test_what_is_reported_does_not_depend_on_the_micro_batch_size(policy):
    """Pairs have ragged lengths, and each counts the same in a mean over pairs."""
    reports = []
    for size in (None, 1):
        algorithm = DPO(update=Ascent(learning_rate=1e-3, micro_batch_size=size))
        learner = ENDS.policy(1)
        reports.append(algorithm.update(algorithm, learner, algorithm.estimate(learner, pairs()), algorithm.update.start(learner, seed=0)))
    assert reports[0]["margin"] == pytest.approx(reports[1]["margin"], abs=1e-12)
    assert reports[0]["accuracy"] == pytest.approx(reports[1]["accuracy"], abs=1e-12)
