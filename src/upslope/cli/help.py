"""Help pages: wrapped to the terminal, flags in columns, defaults shown."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

from upslope.cli.flags import Flag, documented, shown

COLUMN = 30


def table(flags: Iterable[Flag]) -> str:
    """``--num-envs N    environments played side by side (default 8)``, one flag after the other."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    return "\n".join(line for flag in map(documented, flags) for line in entry(flag, width))


def entry(flag: Flag, width: int) -> list[str]:
    """The lines of one flag."""
    head = f"  {flag.option} {flag.kind.metavar}".rstrip()
    text = flag.help
    if flag.is_switch:
        if flag.default:
            head = f"  --no-{flag.option[2:]}"
            text = f"do not {text}" if text.startswith(("use ", "give ", "subtract ", "stop ")) else f"off: {text}"
    elif flag.default is not None or ("none" in flag.kind.metavar and "(none:" not in text):
        text = f"{text} (default {shown(flag)})"
    wrapped = textwrap.wrap(text, width - COLUMN) or [""]
    if len(head) + 2 > COLUMN:
        return [head, *(" " * COLUMN + line for line in wrapped)]
    return [f"{head:<{COLUMN}}{wrapped[0]}", *(" " * COLUMN + line for line in wrapped[1:])]


def section(title: str, flags: Iterable[Flag]) -> str:
    """A titled table."""
    return f"{title}\n{table(flags)}"
