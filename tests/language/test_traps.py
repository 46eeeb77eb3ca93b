"""The known traps of training a language model, each with a test that fails where it is sprung."""

import hashlib
import itertools

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models

from tests.language.models import (
    GPT2,
    SIZES,
    TOKENIZER,
    VOCABULARY,
    assert_same_gradients,
    gradients,
    model_of,
    plain,
    policy_of,
    small,
    texts,
)
from upslope import GRPO, Ascent, train
from upslope import functional as F
from upslope.language import Completions, EmbeddedEngine, LanguagePolicy
from upslope.language.collect import Generated, padded, recorded
from upslope.records import Batch


def scored_by(policy, prompts, completions):
    """Log-probabilities of one group per prompt, from lists of ids."""
    prompt_ids, prompt_length = padded(prompts)
    ids, length = padded([row for group in completions for row in group])
    shape = (len(prompts), len(completions[0]))
    return policy.evaluate(
        prompt_ids=prompt_ids, prompt_length=prompt_length, completion_ids=ids.view(*shape, -1), completion_length=length.view(shape)
    )


def count_a(*, completions):
    return [float(text.count("a")) for text in completions]


def group_batch(inputs, policy, seed=0, **options):
    """A batch of groups with random scores at the last tokens."""
    mask = torch.arange(inputs["completion_ids"].shape[-1]) < inputs["completion_length"][..., None]
    score = torch.randn(mask.shape[:2], generator=torch.Generator().manual_seed(seed))
    prompts = [ids[:n].tolist() for ids, n in zip(inputs["prompt_ids"], inputs["prompt_length"].tolist(), strict=True)]
    finished = torch.ones_like(score, dtype=torch.bool)
    ids, length = inputs["completion_ids"], inputs["completion_length"]
    made = Generated(completion_ids=ids, log_prob=torch.zeros(mask.shape), length=length, finished=finished)
    rollout = recorded(prompts, made, score, mask.any(-1, keepdim=True), max_steps=mask.shape[-1])
    return GRPO(**options).estimate(policy, rollout)


# token shift


def counting_model():
    """Its logits depend on the position only, and at position p they say token p."""
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**{**GPT2, "n_positions": 32}, tie_word_embeddings=False))
    with torch.no_grad():
        for p in model.transformer.h.parameters():
            p.zero_()
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(32))
        model.lm_head.weight.zero_()
        model.lm_head.weight[torch.arange(32), torch.arange(32)] = 10.0
    return model


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_token_is_scored_at_the_position_before_it(length):
    policy = LanguagePolicy(counting_model(), TOKENIZER, compute_dtype=torch.float32)
    policy.stop_ids = frozenset({-1})
    prompt, right = [40] * length, [length - 1 + t for t in range(4)]
    shifted = [[i + 1 for i in right], [max(i - 1, 0) for i in right] if length > 1 else [9] * 4]
    found = scored_by(policy, [prompt], [[right, *shifted]]).log_prob[0]
    assert (found[0] > -1e-3).all() and (found[1:] < -10).all()
    made = EmbeddedEngine(policy).generate([prompt], group_size=1, max_tokens=4, greedy=True)
    assert made.completion_ids.tolist() == [[right]]
    torch.testing.assert_close(made.log_prob[0, 0], found[0], rtol=0, atol=1e-6)


def sentences(vocabulary, longest, end=0):
    """Every completion of at most ``longest`` tokens: closed by an end token, or cut."""
    inner = [i for i in range(vocabulary) if i != end]
    closed = [[*words, end] for n in range(longest) for words in itertools.product(inner, repeat=n)]
    return closed + [list(words) for words in itertools.product(inner, repeat=longest)]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("prompts", [[[2, 3, 2], [3]], [[2]]])
def test_probabilities_of_all_completions_add_up_to_one(prompts, temperature):
    policy = small("ab", noise=0.3, temperature=temperature)
    every = sentences(4, 3)
    assert len(every) == 1 + 3 + 9 + 27
    found = scored_by(policy, prompts, [every] * len(prompts))
    total = found.log_prob.double().sum(-1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(len(prompts), dtype=torch.float64), rtol=0, atol=1e-5)
    # and the expected score is 0: Σ π ∇log π
    for gradient in gradients(policy.model, found.log_prob.sum(-1).exp().sum()).values():
        assert gradient.abs().max() < 1e-5


# padding


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3, window of 3"])
def test_what_stands_in_the_padding_changes_no_bit(family):
    policy, kept = policy_of(family), {}
    inputs = texts([1, 5, 3], [[4, 1, 3], [6, 2, 5], [1, 1, 3]])
    behavior = policy.evaluate(**inputs).log_prob.detach() + 0.05
    for seed in range(4):
        generator = torch.Generator().manual_seed(100 + seed)
        p, t = torch.arange(inputs["prompt_ids"].shape[-1]), torch.arange(inputs["completion_ids"].shape[-1])
        prompt_real, real = p < inputs["prompt_length"][:, None], t < inputs["completion_length"][..., None]
        noise = [torch.randint(VOCABULARY, x.shape, generator=generator) for x in (prompt_real, real)]
        other = {
            **inputs,
            "prompt_ids": inputs["prompt_ids"].where(prompt_real, noise[0] if seed else 0),
            "completion_ids": inputs["completion_ids"].where(real, noise[1] if seed else 0),
        }
        junk = torch.randn(real.shape, generator=generator)  # masked entries of every other tensor are never looked at either
        batch = group_batch(inputs, policy, entropy_coef=0.1)
        batch = Batch(
            inputs=other,
            behavior_log_prob=behavior.where(real, junk),
            mask=real,
            weight=batch.weight,
            unit="group",
            advantage=batch.advantage.where(real, junk),
        )
        objective, _ = GRPO(entropy_coef=0.1).objective(policy, batch.by_unit())
        found = {"objective": objective.detach(), **gradients(policy.model, objective)}
        assert not kept or all(torch.equal(found[name], kept[name]) for name in kept), seed
        kept = found
    assert max(g.norm() for g in kept.values()) > 0


def test_wider_padding_changes_no_bit_either():
    policy, inputs = policy_of("llama"), texts([1, 5], [[4, 1], [2, 3]])
    wide = {**inputs, "prompt_ids": torch.nn.functional.pad(inputs["prompt_ids"], (0, 3), value=9)}
    wide["completion_ids"] = torch.nn.functional.pad(inputs["completion_ids"], (0, 2), value=9)
    found, expected = policy.evaluate(**wide), policy.evaluate(**inputs)
    assert found.log_prob.shape == (2, 2, 6) and torch.equal(found.log_prob[..., :4], expected.log_prob)
    assert not found.log_prob[..., 4:].any() and not found.entropy[..., 4:].any()


def test_the_first_end_counts_and_what_follows_does_not():
    """The end token is the padding token: nothing may tell them apart but the length."""
    policy = small("ab", noise=0.3)
    policy.stop_ids = frozenset({0})
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id == 0
    rollout = Completions(["ab", "b"], count_a, group_size=40, max_tokens=6, num_prompts=2)(policy)
    ids, length, mask = rollout.inputs["completion_ids"], rollout.inputs["completion_length"], rollout.mask
    ended = rollout.terminated.any(-1)
    assert ended.any() and not ended.all() and len(set(length.flatten().tolist())) > 3
    first = torch.where((ids == 0).any(-1), (ids == 0).to(torch.int8).argmax(-1) + 1, 6)
    assert torch.equal(length, first) and torch.equal(mask.sum(-1), length)  # the end itself is a step
    assert (ids.gather(-1, length[..., None] - 1).squeeze(-1)[ended] == 0).all()
    assert (ids.gather(-1, length[..., None] - 1).squeeze(-1)[~ended] != 0).all()
    # the end is learned: with a score for short completions its log-probability has gradient
    log_prob = policy.evaluate(**rollout.inputs).log_prob
    assert (log_prob[rollout.terminated] < 0).all() and not log_prob[~mask].any()


def test_an_end_inside_a_prompt_is_a_token_like_any_other():
    policy = policy_of("llama")
    inputs = texts([4, 2], [[3, 2], [1, 3]])
    inputs["prompt_ids"][0, 1] = inputs["prompt_ids"][1, 1] = 0
    log_prob, _ = plain(policy.model, inputs)
    torch.testing.assert_close(policy.evaluate(**inputs).log_prob, log_prob, rtol=0, atol=1e-5)


def test_the_end_token_keeps_the_gradient_of_its_embedding():
    model = model_of("llama")
    assert model.model.embed_tokens.padding_idx == 0  # what Transformers makes of pad_token_id
    policy = LanguagePolicy(model, TOKENIZER, compute_dtype=torch.float32)
    inputs = texts([4], [[3, 2]])
    inputs["prompt_ids"][0, 1] = 0
    found = gradients(policy.model, policy.evaluate(**inputs).log_prob.sum())["model.embed_tokens.weight"][0]
    assert found.abs().sum() > 0
    # against a difference quotient, which no padding_idx touches
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            model.model.embed_tokens.weight[0] += sign * 2e-3 * direction
            values.append(policy.evaluate(**inputs).log_prob.double().sum())
            model.model.embed_tokens.weight[0] -= sign * 2e-3 * direction
    slope = (values[0] - values[1]) / 4e-3
    torch.testing.assert_close((found.double() * direction).sum(), slope, rtol=1e-2, atol=1e-3)  # float32 differences


def test_an_empty_completion_is_no_step():
    policy, inputs = policy_of("llama"), texts([3, 2], [[4, 0, 2], [0, 2, 1]])
    batch = group_batch(inputs, policy)
    assert batch.mask.sum(-1).tolist() == [[4, 0, 2], [0, 2, 1]]
    objective, metrics = GRPO(entropy_coef=0.1).objective(policy, batch.by_unit())
    assert objective.isfinite() and all(v.isfinite().all() for v in metrics.values())
    assert all(g.isfinite().all() for g in gradients(policy.model, objective).values())


# position ids


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3, window of 3"])
def test_a_prompt_says_the_same_whatever_pads_it(family):
    policy, prompt, completion = policy_of(family), [5, 6, 7], [8, 9, 10, 11]
    alone = scored_by(policy, [prompt], [[completion]]).log_prob[0, 0]
    for padding in range(6):
        beside = scored_by(policy, [prompt, [12] * (3 + padding)], [[completion], [completion]]).log_prob[0, 0]
        torch.testing.assert_close(beside, alone, rtol=1e-6, atol=2e-6)  # float32
        sampled = EmbeddedEngine(policy).generate([prompt, [12] * (3 + padding)], group_size=1, max_tokens=4, greedy=True)
        text = torch.tensor([prompt + sampled.completion_ids[0, 0].tolist()])
        own = policy.model(input_ids=text).logits[0, 2:-1].log_softmax(-1).amax(-1)
        torch.testing.assert_close(sampled.log_prob[0, 0], own, rtol=0, atol=1e-5)


def test_left_padding_without_positions_would_be_seen():
    """The trap itself: a padded row of a plain model, positions counted from the padding, is far off."""
    model = model_of("gpt2")
    text, mask = torch.tensor([[0] * 5 + [5, 6, 7, 8]]), torch.tensor([[0] * 5 + [1] * 4])
    naive = model(input_ids=text, attention_mask=mask, position_ids=torch.arange(9)[None]).logits[0, -1].log_softmax(-1)
    right = model(input_ids=text[:, 5:]).logits[0, -1].log_softmax(-1)
    assert (naive - right).abs().max() > 0.1


# temperature and dropout


def with_dropout(kind):
    if kind == "gpt2":
        return tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, attention_dropout=0.5))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_sampler_and_scorer_have_one_temperature_and_no_dropout(kind, temperature):
    policy = LanguagePolicy(with_dropout(kind).train(), TOKENIZER, temperature=temperature, compute_dtype=torch.float32)
    assert not any(m.training for m in policy.model.modules())
    policy.train()  # whoever calls this: dropout stays off
    rollout = Completions(["ab", "c", "hello"], count_a, group_size=4, max_tokens=6, num_prompts=3)(policy)
    found = policy.evaluate(**rollout.inputs)
    log_ratio = (found.log_prob - rollout.behavior_log_prob).detach()
    assert log_ratio.abs().max() < 1e-5 and torch.equal(policy.evaluate(**rollout.inputs).log_prob, found.log_prob)
    log_prob, entropy = plain(policy.model, rollout.inputs, temperature)
    torch.testing.assert_close(found.log_prob, log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1e-5)
    other, _ = plain(policy.model, rollout.inputs, temperature + 0.3)
    assert (other - log_prob).abs().max() > 0.01  # so a temperature left out would be seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_of_the_first_step_is_one(dtype):
    policy = LanguagePolicy(with_dropout("gpt2"), TOKENIZER, temperature=0.7, compute_dtype=dtype)
    collect = Completions(["ab", "c"], length_of, group_size=6, max_tokens=6, num_prompts=2)
    seen = []

    def spy(log_prob, behavior_log_prob, advantage, mask, clip_range, **options):
        seen.append((log_prob - behavior_log_prob)[mask].detach().abs().max().item())
        return F.clipped_surrogate(log_prob, behavior_log_prob, advantage, mask, clip_range, **options)

    train(GRPO(surrogate=spy, update=Ascent(learning_rate=1e-3)), policy, collect, iterations=3)
    assert len(seen) == 3
    assert max(seen) == 0.0 if dtype == torch.bfloat16 else max(seen) < 1e-5


def length_of(*, completions):
    return [float(len(text) % 5 + text.count("a")) for text in completions]


# re-tokenization


def merging_tokenizer():
    words = {"<eos>": 0, "a": 1, "b": 2, "ab": 3}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")], fuse_unk=False))
    tokenizer.decoder = decoders.Fuse()
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def test_what_is_trained_is_what_was_sampled():
    policy = LanguagePolicy(
        tf.LlamaForCausalLM(tf.LlamaConfig(**{**SIZES, "vocab_size": 4})), merging_tokenizer(), compute_dtype=torch.float32
    )
    assert policy.encode(policy.decode([1, 2])) == [3]  # the trap
    sampled, told = [], []
    engine = EmbeddedEngine(policy)
    generate = engine.generate
    engine.generate = lambda *args, **options: sampled.append(generate(*args, **options)) or sampled[-1]

    def reward(*, completions):
        told.extend(completions)
        return [float(len(text)) for text in completions]

    rollout = Completions(["ab", "ba"], reward, group_size=16, max_tokens=6, num_prompts=2, engine=engine)(policy)
    (made,) = sampled
    assert torch.equal(rollout.inputs["completion_ids"], made.completion_ids)
    assert torch.equal(rollout.inputs["completion_length"], made.length)
    assert torch.equal(rollout.behavior_log_prob, made.log_prob)
    rows = [ids[:n] for ids, n in zip(made.completion_ids.flatten(0, 1).tolist(), made.length.flatten().tolist(), strict=True)]
    assert [policy.decode(row) for row in rows] == told
    changed = sum(policy.encode(text) != [i for i in row if i] for row, text in zip(rows, told, strict=True))
    assert changed > 5  # many would not have come back as they were
    batch = GRPO().estimate(policy, rollout)
    assert torch.equal(batch.inputs["completion_ids"], made.completion_ids)


# the reference


def fingerprint(module):
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.to(torch.float32).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "llama tied, one key for all heads"])
def test_the_reference_stays_and_the_first_kl_is_zero(family, dtype):
    policy = policy_of(family, compute_dtype=dtype)
    reference = policy.frozen()
    before, start = fingerprint(reference), fingerprint(policy)
    collect = Completions(["ab", "c", "hello"], length_of, group_size=5, max_tokens=6, num_prompts=3, reference=reference)
    kl = []
    algorithm = GRPO(kl_coef=0.1, update=Ascent(learning_rate=1e-2))
    train(algorithm, policy, collect, iterations=3, callbacks=lambda state: kl.append(state.metrics["kl"]) and None)
    assert kl[0] == 0.0 and kl[1] > 0 and kl[2] > 0
    assert fingerprint(reference) == before and fingerprint(policy) != start
    assert not any(p.requires_grad for p in reference.parameters())


# accumulation


def test_micro_batches_weigh_by_tokens_not_by_their_number():
    policy = policy_of("llama")
    inputs = texts([2, 2, 2, 2], [[1, 1], [12, 12], [1, 2], [9, 10]], seed=3)
    batch = group_batch(inputs, policy, average_over="steps").by_unit()
    algorithm = GRPO(average_over="steps", update=Ascent(micro_batch_size=1))
    state = algorithm.update.start(policy, seed=0)
    batch = Batch(**{**vars(batch), "behavior_log_prob": policy.evaluate(**batch.inputs).log_prob.detach()})
    whole = [-g for g in gradient_of(policy, batch)]
    parts, _ = algorithm.update.accumulate(algorithm, policy, batch, state, first=True)
    difference, norm = (sum(x.square().sum() for x in xs).sqrt() for xs in ([a - b for a, b in zip(parts, whole, strict=True)], whole))
    assert difference < 1e-5 * norm
    # the mean of each micro-batch's own mean, which is what the trap does
    naive = [torch.zeros_like(g) for g in whole]
    for i in range(4):
        piece = batch.select(torch.tensor([i]))
        own = Batch(**{**vars(piece), "weight": piece.mask / piece.mask.sum()})
        naive = [a - g / 4 for a, g in zip(naive, gradient_of(policy, own), strict=True)]
    assert sum((a - b).square().sum() for a, b in zip(naive, whole, strict=True)).sqrt() > 0.1 * norm


def gradient_of(policy, batch):
    objective, _ = GRPO(average_over="steps").objective(policy, batch)
    return torch.cat([g.flatten() for g in gradients(policy.model, objective).values()])[None]


# length bias


@pytest.mark.parametrize(
    "average_over, short, long",
    [("sequences", 1 / 4, 1 / 16), ("steps", 1 / 10, 1 / 10), ("constant", 1 / 16, 1 / 16)],
)
def test_what_a_token_of_a_short_and_of_a_long_completion_weighs(average_over, short, long):
    """Lengths 2 and 8 of at most 8, equal |A|: the share of each token, and with it of each completion."""
    policy, inputs = policy_of("llama"), texts([3], [[2, 8]])
    batch = group_batch(inputs, policy, average_over=average_over)
    assert batch.advantage[0, 0, 0] == -batch.advantage[0, 1, 0] != 0
    expected = torch.zeros(1, 2, 8)
    expected[0, 0, :2], expected[0, 1] = short, long
    torch.testing.assert_close(batch.weight, expected, rtol=0, atol=1e-7)


# one token


def test_a_group_of_one_token_completions_by_hand():
    """∇ of the last layer's bias is Σ_i A_i (e_yi − p) / (G T): softmax regression."""
    policy = policy_of("phi, biased head", temperature=0.8)
    inputs = texts([3], [[1, 1, 1, 1]])
    batch = group_batch(inputs, policy)
    batch = Batch(**{**vars(batch), "behavior_log_prob": policy.evaluate(**inputs).log_prob.detach()}).by_unit()
    assert batch.mask.shape == (1, 4, 1)
    objective, metrics = GRPO().objective(policy, batch)
    assert metrics["approx_kl"] == 0 and metrics["clip_fraction"] == 0
    (found,) = torch.autograd.grad(objective, policy.model.lm_head.bias)
    p = (policy.model(input_ids=inputs["prompt_ids"]).logits[0, -1] / 0.8).softmax(-1)
    score = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    advantage = (score - score.mean()) / (score.std() + 1e-6)
    chosen = torch.nn.functional.one_hot(inputs["completion_ids"][0, :, 0], VOCABULARY)
    expected = (advantage[0, :, None] * (chosen - p)).mean(0) / 0.8
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


def test_a_group_of_equal_scores_teaches_nothing_and_is_counted():
    policy = small("ab", noise=0.2)
    before = fingerprint(policy)
    collect = Completions(["a"], lambda *, completions: [1.0] * len(completions), group_size=4, max_tokens=3, num_prompts=1)
    state = train(GRPO(update=Ascent(learning_rate=1.0)), policy, collect, iterations=2)
    assert state.metrics["dead_groups"] == 1.0 and state.metrics["groups_with_spread"] == 0.0
    assert fingerprint(policy) == before


def test_equal_gradients_are_told_from_unequal_ones():
    """The measure that these tests rely on."""
    one = {"a": torch.ones(3), "b": torch.full((2,), 1e-3)}
    assert_same_gradients(one, one)
    with pytest.raises(AssertionError):
        assert_same_gradients({**one, "a": torch.ones(3) * 1.001}, one)
