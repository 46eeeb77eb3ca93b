"""A hundred faults in runs: environments and rewards that raise, hang, die, answer nonsense or change what is around them.

python benchmarks/reliability/faults.py                         # about six minutes
python benchmarks/reliability/faults.py --only "worker: " --out workers.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import planted
from common import Record, ended, finish, forked, harness, orphans, said

from upslope.cli.main import main as upslope
from upslope.errors import UsageError
from upslope.run.load import Run

SMALL = "--num-envs 2 --num-steps 16 --num-minibatches 2 --num-epochs 1 --total-steps 320 --eval-episodes 2"
TINY = "--model tiny --task addition --iterations 2 --num-prompts 2 --group-size 4 --max-tokens 4 --warm-start 0 --eval-episodes 2"
TIMEOUT, WITHIN = 1.5, 25.0
"""Seconds: of a step or a reward, where one is given; that a run may take in all."""
STOPPED, REFUSED, SURVIVED = 1, 2, 0
PROTOCOL = (
    "`upslope train …` (`words`) in a process that was forked after the imports, with one fault of `planted.py`. Right: the exit code is "
    "`expected` (1 stopped by a fault, 2 refused before the run's folder was made, 0 survived), what it says on stderr is one line where "
    "it stopped (nothing where it survived, but for warnings), which names the cause; it ends within "
    f"{WITHIN:g} s (a step that hangs has {TIMEOUT:g} s, a reward half of that for each completion); ten "
    "seconds later no process of it is left; and its folder can "
    "be read: config, every row of metrics, none of them with a null, a policy that acts, a summary with the right status, nothing "
    "temporary. `restarts` counts environments that were started anew."
)


@dataclass(frozen=True)
class Case:
    """A run with a fault, and how it should end: ``says`` is in its line."""

    name: str
    words: str
    expected: int
    says: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    restarts: bool = False
    folder: bool = True
    """whether the run's folder is still there"""


def environments() -> Iterator[Case]:
    """Environments in the run's own process and in workers."""
    ways = {"own process: ": "--vectorization sync", "worker: ": f"--vectorization async --step-timeout {TIMEOUT}"}
    for way, flags in ways.items():
        words, apart = f"ppo planted:make {SMALL} {flags}", way == "worker: "
        answers = {name: name.split()[0] for name in planted.ANSWERS} | {"four values": "4 values", "no answer": "None"}
        for name, says in answers.items():
            yield Case(f"{way}{name}", words, STOPPED, says, {"fault": name})
        for fault, says in (
            ("raises", "the motor is on fire"),
            ("exits", "SystemExit"),
            ("raises_odd", "Odd"),
            ("recursion", "RecursionError"),
        ):
            for where, code in (("made", REFUSED), ("reset", REFUSED), ("step", STOPPED), ("later reset", STOPPED), ("close", SURVIVED)):
                if fault in ("raises", "exits") or where in ("step", "made"):
                    yield Case(f"{way}{fault}, {where}", words, code, says, {"fault": fault, "where": where, "apart": apart})
        yield Case(f"{way}elsewhere", words, SURVIVED, "", {"fault": "elsewhere", "at": 5})
        yield Case(f"{way}few steps, then memory", words, STOPPED, "MemoryError", {"fault": "memory", "at": 1})
        yield Case(f"{way}talks", words, SURVIVED, "", {"fault": "talks", "once": True})
        if not apart:
            continue
        for fault in (*planted.HANGS, *planted.DIES):
            options = {"fault": fault.__name__, "apart": True}
            yield Case(f"{way}{fault.__name__}, once", words, SURVIVED, "", {**options, "once": True}, restarts=True)
        never = f"{words} --max-restarts 0"
        child = {"fault": "hangs_with_a_child", "apart": True}
        yield Case(f"{way}hangs_with_a_child, no restarts", never, STOPPED, "did not answer", child)
        yield Case(f"{way}loses_its_pipes, no restarts", never, STOPPED, "closed its pipe", {"fault": "loses_its_pipes", "apart": True})
        for fault, says in (("hangs", "did not answer within 1.5 s"), ("dies", "ended by itself with exit code 3")):
            for where, code in (("made", REFUSED), ("reset", REFUSED), ("step", STOPPED), ("later reset", STOPPED)):
                yield Case(f"{way}{fault}, {where}, always", words, code, says, {"fault": fault, "where": where, "apart": True, "at": 3})
        yield Case(f"{way}hangs, close", words, SURVIVED, "", {"fault": "hangs", "where": "close", "apart": True})
    small = SMALL.replace("--num-envs 2", "--num-envs 4")
    yield Case("own process: few instances", f"ppo planted:few {small} --vectorization sync --eval-every 64", SURVIVED)
    yield Case(
        "own process: the folder vanishes", f"ppo planted:make {SMALL}", STOPPED, "run/", {"fault": "vanishes", "once": True}, folder=False
    )
    table = "planted:make --total-steps 320 --eval-episodes 2"
    for method in ("sarsa", "actor-critic", "all-actions", "reinforce"):
        discrete = {"discrete": True}
        yield Case(
            f"{method}, states that are numbers: raises",
            f"{method} {table}",
            STOPPED,
            "the motor is on fire",
            {"fault": "raises", **discrete},
        )
        yield Case(
            f"{method}, states that are numbers: reward nan", f"{method} {table}", STOPPED, "reward", {"fault": "reward nan", **discrete}
        )


def rewards() -> Iterator[Case]:
    """Rewards of a language model, in a thread and in a process of their own."""
    limits = {"thread: ": "", "process: ": f"--reward-timeout {TIMEOUT / 2}"}
    for way, flags in limits.items():

        def case(name: str, code: int, says: str = "", words: str = f"grpo {TINY} {flags}", way: str = way) -> Case:
            return Case(f"reward, {way}{name}", f"{words} --reward planted:reward_{name}", code, says)

        yield case("raises", STOPPED, "Odd")
        yield case("raises_once", SURVIVED)
        yield case("exits", STOPPED, "SystemExit")
        for name in ("text", "number", "none", "too_few", "nan", "infinite", "nested", "mapping", "huge"):
            yield case(name, STOPPED, "reward planted:reward_")
        yield case("abstains", STOPPED, "said None")
        yield case("clears", SURVIVED)
        yield case("recursion", STOPPED, "reward planted:reward_recursion")
        yield case("elsewhere", SURVIVED)
        if flags:
            for name in ("hangs", "backtracks", "never"):
                yield case(name, STOPPED, "took too long")
            for name in ("hangs_once", "backtracks_once", "dies_once", "child", "talks"):
                yield case(name, SURVIVED)
            for name in ("dies", "crashes"):
                yield case(name, STOPPED, "ended before it answered")


def faults_of(case: Case, folder: Path, code: int, seconds: float, left: int) -> list[str]:
    """What is not as it should be."""
    found = [f"exit code {code}"] if code != case.expected else []
    lines = said(folder).splitlines()
    errors = [line for line in lines if not line.startswith("upslope: warning: ")]
    if len(errors) != (case.expected != SURVIVED) or not all(line.startswith("upslope: ") for line in lines):
        found.append(f"it says {len(errors)} lines: {' | '.join(lines)[:300]}")
    if case.expected != SURVIVED and case.says not in " ".join(errors):
        found.append(f"it does not say {case.says!r}: {' | '.join(lines)[:300]}")
    if seconds > WITHIN:
        found.append(f"it took {seconds:.1f} s")
    if left:
        found.append(f"{left} processes are left")
    run = folder / "run"
    if case.expected == REFUSED or not case.folder:
        return [*found, "there is a folder"] if run.exists() else found
    return [*found, *unreadable(case, run)]


def unreadable(case: Case, path: Path) -> list[str]:
    """What is wrong with a run's folder."""
    try:
        run = Run.load(path)
        rows, summary = run.metrics(), run.summary or {}
        weights = [float(p.detach().abs().sum()) for p in run.policy.parameters()] if (path / "policy.json").exists() else [0.0]
    except UsageError as error:
        return [str(error)]
    found = [] if all(map(math.isfinite, weights)) else ["parameters are not finite"]
    if nothing := sorted({name for row in rows for name, value in row.items() if value is None}):
        found.append(f"null in a row: {', '.join(nothing)}")
    if (status := summary.get("status")) != ("finished" if case.expected == SURVIVED else "failed"):
        found.append(f"the status is {status}")
    if case.restarts and not (sum(row.get("environment_restarts", 0) for row in rows) and "started anew" in str(summary.get("warnings"))):
        found.append("no restart is counted")
    return found + [f"{path.name} is left" for path in path.rglob("*.partial")]


def judged(case: Case, work: Path, index: int) -> Record:
    folder = work / str(index)
    words = ["train", *case.words.split(), "--out", "run", "--quiet"]
    if case.kwargs:
        words += ["--env-kwargs", json.dumps(case.kwargs)]
    started = time.monotonic()
    process = forked(lambda: upslope(words), folder)
    code = ended(process, 3 * WITHIN)
    seconds = time.monotonic() - started
    left = orphans(process)
    found = faults_of(case, folder, code, seconds, left)
    said_there = said(folder)[-300:]
    record: Record = {"name": case.name, "words": " ".join(words), "expected": case.expected, "code": code, "seconds": round(seconds, 1)}
    record |= {"said": said_there, "orphans": left, "faults": found, "right": not found}
    print(f"{'ok ' if record['right'] else 'BAD'} {case.name:<58}{code:>4} {seconds:>6.1f} s  {'; '.join(found)[:400]}", flush=True)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cases with one of these words in their names")
    parser.add_argument("--keep", type=Path, help="folder for the runs, to be looked at")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "faults.json")
    args = parser.parse_args()
    for name in ("upslope.cli.train", "upslope.run.session", "upslope.control", "upslope.language", "upslope.run.drawing"):
        importlib.import_module(name)
    cases = [case for case in (*environments(), *rewards()) if not args.only or any(word in case.name for word in args.only)]
    with tempfile.TemporaryDirectory() as temporary:
        records = [judged(case, args.keep or Path(temporary), index) for index, case in enumerate(cases)]
    found = {"orphans": sum(record["orphans"] for record in records), "slowest": max(record["seconds"] for record in records)}
    return finish("faults", records, args.out, protocol=PROTOCOL, found=found)


if __name__ == "__main__":
    raise SystemExit(main())
