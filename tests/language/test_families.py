"""Decoder families of Transformers, made small: packed or plain, each gives what its own eager forward pass gives row by row, beyond its
windows, chunks and switches, in training and while decoding; or it is refused. All families: ``benchmarks/model_families.py``."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from tests.language.models import TOKENIZER, assert_same_gradients, gradients, plain, texts
from upslope.errors import UsageError
from upslope.language import EmbeddedEngine, LanguagePolicy
from upslope.language.reduced import reduced

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48, "original_max_position_embeddings": 4096}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 1e4}
PACKED = {
    "llama": {},
    "llama, yarn": {"rope_parameters": YARN},
    "qwen2, windows in some layers": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {},
    "cohere2": {},
    "deepseek_v3": {},
    "minimax_m2": {},
}
PLAIN = {
    "bloom": {},
    "falcon, alibi": {"alibi": True, "new_decoder_architecture": False},
    "stablelm": {},
    "gpt_neo": {},
    "llama4_text": {},
    "gpt_oss": {},
    "diffllama": {},
    "mamba": {},
    "mamba2": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "roberta": {"is_decoder": True},
    "openai-gpt": {},
}


def small_model(name, settings=None, seed=0):
    config = AutoConfig.for_model(name.split(",")[0], **(settings or {}))
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(config)
    return reduced(large, seed=seed)


def assert_right(policy, limit=42):
    """Texts and samples of lengths other than those that the policy was compared on."""
    lengths = ([1, 6, 17], [[25, 3], [0, 7], [19, 12]]) if limit > 40 else ([1, 6, 9], [[12, 3], [0, 7], [limit - 9, 8]])
    inputs = texts(*lengths, seed=3)
    found, (log_prob, entropy) = policy.evaluate(**inputs), plain(policy.model, inputs)
    torch.testing.assert_close(found.log_prob, log_prob, rtol=0, atol=2e-4)  # float32 through six layers of large random weights
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=2e-4)
    weight = torch.randn(log_prob.shape, generator=torch.Generator().manual_seed(0))
    expected = gradients(policy.model, (weight * log_prob).sum())
    assert_same_gradients(gradients(policy.model, (weight * found.log_prob).sum()), expected, 1e-3)  # as above
    prompts = [ids[:n].tolist() for ids, n in zip(inputs["prompt_ids"], lengths[0], strict=True)]
    policy.stop_ids = frozenset({3})
    made = EmbeddedEngine(policy, width=4).generate(prompts, group_size=2, max_tokens=limit - max(lengths[0]), seed=5)
    with torch.no_grad():
        said, _ = plain(policy.model, {**inputs, "completion_ids": made.completion_ids, "completion_length": made.length})
    torch.testing.assert_close(made.log_prob, said, rtol=0, atol=2e-4)  # as above
    assert made.length.max() > 8


def policy_for(name, settings=None):
    return LanguagePolicy(small_model(name, settings), TOKENIZER, compute_dtype=torch.float32)


@pytest.mark.parametrize("name", PACKED)
def test_these_share_attention(name):
    policy = policy_for(name, PACKED[name])
    assert policy.attention.packed and str(policy.attention) == "packed"
    assert_right(policy)


@pytest.mark.parametrize("name", PLAIN)
def test_these_go_one_row_at_a_time(name):
    policy = policy_for(name, PLAIN[name])
    assert str(policy.attention).startswith("plain, one row at a time, because ")
    assert_right(policy)


@pytest.mark.parametrize("name, rope", [("phi3", LONGROPE), ("llama", {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4})])
def test_a_text_ends_where_rotary_scaling_would_change(name, rope):
    policy = policy_for(name, {"rope_parameters": rope})
    limit = 24 if name == "phi3" else 64
    assert policy.attention.packed and policy.context == limit
    assert_right(policy, limit=24)
    with pytest.raises(UsageError, match="beyond which its rotary scaling changes for the whole text; shorten"):
        EmbeddedEngine(policy).generate([[5] * 10], group_size=1, max_tokens=limit)
    with pytest.raises(UsageError, match=f"texts: {limit + 1} tokens exceed the model's context of {limit}, beyond"):
        policy.evaluate(**texts([limit], [[1]]))


@pytest.mark.parametrize("name, message", [("roberta", "not causal"), ("xlnet", "not causal"), ("t5", "has an encoder")])
def test_what_is_no_causal_decoder_is_refused(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        if name == "t5":
            config = T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
            LanguagePolicy(T5ForConditionalGeneration(config), TOKENIZER)
        else:
            policy_for(name)
    assert "\n" not in str(caught.value)
