"""Conversations: what a list of messages must be, and how a chat template writes and ends the assistant's turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.errors import UsageError

SAID = "SAIDBYTHEASSISTANT"  # stands for the assistant's content where a template is asked how a turn ends


@dataclass(frozen=True)
class Turn:
    """How a template writes an assistant's turn: what stands before its content, what follows, and the part of that which ends it.

    ``lead_text`` and ``end_text`` are lead and end as they are decoded: without special tokens.
    """

    lead: str = ""
    closing: str = ""
    end: str = ""
    end_id: int | None = None
    lead_text: str = ""
    end_text: str = ""


def turn_of(tokenizer: Any) -> Turn:
    if not tokenizer.chat_template:
        return Turn()
    asked = [{"role": "user", "content": "x"}]
    try:
        before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": SAID}], tokenize=False)
    except Exception:  # what it refuses is said where it is used
        return Turn()
    head, found, closing = whole.rpartition(SAID)
    if not found:
        return Turn()
    lead = head.removeprefix(before) if head.startswith(before) else ""
    tokens = tokenizer.added_tokens_decoder
    places = [(closing.find(token.content), token, int(i)) for i, token in tokens.items() if token.content.strip()]
    begins = None if tokenizer.bos_token_id == tokenizer.eos_token_id else tokenizer.bos_token_id
    ends = [(at, -len(token.content), i) for at, token, i in places if at >= 0 and i != begins]
    ends = [entry for entry in ends if tokens[entry[2]].special] or ends
    at, size, end_id = min(ends, default=(len(closing.rstrip()), 0, None))
    end, special = closing[: at - size], [token.content for i, token in tokens.items() if token.special or i == end_id]
    return Turn(lead, closing, end, end_id, without(lead, special), without(end, special))


def without(text: str, parts: Sequence[str]) -> str:
    for part in parts:
        text = text.replace(part, "")
    return text


def is_begun(talk: Sequence[Any]) -> bool:
    """Whether the last message is the beginning of the assistant's turn."""
    return talk[-1].get("role") == "assistant" and talk[-1]["content"] != ""


def without_empty_turn(talk: Any) -> Any:
    """The messages without an empty last one of the assistant: that is the same as asking for its turn."""
    return talk[:-1] if len(talk) > 1 and talk[-1].get("role") == "assistant" and talk[-1]["content"] == "" else talk


def answered(talk: Any, text: str) -> list[Any]:
    """All messages, the completion said: in a turn of its own, or as the rest of the one that was begun."""
    if is_begun(talk):
        return [*talk[:-1], {**talk[-1], "content": talk[-1]["content"] + text}]
    return [*without_empty_turn(talk), {"role": "assistant", "content": text}]


def check_prompt(prompt: Any, place: str) -> None:
    """Refuse what is neither a text nor a list of messages, and characters that are none."""
    if isinstance(prompt, str):
        check_text(prompt, place)
        return
    listed = isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(m, Mapping) for m in prompt)
    if not listed or not all(isinstance(m.get(key), str) for m in prompt for key in ("role", "content")):
        kind = type(prompt).__name__
        raise UsageError(
            f'{place}: expected a text or a list of messages such as {{"role": "user", "content": "…"}}, found {kind} {prompt!r:.60}'
        )
    for message in prompt:
        check_text(message["content"], place)


def check_text(text: str, place: str) -> None:
    """Refuse what is no text: half of a surrogate pair, which comes from bytes that were not UTF-8."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{place}: character {error.start + 1} is a lone surrogate, so this is no text; save its source as UTF-8"
        ) from None
