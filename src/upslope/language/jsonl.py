"""JSONL files: problems, preference pairs, labeled completions; every error names the file and the line."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from upslope.errors import UsageError, is_kind, require
from upslope.language.calls import ALSO_KNOWN
from upslope.language.checks import Prompt
from upslope.language.problems import Labeled, Pair, Problem
from upslope.language.tokens import UNREAD, check_unread, content_alone

RESERVED = (*ALSO_KNOWN, "self")  # names under which a reward receives something else; no column may be called so


def read_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSONL file with its place (``FILE, line 3``); blank lines are left out. Raises :class:`UsageError`."""
    file, found = Path(path), False
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        where = "" if Path(file).is_absolute() else f", looked for in {Path.cwd()}"  # a run goes on where its files are found again
        raise UsageError(f"no such file: {file}{where}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            found = True
            yield f"{file}, line {number}", _object(f"{file}, line {number}", line)
    require(found, f"{file} is empty: expected one JSON object on every line")


def read_problems(path: str | Path, *, answers: bool = False) -> list[Problem]:
    """The problems of a file of ``{"prompt": …, "answer": …, any column}``, each with its place; all lines have the same columns.

    With ``answers``, a column ``answer``, if there is one, holds strings or numbers only. Raises :class:`UsageError`.
    """
    problems: list[Problem] = []
    for place, entry in read_lines(path):
        prompt = _prompt(place, entry)
        columns = {name: value for name, value in entry.items() if name != "prompt"}
        for name in RESERVED:
            require(name not in columns, f"{place}: a column may not be called {name}, which means something else to rewards: rename it")
        first, names = (problems[0].place, set(problems[0].columns)) if problems else (place, set(columns))
        missing, extra = sorted(names - set(columns)), sorted(set(columns) - names)
        require(not missing, f"{place}: column {', '.join(map(repr, missing))} is missing, which {first} has")
        require(not extra, f"{place}: column {', '.join(map(repr, extra))} is missing in {first}: every line needs the same columns")
        if answers and "answer" in columns:
            answer = columns["answer"]
            fine = isinstance(answer, str | int | float) and not isinstance(answer, bool) and str(answer).strip() != ""
            fine &= not isinstance(answer, float) or math.isfinite(answer)  # a table's missing value
            require(fine, f"{place}: answer is a string or a number, found {_shown(answer)}")
        problems.append(Problem(prompt=prompt, columns=columns, place=place))
    for name in (name for name in UNREAD if any(problem.columns.get(name) for problem in problems)):
        message = f"{path}: column {name} is for rewards only, the model does not see it; where it should, {UNREAD[name]}"
        warnings.warn(message, stacklevel=2)
    return problems


def read_pairs(path: str | Path) -> list[Pair]:
    """The preference pairs of a file of ``{"prompt": …, "chosen": …, "rejected": …}``; two equal completions are refused.

    Without a column ``prompt``, conversations that differ in their last message only are split there.
    """
    pairs: list[Pair] = []
    for place, line in read_lines(path):
        check_unread(line, place)
        entry = line if "prompt" in line else _with_shared_prompt(place, line)
        prompt, chosen, rejected = _prompt(place, entry), read_completion(place, entry, "chosen"), read_completion(place, entry, "rejected")
        require(chosen != rejected, f"{place}: chosen and rejected are equal, so the pair says nothing: remove the line")
        pairs.append(Pair(prompt=prompt, chosen=chosen, rejected=rejected, place=place))
    return pairs


def read_labeled(path: str | Path) -> list[Labeled]:
    """The labeled completions of a file of ``{"prompt": …, "completion": …, "label": true or false}``."""
    found: list[Labeled] = []
    for place, entry in read_lines(path):
        check_unread(entry, place)
        prompt, completion = _prompt(place, entry), read_completion(place, entry, "completion")
        require("label" in entry, f"{place}: label is missing: expected prompt, completion and label, found {_names(entry)}")
        label = entry["label"]
        require(isinstance(label, bool), f"{place}: label is true or false, found {_shown(label)}")
        found.append(Labeled(prompt=prompt, completion=completion, label=label, place=place))
    return found


def _object(place: str, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_with_each_name_once)
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{place}: malformed JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: malformed JSON: {error}") from None
    if b"\\u" in line:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{place}: it holds a lone surrogate (half of an escaped character), which is no text") from None
    require(isinstance(value, dict), f'{place}: expected an object such as {{"prompt": "2+2=", "answer": "4"}}, found {_shown(value)}')
    return value


def _with_each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in one object twice: keep one of them")
    return found


def _prompt(place: str, entry: Mapping[str, Any]) -> Prompt:
    require("prompt" in entry, f"{place}: prompt is missing, found {_names(entry)}")
    prompt = entry["prompt"]
    if is_kind(prompt, list):
        return _messages(place, "prompt", prompt)
    require(isinstance(prompt, str), f"{place}: prompt is a string or a list of messages, found {_shown(prompt)}")
    require(prompt != "", f"{place}: prompt is empty")
    return prompt


def _with_shared_prompt(place: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A pair whose prompt stands at the beginning of both chosen and rejected, split into the three.

    Only between messages is it known where the prompt ends; of texts, what they share may reach into the answers.
    """
    chosen, rejected = cast(Any, entry.get("chosen")), cast(Any, entry.get("rejected"))
    if is_kind(chosen, list) and is_kind(rejected, list):
        prompt = chosen[:-1]
        fits = len(prompt) > 0 and prompt == rejected[:-1]
        hint = "put the messages that they share into prompt and one assistant message each into chosen and rejected"
        require(fits, f"{place}: prompt is missing, and chosen and rejected differ before their last message: {hint}")
        return {**entry, "prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}
    if isinstance(chosen, str) and isinstance(rejected, str):
        shared = "".join(a for a, _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
        both = f"both begin with {_shown(shared)}; " if shared else ""
        hint = f"{both}put what was asked into prompt, and only the answers into chosen and rejected"
        raise UsageError(f"{place}: prompt is missing, found {_names(entry)}: {hint}")
    return entry


def _messages(place: str, name: str, messages: list[Any]) -> list[dict[str, str]]:
    require(len(messages) > 0, f"{place}: {name} is an empty list: expected one message or more")
    for number, message in enumerate(messages, start=1):
        require(isinstance(message, dict), f"{place}: message {number} of {name} is not an object with role and content: {_shown(message)}")
        for key in ("role", "content"):
            fine = isinstance(message.get(key), str) and (key == "content" or message[key] != "")
            require(fine, f"{place}: message {number} of {name} needs a {key} that is a string, found {_shown(message.get(key))}")
    return messages


def read_completion(place: str, entry: Mapping[str, Any], name: str) -> str:
    """The text of a completion, which is a string or one message of the assistant."""
    require(name in entry, f"{place}: {name} is missing, found {_names(entry)}")
    value = entry[name]
    if is_kind(value, list):
        messages = _messages(place, name, value)
        single = len(messages) == 1 and messages[0]["role"] == "assistant"
        require(single, f"{place}: {name} as messages is one assistant message; what comes before it belongs into prompt")
        value = content_alone(messages[0], place, name)
    require(isinstance(value, str), f"{place}: {name} is a string or one assistant message, found {_shown(value)}")
    require(value.strip() != "", f"{place}: {name} is empty")
    return value


def _names(entry: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, entry)) or "an empty object"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
