"""Small random models of the families, their tokenizer, and what plain Transformers says about a text, row by row."""

import copy

import torch
import transformers as tf

from upslope.language import LanguagePolicy
from upslope.language.tiny import character_tokenizer, tiny

TOKENIZER = character_tokenizer()
VOCABULARY = len(TOKENIZER)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GEMMA = {**SIZES, "head_dim": 8}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None, "eos_token_id": 0}

FAMILIES = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
    "llama tied, one key for all heads": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**{**SIZES, "num_key_value_heads": 1}, tie_word_embeddings=True)
    ),
    "llama with biases, a key for each head": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**{**SIZES, "num_key_value_heads": 4}, attention_bias=True, mlp_bias=True)
    ),
    "mistral, window of 3": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SIZES, sliding_window=3)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**GEMMA, tie_word_embeddings=True)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**GEMMA)),
    "gemma2, caps, window of 3": lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(
            **GEMMA,
            sliding_window=3,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "gemma3, window of 3": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**GEMMA, sliding_window=3, query_pre_attn_scalar=8, layer_types=["sliding_attention", "full_attention"])
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**SIZES, logit_scale=0.25)),
    "granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**SIZES, logits_scaling=3.0, attention_multiplier=0.3)),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, rotary_pct=0.5)
    ),
    "phi, biased head": lambda: tf.PhiForCausalLM(tf.PhiConfig(**SIZES)),
}


def model_of(family, seed=0, noise=0.1):
    """Fresh weights with noise on all of them, so that biases and norms are not zeros and ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family]()
        with torch.no_grad():
            for p in model.parameters():
                p += noise * torch.randn(p.shape)
    return model.eval()


def policy_of(family, seed=0, noise=0.1, tokenizer=TOKENIZER, **options):
    return LanguagePolicy(model_of(family, seed, noise), tokenizer, **{"compute_dtype": torch.float32, **options})


def small(alphabet="abcdefgh", seed=0, noise=0.0, **options):
    """The built-in model, smaller; ``noise`` makes its distributions less even."""
    policy = tiny(alphabet, **{"hidden_size": 32, "num_heads": 4, "num_layers": 2, "context": 64, "seed": seed, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.model.parameters():
            p += noise * torch.randn(p.shape, generator=generator)
    return policy


def twin(policy):
    return copy.deepcopy(policy)


def texts(prompt_lengths, completion_lengths, seed=0, vocabulary=VOCABULARY):
    """Random ids in the shapes that ``evaluate`` takes, padding filled with random ids too."""
    generator = torch.Generator().manual_seed(seed)
    prompt_length, length = torch.tensor(prompt_lengths), torch.tensor(completion_lengths)
    shape = (*length.shape, max(1, int(length.max())))
    return {
        "prompt_ids": torch.randint(vocabulary, (len(prompt_length), int(prompt_length.max())), generator=generator),
        "prompt_length": prompt_length,
        "completion_ids": torch.randint(vocabulary, shape, generator=generator),
        "completion_length": length,
    }


def rows(inputs):
    """``(b, g, prompt, completion)`` of each row, without padding."""
    for b, prompt_length in enumerate(inputs["prompt_length"].tolist()):
        for g, length in enumerate(inputs["completion_length"][b].tolist()):
            yield b, g, inputs["prompt_ids"][b, :prompt_length], inputs["completion_ids"][b, g, :length]


def plain(model, inputs, temperature=1.0):
    """Log-probabilities and entropies by one ordinary call for each row: ``[B, G, T]``, 0 behind the end."""
    log_prob, entropy = (torch.zeros(inputs["completion_ids"].shape) for _ in range(2))
    found, entropies = [], []
    for b, g, prompt, completion in rows(inputs):
        if len(completion):
            logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
            log_p = (logits / temperature).log_softmax(-1)
            found.append((b, g, log_p.gather(-1, completion[:, None]).squeeze(-1)))
            entropies.append((b, g, -(log_p.exp() * log_p).sum(-1)))
    for target, parts in ((log_prob, found), (entropy, entropies)):
        for b, g, values in parts:
            target[b, g, : len(values)] = values
    return log_prob, entropy


def gradients(model, objective):
    """By name; zeros where the objective does not reach."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def assert_same_gradients(found, expected, tolerance=1e-4):
    """Each parameter's gradient, relative to the expected one's norm (or to a hundredth of the largest norm, where it is smaller)."""
    largest = max(g.norm() for g in expected.values())
    assert found.keys() == expected.keys() and largest > 0
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / torch.maximum(gradient.norm(), largest / 100)
        assert error <= tolerance, (name, error.item())
