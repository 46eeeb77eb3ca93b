"""Generated tasks: sums and copying for a tiny model, sums with an answer tag for one that follows instructions."""

import itertools
import random
from decimal import Decimal
from typing import Any

from upslope.errors import UsageError, is_kind, require
from upslope.language.checks import Prompt, as_number, each, each_with, exact_match, tagged
from upslope.language.problems import Pair, Problem, Task, num_held_out, shuffled, split

MAX_PROBLEMS = 16384  # a generated task with more problems than this takes a random part of them

SUMS_EXAMPLE = (17, 25)


def addition(*, seed: int = 0, digits: int = 2, low: int | None = None, high: int | None = None, held_out: int | None = None) -> Task:
    """Sums ``12+34=`` → ``46`` of two numbers of ``digits`` digits, or from ``low`` to ``high``, both included."""
    _integer("addition", "digits", digits, 1, 9)
    first = low if low is not None else 0 if digits == 1 else 10 ** (digits - 1)
    last = high if high is not None else 10**digits - 1
    problems = [Problem(prompt=f"{a}+{b}=", columns={"answer": str(a + b)}) for a, b in _operands("addition", first, last, seed)]
    form, size = each("digits", lambda text: float(text.strip().isdecimal())), len(str(2 * last)) + 1
    return _task("addition", problems, held_out, seed, format=form, max_tokens=size, alphabet="0123456789+=")


def copy(*, seed: int = 0, length: int = 5, alphabet: str = "abcdefghijklmnopqrstuvwxyz", held_out: int | None = None) -> Task:
    """Copying ``abcde>`` → ``abcde``: random strings of ``length`` characters of ``alphabet``."""
    _integer("copy", "length", length, 1, 64)
    letters = "".join(dict.fromkeys(alphabet)) if is_kind(alphabet, str) else ""
    usable = len(letters) >= 2 and ">" not in letters and not any(letter.isspace() for letter in letters)
    require(usable, f"task copy: expected an alphabet of 2 or more characters without blanks and >, found {alphabet!r}")
    count = min(len(letters) ** length, MAX_PROBLEMS)
    require(count >= 4, f"task copy: {count} problems are too few to hold some out: use a longer length or alphabet")
    generator = random.Random(f"copy/{seed}")
    words: dict[str, None] = {}
    if len(letters) ** length <= MAX_PROBLEMS:
        words = dict.fromkeys("".join(reversed(word)) for word in itertools.product(letters, repeat=length))
    while len(words) < count:
        words["".join(generator.choices(letters, k=length))] = None
    problems = [Problem(prompt=f"{word}>", columns={"answer": word}) for word in words]
    form = each("word", lambda text: float(len(text.strip()) == length))
    return _task("copy", problems, held_out, seed, format=form, max_tokens=length + 1, alphabet=f"{letters}>")


def sums(
    *, seed: int = 0, low: int = 0, high: int = 49, style: str = "messages", format_weight: float = 0.2, held_out: int | None = None
) -> Task:
    """Sums for a model that follows instructions: one worked example with an answer tag, then the question.

    The reward is ``format_weight`` where a number stands in the first answer tag, and the rest where it is the right one.
    ``style`` is ``messages`` (the example is a separate turn) or ``text``. The example is never among the problems.
    """
    fine = is_kind(format_weight, int, float) and not isinstance(format_weight, bool) and 0 <= format_weight < 1
    require(fine, f"task sums: format_weight is at least 0 and below 1, found {format_weight!r}")
    require(style in ("messages", "text"), f"task sums: style is messages or text, found {style!r}")
    operands = [pair for pair in _operands("sums", low, high, seed) if pair != SUMS_EXAMPLE]
    problems = [Problem(prompt=_sums_prompt(a, b, style), columns={"answer": str(a + b)}) for a, b in operands]

    def said(text: str) -> Decimal | None:
        head, end, _ = text.partition("</answer>")  # the first: a model given plain text goes on with further questions
        return as_number(tagged(head + end) or "")

    def form(text: str) -> float:
        return float(said(text) is not None)

    def right(text: str, answer: Any) -> float:
        return float(said(text) == as_number(str(answer)))

    def reward(text: str, answer: Any) -> float:
        return (1.0 - format_weight) * right(text, answer) + format_weight * form(text)

    scored = {"reward": each_with("sums", reward, "answer"), "correct": each_with("correct", right, "answer")}
    return _task("sums", problems, held_out, seed, solution=tagged_answer_of, max_tokens=16, format=each("format", form), **scored)


def _task(name: str, problems: list[Problem], held_out: int | None, seed: int, **options: Any) -> Task:
    """Scored by the answer alone, unless ``options`` say otherwise."""
    train, test = split(problems, num_held_out(len(problems), held_out), name, seed)
    exact: dict[str, Any] = {"reward": exact_match(), "correct": exact_match(), "solution": answer_of}
    return Task(name=name, train=train, held_out=test, columns=("answer",), **{**exact, **options})


def answer_of(problem: Problem) -> str:
    return str(problem.columns["answer"])


def tagged_answer_of(problem: Problem) -> str:
    return f"<answer>{answer_of(problem)}</answer>"


def styled(task: str, text: str, style: str) -> Prompt:
    """``text`` as a prompt: verbatim (``text``) or as one user message (``messages``)."""
    require(style in ("messages", "text"), f"task {task}: style is messages or text, found {style!r}")
    return text if style == "text" else [{"role": "user", "content": text}]


def pairs_from(task: Task, *, seed: int = 0, count: int = 256, held_out: bool = False) -> list[Pair]:
    """``count`` preference pairs of a task that has answers: the right completion against that of another problem's answer."""
    source = task.held_out if held_out else task.train
    make = task.solution
    if make is None or "answer" not in task.columns:
        raise UsageError(f"task {task.name}: pairs need an answer to every problem, and this task has none")
    require(is_kind(count, int) and count > 0, f"count: expected 1 or more pairs, found {count!r}")
    others = sorted({answer_of(problem) for problem in source})
    found = f"all {len(source):,} {'held-out' if held_out else 'training'} problems have the same"
    require(len(others) > 1, f"task {task.name}: pairs need problems with different answers, and {found}")
    generator, pairs = random.Random(f"pairs/{task.name}/{seed}/{held_out}"), list[Pair]()
    while len(pairs) < count:
        for problem in shuffled(source, "pairs", seed, len(pairs))[: count - len(pairs)]:
            wrong = generator.choice(others)
            while wrong == answer_of(problem):
                wrong = generator.choice(others)
            rejected = make(Problem(prompt=problem.prompt, columns={**problem.columns, "answer": wrong}))
            pairs.append(Pair(prompt=problem.prompt, chosen=make(problem), rejected=rejected, place=problem.place))
    return pairs


def _sums_prompt(a: int, b: int, style: str) -> Prompt:
    c, d = SUMS_EXAMPLE
    answer = f"<answer>{c + d}</answer>"
    if style == "text":
        return f"{c} + {d} = {answer}\n{a} + {b} ="
    # SmolLM2-135M-Instruct answers this in the form in 0.91 of 64 samples (correct: 0.11), and seventeen other wordings, 32 samples
    # each, in at most 0.47, but for this one with a system message before it
    return [
        {"role": "user", "content": f"<question>{c} + {d}</question>"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": f"<question>{a} + {b}</question>"},
    ]


def _operands(task: str, low: int, high: int, seed: int) -> list[tuple[int, int]]:
    _integer(task, "low", low, 0, 10**9)
    _integer(task, "high", high, low + 1, 10**9)
    size = high - low + 1
    total = size * size
    chosen = range(total) if total <= MAX_PROBLEMS else sorted(random.Random(f"{task}/{seed}").sample(range(total), MAX_PROBLEMS))
    return [(low + index // size, low + index % size) for index in chosen]


def _integer(task: str, name: str, value: Any, least: int, most: int) -> None:
    fine = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    require(fine, f"task {task}: {name} is a whole number from {least} to {most}, found {value!r}")
