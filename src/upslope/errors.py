"""The three ways a call can fail, and one helper that names the nearest valid choice.

``UsageError``: the caller asked for something that cannot be done; known before the first step (exit code 2).
``RunFault``: something outside the library went wrong while running, an environment that raises for one (exit code 1).
``Diverged``: the objective or the parameters stopped being finite (exit code 1).

Every message is one line that names the argument, what was found and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A request that cannot be carried out; the message says what to change."""


class RunFault(RuntimeError):
    """A fault while running; everything recorded up to the last whole iteration is kept."""


class Diverged(RunFault):
    """The objective, an advantage or a parameter is no longer finite."""


def unknown(kind: str, name: str, choices: Iterable[str], hint_after: str = "") -> UsageError:
    """``unknown("algorithm", "pp0", ["ppo"])`` → "unknown algorithm 'pp0': did you mean 'ppo'?", and ``hint_after``."""
    names = sorted(choices)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    shown = names if len(names) <= 24 else [*names[:12], f"… ({len(names) - 12} more)"]
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(shown)}"
    return UsageError(f"unknown {kind} {name!r}: {hint}{hint_after}")


def require(condition: bool, message: str) -> None:
    """Raise :class:`UsageError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UsageError(message)


def missing_extra(package: str, extra: str) -> UsageError:
    """The message for a package that an optional feature needs."""
    return UsageError(f"this needs {package}, which is not installed: pip install 'upslope[{extra}]'")
