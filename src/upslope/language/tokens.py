"""What tokenizers differ in, found by asking them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import models, pre_tokenizers

from upslope.errors import UsageError


def surroundings(tokenizer: Any, added: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """What ``tokenizer(text)`` puts before and behind every text."""
    for probe in ("a", "0", *added.values()):
        try:
            whole, bare = tokenizer(probe), tokenizer(probe, add_special_tokens=False)["input_ids"]
        except Exception:  # a vocabulary of words without an unknown one refuses what is not in it
            continue
        ids = whole["input_ids"]
        if bare and tokenizer.is_fast:
            own = [n for n, sequence in enumerate(whole.sequence_ids(0)) if sequence is not None]
            return ids[: own[0]], ids[own[-1] + 1 :]
        at = next((n for n in range(len(ids)) if ids[n : n + len(bare)] == bare), None)
        if bare and at is not None:
            return ids[:at], ids[at + len(bare) :]
    return [], []


def unknown_id(tokenizer: Any) -> int | None:
    """The token that stands for what the vocabulary does not hold, also where only the tokenizer's model knows of it."""
    if tokenizer.unk_token_id is not None or not tokenizer.is_fast:
        return tokenizer.unk_token_id
    name = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    return None if name is None else tokenizer.backend_tokenizer.token_to_id(name)


def drops_unknown(tokenizer: Any) -> bool:
    """Whether characters that the vocabulary lacks vanish: byte pairs without an unknown token, byte fallback, or all bytes."""
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    if not isinstance(model, models.BPE) or model.unk_token is not None or model.byte_fallback:
        return False
    return any(tokenizer.backend_tokenizer.token_to_id(byte) is None for byte in pre_tokenizers.ByteLevel.alphabet())


def vanishes(tokenizer: Any, character: str) -> bool:
    """Whether a character, or one of its bytes, is in no vocabulary although neither normalizer nor splitter takes it out."""
    backend = tokenizer.backend_tokenizer
    kept = character if backend.normalizer is None else backend.normalizer.normalize_str(character)
    parts = [(kept, None)] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(kept)
    if backend.model.continuing_subword_prefix or backend.model.end_of_word_suffix:  # then a symbol depends on where it stands
        return any(part for part, _ in parts) and not backend.encode(character, add_special_tokens=False).ids
    return any(backend.token_to_id(symbol) is None for part, _ in parts for symbol in part)


def word_anchor(tokenizer: Any) -> int | None:
    """A token to decode behind, where the decoder drops the blank of a first word (metaspace, SentencePiece); else None."""
    decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
    if decoder is None or decoder.decode(["▁x"]) != "x" or decoder.decode(["x", "▁x"]) != "x x":
        return None
    pieces = ((i, tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer)) if i not in tokenizer.added_tokens_decoder)
    return next((i for i, piece in pieces if piece and piece.isascii() and piece.isalnum()), None)


def refused(call: Callable[[list[Any]], Any], items: Sequence[Any], places: Sequence[str], refusal: str, whole: Exception) -> UsageError:
    """What to raise where ``call(items)`` raised ``whole``: it names the first item that is to blame."""
    for item, place in zip(items, places, strict=True):
        try:
            call([item])
        except Exception as error:
            words = " ".join(str(error).split())
            return UsageError(f"{place}: {refusal} ({words[:200]}); change them, or give another prompt")
    return UsageError(f"{refusal} ({' '.join(str(whole).split())[:200]})")
