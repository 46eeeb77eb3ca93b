"""The packed pass, in which a group shares its prompt, against one plain Transformers call for each row; and the last layer."""

import json

import pytest
import torch
import transformers as tf

from tests.language.models import (
    FAMILIES,
    GPT2,
    SIZES,
    TOKENIZER,
    assert_same_gradients,
    gradients,
    model_of,
    plain,
    policy_of,
    rows,
    small,
    texts,
)
from upslope import GRPO, Ascent
from upslope.errors import UsageError
from upslope.language import LanguagePolicy, architecture, attention, head, reduced
from upslope.language.attention import Packed
from upslope.language.head import TokenLogProb
from upslope.language.reduced import small_settings
from upslope.records import Batch

SHAPES = {
    "ragged": ([1, 5, 3], [[4, 1, 0], [6, 2, 5], [1, 1, 3]]),
    "even": ([4, 4], [[3, 3], [3, 3]]),
    "one of one": ([1], [[1]]),
    "groups of one": ([2, 7], [[5], [1]]),
    "one-token completions": ([3, 1], [[1, 1, 1], [1, 1, 1]]),
    "one-token prompts": ([1, 1], [[4, 2], [1, 5]]),
    "an empty group": ([2, 3], [[0, 0], [3, 1]]),
}


def assert_equals_plain(policy, inputs, seed=0):
    """Log-probabilities, entropies and the gradients of a random combination of both."""
    found = policy.evaluate(**inputs)
    log_prob, entropy = plain(policy.model, inputs, policy.temperature)
    torch.testing.assert_close(found.log_prob, log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1e-5)
    weight = torch.randn(2, *log_prob.shape, generator=torch.Generator().manual_seed(seed))
    expected = gradients(policy.model, (weight * torch.stack([log_prob, entropy])).sum())
    assert_same_gradients(gradients(policy.model, (weight * torch.stack([found.log_prob, found.entropy])).sum()), expected, 1e-5)


# the pass


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_scored_as_plain_transformers_scores_it(family):
    assert_equals_plain(policy_of(family, temperature=0.7), texts(*SHAPES["ragged"]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["llama", "mistral, window of 3", "gpt2"])
def test_every_shape_is(family, shape):
    assert_equals_plain(policy_of(family), texts(*SHAPES[shape], seed=1))


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_are(seed):
    generator = torch.Generator().manual_seed(seed)
    prompts, group = 1 + seed % 3, 1 + seed % 4
    lengths = torch.randint(0, 9, (prompts, group), generator=generator)
    lengths[0, 0] = 3  # a batch with a gradient
    inputs = texts((1 + torch.randint(0, 12, (prompts,), generator=generator)).tolist(), lengths.tolist(), seed)
    assert_equals_plain(policy_of("gemma3, window of 3", seed=seed), inputs, seed)


def test_a_prompt_is_one_part_of_the_row_however_many_share_it():
    inputs = texts([5, 2], [[3, 3, 3, 1], [2, 1, 1, 1]])
    packed = Packed.of(**inputs)
    assert len(packed.ids) == 5 + 2 + (2 + 2 + 2 + 0) + (1 + 0 + 0 + 0)  # a last token predicts nothing
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 5, 6, 5, 6, 2]
    assert len(packed.predicts) == int(inputs["completion_length"].sum())
    assert len(Packed.of(**inputs, whole=True).ids) == 7 + 10 + 5


def test_a_batch_without_a_token_is_zeros():
    found = policy_of("llama").evaluate(**texts([3, 1], [[0, 0], [0, 0]]))
    assert found.log_prob.shape == (2, 2, 1) and not found.log_prob.any() and not found.entropy.any()


def test_the_model_keeps_its_own_attention():
    policy = policy_of("llama")
    ids = torch.arange(6)[None]
    before, name = policy.model(input_ids=ids).logits, policy.model.config._attn_implementation
    policy.evaluate(**texts(*SHAPES["ragged"]))
    assert policy.model.config._attn_implementation == name != attention.NAME
    assert torch.equal(policy.model(input_ids=ids).logits, before)
    with pytest.raises(RuntimeError), attention.borrowed(policy.model):
        raise RuntimeError
    assert policy.model.config._attn_implementation == name
    with attention.borrowed(policy.model), pytest.raises(UsageError, match="through the policy"):
        policy.model(input_ids=ids)


@pytest.mark.parametrize("family", ["llama", "gemma2, caps, window of 3"])
def test_attention_that_is_computed_again_has_the_same_gradients(family, monkeypatch):
    policy, inputs = policy_of(family), texts(*SHAPES["ragged"])
    weight = torch.randn(inputs["completion_ids"].shape, generator=torch.Generator().manual_seed(0))
    kept = gradients(policy.model, (weight * policy.evaluate(**inputs).log_prob).sum())
    calls, real = [], attention.checkpoint.checkpoint
    monkeypatch.setattr(attention, "RECOMPUTED_FROM", 0)
    monkeypatch.setattr(attention.checkpoint, "checkpoint", lambda *args, **options: calls.append(1) or real(*args, **options))
    again = gradients(policy.model, (weight * policy.evaluate(**inputs).log_prob).sum())
    assert len(calls) == 2  # one for each layer
    assert_same_gradients(again, kept, 1e-6)


# values


def with_value_head(family="llama"):
    policy = policy_of(family, value_head=True)
    with torch.no_grad():
        policy.body.value_head.weight += torch.randn(policy.body.value_head.weight.shape, generator=torch.Generator().manual_seed(5))
        policy.body.value_head.bias += 0.3
    return policy


def hidden_of(policy, ids):
    return policy.model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_is_that_of_the_text_before_the_token_and_a_score_that_of_the_whole(shape):
    policy, inputs = with_value_head(), texts(*SHAPES[shape])
    value, score = policy.evaluate(**inputs).value, policy.score(**inputs)
    assert value.shape == inputs["completion_ids"].shape and score.shape == inputs["completion_length"].shape
    head = policy.body.value_head
    for b, g, prompt, completion in rows(inputs):
        expected = head(hidden_of(policy, torch.cat([prompt, completion]))).squeeze(-1)
        rounding = 1e-5 * float(expected.detach().abs().max().clamp(min=3.0))  # of float32 sums of that size
        torch.testing.assert_close(score[b, g], expected[-1], rtol=0, atol=rounding)
        torch.testing.assert_close(value[b, g, : len(completion)], expected[len(prompt) - 1 : -1], rtol=0, atol=rounding)
        assert not value[b, g, len(completion) :].any()


def test_values_and_scores_carry_gradient():
    policy, inputs = with_value_head(), texts(*SHAPES["ragged"])
    for found in (policy.evaluate(**inputs).value, policy.score(**inputs)):
        expected = torch.stack([hidden_of(policy, torch.cat([p, c])).sum() for *_, p, c in rows(inputs)]).sum()
        assert expected.requires_grad
        assert torch.autograd.grad(found.sum(), policy.body.value_head.weight)[0].abs().sum() > 0
    expected = torch.stack([policy.body.value_head(hidden_of(policy, torch.cat([p, c])))[-1, 0] for *_, p, c in rows(inputs)]).sum()
    assert_same_gradients(gradients(policy.model, policy.score(**inputs).sum()), gradients(policy.model, expected), 1e-5)


def test_a_score_needs_a_value_head():
    assert policy_of("llama").evaluate(**texts(*SHAPES["even"])).value is None
    with pytest.raises(UsageError, match="value_head=True"):
        policy_of("llama").score(**texts(*SHAPES["even"]))


# micro-batches


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_micro_batches_of_unequal_token_counts_are_one_batch(size):
    policy = policy_of("llama")
    inputs = texts([1, 6, 3, 2, 4], [[1, 2], [9, 7], [1, 1], [4, 0], [2, 8]])
    mask = torch.arange(inputs["completion_ids"].shape[-1]) < inputs["completion_length"][..., None]
    advantage = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))[..., None].expand(mask.shape)
    behavior = policy.evaluate(**inputs).log_prob.detach()
    for average in ("steps", "sequences"):
        counts = mask.sum() if average == "steps" else mask.sum(-1, keepdim=True).clamp(min=1) * mask.any(-1).sum()
        batch = Batch(
            inputs=inputs, behavior_log_prob=behavior, mask=mask, weight=mask / counts, unit="group", advantage=advantage
        ).by_unit()
        found = {}
        for micro in (None, size):
            algorithm = GRPO(entropy_coef=0.1, update=Ascent(micro_batch_size=micro))
            state = algorithm.update.start(policy, seed=0)
            found[micro], metrics = algorithm.update.accumulate(algorithm, policy, batch, state, first=True)
            found[micro] = {str(i): g for i, g in enumerate(found[micro])}
            assert metrics["objective"].isfinite()
        assert_same_gradients(found[size], found[None], 1e-5)


# what is refused


def t5():
    sizes = {"vocab_size": SIZES["vocab_size"], "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return tf.T5ForConditionalGeneration(tf.T5Config(**sizes, decoder_start_token_id=0))


def bert():
    sizes = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "bos_token_id", "eos_token_id")}
    return tf.BertForMaskedLM(tf.BertConfig(**sizes))


def classifier():
    return tf.LlamaForSequenceClassification(tf.LlamaConfig(**SIZES))


@pytest.mark.parametrize("make", [t5, bert, classifier])
def test_other_architectures_are_refused_in_one_line(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError) as caught:
        LanguagePolicy(model, TOKENIZER)
    message = str(caught.value)
    assert message.startswith("model: ") and "\n" not in message and len(message) < 400, message


def test_attention_of_a_kind_that_is_not_shared_is_found_out(monkeypatch):
    real = attention.AttentionOptions.scores
    monkeypatch.setattr(attention.AttentionOptions, "scores", lambda self, q, k: real(self, q, k) + 0.1 * torch.arange(k.shape[-2]))
    for found in ({}, {(tf.LlamaForCausalLM, small_key("llama")): architecture.PACKED}):  # by a small copy, and by the model itself
        monkeypatch.setattr(architecture, "FOUND", found)
        because = policy_of("llama").attention.because
        assert because is not None and because.startswith("shared attention changes log-probabilities")
    assert "on a short text" in because


def small_key(family):
    return json.dumps(small_settings(model_of(family).config.to_dict()), default=str, sort_keys=True)


def test_a_window_that_has_no_name_is_found_where_texts_reach_it(monkeypatch):
    """As if the configuration called it something that the small copy does not know."""
    monkeypatch.setattr(architecture, "FOUND", {})
    monkeypatch.setattr(reduced, "SMALL", {k: v for k, v in reduced.SMALL.items() if k != "sliding_window"})
    monkeypatch.setattr(attention.AttentionOptions, "window", property(lambda self: None, lambda self, value: None), raising=False)
    model = tf.MistralForCausalLM(tf.MistralConfig(**{**SIZES, "max_position_embeddings": 512}, sliding_window=48))
    policy = LanguagePolicy(model, TOKENIZER, compute_dtype=torch.float32)
    assert policy.attention.packed
    policy.look_up_to(20)
    assert policy.attention.packed
    policy.look_up_to(60)
    assert "on texts of 120 tokens" in policy.attention.because


def test_arguments_are_checked():
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2))
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="temperature: expected"):
            LanguagePolicy(model, TOKENIZER, temperature=temperature)


# the last layer


def drawn(rows=7, hidden=5, vocabulary=11, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, hidden), (vocabulary, hidden), (vocabulary,))
    made = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return *made, torch.randint(vocabulary, (rows,), generator=generator)


def plainly(hidden, weight, bias, targets, scale, cap):
    logits = hidden @ weight.t() if bias is None else hidden @ weight.t() + bias
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_p = (logits * scale).log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("chunk", [1, 11 * 2, 11 * 3, 1 << 24])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kept", [7 * 11 - 1, 7 * 11])
def test_the_last_layer_in_chunks_equals_a_plain_one(kept, chunk, cap, scale, biased, monkeypatch):
    monkeypatch.setattr(head, "CHUNK", chunk)
    monkeypatch.setattr(head, "KEPT", kept)
    hidden, weight, bias, targets = drawn()
    bias = bias if biased else None
    found, expected = TokenLogProb.apply(hidden, weight, bias, targets, scale, cap), plainly(hidden, weight, bias, targets, scale, cap)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    moved = [x for x in (hidden, weight, bias) if x is not None]
    for choose in (lambda x: x[0].sum(), lambda x: x[1].square().sum(), lambda x: (x[0].exp() * x[1]).sum()):
        for a, b in zip(torch.autograd.grad(choose(found), moved), torch.autograd.grad(choose(expected), moved), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        found, expected = TokenLogProb.apply(hidden, weight, bias, targets, scale, cap), plainly(hidden, weight, bias, targets, scale, cap)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_its_derivatives_are_those_of_finite_differences(cap, monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 22)
    hidden, weight, bias, targets = drawn(rows=5)
    assert torch.autograd.gradcheck(lambda h, w, b: TokenLogProb.apply(h, w, b, targets, 0.6, cap), (hidden, weight, bias))


def test_a_frozen_last_layer_gets_no_gradient_and_passes_one_on():
    hidden, weight, _, targets = drawn()
    found, _ = TokenLogProb.apply(hidden, weight.detach(), None, targets, 1.0, None)
    expected, _ = plainly(hidden, weight.detach(), None, targets, 1.0, None)
    (a,), (b,) = (torch.autograd.grad(x.sum(), hidden) for x in (found, expected))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_impossible_tokens_add_nothing_to_entropy_or_gradient():
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [1.0], [-torch.inf]], requires_grad=True)
    log_prob, entropy = TokenLogProb.apply(hidden, weight, None, torch.tensor([1]), 1.0, None)
    two = torch.tensor([0.0, 1.0]).log_softmax(-1)
    torch.testing.assert_close(entropy, -(two.exp() * two).sum()[None], rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), weight)
    assert gradient[:2].isfinite().all() and gradient[2] == 0


def test_log_probabilities_of_bfloat16_are_float32():
    hidden, weight, bias, targets = drawn(dtype=torch.bfloat16)
    log_prob, entropy = TokenLogProb.apply(hidden, weight, bias, targets, 1.0, None)
    assert log_prob.dtype == entropy.dtype == torch.float32
    (gradient,) = torch.autograd.grad(log_prob.sum(), weight)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("rows_at_a_time", [200, 8])
def test_gradients_of_bfloat16_are_rounded_once_however_many_chunks_add_up(rows_at_a_time, monkeypatch):
    hidden, weight, bias, targets = (x if x.dtype == torch.long else x.detach().bfloat16() for x in drawn(200, 32, 50))
    monkeypatch.setattr(head, "CHUNK", 50 * rows_at_a_time)
    up, found = torch.linspace(-1, 1, 200), {}
    for dtype in (torch.bfloat16, torch.float64):
        moved = [x.to(dtype).requires_grad_() for x in (hidden, weight * 0.2, bias)]
        log_prob, _ = TokenLogProb.apply(*moved, targets, 1.0, None)
        found[dtype] = torch.autograd.grad((log_prob * up).sum(), moved)
    for rough, exact in zip(*found.values(), strict=True):
        assert (rough.double() - exact).norm() < 0.004 * exact.norm()  # half a unit in the last of eight bits; summed in bfloat16: 0.006


@pytest.mark.parametrize("family", ["llama tied, one key for all heads", "gpt2"])
def test_a_pass_in_bfloat16_moves_the_float32_masters(family):
    exact, rough = policy_of(family), policy_of(family, compute_dtype=torch.bfloat16)
    inputs = texts(*SHAPES["ragged"])
    found, expected = rough.evaluate(**inputs), exact.evaluate(**inputs)
    assert found.log_prob.dtype == torch.float32 and all(p.dtype == torch.float32 for p in rough.parameters())
    difference = (found.log_prob - expected.log_prob).abs().max().item()
    assert 0 < difference < 0.2  # eight bits of mantissa through two layers
    got, wanted = (gradients(policy.model, x.log_prob.sum()) for policy, x in ((rough, found), (exact, expected)))
    for name, gradient in wanted.items():
        assert got[name].dtype == torch.float32
        assert (got[name] - gradient).norm() <= 0.1 * gradient.norm() + 0.02 * max(g.norm() for g in wanted.values()), name


def test_a_frozen_copy_is_another_policy_with_the_same_word():
    policy, inputs = small(noise=0.1), texts([3, 2], [[4, 1], [2, 2]], vocabulary=10)
    copied = policy.frozen()
    assert torch.equal(copied.evaluate(**inputs).log_prob, policy.evaluate(**inputs).log_prob)
    assert not any(p.requires_grad for p in copied.parameters())
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1
    assert not torch.equal(copied.evaluate(**inputs).log_prob, policy.evaluate(**inputs).log_prob)
    assert model_of("llama").config._attn_implementation != attention.NAME
