"""Prompts that leave no room for a completion: refused with their file and line, left out, or cut at their beginning."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from upslope.errors import UsageError, require
from upslope.language.checks import Prompt
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Task

LongPrompts = Literal["error", "drop", "cut"]
Item = TypeVar("Item", bound=Any)

FEWER = ", take fewer --max-tokens"
ROOM_FOR_ENDS = 8  # tokens kept free behind a recorded completion for what its template ends a turn with


def fit(
    policy: LanguagePolicy,
    items: Sequence[Item],
    reserved: Sequence[int],
    how: LongPrompts,
    what: str = "prompts",
    less: Callable[[int], str] = lambda _: FEWER,
) -> tuple[list[Item], int]:
    """The items whose ``prompt`` leaves ``reserved`` tokens of the context free, and how many were dropped or cut for it.

    The policy is then looked at up to the longest of them, if that is longer than what it was looked at before.

    ``less(room)`` says how completions of at most so many tokens are asked for.

    ``cut`` keeps the end: a text loses its beginning, of a talk the longest message does.

    Raises:
        UsageError: with ``error``, the first that is too long, by file and line where they are known; with ``cut``, one that does
            not fit without its text; with ``drop``, if none is left.
    """
    kept: list[Item] = []
    changed = longest = 0
    places = [item.place or f"{what}[{i}]" for i, item in enumerate(items)]
    prompts = policy.encode_all([item.prompt for item in items], places)
    for item, ids, free, place in zip(items, prompts, reserved, places, strict=True):
        require(bool(ids), f"{place}: its prompt has no token")
        if len(ids) + free <= policy.context:
            kept.append(item)
            longest = max(longest, len(ids) + free)
            continue
        changed += 1
        if how == "error":
            begins, advice = policy.decode(ids[:12]), less(policy.context - len(ids))
            raise UsageError(
                f"{place}: its {len(ids)} tokens and {free} for the completion exceed the model's context of {policy.context}; "
                f"shorten the prompt, which begins with {begins!r}{advice}, or --long-prompts drop or cut"
            )
        if how == "cut":
            shorter = cut(policy, item.prompt, policy.context - free)
            if shorter is None:
                raise UsageError(f"{place}: no part of it fits beside the {free} tokens of the completion; take --long-prompts drop")
            kept.append(replace(item, prompt=shorter))
            longest = policy.context
    require(bool(kept) or not items, f"{what}: all {changed} are too long for the model's context of {policy.context}; shorten them")
    policy.look_up_to(longest)
    return kept, changed


def fit_task(policy: LanguagePolicy, task: Task, max_tokens: int, how: LongPrompts, *, recorded: bool = False) -> tuple[Task, int]:
    """The task with prompts that fit, and how many were dropped or cut.

    To train on ``recorded`` solutions it is their length that is kept free, and what is too long then is for the collector to refuse;
    only what is held out is asked for completions then, of the task's length.
    """
    has_option = task.name.endswith(".jsonl") or task.name.startswith("reasoning-gym:")  # of others, completions have the length they need

    def fewer(room: int) -> str:
        flag = f""", so take --task-kwargs '{{"max_tokens": {room}}}' or fewer""" if has_option and room > 0 else ""
        return f"; it is held out, and evaluations ask it for so many tokens{flag}"

    free = [max_tokens] * len(task.held_out)
    held_out, dropped = fit(policy, task.held_out, free, how, less=fewer if recorded else lambda _: FEWER) if free else ([], 0)
    if not recorded:
        train, others = fit(policy, task.train, [max_tokens] * len(task.train), how)
    elif how == "error" or task.solution is None:
        train, others = list(task.train), 0
    else:
        said = [[task.solution(problem)] for problem in task.train]
        train, others = fit(policy, task.train, completion_lengths(policy, task.train, said), how)
    return replace(task, train=train, held_out=held_out), dropped + others


def completion_lengths(policy: LanguagePolicy, items: Sequence[Any], completions: Sequence[Sequence[str]]) -> list[int]:
    """Tokens to keep free for the longest of each item's recorded completions."""
    owner = [i for i, texts in enumerate(completions) for _ in texts]
    ids = policy.encode_all([text for texts in completions for text in texts], [items[i].place or f"data[{i}]" for i in owner])
    longest = [0] * len(completions)
    for i, row in zip(owner, ids, strict=True):
        longest[i] = max(longest[i], len(row) - len(policy.rendering.prefix))
    return [n + ROOM_FOR_ENDS for n in longest]


def cut(policy: LanguagePolicy, prompt: Prompt, room: int) -> Prompt | None:
    """The prompt with as much of its end as fits into ``room`` tokens; None where nothing does."""
    if isinstance(prompt, str):
        return longest_end(prompt, lambda text: len(policy.encode(text)) <= room)
    place = max(range(len(prompt)), key=lambda i: len(prompt[i]["content"]))

    def shortened(text: str) -> list[dict[str, str]]:
        return [*prompt[:place], {**prompt[place], "content": text}, *prompt[place + 1 :]]

    found = longest_end(prompt[place]["content"], lambda text: len(policy.encode(shortened(text))) <= room)
    return None if found is None else shortened(found)


def longest_end(text: str, fits: Callable[[str], bool]) -> str | None:
    """The longest end of ``text`` of at least one character that fits, by bisection: a longer text has no fewer tokens."""
    if not text or not fits(text[-1:]):
        return None
    least, beyond = 1, len(text) + 1
    while beyond - least > 1:
        middle = (least + beyond) // 2
        least, beyond = (middle, beyond) if fits(text[-middle:]) else (least, middle)
    return text[-least:]
