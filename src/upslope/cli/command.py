"""A sub-command: its page, its flags, and what it does. Help, parsing and the missing word are the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.cli.flags import Flag, parse
from upslope.cli.help import section
from upslope.errors import UsageError

HELP_FLAGS = ("--help", "-h")


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a page is wanted instead of the work."""
    return any(word in HELP_FLAGS for word in argv)


def without_help(argv: Sequence[str]) -> list[str]:
    """The words that say what the page is to be about."""
    return [word for word in argv if word not in HELP_FLAGS]


@dataclass(frozen=True)
class Command:
    """``upslope NAME WORD… [flags]``, called with the words behind the name; returns the exit code."""

    work: Callable[[list[str], dict[str, Any]], int]
    """called with the plain words and the values of the flags, those that were not given at their defaults"""
    usage: str | Callable[[], str]
    """the page, without the flags"""
    flags: tuple[Flag, ...] = ()
    missing: str = ""
    """the error where no plain word is given; empty: it needs none"""
    most_words: int | None = 1
    fills: bool = True
    """whether flags that were not given are at their defaults in the values, or not in them"""

    def __call__(self, argv: Sequence[str]) -> int:
        """Show the page, or parse and work."""
        if asks_for_help(argv):
            print(self.page())
            return 0
        plain, given = parse(argv, self.flags, self.most_words)
        if self.missing and not plain:
            raise UsageError(self.missing)
        defaults = {flag.name: flag.default for flag in self.flags} if self.fills else {}
        return self.work(plain, defaults | given)

    def page(self) -> str:
        """Usage, then every flag."""
        usage = self.usage if isinstance(self.usage, str) else self.usage()
        return f"{usage}\n{section('Flags:', self.flags)}" if self.flags else usage
