"""check_estimator names what is wrong with an estimator, and is silent about what the library ships."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.check.planted import BATCHED, PLANTED, SOUND, generalized_advantage, log_prob, returns, total
from tests.check.shipped import shipped
from upslope import A2C, GRPO, PPO, REINFORCE, TRPO, OffPolicyGradient, UsageError
from upslope import functional as F
from upslope.algorithms.off_policy import per_decision, per_step, trajectory, truncated, vtrace
from upslope.testing import MISTAKES, ContractError, check_estimator
from upslope.testing.estimator import LATER
from upslope.testing.known_mistakes import BY_DESIGN

SHIPPED = shipped()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_named(name):
    estimator, options, mistake = PLANTED[name]
    report = check_estimator(estimator, **options)
    assert [finding.mistake for finding in report.broken] == [mistake]
    assert MISTAKES[mistake] in str(report)
    with pytest.raises(ContractError, match=mistake.replace("(", r"\(").replace(")", r"\)")):
        report.raise_for_mistake()


def test_every_mistake_has_a_planted_error():
    assert {mistake for _, _, mistake in PLANTED.values()} == set(MISTAKES)


@pytest.mark.parametrize("name", ["not_a_number", "nothing_at_all"])
def test_json_without_numbers(name):
    found = check_estimator(PLANTED[name][0]).as_dict()
    assert found["cosine"] == {"undiscounted": None} and found["not_checked"] == ["everything else"]
    json.dumps(found, allow_nan=False)


def test_what_was_not_checked_is_said():
    def odd(policy, rollout):
        return total(log_prob(policy, rollout) * returns(rollout, 1.0) ** 2, rollout)

    report = check_estimator(odd, by_design=["biased by no known mistake"])
    assert report.mistake is None and report.not_checked == ("lengths (length bias)",)
    assert str(report).startswith(
        "odd, gamma = 1: no mistake found, biased by no known mistake by design; not checked: lengths (length bias)\n"
    )


@pytest.mark.parametrize("algorithm", [OffPolicyGradient(estimator=per_decision), REINFORCE(gamma=0.9, baseline=True), A2C(gae_lambda=1.0)])
def test_what_bootstraps_only_where_it_is_cut_is_looked_at_there(algorithm):
    assert "truncation" in check_estimator(algorithm).checked


def test_every_mistake_was_checked_or_is_listed():
    """Each mistake stands in a check that was made, or in one that is listed with the reason."""
    on_other_recordings = ["length bias", *", ".join(LATER.values()).split(", ")]
    for estimator, options in (SOUND["plain_reinforce"], SOUND["group_with_leave_one_out"], (PPO(), {}), (A2C(), {"whole_episodes": True})):
        report = check_estimator(estimator, **options)
        listed = " ".join([*report.not_checked, *report.left_out])
        made = {mistake for name, mistakes in LATER.items() if name in report.checked for mistake in mistakes.split(", ")}
        assert all(mistake in made or mistake in listed for mistake in on_other_recordings), report
        assert all(what in str(report) for what in (*report.not_checked, *report.left_out))
        assert report.as_dict()["left_out"] == list(report.left_out)


@pytest.mark.parametrize("placement,estimate", [("reward", "k1"), ("objective", "k2"), ("objective", "k3")])
def test_a_kl_that_is_scaled_along_with_the_reward_is_not_checked(placement, estimate):
    report = check_estimator(GRPO(kl_coef=0.1, kl_estimator=estimate, kl_placement=placement, average_over="constant"))
    assert report.mistake is None and any("KL in a reward" in what for what in report.not_checked) == (placement == "reward")


def test_a_bias_is_in_the_headline():
    report = check_estimator(BATCHED["mean_of_the_batch_as_baseline"][0])
    assert report.headline == "none of the mistakes that could be made here; biased by 0.111"
    assert check_estimator(PPO()).headline.startswith(
        "none of the mistakes that could be made here, missing discount weight by design; biased by 0.0"
    )
    assert check_estimator(SOUND["plain_reinforce"][0]).headline == "none of the mistakes that could be made here"


@pytest.mark.parametrize("name", SOUND)
def test_sound_estimators_break_nothing(name):
    estimator, options = SOUND[name]
    report = check_estimator(estimator, **options)
    assert report.findings == ()
    # the exact expectation is the exact gradient to rounding; discounted_reinforce computes γ^t in float32
    assert report.bias[report.objective] <= 1e-7 and report.unbiased


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_estimator_has_a_mistake(name):
    report = check_estimator(SHIPPED[name]).raise_for_mistake()
    assert report.broken == ()
    if report.unbiased:  # what is not says why: by design, or in a note
        assert report.bias[report.objective] <= 1e-8 * float(report.gradient[report.objective].norm())
    else:
        assert report.findings or report.notes


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"estimator": per_step}, "per-step ratio"),
        ({"estimator": truncated, "ratio_cap": 2.0}, "importance weights cut"),
        ({"estimator": vtrace}, "importance weights cut"),
        ({"estimator": vtrace, "ratio_cap": None, "trace_cap": None}, "past ratio missing"),
        ({"estimator": truncated, "ratio_cap": None, "trace_cap": None}, None),
        ({"estimator": per_decision}, None),
        ({"estimator": trajectory}, None),
    ],
)
def test_a_bias_by_design_off_policy_is_said(settings, mistake):
    report = check_estimator(OffPolicyGradient(gamma=1.0, **settings)).raise_for_mistake()
    assert [finding.mistake for finding in report.findings] == ([] if mistake is None else [mistake])
    assert ("by design    " in str(report)) == (mistake is not None)


def test_the_report_compares_with_each_objective():
    report = check_estimator(REINFORCE(gamma=0.9, baseline=False, normalize_advantage=False))
    assert report.objective == "undiscounted" and not report.unbiased and report.mistake is None
    assert report.bias["undiscounted"] < report.bias["discounted"] and report.cosine["undiscounted"] > 0.999
    assert report.mean_squared_error == pytest.approx(report.variance + report.bias["undiscounted"] ** 2, rel=1e-6)
    assert [finding.mistake for finding in report.findings] == ["missing discount weight"] and "by design" in str(report)
    again = check_estimator(PLANTED["forgets_gamma_to_the_t"][0], by_design=["missing discount weight"])
    assert again.mistake is None and again.findings[0].by_design == "as you said"
    assert torch.allclose(again.expectation, 3 * report.expectation, rtol=1e-6)  # a mean over three steps, and a sum
    assert check_estimator(PLANTED["forgets_gamma_to_the_t"][0], gamma=1.0).findings == ()


def test_causality_lowers_the_variance():
    def full_trajectory(policy, rollout):
        return total(log_prob(policy, rollout) * rollout.reward.sum(-1, keepdim=True), rollout)

    def from_each_step_on(policy, rollout):
        return total(log_prob(policy, rollout) * returns(rollout, 1.0), rollout)

    whole, rest = check_estimator(full_trajectory), check_estimator(from_each_step_on)
    assert whole.findings == rest.findings == () and whole.variance > 1.2 * rest.variance


def test_whole_batch_scaling_and_bonuses_are_notes():
    def normalized(policy, rollout):
        return total(log_prob(policy, rollout) * F.normalize(returns(rollout, 1.0), rollout.mask), rollout)

    def with_bonus(policy, rollout):
        new = policy.evaluate(**rollout.inputs)
        return total(new.log_prob * returns(rollout, 1.0) + 0.1 * new.entropy, rollout)

    def batch_mean(policy, rollout):
        g = returns(rollout, 1.0)
        return total(log_prob(policy, rollout) * (g - g[rollout.mask].mean()), rollout)

    for function, note in ((normalized, "spread"), (with_bonus, "entropy bonus of 0.1"), (batch_mean, "mean and spread add")):
        report = check_estimator(function)
        assert report.findings == () and any(note in line for line in report.notes), str(report)


@pytest.mark.parametrize("name", BATCHED)
def test_what_sees_the_whole_batch_is_sound(name):
    function, options = BATCHED[name]
    report = check_estimator(function, **options)
    assert report.findings == () and any("batch's mean and spread" in note for note in report.notes), str(report)
    assert {"lengths", "padding"} <= set(report.checked)


@pytest.mark.parametrize(
    "algorithm",
    [
        REINFORCE(gamma=1.0, normalize_advantage=True),
        A2C(gamma=1.0, normalize_advantage=True, entropy_coef=0.01),
        PPO(gamma=1.0, normalize_advantage=True, entropy_coef=0.01),
        TRPO(gamma=1.0, normalize_advantage=True),
        OffPolicyGradient(gamma=1.0, estimator=per_decision, scale_advantage=True),
    ],
)
def test_a_shipped_algorithm_whose_settings_are_hidden(algorithm):
    def hidden(policy, rollout):
        batch = algorithm.estimate(policy, rollout).by_unit()
        return algorithm.objective(policy, batch)[0] if batch.num_units else sum(p.sum() * 0.0 for p in policy.parameters())

    nearby = ["per-step ratio"] if isinstance(algorithm, TRPO) else []
    assert check_estimator(hidden, by_design=nearby).mistake is None


def test_what_no_known_mistake_explains():
    def odd(policy, rollout):
        return total(log_prob(policy, rollout) * returns(rollout, 1.0) ** 2, rollout)

    assert check_estimator(odd).mistake == "biased by no known mistake"


def divided_by_nothing(policy, rollout):
    g = returns(rollout, 1.0)
    return total(log_prob(policy, rollout) * (g - g.mean()) / g.std(), rollout)


def test_no_spread():
    assert [finding.mistake for finding in check_estimator(divided_by_nothing).broken] == ["not finite"]


def raises(policy, rollout):
    raise KeyError("observation_2")


def random(policy, rollout):
    return log_prob(policy, rollout).mean() * torch.rand(())


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (raises, {}, r"raises: raised KeyError \('observation_2'\) on a rollout of shape \[3, 3\], unit 'step'"),
        (lambda policy, rollout: 3.0, {}, "expected a number to differentiate, .* found an object of type float"),
        (lambda policy, rollout: rollout.reward, {}, r"found a tensor of shape \[3, 3\]"),
        (lambda policy, rollout: rollout.reward.sum(), {}, "does not depend on the policy's parameters"),
        (lambda policy, rollout: [rollout.reward], {}, r"found tensors of shapes \[\[3, 3\]\]"),
        (random, {}, "two calls on the same rollout differ"),
        (PPO, {}, "found the class PPO; give an instance"),
        (7, {}, "found an object of type int"),
        (PPO(), {"by_design": ["missing gamma"]}, "unknown mistake 'missing gamma'"),
        (PPO(), {"group": True, "gamma": 2.0}, "gamma: expected a number in"),
    ],
)
def test_bad_input_is_one_line(estimator, options, message):
    with pytest.raises(UsageError, match=message) as error:
        check_estimator(estimator, **options)
    assert "\n" not in str(error.value)


def test_the_designs_are_of_laws():
    assert {design.mistake for design in BY_DESIGN} <= set(MISTAKES)


def test_the_page_lists_the_laws():
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8").replace("\\|", "|")
    for mistake, meaning in MISTAKES.items():
        assert f"| {mistake} | {meaning} |" in page
    for design in BY_DESIGN:
        assert f"| {design.mistake} | {design.why} |" in page


def test_what_is_made_on_purpose_explains_nothing_else():
    """γ^t is left out by design and by a function as well: neither hides a bias without a name."""
    report = check_estimator(PLANTED["ShippedAndCutTwice"][0])
    assert [(f.mistake, f.by_design is None) for f in report.findings] == [
        ("biased by no known mistake", True),
        ("missing discount weight", False),
    ]

    def cut_twice(policy, rollout, gamma):
        after = torch.where(rollout.truncated, 2.0, 1.0) * rollout.next_value
        return total(log_prob(policy, rollout) * generalized_advantage(replace(rollout, next_value=after), gamma), rollout)

    assert {f.mistake for f in check_estimator(cut_twice).broken} == {"missing discount weight", "biased by no known mistake"}


def test_groups_side_by_side():
    """A spread of the whole batch is no fault, and what takes one group only is not asked for two."""

    def spread_of_the_batch(policy, rollout):
        score = rollout.reward.sum(-1, keepdim=True)
        centered = score - score.mean(-2, keepdim=True)
        return total(log_prob(policy, rollout) * centered / (centered.std() + 1e-8), rollout)

    def first_group(policy, rollout):
        return total(log_prob(policy, rollout)[0] * F.leave_one_out(rollout.reward.sum(-1)[0]).unsqueeze(-1), rollout)

    def one_group(policy, rollout):
        assert len(rollout.mask) == 1
        return first_group(policy, rollout)

    report = check_estimator(spread_of_the_batch, group=True)
    assert report.mistake is None and "groups side by side" in report.checked
    for function in (first_group, one_group):
        report = check_estimator(function, group=True)
        assert report.mistake is None and "groups side by side" not in report.checked
        assert any(what.startswith("groups side by side (groups mixed)") for what in report.left_out)


@pytest.mark.parametrize("algorithm", [REINFORCE(gamma=0.9), A2C(normalize_advantage=True), PPO(), TRPO(), OffPolicyGradient()])
def test_scaled_advantages_are_looked_at(algorithm):
    report = check_estimator(algorithm)
    assert report.mistake is None and "scaled advantages" in report.checked
