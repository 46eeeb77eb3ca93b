"""A sub-command: its page, its flags, and what it does. Help, parsing and the missing argument are the same for all of them."""

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.cli.flags import Flag, default_text, documented, parse
from upslope.errors import UsageError, require
from upslope.run.load import Run

HELP_FLAGS = ("--help", "-h")
COLUMN = 30  # where the help of a flag begins

LAUNCHERS = {
    "WORLD_SIZE": "torchrun, accelerate launch, deepspeed",
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPICH, Intel MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "HOROVOD_SIZE": "horovodrun",
}
"""Where launchers of several processes say how many; ``SLURM_NTASKS`` is not among them: a single shell of an allocation has it too."""


@dataclass(frozen=True)
class Command:
    """``upslope NAME ARGUMENT… [flags]``, called with what stands behind the name; returns the exit code."""

    work: Callable[[list[str], dict[str, Any]], int]
    """called with the arguments and the values of all flags, those that were not given at their defaults"""
    usage: str | Callable[[], str]  # the page, without the flags
    flags: tuple[Flag, ...] = ()
    missing: str = ""  # the error where no argument is given; empty: it needs none
    most_arguments: int | None = 1

    def __call__(self, argv: Sequence[str]) -> int:
        if asks_for_help(argv):
            usage = self.usage if isinstance(self.usage, str) else self.usage()
            print(f"{usage}\n{section('Flags:', self.flags)}" if self.flags else usage)
            return 0
        plain, given = parse(argv, self.flags, self.most_arguments)
        require(bool(plain) or not self.missing, self.missing)
        return self.work(plain, {flag.name: flag.default for flag in self.flags} | given)


def check_alone(command: str, environment: Mapping[str, str]) -> None:
    """Refuse several processes, each of which would be the same run; raises :class:`UsageError`."""
    for name, launcher in LAUNCHERS.items():
        size = environment.get(name, "").strip()
        if size.isdecimal() and int(size) > 1:
            what = f"started as one of {name}={size} processes ({launcher}), but a run is one process: each would train the same"
            raise UsageError(f"{command}: {what}; start upslope by itself, or unset {name} where each of them has other settings")


def asks_for_help(argv: Sequence[str]) -> bool:
    return any(text in HELP_FLAGS for text in argv)


def section(title: str, flags: Iterable[Flag]) -> str:
    """A title, and ``--num-envs N    environments played side by side (default 8)``, one flag after the other."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    return "\n".join([title, *(line for flag in map(documented, flags) for line in help_entry(flag, width))])


def help_entry(flag: Flag, width: int) -> list[str]:
    head, text = f"  {flag.option} {flag.kind.metavar}".rstrip(), flag.help
    if flag.is_switch and flag.default:
        head = f"  --no-{flag.option[2:]}"
        text = f"do not {text}" if text.startswith(("use ", "give ", "subtract ", "stop ")) else f"off: {text}"
    elif not flag.is_switch and (flag.default is not None or ("none" in flag.kind.metavar and "(none:" not in text)):
        text = f"{text} (default {default_text(flag)})"
    first, *rest = textwrap.wrap(text, width - COLUMN) or [""]
    start = [f"{head:<{COLUMN}}{first}"] if len(head) + 2 <= COLUMN else [head, " " * COLUMN + first]
    return [*start, *(" " * COLUMN + line for line in rest)]


def print_caution(run: Run, which: str) -> None:
    """Say in one line on stderr that the ``final`` or ``best`` policy of a run is not the end of its run, where it is not."""
    if caution := run.caution(which):
        print(f"upslope: note: {which} {caution}", file=sys.stderr)
