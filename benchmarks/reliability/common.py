"""What the scripts of this folder share: processes that are forked or fresh, and the end of a script."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER.parents[1] / "src"
sys.path[:0] = [str(SOURCE), str(FOLDER.parent)]
harness = importlib.import_module("harness")
harness.OURS = Path(sys.executable).parent  # whose versions the results name
os.environ |= harness.ONE_THREAD  # before PyTorch is imported: what is forked must have one thread

Record = dict[str, Any]
PATIENCE = 300.0
"""Seconds that a process may take."""


def fresh(words: Sequence[object], folder: Path, threads: int = 1, cwd: Path | None = None, piped: bool = False) -> subprocess.Popen[str]:
    """``upslope WORDS`` in a fresh process and a session of its own, its output in files of the folder, where it also works unless told.

    ``piped``: standard output is a pipe.
    """
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        command = [sys.executable, "-m", "upslope", *map(str, words)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE if piped else out,
            stderr=err,
            env=environment,
            cwd=cwd or folder,
            start_new_session=True,
            text=True,
        )


def forked(work: Callable[[], int], folder: Path) -> int:
    """Call ``work`` in a forked process, in a session of its own; its id. Output goes into files of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(process: int, patience: float = PATIENCE) -> int:
    """Wait for a child's end: its exit code, minus the signal's number where one ended it; after ``patience`` seconds it is killed."""
    limit = time.monotonic() + patience
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.005)


def orphans(session: int, patience: float = 10.0) -> int:
    """How many processes of a session are still there ``patience`` seconds after the end of the one that began it."""
    limit = time.monotonic() + patience
    while True:
        found = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            found += int(fields[3]) == session and fields[0] != "Z"
        if not found or time.monotonic() > limit:
            return found
        time.sleep(0.05)


def said(folder: Path) -> str:
    """What a process wrote to its errors."""
    return (folder / "err").read_text(encoding="utf-8", errors="replace").strip()


def finish(name: str, records: Sequence[Record], out: Path, *, every: int = 1, **sections: Any) -> int:
    """Write the results, every so many of those that are right, print how many that are, and give the exit code."""
    records = json.loads(re.sub(rf"{tempfile.gettempdir()}/tmp\w{{8}}", "TEMPORARY", json.dumps(list(records))))
    right = sum(bool(record["right"]) for record in records)
    shown = [record for record in records if not record["right"]] + [record for record in records if record["right"]][::every]
    harness.write(name, [], shown, out, quiet=True, right=right, of=len(records), **sections)
    for record in shown[: min(10, len(records) - right)]:
        print("not right:", json.dumps(record, ensure_ascii=False))
    print(json.dumps(sections.get("found", {}), ensure_ascii=False))
    print(f"{right} of {len(records)}")
    return 0 if right == len(records) else 1


def without(values: Mapping[str, Any], *names: str) -> Record:
    """A copy without some of its entries."""
    return {name: value for name, value in values.items() if name not in names}
