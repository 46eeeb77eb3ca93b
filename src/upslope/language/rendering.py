"""Texts and conversations as token ids: the one place where either becomes a sequence, and where it is known how turns end.

Every sequence is what the model's tokenizer makes of the same content:

- a text is ``tokenizer(text)``, its BOS included (once, where the text brings one too), ready to be gone on with: an end that
  the tokenizer puts behind every text is left off;
- messages are ``apply_chat_template(messages)`` with the prompt for the assistant's turn; where the last message is the assistant's,
  that turn is continued;
- a recorded completion is tokenized *together* with its prompt, as ``tokenizer(prompt + completion)``, or the template of all messages.
  Its tokens are those that reach beyond the prompt's last character. A token that spans that place is the completion's: without it
  the completion's first characters would never be learned.

Each has one end. That of a conversation's turn is found by rendering one: it is what follows an assistant's content, up to the first
special token in it (``<|im_end|>``, ``<|eot_id|>``, ``<end_of_turn>``, …), which also ends sampling. What a template writes behind that
token (ChatML's line feed) belongs to the next turn and is never sampled, so it is no part of the sequence; only special tokens that lead to
the tokenizer's end token without a gap are, in recorded rows. Text ends with the tokenizer's end token, and so does
the turn of a template without such an end.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from upslope.errors import UsageError, is_fault, require
from upslope.language import tokens
from upslope.language.checks import Prompt
from upslope.language.in_time import TEMPLATE_SECONDS, TookTooLong, in_time
from upslope.language.tokens import Turn, check_prompt, is_begun, turn_of, with_answer, without_empty_turn, without_parts


@dataclass(frozen=True)
class Row:
    """A recorded completion where it stands: ``ids`` of prompt, completion and end, of which the first ``start`` are the prompt's.

    ``seam`` is the text that is cut into tokens otherwise than where prompt and completion stand apart, "" mostly. The model is
    trained behind other tokens there than it sees when it is given the prompt alone.
    """

    ids: list[int]
    start: int
    seam: str = ""


Offsets = Sequence[tuple[int, int]] | None  # where each token stands in its text, if the tokenizer tells
NOT_FOUND = (
    "how it ends a turn was not found, for it refuses one question with one answer or changes that answer; where prompts are messages, "
    "answers are recorded and sampled up to the tokenizer's end token instead"
)
AS_TEXT = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}  # how ids become text
AS_IDS = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
"""How text becomes ids: without what the tokenizer puts around texts."""


class Rendering:
    """Prompts and recorded rows as token ids, by a tokenizer and its chat template.

    ``generation_stops`` are the end tokens of the model's generation settings. ``stop_ids`` are all that end a completion: those, the
    tokenizer's, and the template's end of a turn. Characters without a token are refused, or with ``refuses_unknown`` False reported.
    """

    def __init__(self, tokenizer: Any, generation_stops: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.added = {int(i): str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
        self.prefix, self.suffix = tokens.added_around(tokenizer, self.added)
        self.ends = [int(i) for i in (tokenizer.eos_token_id, *generation_stops) if i is not None]
        self.rendered: tuple[Any, Turn] = (None, Turn())
        self.unknown_id, self.drops, self.refuses_unknown = tokens.unknown_id(tokenizer), tokens.drops_unknown(tokenizer), True
        self.vanishing: dict[str, bool] = {}
        anchor = tokens.word_anchor(tokenizer)
        self.anchor = [] if anchor is None else [anchor]
        self.anchor_text = tokenizer.decode(self.anchor, **AS_TEXT)

    @property
    def turn(self) -> Turn:
        """How the template writes a turn; asked again where the tokenizer was given another template."""
        if self.rendered[0] != self.tokenizer.chat_template:
            self.rendered = self.tokenizer.chat_template, turn_of(self.tokenizer)
            if self.tokenizer.chat_template and not self.rendered[1].found:
                warnings.warn(f"chat template: {NOT_FOUND}", stacklevel=3)
        return self.rendered[1]

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(i for i in (*self.ends, self.turn.end_id) if i is not None)

    # -------------------------------------------------------------------------------------------------------------- prompts

    def prompts(self, prompts: Sequence[Prompt], places: Sequence[str] | None = None) -> list[list[int]]:
        """Token ids of each prompt, ready to be completed; ``places`` name them in errors.

        Raises:
            UsageError: a prompt that is neither text nor messages, that the template refuses, or with characters the tokenizer has
                no token for.
        """
        return self.asked(prompts, places or [""] * len(prompts))[1]

    def asked(self, prompts: Sequence[Prompt], places: Sequence[str]) -> tuple[list[str], list[list[int]]]:
        """Each prompt as the text that is tokenized, and as ids; raises as :meth:`prompts`."""
        places = [place or f"prompts[{i}]" for i, place in enumerate(places)]
        for prompt, place in zip(prompts, places, strict=True):
            if not (isinstance(prompt, str) and prompt.isascii()):
                check_prompt(prompt, place)
        texts: list[Any] = list(prompts) if all(isinstance(prompt, str) for prompt in prompts) else self._written(prompts, places)
        ids: list[list[int]] = self._encodings(texts, places)["input_ids"] if texts else []
        return texts, [self._begin(x) if self.prefix and isinstance(prompt, str) else x for prompt, x in zip(prompts, ids, strict=True)]

    def _written(self, prompts: Sequence[Prompt], places: Sequence[str]) -> list[Any]:
        """Messages as the template writes them, text as it is."""
        texts: list[Any] = list(prompts)
        begun = {i: is_begun(prompt) for i, prompt in enumerate(prompts) if not isinstance(prompt, str)}
        for going_on in sorted(set(begun.values())):
            found = [i for i in begun if begun[i] == going_on]
            options = {"continue_final_message": True} if going_on else {"add_generation_prompt": True}
            rendered = self._render([without_empty_turn(prompts[i]) for i in found], [places[i] for i in found], **options)
            for i, text in zip(found, rendered, strict=True):
                texts[i] = text
        return texts

    def _render(self, talks: Sequence[Sequence[Any]], places: Sequence[str], **options: Any) -> list[str]:
        if not self.tokenizer.chat_template:
            raise UsageError("tokenizer: it has no chat template, so prompts cannot be lists of messages; give prompts as text")
        apply = partial(self.tokenizer.apply_chat_template, tokenize=False, **options)
        batch = [list(talk) for talk in talks]
        try:
            return in_time(partial(apply, batch), TEMPLATE_SECONDS + len(batch))
        except TookTooLong:
            raise UsageError(f"{places[0]}: the model's chat template took more than {TEMPLATE_SECONDS:g} s; it has no end") from None
        except Exception as error:
            raise tokens.refused(apply, batch, places, "the model's chat template refuses these messages", error) from error

    def _encodings(self, texts: Sequence[str], places: Sequence[str]) -> Any:
        """What the tokenizer says about each text, without what it puts around texts; refuses characters it does not know."""
        try:
            whole = self.tokenizer(list(texts), **AS_IDS)
        except BaseException as error:
            if not is_fault(error):
                raise
            raise tokens.refused(partial(self.tokenizer, **AS_IDS), texts, places, "the tokenizer refuses this text", error) from error
        for i, ids in enumerate(whole["input_ids"]):
            if self.drops or self.unknown_id in ids:
                self._tell_unknown(self._lost(texts[i], ids, whole.encodings[i].offsets if whole.is_fast else None), places[i])
        return whole

    def _lost(self, text: str, ids: list[int], offsets: Offsets) -> list[str]:
        """What has no token: it became the unknown one, unless the text itself writes that, or vanished."""
        if self.drops:
            characters = dict.fromkeys(without_parts(text, list(self.added.values())))
            self.vanishing |= {c: tokens.vanishes(self.tokenizer, c) for c in characters if c not in self.vanishing}
            return [c for c in characters if self.vanishing[c]]
        name = self.tokenizer.convert_ids_to_tokens(self.unknown_id)
        if offsets is None:
            return ["a character"] if ids.count(self.unknown_id or 0) > text.count(name) else []
        spans = [text[a:b] for token, (a, b) in zip(ids, offsets, strict=True) if token == self.unknown_id]
        return [span for span in spans if span.strip() != name]

    def _tell_unknown(self, lost: list[str], place: str) -> None:
        if not lost:
            return
        name = "nothing" if self.unknown_id is None else self.tokenizer.convert_ids_to_tokens(self.unknown_id)
        line = f"{place}: the tokenizer has no token for {lost[0]!r:.40}, the model would see {name} in its place; take it out"
        line += "" if self.unknown_id is None else f", or write {name} where that is meant"
        if self.refuses_unknown:
            raise UsageError(line)
        warnings.warn(line, stacklevel=2)

    def _begin(self, ids: list[int]) -> list[int]:
        """A text's ids behind what the tokenizer puts before every text, which the text may have brought itself."""
        return ids if ids[: len(self.prefix)] == self.prefix else [*self.prefix, *ids]

    # ------------------------------------------------------------------------------------------------------- recorded rows

    def rows(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[str]], places: Sequence[str] | None = None) -> list[list[Row]]:
        """Each prompt's completions as they stand behind it, each with its end; ``places`` name the prompts in errors.

        Raises:
            UsageError: as :meth:`prompts`; a completion without an end; and where the tokenizer tells no places of its tokens, a prompt
                whose tokens do not begin the whole.
        """
        places = places or [f"data[{i}]" for i in range(len(prompts))]
        asked, alone = self.asked(prompts, places)
        owner = [i for i, texts in enumerate(completions) for _ in texts]
        answers = [self._unended(prompts[i], text) for i, texts in zip(range(len(prompts)), completions, strict=True) for text in texts]
        of_row = [places[i] for i in owner]
        whole = self._whole_texts([prompts[i] for i in owner], [asked[i] for i in owner], answers, of_row)
        encodings: Any = self._encodings(whole, of_row) if whole else {"input_ids": []}
        found: list[list[Row]] = [[] for _ in prompts]
        for n, (i, ids) in enumerate(zip(owner, encodings["input_ids"], strict=True)):
            offsets = encodings.encodings[n].offsets if encodings.is_fast else None
            found[i].append(self._row(prompts[i], ids, offsets, whole[n], len(asked[i]), alone[i], places[i]))
        return found

    def _unended(self, prompt: Prompt, completion: str) -> str:
        """A completion without the ends it brings: a turn's, which the template writes, or blanks behind a text's."""
        ends = (*([self.turn.end] if self.turn.end.strip() else []), *(self.added[i] for i in self.stop_ids if i in self.added))
        bare = completion.rstrip()
        if not bare.endswith(ends):
            return completion
        while bare.endswith(ends) and not isinstance(prompt, str):
            bare = next(bare.removesuffix(end) for end in ends if bare.endswith(end))
        return bare

    def _whole_texts(self, prompts: Sequence[Prompt], asked: Sequence[str], answers: Sequence[str], places: Sequence[str]) -> list[str]:
        """Prompt and completion as one text each, up to the end of the turn."""
        said = enumerate(zip(prompts, answers, strict=True))
        talks = {n: with_answer(prompt, text) for n, (prompt, text) in said if not isinstance(prompt, str)}
        rendered = dict(zip(talks, self._render(list(talks.values()), [places[n] for n in talks]), strict=True)) if talks else {}
        texts, unlike = [a + b for a, b in zip(asked, answers, strict=True)], list[str]()
        for n, whole in rendered.items():
            size = len(whole) - len(self.turn.closing)
            whole_answer = squeezed(answers[n]) in squeezed(whole[len(asked[n]) : size])
            kept = whole_answer and whole.startswith(asked[n]) and whole.endswith(self.turn.closing)
            texts[n] = (whole[:size] if kept else texts[n]) + self.turn.end
            unlike += [] if kept else [places[n]]
        if unlike:
            warnings.warn(
                f"{unlike[0]}{and_more(unlike)}: the chat template writes this completion, once it is said, unlike what follows its "
                "prompt; trained on is the prompt and then the completion word for word, as it would be sampled",
                stacklevel=4,
            )
        return texts

    def _row(self, prompt: Prompt, ids: list[int], offsets: Offsets, text: str, boundary: int, alone: list[int], place: str) -> Row:
        """Where the completion starts among the ids of the whole, and its end."""
        begun, seam = self._begin(ids) if isinstance(prompt, str) else ids, ""
        before, ids = len(begun) - len(ids), begun
        if offsets is None:
            fits = ids[: len(alone)] == alone
            message = f"{place}: the tokenizer joins prompt and completion into other tokens and does not say where; part them at a blank"
            require(fits, message)
            start = len(alone)
        else:
            inside = (n for n, (a, b) in enumerate(offsets) if b > boundary and (a >= boundary or ids[before + n] not in self.added))
            start = before + next(inside, len(offsets))
            if ids[:start] != alone and offsets:
                first = next((n for n, (one, other) in enumerate(zip(ids, alone, strict=False)) if one != other), start)
                spans = offsets[max(0, min(first, start, before + len(offsets) - 1) - before) : start - before + 1]
                seam = text[spans[0][0] : spans[-1][1]]
        ended = len(ids) > start and ids[-1] in self.stop_ids
        if not ended and isinstance(prompt, str):
            ids = [*ids, *self.suffix]
            ended = bool(self.suffix) and ids[-1] in self.stop_ids
        if not ended:
            if not self.ends:
                message = f"{place}: the tokenizer has no end-of-sequence token, so nothing would end this completion; set eos_token"
                raise UsageError(message)
            ids = [*ids, self.ends[0]]
        return Row(ids, start, seam)

    # ----------------------------------------------------------------------------------------------------------- back to text

    def decode(self, ids: Sequence[int], after: Prompt | None = None) -> str:
        """The text of a completion without its end and other special tokens; exact behind the prompt that it goes on with.

        Tokenizers that mark the starts of words lose a text's first blank; behind a prompt it stays. What the template writes is left out.
        """
        turn = self.turn
        ended = len(ids) > 0 and ids[-1] in (*self.ends, turn.end_id)
        bare = ids[:-1] if ended else ids
        if after is None:
            return self.tokenizer.decode(list(bare), **AS_TEXT)
        text = self.tokenizer.decode([*self.anchor, *bare], **AS_TEXT).removeprefix(self.anchor_text)
        if isinstance(after, str):
            return text
        text = text if is_begun(after) else text.removeprefix(turn.lead_text)
        return text.removesuffix(turn.end_text) if ended else text


def squeezed(text: str) -> str:
    """A text without blanks: templates trim contents."""
    return "".join(text.split())


def and_more(places: Sequence[str]) -> str:
    return f" (and {len(places) - 1} more)" if len(places) > 1 else ""
