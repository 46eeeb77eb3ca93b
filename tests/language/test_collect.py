"""Collectors of completions and of recorded texts, a sampler with other numerics, and every method taking its first steps."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.language.models import policy_of, small, twin
from upslope import DPO, GRPO, KTO, PPO, REINFORCE, RLOO, SFT, Ascent, RewardModeling, train
from upslope.errors import RunFault, UsageError
from upslope.intervals import wilson
from upslope.language import (
    Completions,
    EmbeddedEngine,
    Labeled,
    Pair,
    Problem,
    Rewards,
    demonstrations,
    evaluate,
    labeled,
    preference_pairs,
)
from upslope.language.collect import Order, joined, padded
from upslope.language.engine import check_prompts
from upslope.language.evaluate import score_with
from upslope.language.problems import Task
from upslope.updates.mismatch import at_old_policy

QUICK = {"group_size": 4, "max_tokens": 6, "num_prompts": 3}
PROMPTS = ["ab", "c", "defg", "hh", "ga"]


def num_a(*, completions):
    return [float(text.count("a")) for text in completions]


def has_a(*, completions):
    return [float("a" in text) for text in completions]


def collector(reward=num_a, prompts=PROMPTS, **options):
    return Completions(prompts, reward, **{**QUICK, **options})


def policy_for(seed=0, **options):
    return small(seed=seed, noise=0.05, **options)


# completions


def test_a_rollout_of_completions():
    policy, told = policy_for(), []

    def reward(*, prompts, completions):
        told.append((prompts, completions))
        return [float(i) for i in range(len(completions))]

    collect = collector(reward)
    rollout = collect(policy)
    inputs, mask = rollout.inputs, rollout.mask
    length = inputs["completion_length"]
    assert rollout.unit == "group" and rollout.max_steps == 6 and rollout.policy_version == 0
    assert mask.shape == inputs["completion_ids"].shape == (3, 4, int(length.max())) and inputs["prompt_ids"].shape[0] == 3
    assert torch.equal(mask.sum(-1), length) and mask[..., 0].all()
    assert torch.equal(rollout.reward.sum(-1), torch.arange(12.0).view(3, 4))
    last = torch.nn.functional.one_hot(length - 1, mask.shape[-1]).bool()
    assert not rollout.reward[~last].any()
    assert torch.equal(rollout.terminated | rollout.truncated, last) and not (rollout.terminated & rollout.truncated).any()
    assert (inputs["completion_ids"][rollout.terminated] == 0).all() and (length[rollout.truncated.any(-1)] == 6).all()
    assert rollout.value is None and rollout.sampler_log_prob is None and rollout.reference_log_prob is None
    ((prompts, completions),) = told
    assert prompts == [p for p in prompts[::4] for _ in range(4)] and len(set(prompts)) == 3
    for b, prompt in enumerate(prompts[::4]):
        assert inputs["prompt_ids"][b, : inputs["prompt_length"][b]].tolist() == policy.encode(prompt)
    ids = [row[:n] for row, n in zip(inputs["completion_ids"].flatten(0, 1).tolist(), length.flatten().tolist(), strict=True)]
    assert completions == [policy.decode(row) for row in ids] and not any("<eos>" in text for text in completions)


def test_what_is_kept_for_people():
    collect = collector(
        [num_a, has_a], prompts=[Problem(prompt="ab", columns={"answer": "a"}), Problem(prompt="c", columns={"answer": "b"})]
    )
    collect(policy_for())
    assert len(collect.samples) == 12
    for sample in collect.samples:
        assert (
            sample["score"]
            == sample["rewards"]["num_a"] + sample["rewards"]["has_a"]
            == num_a(completions=[sample["completion"]])[0] + ("a" in sample["completion"])
        )
        assert sample["answer"] == {"ab": "a", "c": "b"}[sample["prompt"]] and sample["iteration"] == 1
        assert (sample["finish_reason"] == "length") <= (sample["tokens"] == 6)
    collect(policy_for())
    assert len(collect.samples) == 12 and collect.samples[0]["iteration"] == 2


def test_columns_reach_the_reward_and_missing_ones_are_named():
    seen = []

    def reward(*, completions, answer):
        seen.extend(answer)
        return [1.0] * len(completions)

    problems = [Problem(prompt="ab", columns={"answer": "x"}), Problem(prompt="c", columns={"answer": "y"})]
    collector(reward, problems, num_prompts=2)(policy_for())
    assert sorted(seen) == ["x"] * 4 + ["y"] * 4
    with pytest.raises(UsageError, match="needs the column 'answer'"):
        collector(reward, [*problems, "plain"])


def test_group_metrics():
    scores = iter([[1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, None, None, 3.0, None]])
    rollout = collector(lambda *, completions: next(scores))(policy_for())
    assert rollout.metrics["groups_with_spread"] == pytest.approx(1 / 3)  # a single score has no spread
    assert rollout.metrics["reward"] == pytest.approx(9 / 9) and rollout.metrics["missing_rewards"] == pytest.approx(3 / 12)
    assert rollout.metrics["rewards_none"] == 3 and rollout.metrics["rewards_raised"] == rollout.metrics["rewards_timed_out"] == 0
    length = rollout.inputs["completion_length"].float()
    assert rollout.metrics["completion_length"] == pytest.approx(length.mean().item())
    assert rollout.metrics["cut_short"] == pytest.approx(rollout.truncated.any(-1).float().mean().item(), abs=0.26)
    assert rollout.metrics["tokens_per_second"] > 0


def test_a_completion_without_a_score_is_no_member_of_its_group():
    policy = policy_for()
    plain_scores, holes = [0.0, 1.0, 2.0, 3.0] * 3, [0.0, 1.0, None, 3.0] * 3
    full, holed = (collector(lambda *, completions, s=s: s)(policy) for s in (plain_scores, holes))
    assert not holed.mask[:, 2].any() and torch.equal(holed.mask[:, [0, 1, 3]], full.mask[:, [0, 1, 3]])
    assert not holed.reward[:, 2].any() and not holed.terminated[:, 2].any() and not holed.truncated[:, 2].any()
    batch = GRPO().estimate(policy, holed)
    shown = batch.advantage[:, :, 0]
    three = torch.tensor([0.0, 1.0, 3.0])
    torch.testing.assert_close(shown[0, [0, 1, 3]], (three - three.mean()) / (three.std() + 1e-6), rtol=0, atol=1e-6)
    state = train(GRPO(update=Ascent(learning_rate=1e-3)), policy, collector(lambda *, completions: holes), iterations=2)
    assert state.metrics["missing_rows"] == pytest.approx(0.25) and state.metrics["gradient_norm"] > 0


def test_a_reward_that_raises_costs_its_item_only():
    def raises(*, completions):
        if any(text == bad[0] for text in completions):
            raise ValueError("no")
        return [1.0] * len(completions)

    policy, bad = policy_for(), [""]
    probe = collector()
    probe(policy)
    bad[0] = probe.samples[5]["completion"]
    expected = sum(sample["completion"] == bad[0] for sample in probe.samples)
    rollout = collector(raises)(policy)
    assert rollout.metrics["rewards_raised"] == expected and rollout.metrics["missing_rewards"] == pytest.approx(expected / 12)
    assert int((~rollout.mask.any(-1)).sum()) == expected and not rollout.mask[1, 1].any()
    with pytest.raises(RunFault, match="none of 12 completions got a score"):
        collector(lambda *, completions: [None] * len(completions))(policy)


def test_a_hanging_reward_costs_its_item_only():
    def hangs(*, completions):
        if len(completions) > 1 or completions[0] == slow[0]:
            time.sleep(0.4)
        return [1.0] * len(completions)

    policy, slow = policy_for(), [""]
    probe = collector()
    probe(policy)
    slow[0] = probe.samples[5]["completion"]
    expected = sum(sample["completion"] == slow[0] for sample in probe.samples)
    rollout = collector(Rewards.of(hangs, timeout=0.2, batch_timeout=0.3))(policy)
    assert rollout.metrics["rewards_timed_out"] == expected >= 1
    assert int((~rollout.mask.any(-1)).sum()) == expected


def test_the_overlong_penalty_by_hand():
    """``min(0, max(−1, (L_max − L_c − |y|) / L_c))``: with 6 and 4, lengths 1 to 6 lose 0, 0, ¼, ½, ¾, 1."""
    policy = policy_of("phi, biased head")
    with torch.no_grad():
        policy.model.lm_head.bias[0] += 2.0
    zero = lambda *, completions: [5.0] * len(completions)  # noqa: E731
    rollout = collector(zero, ["ab"], group_size=60, num_prompts=1, overlong_buffer=4)(policy)
    length = rollout.inputs["completion_length"]
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0])[length - 1]
    torch.testing.assert_close(rollout.reward.sum(-1), 5.0 - expected, rtol=0, atol=1e-6)
    assert set(length.flatten().tolist()) == {1, 2, 3, 4, 5, 6}
    assert rollout.metrics["reward"] == pytest.approx(5.0 - expected.mean().item())  # what is trained on, not what the reward said
    assert rollout.metrics["reward/<lambda>"] == 5.0 and rollout.metrics["overlong_penalty"] == pytest.approx(-expected.mean().item())
    beyond = collector(overlong_buffer=4).overlong(torch.tensor([[2, 6, 9]]))  # a server may say more than it was asked
    assert beyond.tolist() == [[0.0, -1.0, -1.0]]
    unknown = collector(lambda *, completions: [None, 1.0, 1.0, 2.0], ["ab"], num_prompts=1, overlong_buffer=5)(policy)
    assert unknown.reward[0, 0].eq(0).all()


def test_the_penalty_counts_wherever_the_score_does():
    """Equal rewards, unequal lengths: the penalty is all that is learned from, so it gives spread, and samples show it."""
    policy = policy_of("phi, biased head")
    with torch.no_grad():
        policy.model.lm_head.bias[0] += 2.0
    collect = collector(lambda *, completions: [1.0] * len(completions), ["ab"], group_size=20, num_prompts=1, overlong_buffer=5, refill=3)
    rollout = collect(policy)
    assert rollout.mask.shape[0] == 1 and rollout.metrics["groups_with_spread"] == 1.0  # no further round
    torch.testing.assert_close(torch.tensor([s["score"] for s in collect.samples]), rollout.reward.sum(-1)[0], rtol=0, atol=1e-6)
    assert all(s["score"] == 1.0 + s["overlong_penalty"] for s in collect.samples)
    batch = GRPO().estimate(policy, rollout)
    assert batch.metrics["dead_groups"] == 0.0 and batch.metrics["score_mean"] == pytest.approx(rollout.metrics["reward"])
    beyond = collector(lambda *, completions: [0.1] * len(completions), ["ab"], num_prompts=1)(policy)
    assert beyond.metrics["groups_with_spread"] == 0.0


def test_a_reward_that_never_spoke_has_no_mean():
    silent = Rewards.of(lambda *, completions: [None] * len(completions), num_a, weights=[0, 1])
    found = collector(silent)(policy_for()).metrics
    assert found["reward/num_a"] == found["reward"] and "reward/<lambda>" not in found and found["rewards_none"] == 12


def test_completions_without_a_score_dilute_neither_averages_nor_weights():
    """Half of the completions have no score: the metrics and the gradient are those of the other half alone."""
    policy = policy_for()
    scores = [0.0, 1.0, 5.0, 7.0] * 3
    whole = collector(lambda *, completions: scores)(policy)
    holed = collector(lambda *, completions: [s if s < 5 else None for s in scores])(policy)
    assert holed.metrics["reward"] == holed.metrics["reward/<lambda>"] == 0.5
    some = {name: x if name.startswith("prompt") else x[:, :2] for name, x in whole.inputs.items()}
    tensors = {n: getattr(whole, n)[:, :2] for n in ("terminated", "truncated", "mask", "behavior_log_prob")}
    half = replace(whole, inputs=some, reward=torch.where(whole.reward == 7.0, 1.0, whole.reward)[:, :2], **tensors)
    for average_over in ("sequences", "constant", "steps"):
        algorithm = GRPO(average_over=average_over, entropy_coef=0.1)
        found, expected = (algorithm.estimate(policy, rollout) for rollout in (holed, half))
        torch.testing.assert_close(found.weight[:, :2], expected.weight, rtol=1e-6, atol=0)
        assert not found.weight[:, 2:].any()
        objectives = [algorithm.objective(policy, batch)[0].item() for batch in (found, expected)]
        assert objectives[0] == pytest.approx(objectives[1], rel=1e-5)


def test_rounds_with_missing_scores_are_averaged_by_completion():
    calls = []

    def reward(*, completions):
        calls.append(len(completions))
        return [2.0] + [None] * 11 if len(calls) == 1 else [0.0, 1.0] * 6

    found = collector(reward, refill=1)(policy_for()).metrics
    assert (
        found["reward"] == pytest.approx(8 / 13)
        and found["reward/reward"] == pytest.approx(8 / 13)
        and found["missing_rewards"] == pytest.approx(11 / 24)
    )
    assert found["rewards_none"] == 11.0


def test_a_reward_learns_how_far_the_run_is_and_how_completions_ended():
    seen = []

    def reward(*, completions, completion_ids, finish_reason, trainer_state):
        assert [policy.decode(ids) for ids in completion_ids] == completions
        assert {(ids[-1] == 0) == (reason == "stop") for ids, reason in zip(completion_ids, finish_reason, strict=True)} == {True}
        seen.append((trainer_state.iteration, trainer_state.iterations, trainer_state.fraction, trainer_state.total_steps > 0))
        return [float(len(ids)) for ids in completion_ids]

    policy = policy_for()
    collect = collector(reward)
    collect(policy)
    train(GRPO(update=Ascent(learning_rate=1e-3)), policy, collect, iterations=2)
    assert seen == [(0, None, 0.0, False), (0, 2, 0.0, False), (1, 2, 0.5, True)]
    made = Task(name="own", train=[], held_out=[Problem(prompt="ab")], columns=(), reward=reward)
    evaluate(policy, made, max_tokens=4)
    assert seen[-1] == (0, None, 1.0, False)
    with pytest.raises(UsageError, match="a column may not be called trainer_state"):
        collector(num_a, [Problem(prompt="ab", columns={"trainer_state": 1})])


def test_a_kl_in_the_reward_is_part_of_score_mean():
    """``reward`` is what the collector gives, ``score_mean`` what is trained on where a KL term is subtracted from the reward."""
    policy, other = policy_for(value_head=True), policy_for(seed=1)
    rollout = collector(reference=other.frozen())(policy)
    kl = ((rollout.behavior_log_prob - rollout.reference_log_prob) * rollout.mask).sum(-1)
    expected = rollout.metrics["reward"] - 0.5 * kl.mean().item()
    reward_kl = {"kl_coef": 0.5, "kl_estimator": "k1", "kl_placement": "reward"}
    for algorithm in (GRPO(**reward_kl), RLOO(**reward_kl), PPO(reference_kl_coef=0.5), REINFORCE(reference_kl_coef=0.5, baseline=False)):
        assert algorithm.estimate(policy, rollout).metrics["score_mean"] == pytest.approx(expected, abs=1e-5)


def test_refill_goes_on_until_enough_groups_have_spread():
    policy, calls = policy_for(), []

    def reward(*, completions):
        calls.append(len(completions))
        # the first round's groups are all equal, the second's all but one
        return [1.0] * 12 if len(calls) == 1 else [0.0, 1.0, 1.0, 1.0] + [1.0] * 8 if len(calls) == 2 else [0.0, 1.0, 1.0, 1.0] * 3

    rollout = collector(reward, refill=5)(policy)
    assert calls == [12, 12, 12] and rollout.mask.shape[:2] == (9, 4)
    assert rollout.metrics["groups_with_spread"] == pytest.approx(4 / 9)
    calls.clear()
    assert collector(reward, refill=1)(policy).mask.shape[0] == 6 and len(calls) == 2
    calls.clear()
    assert collector(reward)(policy).mask.shape[0] == 3 and len(calls) == 1
    found = GRPO(update=Ascent(learning_rate=1e-3))
    calls.clear()
    state = train(found, policy, collector(reward, refill=5), iterations=1)
    assert state.metrics["dead_groups"] == pytest.approx(5 / 9)


def test_every_round_of_every_iteration_samples_with_a_seed_of_its_own():
    policy = policy_for()
    seeds, sampled = [], []

    class Noting(EmbeddedEngine):
        def generate(self, prompt_ids, **options):
            seeds.append(options["seed"])
            found = super().generate(prompt_ids, **options)
            sampled.append(found.completion_ids)
            return found

    collect = collector(lambda *, completions: [1.0] * len(completions), ["ab"], num_prompts=1, refill=3, engine=Noting(policy))
    for _ in range(3):
        collect(policy)
    assert len(seeds) == len(set(seeds)) == 12
    # the prompt is one and the same, so with one seed each round would only say again what the first has said
    assert not any(torch.equal(a, b) for i, a in enumerate(sampled) for b in sampled[:i])


def test_rounds_of_other_lengths_are_joined():
    policy = policy_for()
    one = collector(max_tokens=2)(policy)
    two = collector(prompts=["abcdefgh"], max_tokens=6, num_prompts=1)(policy)
    found = joined([one, two])
    assert found.mask.shape == (4, 4, two.mask.shape[-1]) and found.inputs["prompt_ids"].shape == (4, 8)
    assert found.num_steps == one.num_steps + two.num_steps
    log_prob = policy.evaluate(**found.inputs).log_prob
    torch.testing.assert_close(log_prob, found.behavior_log_prob, rtol=0, atol=1e-5)


def test_prompts_take_turns():
    seen, collect = [], collector(num_prompts=2, group_size=1)
    for _ in range(5):
        collect(policy_for())
        seen += [sample["prompt"] for sample in collect.samples]
    assert sorted(seen[:5]) == sorted(seen[5:]) == sorted(PROMPTS)
    first, again, other = (Order(20, seed).take(20) for seed in (1, 1, 2))
    assert first == again != other and sorted(first) == list(range(20))


def test_iterations_sample_anew_and_a_seed_repeats_them():
    policy = policy_for()

    def run(seed):
        collect = collector(prompts=["ab"], num_prompts=1, seed=seed)
        return [collect(policy).inputs["completion_ids"].tolist() for _ in range(2)]

    first, again, other = run(1), run(1), run(2)
    assert first == again != other and first[0] != first[1]


def test_messages_go_through_the_template_and_come_back_as_messages():
    policy, told = policy_for(), []
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}h{% endif %}"

    def reward(*, prompts, completions):
        told.append((prompts, completions))
        return [1.0] * len(completions)

    prompt = [{"role": "user", "content": "ab"}]
    rollout = collector(reward, [prompt], num_prompts=1)(policy)
    assert rollout.inputs["prompt_ids"][0].tolist() == policy.encode("abh")
    ((prompts, completions),) = told
    assert prompts == [prompt] * 4 and all(c[0]["role"] == "assistant" for c in completions)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"group_size": 0}, "group_size: expected an integer ≥ 1, found 0"),
        ({"max_tokens": 0}, "max_tokens: expected an integer ≥ 1, found 0"),
        ({"num_prompts": -1}, "num_prompts: expected an integer ≥ 1, found -1"),
        ({"overlong_buffer": 6}, "overlong_buffer: expected 0 to 5, found 6"),
        ({"refill": -1}, "refill: expected an integer ≥ 0, found -1"),
        ({"refill": 1, "group_size": 1}, "refill: groups of one never have spread"),
        ({"prompts": []}, "prompts: expected at least one, found none"),
        ({"reward": []}, "rewards: expected one reward or more, found none"),
    ],
)
def test_arguments_are_refused_in_one_line(options, message):
    with pytest.raises(UsageError) as caught:
        collector(**options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_prompts_that_do_not_fit_are_refused_before_anything_is_sampled():
    policy = policy_for()
    check_prompts(policy, policy.encode_all(["a" * 58]), 6)
    with pytest.raises(UsageError, match=r"prompts\[1\]: its 59 tokens and max_tokens 6 exceed the model's context of 64"):
        check_prompts(policy, policy.encode_all(["a", "a" * 59]), 6)


# the reference


def test_a_reference_of_another_vocabulary_is_refused():
    policy, other = policy_for(), small("abc")
    with pytest.raises(UsageError, match="reference: it has 5 tokens, the policy 10; take one of the same vocabulary"):
        collector(reference=other)(policy)
    with pytest.raises(UsageError, match="reference: it has 5 tokens, the policy 10"):
        demonstrations(policy, [("a", "b")], reference=other)


def test_the_reference_scores_the_same_tokens():
    policy, other = policy_for(), policy_for(seed=1)
    rollout = collector(reference=other.frozen(), num_prompts=5)(policy)
    expected = other.evaluate(**rollout.inputs).log_prob.detach()
    torch.testing.assert_close(rollout.reference_log_prob, expected, rtol=0, atol=1e-5)
    assert (rollout.reference_log_prob - rollout.behavior_log_prob)[rollout.mask].abs().max() > 0.1


# a sampler with other numerics


def in_bfloat16(**options):
    policy = policy_for(**options)
    policy.compute_dtype = torch.bfloat16
    return policy


class Coarse:
    """An engine whose log-probabilities are rounded to eighths, as far as one can tell from outside."""

    def __init__(self, policy):
        self.inner = EmbeddedEngine(policy)

    def sync(self, policy, version=0):
        self.inner.sync(policy, version)

    def generate(self, *args, **options):
        found = self.inner.generate(*args, **options)
        return replace(found, log_prob=(found.log_prob * 8).round() / 8)


@pytest.mark.parametrize("update", [Ascent(learning_rate=1e-3), Ascent(num_epochs=2, num_minibatches=2, target_kl=None)])
def test_where_the_sampler_rounds_differently_its_word_is_kept_and_the_mismatch_shown(update):
    policy = in_bfloat16()
    before = [p.detach().clone() for p in policy.parameters()]
    state = train(GRPO(update=update), policy, collector(num_prompts=4, engine=Coarse(policy)), iterations=2)
    rollout = state.rollout
    assert torch.equal((rollout.sampler_log_prob * 8).round(), rollout.sampler_log_prob * 8)
    assert 0.01 < state.metrics["mismatch"] < 0.0625  # the mean of what rounding takes: a quarter of an eighth, roughly
    assert state.metrics["num_minibatches"] == update.num_epochs * update.num_minibatches
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_several_epochs_begin_at_the_policys_own_word():
    policy = in_bfloat16()
    rollout = collector(num_prompts=4, engine=Coarse(policy))(policy)
    algorithm = GRPO(update=Ascent(num_epochs=2))
    batch = algorithm.estimate(policy, rollout).by_unit()
    rescored = algorithm.update.with_old_policy(policy, batch)
    assert torch.equal(rescored.sampler_log_prob, batch.sampler_log_prob)
    assert torch.equal(rescored.behavior_log_prob, policy.evaluate(**batch.inputs).log_prob)
    assert not torch.equal(rescored.behavior_log_prob, batch.behavior_log_prob)
    assert not torch.equal(rescored.advantage, batch.advantage)
    exact = replace(batch, sampler_log_prob=None)
    assert algorithm.update.with_old_policy(policy, exact) is exact


def test_an_only_step_evaluates_the_policy_once():
    policy = in_bfloat16()
    rollout = collector(num_prompts=4, engine=Coarse(policy))(policy)
    algorithm = GRPO(update=Ascent(learning_rate=1e-3))
    calls, state = [], algorithm.update.start(policy, seed=0)
    evaluate, policy.evaluate = policy.evaluate, lambda **inputs: calls.append(1) or evaluate(**inputs)
    metrics = algorithm.update(algorithm, policy, algorithm.estimate(policy, rollout), state)
    assert len(calls) == 1 and metrics["mismatch"] > 0.01 and metrics["approx_kl"] == 0.0


def test_the_mismatch_weighs_each_token():
    policy = policy_for()
    rollout = collector(num_prompts=4)(policy)
    shifted = replace(rollout, sampler_log_prob=rollout.behavior_log_prob - 0.3)  # a sampler that said e^-0.3 of the truth
    algorithm = GRPO(update=Ascent())
    gradients = []
    for found in (rollout, shifted):
        objective, metrics = algorithm.objective(*at_old_policy(policy, algorithm.estimate(policy, found).by_unit()))
        gradients.append(torch.autograd.grad(objective, policy.model.lm_head.weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0] * torch.e**0.3, rtol=1e-5, atol=1e-6)
    assert metrics["mismatch"].item() == pytest.approx(0.3, abs=1e-5)


def test_a_server_is_believed_to_have_other_numerics():
    policy = policy_for()
    collect = collector(engine=Coarse(policy))
    assert collect(policy).sampler_log_prob is not None and collect(policy).policy_version == 1
    assert collector(engine=EmbeddedEngine(policy))(policy).sampler_log_prob is None
    kept = collector()(in_bfloat16())
    assert torch.equal(kept.sampler_log_prob, kept.behavior_log_prob)


# a critic


def test_values_are_those_before_and_after_each_token():
    policy = policy_for(value_head=True)
    with torch.no_grad():
        policy.body.value_head.weight += 0.5
    rollout = collector()(policy)
    own = policy.evaluate(**rollout.inputs)
    torch.testing.assert_close(rollout.value, own.value.detach(), rtol=0, atol=1e-6)
    assert torch.equal(rollout.next_value[..., :-1], rollout.value[..., 1:]) and not rollout.next_value[..., -1].any()
    assert not rollout.next_value[rollout.terminated | rollout.truncated].any()  # nothing is bootstrapped
    assert torch.equal(rollout.behavior_log_prob, rollout.behavior_log_prob.where(rollout.mask, 0.0))


# recorded texts


def test_recorded_texts_end_with_the_end_token():
    policy = policy_for()
    collect = demonstrations(policy, [("ab", "cd"), ("c", "d"), ("h", "abc")], batch_size=3)
    rollout = collect(policy)
    assert rollout.unit == "pair" and rollout.mask.shape == (3, 1, 4) and rollout.terminated.sum() == 3 and not rollout.truncated.any()
    rows = {
        tuple(p[:n].tolist()): c[0, :m].tolist()
        for p, n, c, m in zip(
            rollout.inputs["prompt_ids"],
            rollout.inputs["prompt_length"].tolist(),
            rollout.inputs["completion_ids"],
            rollout.inputs["completion_length"][:, 0].tolist(),
            strict=True,
        )
    }
    expected = {"ab": "cd", "c": "d", "h": "abc"}
    assert rows == {tuple(policy.encode(p)): [*policy.encode(c), 0] for p, c in expected.items()}


def test_pairs_and_labels():
    policy = policy_for()
    pairs = [Pair(prompt="a", chosen="bb", rejected="c"), Pair(prompt="bc", chosen="d", rejected="eee")]
    rollout = preference_pairs(policy, pairs, batch_size=2)(policy)
    assert rollout.mask.shape == (2, 2, 4) and rollout.unit == "pair"
    first = rollout.inputs["prompt_length"].tolist().index(1)
    assert rollout.inputs["completion_ids"][first, 0, :3].tolist() == [*policy.encode("bb"), 0]
    assert rollout.inputs["completion_length"][first].tolist() == [3, 2]
    rows = [Labeled(prompt="a", completion="b", label=True), Labeled(prompt="bc", completion="d", label=False)]
    rollout = labeled(policy, rows, batch_size=2)(policy)
    score = rollout.reward.sum(-1)[:, 0].tolist()
    assert dict(zip(rollout.inputs["prompt_length"].tolist(), score, strict=True)) == {1: 1.0, 2: -1.0}


def test_the_reference_of_recorded_texts_is_asked_once_per_unit(monkeypatch):
    policy, reference = policy_for(), policy_for(seed=1).frozen()
    rows = [("ab", "cdefg"), ("c", "d"), ("dd", "ef"), ("a", "b")]
    collect = demonstrations(policy, rows, batch_size=2, reference=reference)
    asked, real = [], type(reference).evaluate
    monkeypatch.setattr(type(reference), "evaluate", lambda self, **inputs: asked.append(len(inputs["prompt_ids"])) or real(self, **inputs))
    for _ in range(6):
        rollout = collect(policy)
        expected = real(reference, **rollout.inputs).log_prob
        torch.testing.assert_close(rollout.reference_log_prob, expected, rtol=0, atol=1e-5)
    assert sum(asked) == 4


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ([], {}, "data: expected at least one row, found none"),
        ([("a", "b")], {"batch_size": 0}, "batch_size: expected an integer ≥ 1, found 0"),
        ([("a", "b"), ("", "b")], {}, "data[1]: its prompt has no token"),
        ([("a", "b" * 70)], {}, "data[0]: its 72 tokens exceed the model's context of 64; shorten it"),
    ],
)
def test_recorded_texts_that_cannot_be_used_are_refused(rows, options, message):
    with pytest.raises(UsageError) as caught:
        demonstrations(policy_for(), rows, **options)
    assert str(caught.value) == message


def test_padded_rows():
    ids, length = padded([[1, 2, 3], [], [4]])
    assert ids.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]] and length.tolist() == [3, 0, 1]


# every method moves in the right direction


def greedy_share(policy, seed=123):
    """How often a completion of a fresh sample has an a in it."""
    made = EmbeddedEngine(policy).generate([policy.encode(p) for p in PROMPTS], group_size=40, max_tokens=4, seed=seed)
    rows = zip(made.completion_ids.flatten(0, 1).tolist(), made.length.flatten().tolist(), strict=True)
    found = [float("a" in policy.decode(ids[:n])) for ids, n in rows]
    return sum(found) / len(found)


STEP = Ascent(learning_rate=5e-3, max_grad_norm=1.0)
ONLINE = {
    "grpo": GRPO(update=STEP),
    "grpo, kl": GRPO(update=STEP, kl_coef=0.02),
    "rloo": RLOO(update=STEP),
    "rloo, two epochs": RLOO(update=replace(STEP, num_epochs=2)),
    "reinforce": REINFORCE(gamma=1.0, baseline=False, update=STEP),
    "reinforce, critic": REINFORCE(gamma=1.0, update=STEP),
    "ppo": PPO(gamma=1.0, update=replace(STEP, num_epochs=3, num_minibatches=2), reference_kl_coef=0.01),
}


@pytest.mark.parametrize("name", ONLINE)
def test_methods_that_sample_learn_to_say_a_letter(name):
    policy = policy_for(value_head="critic" in name or name == "ppo")
    reference = policy.frozen() if name in ("grpo, kl", "ppo") else None
    before = greedy_share(policy)
    collect = collector(has_a, group_size=8, num_prompts=5, max_tokens=4, reference=reference)
    first = []
    state = train(ONLINE[name], policy, collect, iterations=8, callbacks=lambda s: first.append(s.metrics.get("value_error")) and None)
    after = greedy_share(policy)
    assert before < 0.5 and after > before + 0.3, (before, after)
    assert state.metrics["reward"] > before + 0.2
    if name == "ppo":
        assert state.metrics["reference_kl"] > 0 and state.metrics["value_error"] < first[0]


def test_in_bfloat16_too():
    policy = in_bfloat16()
    before = greedy_share(policy)
    train(GRPO(update=replace(STEP, num_epochs=2)), policy, collector(has_a, group_size=8, num_prompts=5, max_tokens=4), iterations=6)
    assert greedy_share(policy) > before + 0.3


CHOSEN, REJECTED = ["ab", "ba", "aa", "ea"], ["cd", "fe", "hh", "gb"]


def preferred(policy):
    """Σ log π(chosen) − log π(rejected), mean over pairs."""
    pairs = [Pair(prompt=p, chosen=c, rejected=r) for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=False)]
    rollout = preference_pairs(policy, pairs)(policy)
    with torch.no_grad():
        log_prob = policy.evaluate(**rollout.inputs).log_prob.sum(-1)
    return (log_prob[:, 0] - log_prob[:, 1]).mean().item(), log_prob[:, 0].mean().item(), log_prob[:, 1].mean().item()


def test_dpo_prefers_what_was_chosen():
    policy = policy_for()
    reference = policy.frozen()
    pairs = [Pair(prompt=p, chosen=c, rejected=r) for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=False)]
    before, shown = preferred(policy), []
    collect = preference_pairs(policy, pairs, batch_size=3, reference=reference)
    note = lambda state: shown.append((state.metrics["margin"], state.metrics["objective"])) and None  # noqa: E731
    state = train(DPO(update=STEP), policy, collect, iterations=8, callbacks=note)
    assert shown[0][0] == 0.0 and shown[0][1] == pytest.approx(-0.6931472)  # the policy is its reference
    assert preferred(policy)[0] > before[0] + 1 and state.metrics["accuracy"] == 1.0 and state.metrics["margin"] > 0


def test_kto_raises_what_is_wanted_and_lowers_what_is_not():
    policy = policy_for()
    rows = [Labeled(prompt=p, completion=c, label=True) for p, c in zip(PROMPTS, CHOSEN, strict=False)]
    rows += [Labeled(prompt=p, completion=c, label=False) for p, c in zip(PROMPTS, REJECTED, strict=False)]
    before = preferred(policy)
    train(KTO(update=STEP), policy, labeled(policy, rows, batch_size=8, reference=policy.frozen()), iterations=8)
    after = preferred(policy)
    assert after[1] > before[1] and after[2] < before[2]


def test_sft_imitates():
    policy = policy_for()
    examples = list(zip(PROMPTS, CHOSEN, strict=False))
    state = train(SFT(update=replace(STEP, learning_rate=1e-2)), policy, demonstrations(policy, examples, batch_size=4), iterations=40)
    assert state.metrics["log_prob"] > -0.3
    made = EmbeddedEngine(policy).generate([policy.encode(p) for p, _ in examples], group_size=1, max_tokens=6, greedy=True)
    assert [policy.decode(ids[0]) for ids in made.completion_ids.tolist()] == CHOSEN and made.finished.all()


def test_a_reward_model_learns_the_pairs_and_scores_completions():
    policy = policy_for(value_head=True)
    pairs = [Pair(prompt=p, chosen=c, rejected=r) for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=False)]
    state = train(RewardModeling(update=STEP), policy, preference_pairs(policy, pairs, batch_size=4), iterations=12)
    assert state.metrics["accuracy"] == 1.0 and state.metrics["margin"] > 0
    reward = score_with(policy.frozen(), size=3)
    good, bad = (reward(prompts=PROMPTS[:4], completions=texts) for texts in (CHOSEN, REJECTED))
    assert all(g > b for g, b in zip(good, bad, strict=True))
    alone = [reward(prompts=[p], completions=[c])[0] for p, c in zip(PROMPTS, CHOSEN, strict=False)]
    assert alone == pytest.approx(good, abs=1e-5)
    with pytest.raises(UsageError, match="no value head, so it is no reward model"):
        score_with(policy_for())


def test_a_trained_reward_model_trains_a_policy():
    judge, policy = policy_for(value_head=True), policy_for(seed=1)
    pairs = [Pair(prompt=p, chosen=c, rejected=r) for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=False)]
    train(RewardModeling(update=STEP), judge, preference_pairs(judge, pairs, batch_size=4), iterations=12)
    reward = score_with(judge)
    state = train(GRPO(update=STEP), policy, collector(reward), iterations=6)
    first = collector(reward)(policy_for(seed=1)).metrics["reward"]
    assert state.metrics["reward"] > first


# evaluation


def test_evaluation_on_problems_that_were_held_out():
    policy = policy_for()
    examples = list(zip(PROMPTS, CHOSEN, strict=False))
    train(SFT(update=replace(STEP, learning_rate=1e-2)), policy, demonstrations(policy, examples, batch_size=4), iterations=40)

    def right(*, completions, answer):
        return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]

    problems = [Problem(prompt=p, columns={"answer": c}) for p, c in examples]
    problems[3] = Problem(prompt=PROMPTS[3], columns={"answer": "nothing"})
    task = Task(name="letters", train=problems, held_out=problems, columns=("answer",), reward=right, correct=right, max_tokens=6)
    found = evaluate(policy, task)
    assert found.accuracy == found.reward_mean == 0.75 and found.episodes == 4 and found.format_rate is None and found.length_mean == 3.0
    low, high = found.accuracy_interval
    assert 0 <= low <= 0.75 <= high <= 1
    assert evaluate(policy, task, episodes=2).accuracy == 1.0
    with pytest.raises(UsageError, match="holds no problem out"):
        evaluate(policy, replace(task, held_out=[]))
    with pytest.raises(UsageError, match="episodes: expected an integer ≥ 1, found 0"):
        evaluate(policy, task, episodes=0)


def test_a_copy_is_a_policy_of_its_own():
    policy = policy_for()
    other = twin(policy)
    train(GRPO(update=STEP), other, collector(), iterations=1)
    assert any(not torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))


def test_all_prompts_at_once_are_each_prompt_by_itself(monkeypatch):
    policy = policy_of("llama")
    monkeypatch.setattr(policy.tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    chat = [{"role": "user", "content": policy.decode([5, 6])}]
    prompts = [policy.decode([7, 8, 9]), chat, "", policy.decode([10])]
    assert policy.encode_all(prompts) == [policy.encode(prompt) for prompt in prompts]
    assert policy.encode_all([]) == [] and policy.encode_all([chat]) == [policy.encode(chat)]


def test_rows_are_padded_with_zeros_behind_them():
    ids, length = padded([[1, 2], [3], []])
    assert ids.tolist() == [[1, 2], [3, 0], [0, 0]] and length.tolist() == [2, 1, 0] and ids.dtype == length.dtype == torch.long
    assert padded([[]])[0].shape == (1, 1)


def test_a_reward_sees_the_columns_that_every_problem_has():
    seen = []

    def note(*, completions, **columns):
        seen.append(sorted(columns))
        return [float(i) for i in range(len(completions))]

    problems = [Problem(prompt="ab", columns={"answer": "1", "kind": "x"}), Problem(prompt="ba", columns={"kind": "y"})]
    Completions(problems, note, group_size=2, max_tokens=2, num_prompts=2)(policy_of("llama"))
    assert seen == [["completion_ids", "finish_reason", "kind", "prompts", "trainer_state"]]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("12+34=", {}, "prompts: expected a list of prompts, found one text"),
        (["a"], {"group_size": 2.5}, "group_size: expected an integer ≥ 1, found 2.5"),
        (["a"], {"reward": "short"}, "reward: expected a function or several, found the text 'short'"),
        (["a"], {"reward": dict}, "reward dict: it is a class; give an instance of it"),
    ],
)
def test_what_is_no_prompt_or_reward_is_named(prompts, options, message):
    with pytest.raises(UsageError) as caught:
        Completions(prompts, options.pop("reward", lambda *, completions: [1.0] * len(completions)), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "prompt", [1, {"prompt": "1+1="}, [], ["a"], [{"role": "user"}], "\ud800 1+1=", [{"role": "user", "content": "\ud800"}]]
)
def test_what_is_neither_text_nor_messages_is_no_prompt(prompt, monkeypatch):
    policy = policy_of("llama")
    monkeypatch.setattr(policy.tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UsageError, match=r"^prompt: (expected a text or a list of messages|character 1 is a lone surrogate)"):
        policy.encode(prompt)


def test_examples_are_tuples_mappings_or_records(monkeypatch):
    policy = policy_of("llama")
    monkeypatch.setattr(policy.tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}=")
    said = [{"role": "assistant", "content": "b"}]
    expected = demonstrations(policy, [("a", "b")])
    for example in ({"prompt": "a", "completion": "b", "more": 1}, ["a", "b"], ("a", said)):
        found = demonstrations(policy, [example])
        assert (found.prompts, found.completions) == (expected.prompts, expected.completions)
    pair = {"prompt": "a", "chosen": said, "rejected": "c"}
    assert (
        preference_pairs(policy, [pair]).completions == preference_pairs(policy, [Pair(prompt="a", chosen="b", rejected="c")]).completions
    )
    for label in (False, np.bool_(False), torch.tensor(False)):
        assert labeled(policy, [{"prompt": "a", "completion": "b", "label": label}]).scores == [[-1.0]]


@pytest.mark.parametrize(
    ("make", "example", "message"),
    [
        (demonstrations, {"prompt": "a"}, "data[0]: completion is missing, found prompt"),
        (demonstrations, ("a", "b", "c"), "data[0]: expected (prompt, completion), found 3 entries"),
        (demonstrations, "ab", "data[0]: expected prompt, completion, found str 'ab'"),
        (demonstrations, ("a", 2), "data[0]: expected a completion as a string or as one assistant message, found int 2"),
        (
            demonstrations,
            ("a", [{"role": "user", "content": "b"}]),
            "data[0]: expected a completion as a string or as one assistant message",
        ),
        (demonstrations, ("a", " \n"), "data[0]: its completion is empty"),
        (labeled, ("a", "", True), "data[0]: its completion is empty"),
        (preference_pairs, ("a", "", "b"), "data[0]: its completion is empty"),
        (preference_pairs, ("a", "b", "b"), "data[0]: chosen and rejected are the same tokens"),
        *((labeled, ("a", "b", label), f"data[0]: label is True or False, found {label!r}") for label in ("false", -1, 1, "0", None)),
        (labeled, ("a", "b", float("nan")), "data[0]: label is True or False, found nan"),
        (preference_pairs, {"chosen": "b", "rejected": "c"}, "data[0]: prompt is missing, found chosen, rejected"),
    ],
)
def test_examples_of_another_form_are_refused(make, example, message):
    with pytest.raises(UsageError) as caught:
        make(policy_of("llama"), [example])
    assert str(caught.value).startswith(message)


def test_sizes_may_be_numpys():
    sizes = {name: np.int64(2) for name in ("group_size", "max_tokens", "num_prompts")}
    rollout = Completions(PROMPTS, lambda *, completions: [float(i) for i in range(len(completions))], **sizes)(policy_of("llama"))
    assert rollout.mask.shape[:2] == (2, 2)


def test_what_one_reward_does_to_its_lists_the_next_does_not_see():
    def careless(*, prompts, completions):
        count = len(completions)
        prompts.clear()
        completions.clear()
        return [0.0] * count

    found = Rewards.of(careless, lambda *, completions: [float(len(c)) for c in completions])(prompts=["p", "q"], completions=["a", "bb"])
    assert found.scores == [1.0, 2.0]


@pytest.mark.parametrize("no_timeout", [True, False])
def test_what_a_reward_does_to_messages_and_entries_of_columns_stays_with_it(no_timeout):
    def careless(*, prompts, completions, about):
        for prompt, completion, entry in zip(prompts, completions, about, strict=True):
            prompt.extend(completion)
            completion[0]["content"] += "!"
            entry["seen"].append(len(prompt))
        return [1.0 * len(entry["seen"]) for entry in about]

    careless.no_timeout = no_timeout
    policy = policy_for()
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}h{% endif %}"
    prompt, about = [{"role": "user", "content": "ab"}], {"seen": []}
    collect = collector([careless, careless], [Problem(prompt=prompt, columns={"about": about})], num_prompts=1)
    assert [collect(policy).inputs["prompt_length"].tolist() for _ in range(2)] == [[3], [3]]
    assert prompt == [{"role": "user", "content": "ab"}] and about == {"seen": []}
    assert all(sample["rewards"] == {"careless": 1.0, "careless#2": 1.0} for sample in collect.samples)
    assert not any(sample["completion"].endswith("!") for sample in collect.samples)


def test_the_interval_of_a_share_is_wilsons():
    low, high = wilson([0.0] * 4)
    assert low == 0.0 and high == pytest.approx(0.4899, abs=1e-4)
    assert wilson([1.0, 0.0] * 50) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson([1.0] * 10)
    assert low == pytest.approx(0.7225, abs=1e-4) and high == pytest.approx(1.0)


def test_a_policy_is_not_saved_onto_a_file(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UsageError, match="taken is a file; name another place"):
        policy_of("llama").save_pretrained(tmp_path / "taken")
