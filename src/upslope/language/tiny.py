"""A small transformer with a character tokenizer, made on the spot: something to learn on without a download."""

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from upslope.errors import require
from upslope.language.policy import LanguagePolicy
from upslope.typed import fork_rng, manual_seed

ALPHABET = "0123456789+-*/=()<>.,:;!?'\" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\n"


def character_tokenizer(alphabet: str = ALPHABET) -> PreTrainedTokenizerFast:
    """One token for each character, and an end token that is also the padding."""
    characters = sorted(set(alphabet))
    require(bool(characters), "alphabet: expected at least one character, found none")
    words = {"<eos>": 0, "<unk>": 1, **{c: i + 2 for i, c in enumerate(characters)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>")


def tiny(
    alphabet: str = ALPHABET,
    *,
    hidden_size: int = 80,
    num_layers: int = 3,
    num_heads: int = 5,
    context: int = 1024,
    seed: int = 0,
    value_head: bool = False,
    temperature: float = 1.0,
) -> LanguagePolicy:
    """A Llama of the given size with fresh weights; about 240k parameters as it stands.

    Raises:
        UsageError: sizes below 1, or a hidden size that the heads do not divide.
    """
    for name, value in {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads, "context": context}.items():
        require(value >= 1, f"{name}: expected an integer ≥ 1, found {value}")
    require(hidden_size % (2 * num_heads) == 0, f"hidden_size: expected a multiple of 2 · num_heads = {2 * num_heads}, found {hidden_size}")
    tokenizer = character_tokenizer(alphabet)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 8 * hidden_size // 3 // 8 * 8, "num_hidden_layers": num_layers}
    heads = {"num_attention_heads": num_heads, "num_key_value_heads": num_heads, "max_position_embeddings": context}
    tokens: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    # so narrow a model learns sums three times faster than from the usual range of 0.02
    config = LlamaConfig(**sizes, **heads, **tokens, initializer_range=0.06, tie_word_embeddings=False)
    with fork_rng([]):
        manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LanguagePolicy(model, tokenizer, temperature=temperature, value_head=value_head, compute_dtype=torch.float32)
