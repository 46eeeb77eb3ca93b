"""Files of a stranger, the cases of ``tests/cli/test_hostile.py``: nothing in them is executed, nothing is written outside the folder.

python benchmarks/reliability/hostile_files.py                   # about two minutes
python benchmarks/reliability/hostile_files.py --only template
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import FOLDER, Record, ended, finish, forked, harness, said

from upslope.cli.main import main as upslope

sys.path.append(str(FOLDER.parents[1]))
hostile = importlib.import_module("tests.cli.test_hostile")
CHAT = ["chat", "stranger", "--greedy", "--max-tokens", "1"]
LIMIT, MEMORY = 60.0, 6 << 30
"""Seconds that a command may take, and bytes of address space, of which importing takes the most."""
PROTOCOL = (
    "The run or model of a stranger with one hostile file (`tests/cli/test_hostile.py`) in the current folder, beside a module `evil` that "
    "leaves a canary when it is imported and a folder of the user's; a command on it in a forked process in which everything that runs "
    f"commands leaves a canary too, with {MEMORY >> 30} GB of address space. Right: it is refused in one line with exit code 2 that says "
    "why (or, where nothing of the file is needed, works); no canary; every file in the current folder and in the user's is what it "
    f"was; it takes at most {LIMIT:g} s."
)


def canaries(folder: Path) -> None:
    """Whatever runs a command or a file's code leaves a file."""

    def left(name: str) -> Callable[..., Any]:
        return lambda *_, **__: (folder / f"ran-{name}").touch()

    for owner, name in ((os, "system"), (os, "popen"), (subprocess, "Popen"), (subprocess, "getoutput"), (subprocess, "run")):
        setattr(owner, name, left(name))


def attempt(plant: Callable[[Path], None], words: list[str], source: Path, folder: Path) -> tuple[int, str, list[str]]:
    (folder / "home").mkdir(parents=True)
    (folder / "home" / "secret").write_text("mine")
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    shutil.copytree(source, folder / "stranger")
    plant(folder)
    watched = folder.with_name(f"{folder.name}-canaries")
    watched.mkdir()
    before, output = hostile.tree(folder), folder.with_name(f"{folder.name}-output")

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        canaries(watched)
        os.chdir(folder)
        sys.stdin = io.StringIO("hello\n")
        code = upslope(words)
        if "evil" in sys.modules:
            (watched / "evil").touch()
        return code

    code = ended(forked(work, output), 2 * LIMIT)
    found = [f"executed: {path.name}" for path in watched.iterdir()]
    after = hostile.tree(folder)
    found += [f"written: {Path(name).name}" for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return code, said(output), found


def judged(name: str, plant: Callable[[Path], None], words: list[str], expected: str | None, source: Path, folder: Path) -> Record:
    started = time.monotonic()
    code, text, found = attempt(plant, words, source, folder)
    seconds = time.monotonic() - started
    canaried = len([fault for fault in found if fault.startswith("executed")])
    written = len(found) - canaried
    if expected is None and code:
        found.append(f"exit code {code}: {text[-300:]}")
    if expected is not None and (code != 2 or expected not in text or text.count("\n") or not text.startswith("upslope: ")):
        found.append(f"exit code {code}: {text[-300:]}")
    if seconds > LIMIT:
        found.append(f"it took {seconds:.0f} s")
    return {
        "name": name,
        "words": " ".join(words),
        "code": code,
        "executed": canaried,
        "written": written,
        "said": text[-200:],
        "faults": found,
    }


def sources(folder: Path) -> dict[str, Path]:
    """A run of each world and a model."""
    os.chdir(folder)
    short = " ".join(hostile.SHORT)
    tiny = "--model tiny --task copy --iterations 1 --num-prompts 2 --group-size 2 --num-minibatches 1 --warm-start 0 --eval-episodes 2"
    lines = (f"train ppo CartPole-v1 --total-steps 128 --eval-every 64 --out control {short}", f"train grpo {tiny} --out text")
    with contextlib.redirect_stdout(io.StringIO()):
        for line in lines:
            if upslope([*line.split(), "--quiet"]):
                raise SystemExit(f"{line}: failed")
    return {"control": folder / "control", "model": folder / "text" / "policy", "text": folder / "text"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cases with one of these words in their names")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "hostile_files.json")
    args = parser.parse_args()
    args.out = args.out.absolute()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        found = sources(work)
        todo = [(f"run: {name}", plant, words, expected, "control") for name, ((plant, words), expected) in hostile.CASES.items()]
        todo += [(f"model: {name}", plant, CHAT, expected, "model") for name, (plant, expected) in hostile.MODELS.items()]
        for index, (name, plant, words, expected, source) in enumerate(todo):
            if args.only and not any(word in name for word in args.only):
                continue
            record = judged(name, plant, words, expected, found[source], work / str(index))
            record["right"] = not record["faults"]
            print(f"{'ok ' if record['right'] else 'BAD'} {name:<60}{record['code']:>4}  {'; '.join(record['faults'])[:400]}", flush=True)
            records.append(record)
    counts = {name: sum(record[name] for record in records) for name in ("executed", "written")}
    return finish("hostile_files", records, args.out, every=6, protocol=PROTOCOL, found=counts)


if __name__ == "__main__":
    raise SystemExit(main())
