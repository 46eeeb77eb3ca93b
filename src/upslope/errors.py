"""The three ways a call can fail, and one helper that names the nearest valid choice.

``UsageError``: the caller asked for something that cannot be done; known before the first step (exit code 2).
``RunFault``: something outside the library went wrong while running, an environment that raises for one (exit code 1).
``Diverged``: the objective or the parameters stopped being finite (exit code 1).

Every message is one line that names the argument, what was found and what to do.
"""

import difflib
import importlib.util
import math
import traceback
from collections.abc import Iterable
from pathlib import Path


class UsageError(ValueError):
    """A request that cannot be carried out; the message says what to change."""


class RunFault(RuntimeError):
    """A fault while running; everything recorded up to the last whole iteration is kept."""


class Diverged(RunFault):
    """The objective, an advantage or a parameter is no longer finite; ``batch`` is where that was seen, if in one."""

    batch: object = None


def is_fault(error: BaseException) -> bool:
    """Whether code failed, and nobody asked to stop: an exception, or a panic of Rust, which PyO3 makes no ``Exception`` of."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def unknown(kind: str, name: str, choices: Iterable[str], hint_after: str = "") -> UsageError:
    """``unknown("algorithm", "pp0", ["ppo"])`` → "unknown algorithm 'pp0': did you mean 'ppo'?", and ``hint_after``."""
    names = sorted(choices)
    near = nearest(name, names)
    shown = names if len(names) <= 24 else [*names[:12], f"… ({len(names) - 12} more)"]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {', '.join(shown)}" if names else "there is none"
    if not near and kind == "flag" and len(names) > 24:
        hint = "--help lists them all"
    return UsageError(f"unknown {kind} {name!r}: {hint}{hint_after}")


ELSEWHERE = {
    **dict.fromkeys(("batch-size", "minibatch-size"), "num-minibatches"),
    **dict.fromkeys(("n-timesteps", "timesteps", "total-timesteps"), "total-steps"),
    "best": "policy",
    "ent-coef": "entropy-coef",
    "n-envs": "num-envs",
    "n-epochs": "num-epochs",
    "n-steps": "num-steps",
    "total-steps": "iterations",  # each is the budget of one world
    "iterations": "total-steps",
    "vf-coef": "value-coef",
}
"""What other libraries, or older versions, call a setting that has another name here."""


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """The choices that may have been meant, empty where none is near: the same but for dashes, one that has another name elsewhere, an
    abbreviation (``lr``: learning rate), one or two of which it is a word (``gae``: gae lambda), or the one that is spelled most alike."""
    plain = {choice: choice.lower().strip("-").replace("_", "-") for choice in choices}
    wanted = name.lower().strip("-").replace("_", "-")
    same = [choice for choice, text in plain.items() if text in (wanted, ELSEWHERE.get(wanted))]
    initials = [choice for choice, text in plain.items() if len(wanted) > 1 and wanted == "".join(word[:1] for word in text.split("-"))]
    word = [choice for choice, text in plain.items() if len(wanted) > 2 and f"-{wanted}-" in f"-{text}-"]
    spelled = {cutoff: difflib.get_close_matches(wanted, plain.values(), n=1, cutoff=cutoff) for cutoff in (0.8, 0.6)}
    alike = spelled[0.8] or spelled[0.6]
    best = sorted((c for c, text in plain.items() if text in alike), key=lambda c: -difflib.SequenceMatcher(None, name, c).ratio())[:1]
    return same[:1] or initials[:2] or (best if spelled[0.8] else word if len(word) in (1, 2) else best)


def describe_error(error: BaseException) -> str:
    """The message of an exception in one line; one that is not ours is named and placed."""
    message = " ".join(str(error).split())
    if isinstance(error, UsageError | RunFault):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{where}"


def one_line(value: object, most: int) -> str:
    line = " ".join(str(value).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def first_line(error: BaseException, most: int = 300) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:most]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def is_kind(value: object, *kinds: type) -> bool:
    """``isinstance`` of what a caller gave, who may not have kept to the types that were asked for."""
    return isinstance(value, kinds)


def require_counts(owner: object, *names: str, least: int = 1, most: float = math.inf) -> None:
    """Raise :class:`UsageError` for the first of these attributes outside ``least`` to ``most``; one whose default is None may be None."""
    for name in names:
        value, optional = getattr(owner, name), getattr(type(owner), name, 0) is None
        or_none = " or none" if optional else ""
        high = f" and at most {most:,.0f}" if most < math.inf else ""
        require(value is None or least <= value <= most, f"{name}: expected an integer ≥ {least}{high}{or_none}, found {value}")


class MissingExtra(UsageError, ImportError):
    """A package that an optional feature needs is not installed."""


def missing_extra(package: str, extra: str) -> MissingExtra:
    return MissingExtra(f"this needs {package}, which is not installed: {install(f'upslope[{extra}]')}")


def require_packages(extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, extra)


def install(requirement: str) -> str:
    """The command that installs a requirement here: with the pip of this Python, and for a clone of this library into the clone.

    ``install("upslope[box2d]")`` → ``pip install -e '.[box2d]'`` in a clone, ``pip install 'upslope[box2d]'`` after ``pip install
    upslope``; ``.venv/bin/python -m pip install …`` where ``pip`` alone is another Python's.
    """
    import os
    import shutil
    import sys

    def shown(path: Path) -> str:
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

    python, pip, clone = Path(sys.executable), shutil.which("pip"), Path(__file__).parents[2]
    command = "pip" if pip is not None and os.path.samefile(Path(pip).parent, python.parent) else f"{shown(python)} -m pip"
    if requirement.startswith("upslope[") and (clone / "pyproject.toml").exists():
        return f"{command} install -e '{shown(clone)}{requirement.removeprefix('upslope')}'"
    return f"{command} install '{requirement}'"
