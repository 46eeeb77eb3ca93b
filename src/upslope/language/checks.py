"""Built-in rewards: small functions over the text of completions, and the names that the command line knows them by.

A reward is ``reward(*, prompts, completions, **columns) -> list[float | None]``: every argument is a list with one entry per
completion. Prompts and completions are strings, or lists of messages where the prompts were messages.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from upslope.errors import UsageError, is_kind, require, unknown

Message = dict[str, str]
Prompt = str | list[Message]
"""Strings are prompts verbatim; lists of messages go through the model's chat template."""

Completion = str | list[Message]
Reward = Callable[..., Any]

_NUMBER = re.compile(
    r"(?<![0-9])(?<![0-9]\.)(?:[-+−－﹣]|(?<![\w)\]}])[‐‑–])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?<!\.)(?=\.[0-9]))(?:\.[0-9]+)?(?:[eE][-+−]?[0-9]{1,4})?"
)


def text_of(completion: Completion) -> str:
    """The text of a completion, whether it is a string or a list of messages; raises :class:`UsageError` for anything else."""
    if isinstance(completion, str):
        return completion
    if is_kind(completion, list) and all(is_kind(m, dict) and is_kind(m.get("content"), str) for m in completion):
        return "".join(message["content"] for message in completion)
    raise UsageError(f"a completion is a string or a list of messages with role and content, found {type(completion).__name__}")


def tagged(text: str, tag: str = "answer") -> str | None:
    """What stands in the last ``<tag>…</tag>`` of ``text``, stripped; None where there is no such pair."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if end < 0 or start < 0 else text[start + len(tag) + 2 : end].strip()


def answered(text: str, tag: str = "answer") -> str:
    """What stands in the last ``<tag>…</tag>`` of ``text``, else the whole."""
    said = tagged(text, tag)
    return text if said is None else said


def last_number(text: str) -> Decimal | None:
    """The last number in ``text`` (1,234, 1e3 and −5 are numbers, exact in decimal); None where there is none.

    A dash or another hyphen that is no minus counts as one at the beginning of a word, as in ``= –5``, but not in ``pages 3–5``.
    """
    found = _NUMBER.findall(text)
    return Decimal(re.sub("[−－﹣‐‑–]", "-", found[-1]).replace(",", "")) if found else None


def as_number(text: str) -> Decimal | None:
    return last_number(text) if _NUMBER.fullmatch(text.strip()) else None


def is_answer(text: str, answer: Any) -> bool:
    """Whether ``text`` says ``answer``: what the answer tag holds, else the whole, equals it; of a number, the last one counts."""
    said, expected = answered(text).strip(), str(answer).strip()
    number = as_number(expected)
    return said == expected or (number is not None and last_number(said) == number)


def each(name: str, score: Callable[[str], float | None], *, no_timeout: bool = True) -> Reward:
    """A reward from a function of one completion's text; ``no_timeout`` says that it is quick, so that no thread is started for it."""
    return each_with(name, lambda text, _: score(text), None, no_timeout=no_timeout)


def each_with(name: str, score: Callable[[str, Any], float | None], column: str | None, *, no_timeout: bool = True) -> Reward:
    """The same from a function of one completion's text and one entry of ``column``, if there is one."""

    def reward(*, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        texts = [text_of(completion) for completion in completions]
        entries = [None] * len(texts) if column is None else columns[column]
        return [score(text, entry) for text, entry in zip(texts, entries, strict=True)]

    reward.__name__ = reward.__qualname__ = name
    vars(reward).update(needs=() if column is None else (column,), no_timeout=no_timeout)
    return reward


def check_answer() -> Reward:
    """1 where a completion says ``answer``, inside an answer tag or as a whole; of a numeric answer, the last number counts."""
    return each_with("answer", lambda text, answer: float(is_answer(text, answer)), "answer")


def exact_match() -> Reward:
    """1 where the whole completion equals ``answer``, both stripped."""
    return each_with("exact-match", lambda text, answer: float(text.strip() == str(answer).strip()), "answer")


def numeric_answer(tag: str = "answer") -> Reward:
    """1 where the last number, inside ``<tag>`` if there is one, equals ``answer``; None where ``answer`` is not a number."""

    def score(text: str, answer: Any) -> float | None:
        expected = as_number(str(answer))
        return None if expected is None else float(last_number(answered(text, tag)) == expected)

    return each_with("numeric-answer", score, "answer")


def regular_expression(pattern: str) -> Reward:
    """1 where ``pattern`` is found in the completion (``.`` matches line ends); raises :class:`UsageError` if it is malformed."""
    try:
        found = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UsageError(f"reward regular-expression: {pattern!r} is not a regular expression: {error}") from None
    return each(f"regular-expression:{pattern}", lambda text: float(found.search(text) is not None), no_timeout=False)


def contains(word: str, *, ignore_case: bool = True) -> Reward:
    """1 where ``word`` occurs in the completion."""
    require(word != "", "reward contains: expected a word, found an empty one: write contains:WORD")
    wanted = word.casefold() if ignore_case else word
    return each(f"contains:{word}", lambda text: float(wanted in (text.casefold() if ignore_case else text)))


def length(target: int) -> Reward:
    """``max(0, 1 − |n − target| / target)`` for a completion of n characters: 1 at the target, 0 at nothing or at twice as much."""
    wanted = _positive("length", target)
    return each(f"length:{wanted}", lambda text: max(0.0, 1.0 - abs(len(text) - wanted) / wanted))


def max_length(limit: int) -> Reward:
    """1 where the completion has at most ``limit`` characters."""
    most = _positive("max-length", limit)
    return each(f"max-length:{most}", lambda text: float(len(text) <= most))


def format_tags(*tags: str) -> Reward:
    """1 where the completion holds ``<tag>…</tag>`` with something inside, for every one of ``tags`` (``answer`` if none is named)."""
    wanted = tags or ("answer",)
    for tag in wanted:
        require(re.fullmatch(r"[\w-]+", tag) is not None, f"reward format-tags: expected a tag's name such as answer, found {tag!r}")
    return each(f"format-tags:{','.join(wanted)}", lambda text: float(all(tagged(text, tag) for tag in wanted)))


def named_tags(tags: str = "answer") -> Reward:
    return format_tags(*tags.split(","))


def _positive(name: str, value: Any) -> int:
    text = str(value).strip()
    fine = not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,9}", text) is not None and int(text) > 0
    require(fine, f"reward {name}: expected a number of characters, 1 or more, found {value!r}: write {name}:40")
    return int(text)


# name → (factory, what its argument is: required, optional or none)
BUILTIN: dict[str, tuple[Callable[..., Reward], str]] = {
    "answer": (check_answer, "none"),
    "exact-match": (exact_match, "none"),
    "numeric-answer": (numeric_answer, "optional"),
    "regular-expression": (regular_expression, "required"),
    "contains": (contains, "required"),
    "length": (length, "required"),
    "max-length": (max_length, "required"),
    "format-tags": (named_tags, "optional"),
}
"""The rewards that the command line knows by name; ``NAME:ARGUMENT`` gives the argument."""


def builtin(text: str) -> Reward:
    """The built-in reward that ``NAME`` or ``NAME:ARGUMENT`` names; raises :class:`UsageError` with the nearest name."""
    name, colon, argument = text.partition(":")
    if name not in BUILTIN:
        raise unknown("reward", text, [*BUILTIN, "module:function"])
    factory, wants = BUILTIN[name]
    require(wants != "required" or argument != "", f"reward {name}: an argument is missing: write {name}:ARGUMENT")
    require(wants != "none" or not colon, f"reward {name}: it takes no argument, found {argument!r}: write {name}")
    return factory(argument) if argument else factory()
