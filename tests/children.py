"""Processes that a test starts and sends signals to."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

AS_IN_A_TERMINAL = """
import os, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGCHLD"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""What a parent ignores its children ignore: under nohup that is SIGHUP, in a script's background SIGINT."""


@contextlib.contextmanager
def python(words: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """``python WORDS`` with every signal at its default, whatever the runner of the tests ignores; killed at the block's end."""
    command = [sys.executable, "-c", AS_IN_A_TERMINAL, *map(str, words)]
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()
