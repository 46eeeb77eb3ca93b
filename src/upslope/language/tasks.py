"""Tasks by name: generated ones, JSONL files, and those of reasoning-gym."""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any

from upslope.errors import UsageError, is_kind, missing_extra, require, unknown
from upslope.language.checks import Reward, answered, as_number, check_answer, each, each_with, last_number, tagged
from upslope.language.jsonl import read_completion, read_problems
from upslope.language.problems import Problem, Task, num_held_out, prompt_key, split
from upslope.language.synthetic import addition, copy, styled, sums, tagged_answer_of

SYNTHETIC: dict[str, Callable[..., Task]] = {"addition": addition, "copy": copy, "sums": sums}
"""The generated tasks by name."""

GYM = "reasoning-gym"
NO_REWARD = "there is no column answer, so the task has no reward: give a reward or add the column"


def task(name: str, *, seed: int = 0, reward: Reward | None = None, **options: Any) -> Task:
    """The task called ``name``: ``addition``, ``copy``, ``sums``, ``FILE.jsonl`` or ``reasoning-gym:NAME``.

    ``seed`` decides which problems there are and which of them are held out, so a run and its evaluation need the same.
    ``reward`` takes the place of the task's. ``options`` are the task's. Raises :class:`UsageError`.
    """
    require(is_kind(seed, int) and not isinstance(seed, bool), f"task {name}: seed is a whole number, found {seed!r}")
    head, colon, rest = str(name).partition(":")
    if head in SYNTHETIC and not colon:
        made = _call(str(name), SYNTHETIC[head], {"seed": seed, **options})
    elif head == GYM:
        made = _call(str(name), reasoning_gym, {"seed": seed, **options}, rest)
    elif str(name).endswith(".jsonl"):
        made = _call(str(name), jsonl, {"seed": seed, "reward": reward, **options}, name)
    elif os.path.exists(name):
        raise UsageError(f"task {name}: expected a file whose name ends in .jsonl, with one JSON object on every line")
    else:
        raise unknown("task", str(name), [*SYNTHETIC, "FILE.jsonl", f"{GYM}:NAME"])
    return made if reward is None else replace(made, reward=reward)


def jsonl(
    path: str | Path,
    *,
    seed: int = 0,
    reward: Reward | None = None,
    held_out_fraction: float = 0.1,
    held_out: str | Path | None = None,
    max_tokens: int = 256,
) -> Task:
    """A file of problems; held out are those of ``held_out``, else of ``FILE.test.jsonl`` if it exists, else a fraction.

    With a column ``answer`` the reward is 1 where a completion says it (inside an answer tag or as a whole; of a numeric
    answer, the last number counts); without one a ``reward`` is needed, except to imitate a column ``completion``. The format
    rate says how often a number was found where the answers are numbers, else how often there was any text.
    """
    require(isinstance(max_tokens, Integral) and max_tokens >= 1, f"max_tokens: expected an integer ≥ 1, found {max_tokens!r}")
    file = Path(path)
    problems = read_problems(file, answers=reward is None)
    names = tuple(problems[0].columns)
    answers = {"answer", "completion"} & set(names)
    require(reward is not None or bool(answers), f"task {file}: {NO_REWARD}")
    beside = file.with_name(f"{file.stem}.test.jsonl")
    other = Path(held_out) if held_out is not None else beside if beside.exists() else None
    if other is None:
        train, test = _fraction(file, problems, held_out_fraction, seed)
    else:
        train, test = problems, _apart(other, file, problems, answers=reward is None)
    numeric = "answer" in names and all(as_number(str(problem.columns["answer"])) is not None for problem in problems)

    def form(text: str) -> float:
        return float(last_number(answered(text)) is not None if numeric else text.strip() != "")

    def solution(problem: Problem) -> str:
        name = "completion" if "completion" in names else "answer"
        plain = isinstance(value := problem.columns[name], str | int | float) and not isinstance(value, bool)
        return str(value) if plain else read_completion(problem.place, problem.columns, name)

    check, formed = (check_answer(), each("format", form)) if "answer" in names else (None, None)
    scored: dict[str, Any] = {"reward": reward or check, "correct": check, "format": formed, "solution": solution if answers else None}
    return Task(name=str(file), train=train, held_out=test, columns=names, max_tokens=max_tokens, **scored)


def reasoning_gym(
    name: str,
    *,
    seed: int = 0,
    size: int = 1000,
    held_out: int | None = None,
    style: str = "messages",
    instruction: str = "Give the answer between <answer> and </answer>.",
    max_tokens: int = 256,
    **config: Any,
) -> Task:
    """A task of the package reasoning-gym: ``size`` problems in all, the task's settings in ``config``, scored by the package's check.

    The answer is what the last answer tag holds, else the whole completion; one that the check cannot even read is wrong.
    Equal questions count once. Some of these tasks take seconds per problem to make: ask for a smaller ``size`` there.
    """
    dataset = _dataset(name, size, seed, config)
    entries, problems = list[Any](), dict[str, Problem]()
    for entry in dataset:
        prompt = styled(GYM, f"{entry['question']}\n\n{instruction}" if instruction else entry["question"], style)
        if prompt_key(prompt) not in problems:
            answer = "" if entry.get("answer") is None else str(entry["answer"])
            problems[prompt_key(prompt)] = Problem(prompt=prompt, columns={"answer": answer, "entry": len(entries)})
            entries.append(entry)
    require(len(problems) > 1, f"task {GYM}:{name}: these settings give one question only: change them")
    train, test = split(list(problems.values()), num_held_out(len(problems), held_out), GYM, name, seed)

    def score(text: str, index: int) -> float:
        try:
            return float(dataset.score_answer(answered(text).strip(), entries[index]))
        except Exception:  # several of these checks parse the answer and let the parser's error through
            return 0.0

    scored: dict[str, Any] = {"reward": each_with(f"{GYM}:{name}", score, "entry", no_timeout=False)}
    scored["correct"] = each_with("correct", lambda text, index: float(score(text, index) >= 1.0), "entry")
    scored["format"] = each("format", lambda text: float(bool(tagged(text))))
    scored["solution"] = tagged_answer_of if all(entry.get("answer") is not None for entry in entries) else None
    return Task(name=f"{GYM}:{name}", train=train, held_out=test, columns=("answer", "entry"), max_tokens=max_tokens, **scored)


def _dataset(name: str, size: int, seed: int, config: dict[str, Any]) -> Any:
    try:
        package, factory = import_module("reasoning_gym"), import_module("reasoning_gym.factory")
    except ImportError:
        raise missing_extra(GYM, "reasoning") from None
    if name not in factory.DATASETS:
        raise unknown(f"{GYM} task", name, factory.DATASETS)
    require(is_kind(size, int) and size > 1, f"task {GYM}:{name}: size is 2 or more, found {size!r}")
    try:
        return package.create_dataset(name, size=size, seed=seed, **config)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"task {GYM}:{name}: its settings were refused: {' '.join(str(error).split()) or type(error).__name__}") from None


def _fraction(file: Path, problems: list[Problem], fraction: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    fine = is_kind(fraction, int, float) and not isinstance(fraction, bool) and 0 <= fraction < 1
    require(fine, f"task {file}: held_out_fraction is at least 0 and below 1, found {fraction!r}")
    prompts = len({prompt_key(problem.prompt) for problem in problems})
    return split(problems, max(1, round(fraction * prompts)) if fraction and prompts > 1 else 0, "jsonl", seed)


def _apart(other: Path, file: Path, trained: list[Problem], *, answers: bool) -> list[Problem]:
    """The held-out problems of a separate file: the same columns, and no prompt that is trained on."""
    problems = read_problems(other, answers=answers)
    missing = sorted(set(trained[0].columns) - set(problems[0].columns))
    require(not missing, f"{other}: column {', '.join(map(repr, missing))} is missing, which {file} has")
    prompts = {prompt_key(problem.prompt) for problem in trained}
    for problem in problems:
        shared = prompt_key(problem.prompt) in prompts
        require(not shared, f"{problem.place}: this prompt is also in {file}: a held-out problem may not be trained on, remove it from one")
    return problems


def _call(name: str, factory: Callable[..., Task], options: dict[str, Any], *arguments: Any) -> Task:
    """``factory`` with ``options``; an option that it does not have is named with the nearest that it has."""
    parameters = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [key for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
        for option in options:
            if option not in known:
                raise unknown(f"option of task {name}", option, [key for key in known if key not in ("seed", "reward")])
    return factory(*arguments, **options)
