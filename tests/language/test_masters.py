"""Precision of parameters and passes, peft wrappers, and settings that must not be without effect."""

import peft
import pytest
import torch
import transformers as tf

from tests.language.models import SIZES, TOKENIZER, model_of, plain, policy_of, texts
from upslope import GRPO, SFT, Ascent, train
from upslope.errors import UsageError
from upslope.language import Completions, EmbeddedEngine, LanguagePolicy, demonstrations, machine, pretrained
from upslope.language.models import dropout_of, masters

EXACT = {"compute_dtype": torch.float32}
TEXTS = [("ab", "cd"), ("e", "f")]


def moved(policy, before):
    """Share of the weights with a gradient that are other numbers now."""
    named = dict(policy.named_parameters())
    return sum(int((named[n] != w).sum()) for n, w in before.items()) / sum(w.numel() for w in before.values())


def step(policy, learning_rate, iterations=1):
    before = {n: p.detach().clone() for n, p in policy.named_parameters() if "norm" not in n and "embed" not in n}
    state = train(SFT(update=Ascent(learning_rate=learning_rate)), policy, demonstrations(policy, TEXTS), iterations=iterations)
    return moved(policy, before), state.metrics


# float32 masters


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_trained_in_float32(given):
    model = model_of("llama tied, one key for all heads").to(given)
    values = {n: p.detach().float() for n, p in model.named_parameters()}
    policy = LanguagePolicy(model, TOKENIZER, **EXACT)
    assert policy.model is model and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all(p.dtype == torch.float32 and torch.equal(p, values[n]) for n, p in model.named_parameters())
    share, metrics = step(policy, 1e-6)
    assert share > 0.9 and "weights_moved" not in metrics


def test_buffers_in_half_precision_become_float32_and_float64_stays():
    model = model_of("llama").double()
    model.register_buffer("offset", torch.ones(2, dtype=torch.bfloat16))
    model.register_buffer("count", torch.ones(2, dtype=torch.int64))
    masters(model, None)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert model.offset.dtype == torch.float32 and model.count.dtype == torch.int64
    masters(model, torch.float32)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_masters_in_bfloat16_are_kept_on_request_and_move_on_average():
    """1e-6 is a hundredth of the distance between numbers near 0.1: a step in a hundred moves a weight, by a hundred times as much."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        policy = LanguagePolicy(model_of("llama").bfloat16(), TOKENIZER, dtype=dtype, **EXACT)
        assert all(p.dtype == dtype for p in policy.parameters())
        start = {n: p.detach().double().clone() for n, p in policy.named_parameters()}
        _, metrics = step(policy, 1e-5, iterations=20)
        assert "weights_moved" not in metrics
        found[dtype] = {n: p.detach().double() - start[n] for n, p in policy.named_parameters()}
    rough, exact = (torch.cat([x.flatten() for x in found[dtype].values()]) for dtype in (torch.bfloat16, torch.float32))
    along = float(rough @ exact / (exact @ exact))
    assert abs(along - 1.0) < 0.15  # 4 standard deviations; rounding to the nearest number loses most of it
    assert rough.norm() > 1.5 * exact.norm()  # and it is rough


def test_a_policy_in_bfloat16_samples_and_scores():
    policy = LanguagePolicy(model_of("llama").bfloat16(), TOKENIZER, dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    reward = lambda *, completions: [float(len(c)) for c in completions]  # noqa: E731
    update = Ascent(learning_rate=1e-3, micro_batch_size=1, target_kl=None)
    state = train(GRPO(update=update), policy, Completions(["ab", "c"], reward, group_size=4, max_tokens=4), iterations=2)
    assert state.metrics["gradient_norm"] > 0 and all(p.dtype == torch.bfloat16 for p in policy.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, "bfloat16"])
def test_other_precisions_of_parameters_are_refused(dtype):
    with pytest.raises(UsageError, match=r"dtype: expected torch\.float32, .* found"):
        LanguagePolicy(model_of("llama"), TOKENIZER, dtype=dtype)


def test_an_update_that_moves_almost_nothing_is_reported():
    policy = policy_of("llama")
    share, metrics = step(policy, 1e-11)
    assert share < 0.05 and metrics["weights_moved"] < 0.01
    assert "weights_moved" not in step(policy, 0.0)[1]  # nobody meant to move anything
    assert "weights_moved" not in step(policy, 1e-4)[1]


# the precision of passes


def test_precision_is_what_the_processor_has_instructions_for(monkeypatch):
    def processor(amx, avx512):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
        return machine.preferred("cpu")

    assert processor(False, False) == machine.preferred("meta") == torch.float32
    assert processor(True, False) == processor(False, True) == machine.preferred(torch.device("cpu")) == torch.bfloat16
    assert LanguagePolicy(model_of("llama"), TOKENIZER).compute_dtype == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert machine.preferred("cpu") == torch.float32  # a PyTorch that cannot ask


def test_layers_that_must_stay_exact_are_not_rounded():
    policy = policy_of("llama", compute_dtype=torch.bfloat16)
    policy.model._keep_in_fp32_modules_strict = {"norm"}
    kept = {name for name, w in policy.weights().items() if w.dtype == torch.float32}
    assert kept == {"model.model.norm.weight"}


# peft


def wrapped(model=None, **options):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    with pretrained.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return peft.get_peft_model(model or model_of("llama"), peft.LoraConfig(**settings))


def test_a_peft_wrapper_trains_its_adapters_and_is_saved_as_a_plain_model(tmp_path):
    wrapper = wrapped(model_of("llama").bfloat16())
    policy = LanguagePolicy(wrapper, TOKENIZER, **EXACT)
    assert type(policy.model) is tf.LlamaForCausalLM and policy.adapter[0] is wrapper
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    train(SFT(update=Ascent(learning_rate=1e-2)), policy, demonstrations(policy, TEXTS), iterations=3)
    changed = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all("lora_" in n for n in changed)
    inputs = texts([3, 1], [[2, 4], [1, 3]])
    found = policy.evaluate(**inputs).log_prob
    torch.testing.assert_close(found, plain(wrapper, inputs)[0], rtol=0, atol=1e-5)
    policy.save_pretrained(tmp_path / "merged")
    merged = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(plain(merged, inputs)[0], found, rtol=0, atol=1e-4)  # W + BA in one matrix sums in another order
    policy.save_pretrained(tmp_path / "adapters", merge=False)
    assert (tmp_path / "adapters" / "adapter_model.safetensors").exists()


def test_adapters_go_the_plain_way_too():
    config = tf.BloomConfig(vocab_size=SIZES["vocab_size"], hidden_size=32, n_layer=2, n_head=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.BloomForCausalLM(config)
    policy = LanguagePolicy(wrapped(model, init_lora_weights=False), TOKENIZER, **EXACT)
    assert not policy.attention.packed
    inputs = texts([3, 1], [[2, 4], [1, 3]])
    found = policy.evaluate(**inputs).log_prob
    torch.testing.assert_close(found, plain(policy.adapter[0], inputs)[0], rtol=0, atol=1e-5)
    named = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert named and all(
        "lora_" in n and g.any() for n, g in zip(named, torch.autograd.grad(found.sum(), list(named.values())), strict=True)
    )


def with_adapters_on_the_head():
    return wrapped(target_modules=["q_proj", "lm_head", "embed_tokens"])


def with_adapters_on_a_biased_head():
    return wrapped(model_of("phi, biased head"), target_modules=["q_proj", "lm_head"])


def with_a_head_of_its_own():
    model, layer = model_of("llama"), torch.nn.Linear(SIZES["hidden_size"], SIZES["vocab_size"], bias=False)
    torch.nn.utils.parametrizations.weight_norm(layer)
    model.set_output_embeddings(layer)
    return model


def with_a_hook():
    model = model_of("llama")
    model.get_output_embeddings().register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("make", [with_adapters_on_the_head, with_adapters_on_a_biased_head, with_a_head_of_its_own, with_a_hook])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_output_layer_that_is_more_than_its_weight_is_trained_as_a_whole(make, precision):
    """Also where it adds nothing yet, like fresh adapters."""
    model = make()
    policy = LanguagePolicy(model, TOKENIZER, compute_dtype=precision)
    assert policy.attention.because == "its output layer is more than a weight and a bias"
    inputs, named = texts([3, 1], [[2, 4], [1, 3]]), {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in named.values():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    found = policy.evaluate(**inputs).log_prob
    torch.testing.assert_close(found, plain(model, inputs)[0], rtol=0, atol=1e-5 if precision == torch.float32 else 0.5)
    assert all(g.any() for g in torch.autograd.grad(found.sum(), list(named.values())))


def test_an_output_layer_that_is_trained_whole_beside_adapters_still_passes_packed():
    assert LanguagePolicy(wrapped(modules_to_save=["lm_head"]), TOKENIZER, **EXACT).attention.packed


def test_an_output_layer_without_a_weight_is_refused():
    model = model_of("llama")
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))
    with pytest.raises(UsageError, match="model: its output layer is a Sequential without a weight"):
        LanguagePolicy(model, TOKENIZER)


def test_the_plain_way_takes_masters_in_bfloat16():
    config = tf.BloomConfig(vocab_size=SIZES["vocab_size"], hidden_size=32, n_layer=2, n_head=4)
    policy = LanguagePolicy(tf.BloomForCausalLM(config).bfloat16(), TOKENIZER, dtype=torch.bfloat16)
    assert not policy.attention.packed and all(p.dtype == torch.bfloat16 for p in policy.parameters())


def prompt_tuning():
    with pretrained.quiet():  # peft asks Transformers for a name that it deprecates
        return peft.get_peft_model(model_of("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def frozen_adapters():
    return wrapped().requires_grad_(False)


def with_checkpointing():
    model = model_of("llama")
    with pretrained.quiet():  # its name of many years is deprecated
        model.gradient_checkpointing_enable()
    return model


def with_bare_adapters():
    model = model_of("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (prompt_tuning, "peft wrapper is of kind PROMPT_TUNING, which lies outside the model"),
        (lambda: wrapped(lora_dropout=0.1), "lora_dropout 0.1, but what samples and what scores must be one distribution; set it to 0"),
        (frozen_adapters, "every weight of its peft wrapper is frozen; load the adapters with is_trainable=True"),
        (with_bare_adapters, "adapters without their peft wrapper"),
        (with_checkpointing, r"gradient checkpointing is on, .* model.gradient_checkpointing_disable"),
        (lambda: "llama", "expected a Transformers model, found str"),
    ],
)
def test_what_would_have_no_effect_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        LanguagePolicy(make(), TOKENIZER)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model: ")


@pytest.mark.parametrize("switch", [lambda model: model.train(), lambda model: model.transformer.drop.train()])
def test_what_is_switched_on_later_is_off_in_every_pass(switch):
    policy, inputs = policy_of("gpt2"), texts([3, 1], [[2, 4], [1, 3]])
    engine = EmbeddedEngine(policy)
    expected, said = policy.evaluate(**inputs).log_prob, engine.generate([[3, 4]], group_size=2, max_tokens=8).log_prob
    switch(policy.model)
    assert torch.equal(engine.generate([[3, 4]], group_size=2, max_tokens=8).log_prob, said)
    switch(policy.model)
    assert torch.equal(policy.evaluate(**inputs).log_prob, expected) and not policy.model.training
    with pretrained.quiet():
        policy.model.gradient_checkpointing_enable()
    with pytest.raises(UsageError, match="model: gradient checkpointing is on"):
        policy.evaluate(**inputs)


def test_dropout_that_a_configuration_names():
    assert dropout_of(model_of("gpt2")) == {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "summary_first_dropout": 0.1}
    assert dropout_of(model_of("llama")) == {}


# value heads of models that go one row at a time


def test_values_and_scores_of_the_plain_way():
    config = tf.BloomConfig(vocab_size=SIZES["vocab_size"], hidden_size=32, n_layer=2, n_head=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = LanguagePolicy(tf.BloomForCausalLM(config), TOKENIZER, value_head=True, **EXACT)
        torch.nn.init.normal_(policy.body.value_head.weight)
    inputs = texts([3, 1], [[2, 4], [0, 3]])
    value, score = policy.evaluate(**inputs).value, policy.score(**inputs)
    for b, start in enumerate([3, 1]):
        for g, n in enumerate(inputs["completion_length"][b].tolist()):
            ids = torch.cat([inputs["prompt_ids"][b, :start], inputs["completion_ids"][b, g, :n]])
            hidden = policy.model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
            expected = policy.body.value_head(hidden).squeeze(-1)
            torch.testing.assert_close(score[b, g], expected[-1], rtol=0, atol=1e-5)
            torch.testing.assert_close(value[b, g, :n], expected[start - 1 : -1], rtol=0, atol=1e-5)
            assert not value[b, g, n:].any()


def test_ends_seeds_and_greedy_of_the_plain_way():
    config = tf.BloomConfig(vocab_size=SIZES["vocab_size"], hidden_size=32, n_layer=2, n_head=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = LanguagePolicy(tf.BloomForCausalLM(config), TOKENIZER, temperature=0.7, compute_dtype=torch.bfloat16)
    policy.stop_ids = frozenset(range(0, 80, 6))
    prompts = [[5, 6, 7], [8]]
    options = {"group_size": 3, "max_tokens": 6}
    found, again = (EmbeddedEngine(policy).generate(prompts, seed=1, **options) for _ in range(2))
    assert torch.equal(found.completion_ids, again.completion_ids) and torch.equal(found.log_prob, again.log_prob)
    assert found.finished.any() and not found.finished.all()
    last = found.completion_ids.gather(-1, found.length[..., None] - 1).squeeze(-1)
    assert torch.equal(torch.isin(last, torch.tensor(sorted(policy.stop_ids))), found.finished)
    behind = torch.arange(found.completion_ids.shape[-1]) >= found.length[..., None]
    assert not found.completion_ids[behind].any() and not found.log_prob[behind].any()
    greedy = EmbeddedEngine(policy).generate(prompts, greedy=True, **options)
    assert torch.equal(greedy.completion_ids[:, 0], greedy.completion_ids[:, 1])
