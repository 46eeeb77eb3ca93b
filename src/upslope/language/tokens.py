"""What tokenizers and chat templates differ in, found by asking them; and what a list of messages must be."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import models, pre_tokenizers

from upslope.errors import UsageError, is_fault, is_kind, require
from upslope.language.in_time import TEMPLATE_SECONDS, TookTooLong, in_time


def added_around(tokenizer: Any, added: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """What ``tokenizer(text)`` puts before and behind every text."""
    for probe in ("a", "0", *added.values()):
        try:
            whole, bare = tokenizer(probe), tokenizer(probe, add_special_tokens=False)["input_ids"]
        except BaseException as error:  # a vocabulary of words without an unknown one refuses what is not in it
            if not is_fault(error):
                raise
            continue
        ids = whole["input_ids"]
        if bare and tokenizer.is_fast:
            inside = [n for n, sequence in enumerate(whole.sequence_ids(0)) if sequence is not None]
            return ids[: inside[0]], ids[inside[-1] + 1 :]
        at = next((n for n in range(len(ids)) if ids[n : n + len(bare)] == bare), None)
        if bare and at is not None:
            return ids[:at], ids[at + len(bare) :]
    return [], []


def unknown_id(tokenizer: Any) -> int | None:
    """The token that stands for what the vocabulary does not hold, also where only the tokenizer's model knows of it."""
    if tokenizer.unk_token_id is not None or not tokenizer.is_fast:
        return tokenizer.unk_token_id
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, models.Unigram):  # which names it by its id, and tells that in no other way
        return json.loads(backend.to_str())["model"]["unk_id"]
    name = getattr(backend.model, "unk_token", None)
    return None if name is None else backend.token_to_id(name)


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


def refused(
    call: Callable[[list[Any]], Any], items: Sequence[Any], places: Sequence[str], refusal: str, whole: BaseException
) -> UsageError:
    """What to raise where ``call(items)`` raised ``whole``: it names the first item that is to blame."""
    for item, place in zip(items, places, strict=True):
        try:
            call([item])
        except BaseException as error:
            if not is_fault(error):
                raise
            return UsageError(f"{place}: {refusal} ({' '.join(str(error).split())[:200]}); change them, or give another prompt")
    return UsageError(f"{refusal} ({' '.join(str(whole).split())[:200]})")


SAID = "314159265358979"  # stands for the assistant's content where a template is asked how a turn ends: no case, no blanks
ASKED = [{"role": "user", "content": "x"}]
PROBES = (ASKED, [{"role": "system", "content": "x"}, *ASKED])  # some templates demand a system message, others refuse one


@dataclass(frozen=True)
class Turn:
    """How a template writes an assistant's turn: what stands before its content, what follows, and the part of that which ends it.

    ``lead_text`` and ``end_text`` are lead and end as they are decoded: without special tokens. All is empty where the turn was not
    ``found``: there is no template, or it writes the content of none of :data:`PROBES`.
    """

    lead: str = ""
    closing: str = ""
    end: str = ""
    end_id: int | None = None
    lead_text: str = ""
    end_text: str = ""
    found: bool = False


def turn_of(tokenizer: Any) -> Turn:
    written = (written_turn(tokenizer, asked) for asked in PROBES if tokenizer.chat_template)
    lead, closing = next((found for found in written if found is not None), (None, ""))
    if lead is None:
        return Turn()
    tokens = tokenizer.added_tokens_decoder
    places = [(closing.find(token.content), token, int(i)) for i, token in tokens.items() if token.content.strip()]
    begins = None if tokenizer.bos_token_id == tokenizer.eos_token_id else tokenizer.bos_token_id
    ends = [(at, -len(token.content), i) for at, token, i in places if at >= 0 and i != begins]
    ends = [entry for entry in ends if tokens[entry[2]].special] or ends
    at, size, end_id = min(ends, default=(len(closing.rstrip()), 0, None))
    end, special = closing[: at - size], [token.content for i, token in tokens.items() if token.special or i == end_id]
    through, eos, _ = closing[at - size :].partition(tokenizer.eos_token or "\0")
    if end_id not in (None, tokenizer.eos_token_id) and eos and not without_parts(through, special):
        end += through + eos  # several tokens end the turn: rows hold all of them, sampling stops at the first
    return Turn(lead, closing, end, end_id, without_parts(lead, special), without_parts(end, special), found=True)


def written_turn(tokenizer: Any, asked: list[dict[str, str]]) -> tuple[str, str] | None:
    """What the template writes before and behind what the assistant says to ``asked``; None where it refuses that or leaves it out."""
    apply = partial(tokenizer.apply_chat_template, tokenize=False)
    try:
        before = in_time(partial(apply, asked, add_generation_prompt=True), TEMPLATE_SECONDS)
        whole = in_time(partial(apply, [*asked, {"role": "assistant", "content": SAID}]), TEMPLATE_SECONDS)
    except TookTooLong:
        raise UsageError(f"tokenizer: its chat template took more than {TEMPLATE_SECONDS:g} s for a short message; it has no end") from None
    except Exception:  # what it refuses is said where it is used
        return None
    head, found, closing = whole.rpartition(SAID)
    return (head.removeprefix(before) if head.startswith(before) else "", closing) if found else None


def without_parts(text: str, parts: Sequence[str]) -> str:
    for part in parts:
        text = text.replace(part, "")
    return text


def beside_content(message: Mapping[str, Any]) -> list[str]:
    """What a message holds besides role and content: calls of tools, thoughts."""
    return [str(key) for key, value in message.items() if key not in ("role", "content") and value not in (None, "", [], {})]


def content_alone(message: Mapping[str, Any], place: str, name: str = "completion") -> Any:
    """The content of a recorded message; what else it holds would be left out, and is refused."""
    more = beside_content(message)
    line = f"{place}: {name} holds {', '.join(more)} besides its content, which is all that is trained on: write that into content, as the "
    require(not more, line + "chat template writes it, or take it out")
    return message.get("content")


UNREAD = {
    "system": "make it the first message of prompt",
    "tools": "write them into a system message of prompt",
    "chat_template_kwargs": "change the tokenizer's chat template",
}
"""What other libraries read beside a prompt, and where it belongs here."""


def check_unread(entry: Mapping[str, Any], place: str) -> None:
    """Refuse what would not reach the model although it is meant for it."""
    for name, hint in UNREAD.items():
        empty = entry.get(name) in (None, "", [], {})
        require(empty, f"{place}: {name} is not read, so the model would not see it: {hint}, or take it out")


def is_begun(talk: Sequence[Any]) -> bool:
    """Whether the last message is the beginning of the assistant's turn; one that calls tools is whole."""
    last = talk[-1]
    return last.get("role") == "assistant" and last["content"] != "" and not {"tool_calls", "function_call"} & {*beside_content(last)}


def without_empty_turn(talk: Any) -> Any:
    """The messages without an empty last one of the assistant: that is the same as asking for its turn."""
    last = talk[-1]
    empty = last.get("role") == "assistant" and last["content"] == "" and not beside_content(last)
    return talk[:-1] if len(talk) > 1 and empty else talk


def with_answer(talk: Any, text: str) -> list[Any]:
    """All messages, the completion said: in a new turn, or as the rest of the one that was begun."""
    if is_begun(talk):
        return [*talk[:-1], {**talk[-1], "content": talk[-1]["content"] + text}]
    return [*without_empty_turn(talk), {"role": "assistant", "content": text}]


def check_prompt(prompt: Any, place: str) -> None:
    """Refuse what is neither a text nor a list of messages, and characters that are none."""
    if isinstance(prompt, str):
        check_text(prompt, place)
        return
    listed = is_kind(prompt, Sequence) and len(prompt) > 0 and all(is_kind(m, Mapping) for m in prompt)
    if not listed or not all(isinstance(m.get(key), str) for m in prompt for key in ("role", "content")):
        kind = type(prompt).__name__
        message = f'{place}: expected a text or a list of messages such as {{"role": "user", "content": "…"}}, found {kind} {prompt!r:.60}'
        raise UsageError(message)
    for message in prompt:
        check_text(message["content"], place)


def check_text(text: str, place: str) -> None:
    """Refuse what is no text: half of a surrogate pair, which comes from bytes that were not UTF-8."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{place}: character {error.start + 1} is a lone surrogate, so this is no text; save its source as UTF-8"
        raise UsageError(message) from None
