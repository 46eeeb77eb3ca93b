"""Fifty signals to runs: Ctrl-C, a scheduler's, a closed terminal's, at named points, once and twice, with workers and rewards that hang.

python benchmarks/reliability/signals.py                         # about five minutes
python benchmarks/reliability/signals.py --only TERM --out term.json
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Record, ended, finish, forked, fresh, harness, orphans, said

from upslope.cli.main import main as upslope
from upslope.errors import UsageError
from upslope.run.checkpoints import newest
from upslope.run.load import Run

EVAL = "--eval-episodes 2 --checkpoint-every 0"
SMALL = f"--num-envs 2 --num-steps 16 --num-minibatches 2 --num-epochs 1 --total-steps 640 --eval-every 200 {EVAL}"
HANGS = f"ppo planted:make {SMALL} --env-kwargs"
TINY = f"--model tiny --task addition --iterations 6 --warm-start 0 {EVAL}"
GRPO = f"grpo {TINY} --num-prompts 2 --group-size 4 --max-tokens 4"
WARM = GRPO.replace("--warm-start 0", "--warm-start 0.99 --warm-start-iterations 40")
RUNS = {
    "ppo": f"ppo CartPole-v1 {SMALL}",
    "a2c, workers": f"a2c CartPole-v1 {SMALL} --vectorization async".replace("--num-minibatches 2 --num-epochs 1 ", ""),
    "sarsa": f"sarsa CartPole-v1 --num-steps 64 --total-steps 640 {EVAL}",
    "reinforce": f"reinforce CartPole-v1 --num-envs 2 --num-episodes 4 --total-steps 2000 {EVAL}",
    "grpo": GRPO,
    "grpo, warm start": WARM,
    "dpo": f"dpo {TINY} --batch-size 4",
    "a worker that hangs": f'{HANGS} {{"fault":"hangs","apart":true,"at":40,"once":true}} --vectorization async --step-timeout 3',
    "a worker that hangs, no limit": f'{HANGS} {{"fault":"ignores","apart":true,"once":true}} --vectorization async --step-timeout none',
    "an environment that hangs": f'{HANGS} {{"fault":"hangs","at":40,"once":true}}',
    "a reward that hangs": f"{GRPO} --reward planted:reward_hangs_later",
    "a reward that hangs in a process": f"{GRPO} --reward planted:reward_hangs_later --reward-timeout 0.5",
}
STEP, ITERATION, UPDATE = "upslope.control.envs:Envs.step", "upslope.run.session:Session._after_iteration", "upslope.run.train:iterate"
POINTS: tuple[tuple[str, str, str, int, int], ...] = (
    # the point, the run, the function at whose n-th passage the signal comes ("" where the run itself says that it hangs), how many
    ("before the folder", "ppo", "upslope.run.control:Control.prepare", 1, 1),
    ("a step", "ppo", STEP, 60, 1),
    ("a step", "a2c, workers", STEP, 60, 1),
    ("a step", "sarsa", STEP, 200, 1),
    ("a step", "reinforce", STEP, 100, 1),
    ("an iteration", "dpo", UPDATE, 3, 1),
    ("an iteration", "grpo", UPDATE, 3, 1),
    ("an iteration, twice", "grpo", UPDATE, 3, 2),
    ("a warm start", "grpo, warm start", "upslope.updates.ascent:Ascent.__call__", 5, 1),
    ("an evaluation", "ppo", "upslope.run.control:Control._played", 1, 1),
    ("a checkpoint", "ppo", "upslope.run.session:Session._checkpoint", 3, 1),
    ("the last evaluation", "ppo", "upslope.run.control:Control.evaluate_last", 1, 1),
    ("a step, twice", "ppo", STEP, 60, 2),
    ("a step, twice", "a2c, workers", STEP, 60, 2),
    ("the hang", "a worker that hangs", "", 0, 1),
    ("the hang, twice", "a worker that hangs, no limit", "", 0, 2),
    ("the hang, twice", "an environment that hangs", "", 0, 2),
    ("the hang, twice", "a reward that hangs", "", 0, 2),
    ("the hang", "a reward that hangs in a process", "", 0, 1),
)
NUMBERS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}
WITHIN, AT_ONCE = 20.0, 8.0
"""Seconds from the last signal to the end: of an iteration, and where a second signal asks for the end at once."""
PROTOCOL = (
    "`upslope train …` (`runs`) in a forked process, which stays 0.5 s at the n-th passage of a named function; the signal comes there, "
    "and where `twice` says so again 0.3 s later; where something hangs, 0.5 s after it does. Right: exit code 128 and the signal's number "
    f"(or ended by the signal itself before there is a run); within {WITHIN:g} s, and {AT_ONCE:g} s behind a second "
    "signal; nothing on stderr; ten seconds later no process is left; the folder can be read and its summary says `interrupted`; the "
    "newest checkpoint is whole and of the last row of metrics; `upslope resume` goes on from it to the end. Four more: a reader who "
    "stops reading (two), and a second run that would write into the same folder (two)."
)


@dataclass(frozen=True)
class Case:
    """A signal to a run."""

    name: str
    point: str
    run: str
    place: str
    nth: int
    times: int
    number: int


def cases() -> Iterator[Case]:
    for name, number in NUMBERS.items():
        for point, run, place, nth, times in POINTS:
            yield Case(f"{name} at {point}: {run}", point, run, place, nth, times, number)


def paused(place: str, nth: int, seconds: float) -> None:
    """In a forked process: at the n-th passage of a function leave a file and stay a little."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    kept = vars(owner)[name]
    original, passages = getattr(kept, "__func__", kept), [0]

    def waits(*arguments: Any, **options: Any) -> Any:
        passages[0] += 1
        if passages[0] == nth:
            Path("there").touch()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.05)
        return original(*arguments, **options)

    setattr(owner, name, classmethod(waits) if isinstance(kept, classmethod) else waits)


def started(case: Case, folder: Path, seconds: float = 0.5) -> int:
    words = ["train", *RUNS[case.run].split(), "--out", "run", "--quiet"]

    def work() -> int:
        for number in NUMBERS.values():  # what a parent ignores its children ignore
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if case.place:
            paused(case.place, case.nth, seconds)
        return upslope(words)

    return forked(work, folder)


def wait_for(path: Path, process: int) -> bool:
    limit = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > limit or os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.01)
    return True


def faults_of(case: Case, folder: Path, code: int, seconds: float, left: int) -> list[str]:
    begun = case.point != "before the folder"
    fine = (128 + case.number,) if begun else (128 + case.number, -case.number)
    found = [] if code in fine else [f"exit code {code}"]
    lines = [line for line in said(folder).splitlines() if not line.startswith("upslope: warning: ")]
    if lines and begun:
        found.append(f"it says {' | '.join(lines)[:200]}")
    if seconds > (AT_ONCE if case.times > 1 else WITHIN):
        found.append(f"it took {seconds:.1f} s")
    if left:
        found.append(f"{left} processes are left")
    if not begun:
        return [*found, "there is a folder"] if (folder / "run").exists() else found
    return [*found, *unreadable(folder)]


def unreadable(folder: Path) -> list[str]:
    """What is wrong with the folder, and with going on from it."""
    try:
        run = Run.load(folder / "run")
        rows, checkpoint = run.metrics(), newest(folder / "run")
        found = (
            [] if run.summary and run.summary["status"] == "interrupted" else [f"the summary is {run.summary and run.summary['status']}"]
        )
        assert run.policy is not None
    except (UsageError, AssertionError) as error:
        return [str(error)]
    last = rows[-1]["iteration"] if rows else 0
    if (checkpoint.state["run"]["iteration"] if checkpoint else 0) != last:
        found.append(f"the newest checkpoint is not of iteration {last:g}")
    (folder / "struck").touch()  # it hangs no more
    words = ["resume", "run", "--quiet", "--env", "planted:make", "--reward", "planted:reward_hangs_later"]
    words = words[:3] + (words[3:5] if "planted:make" in str(run.config.get("env_id")) else [])
    words += ["--reward", "planted:reward_hangs_later"] if "planted" in str(run.config.get("task")) else []
    if checkpoint is not None and (code := ended(forked(lambda: os.chdir(folder) or upslope(words), folder / "resume"))):
        found.append(f"resume ends with {code}: {said(folder / 'resume')[-200:]}")
    return found + [f"{path.name} is left" for path in (folder / "run").rglob("*.partial")]


def judged(case: Case, folder: Path) -> Record:
    process = started(case, folder)
    there = wait_for(folder / ("there" if case.place else "struck"), process)
    time.sleep(0.1 if case.place else 0.5)
    begun = time.monotonic()
    for index in range(case.times if there else 0):
        time.sleep(0.3 if index else 0.0)
        os.kill(process, case.number)
    code = ended(process, 3 * WITHIN)
    seconds = time.monotonic() - begun
    left = orphans(process)
    found = faults_of(case, folder, code, seconds, left) if there else [f"it never came there: {code} {said(folder)[-300:]}"]
    return {"name": case.name, "words": RUNS[case.run], "code": code, "seconds": round(seconds, 1), "orphans": left, "faults": found}


def no_reader(method: str, folder: Path) -> Record:
    """``upslope train … | head -1``: nobody reads any more, and the run goes on to its end."""
    with fresh(["train", *RUNS[method].split(), "--out", "run"], folder, piped=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        code = process.wait(60)
    status = (Run.load(folder / "run").summary or {}).get("status")
    found = [f"exit code {code}, {status}"] if (code, status) != (0, "finished") else []
    found += [f"it says {said(folder)}"] if said(folder) else []
    return {"name": f"a reader who stops reading: {method}", "code": code, "orphans": orphans(process.pid), "faults": found}


def two_at_once(words: str, folder: Path) -> Record:
    """A second run that would write into the folder of one that is going on."""
    case = Case("", "", "ppo", STEP, 60, 1, signal.SIGTERM)
    process = started(case, folder, seconds=30.0)
    wait_for(folder / "there", process)
    before = {path.name: path.read_bytes() for path in (folder / "run").iterdir() if path.is_file()}
    code = ended(forked(lambda: os.chdir(folder) or upslope(words.split()), folder / "second"))
    after = {path.name: path.read_bytes() for path in (folder / "run").iterdir() if path.is_file()}
    line = said(folder / "second")
    found = [] if code == 2 and line.count("\n") == 0 and line.startswith("upslope: ") else [f"exit code {code}: {line}"]
    found += [] if before == after else ["it has changed the folder"]
    os.kill(process, signal.SIGKILL)
    ended(process)
    return {"name": f"a second run: {words.split()[0]}", "said": line, "code": code, "orphans": orphans(process), "faults": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cases with one of these words in their names")
    parser.add_argument("--keep", type=Path, help="folder for the runs, to be looked at")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "signals.json")
    args = parser.parse_args()
    for name in ("upslope.cli.train", "upslope.cli.resume", "upslope.run.session", "upslope.language", "upslope.run.drawing", "planted"):
        importlib.import_module(name)
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        todo = [(case.name, lambda folder, case=case: judged(case, folder)) for case in cases()]
        todo += [(f"reader {run}", lambda folder, run=run: no_reader(run, folder)) for run in ("ppo", "grpo")]
        second = ("resume run --quiet", f"train {RUNS['ppo']} --out run --resume auto --quiet")
        todo += [(f"second {words}", lambda folder, words=words: two_at_once(words, folder)) for words in second]
        for index, (name, work_on) in enumerate(todo):
            if args.only and not any(word in name for word in args.only):
                continue
            record = work_on(work / str(index))
            record["right"] = not record["faults"]
            print(
                f"{'ok ' if record['right'] else 'BAD'} {record['name']:<66}{record['code']:>4}  {'; '.join(record['faults'])[:400]}",
                flush=True,
            )
            records.append(record)
    found = {"orphans": sum(record["orphans"] for record in records)}
    return finish("signals", records, args.out, protocol=PROTOCOL, runs=RUNS, found=found)


if __name__ == "__main__":
    raise SystemExit(main())
