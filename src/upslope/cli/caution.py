"""What a command that uses a run's policy says beside its result, on stderr."""

from __future__ import annotations

import sys

from upslope.run.load import Run


def print_caution(run: Run, which: str) -> None:
    """Say in one line that the ``final`` or ``best`` policy is not the end of its run, where it is not."""
    words = run.caution(which)
    if words:
        print(f"upslope: note: {which} {words}", file=sys.stderr)
