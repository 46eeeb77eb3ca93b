"""How old the policy is that a run leaves behind that is killed (SIGKILL) at any time after its first ten seconds: at most ten seconds.

python benchmarks/reliability/kill9_age.py                        # about eight minutes
python benchmarks/reliability/kill9_age.py --only "ppo CartPole-v1" --times 12 20
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from common import Record, ended, finish, forked, fresh, harness, said

from upslope.cli.main import main as upslope
from upslope.errors import UsageError
from upslope.run.load import Run

FIRST, MOST, LOOK = 10.0, 10.0, 0.1
"""Seconds: from when on policies count, how old one may be, how often a running folder is looked at."""
PPO = "ppo CartPole-v1"
CASES = {
    PPO: f"{PPO} --total-steps 100000000",
    f"{PPO}, long evaluations": f"{PPO} --total-steps 100000000 --eval-every 50000 --eval-episodes 600",
    "actor-critic CartPole-v1": "actor-critic CartPole-v1 --total-steps 100000000",
    "grpo tiny, in its warm start": "grpo --model tiny --task addition --iterations 1000000",
    "grpo tiny, without": "grpo --model tiny --task addition --iterations 1000000 --warm-start 0",
}
TIMES = (10.0, 11.5, 14.0, 18.0, 19.9, 27.0)
PROTOCOL = (
    "`upslope train …` with a budget that it never reaches, in a fresh process that is killed from outside so many seconds after its "
    "folder is there (`times`, each a little later, drawn). The rows of metrics are watched on the way: when the one of each iteration is "
    "there. `age`: at the kill, seconds since the row of the saved policy's iteration; before the first row, in a warm start, seconds "
    f"since the policy's file was written. `oldest`: the same at every {LOOK} s of the run from {FIRST:g} s on, {LOOK} added for what "
    "was not looked at. `evaluate_age`: that of the policy which `upslope evaluate RUN` says that it has measured. "
    f"`longest_iteration`: between two rows. Right: all three at most {MOST:g} s, the policy at least as new as the newest checkpoint, "
    "and `evaluate` says how far the run was."
)


class Watch:
    """When the rows of a run's metrics came."""

    def __init__(self, run: Path) -> None:
        self.run, self.place, self.rest, self.seen, self.longest = run, 0, "", {0: time.monotonic()}, 0.0
        self.last: Record = {}

    def look(self) -> None:
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return
        with path.open() as file:
            file.seek(self.place)
            text = self.rest + file.read()
            self.place = file.tell()
        *lines, self.rest = text.split("\n")
        for line in lines:
            self.last = json.loads(line)
            before = max(self.seen.values())
            self.seen[self.last["iteration"]] = time.monotonic()
            self.longest = max(self.longest, time.monotonic() - before if len(self.seen) > 2 else 0.0)

    def age(self) -> float | None:
        """Of the saved policy; None where there is none yet."""
        try:
            progress = Run.load(self.run).progress()
        except UsageError:
            return None
        if progress is None:
            return None
        if progress["iteration"] == 0:
            path = self.run / "policy" / "progress.json"
            path = path if path.exists() else self.run / "policy.safetensors"
            return time.time() - path.stat().st_mtime if path.exists() else None
        self.look()
        return time.monotonic() - self.seen[progress["iteration"]]


def killed(case: str, after: float, folder: Path) -> Record:
    """Train, watch, kill, measure."""
    run, started, oldest = folder / "run", time.monotonic(), 0.0
    watch = Watch(run)
    with fresh(["train", *CASES[case].split(), "--quiet", "--out", run], folder) as process:
        while not (run / "config.json").exists() and process.poll() is None:
            time.sleep(0.01)
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < after and process.poll() is None:
            watch.look()
            age = watch.age()
            if now >= FIRST:
                oldest = max(oldest, float("inf") if age is None else age + LOOK)
            time.sleep(LOOK)
        process.kill()
        code = process.wait()
    watch.look()
    age = watch.age()
    record: Record = {
        "case": case,
        "killed_at": round(after, 2),
        "folder_after": round(begun - started, 2),
        "exit_code": code,
        "rows": int(watch.last.get("iteration", 0)),
    }
    from upslope.run.checkpoints import newest

    progress, found = Run.load(run).progress() or {}, newest(run)
    record |= {"steps_at_kill": watch.last.get("total_steps"), "policy": progress}
    record["checkpoint_iteration"] = None if found is None else found.state["run"]["iteration"]
    output = folder / "evaluate"
    code = ended(forked(lambda: upslope(["evaluate", str(run), "--episodes", "2", "--json"]), output))
    said_of = json.loads((output / "out").read_text()) if code == 0 else {}
    ended(forked(lambda: upslope(["evaluate", str(run), "--episodes", "2"]), output))
    lines = (output / "out").read_text().splitlines()
    record["words"] = next((line.strip() for line in lines if "policy" in line), said(output))
    measured = said_of.get("iteration")
    record |= {"age": None if age is None else round(age, 2), "oldest": round(oldest, 2), "longest_iteration": round(watch.longest, 2)}
    same = measured == progress.get("iteration")
    record["evaluate_age"] = record["age"] if same else None
    newer = record["checkpoint_iteration"] is None or progress.get("iteration", -1) >= record["checkpoint_iteration"]
    # the words are right where the run went on beyond its policy and they say so
    unit = "iteration" if "planned_iterations" in progress else "total_steps"
    beyond = watch.last.get(unit, 0) > progress.get(unit, 0) > 0
    told = f"killed after {watch.last.get(unit, 0):,.0f}" in record["words"] if beyond else "killed" in record["words"]
    record["right"] = record["exit_code"] == -9 and age is not None and max(age, oldest) <= MOST and same and newer and told
    ages = f"age {record['age']} oldest {record['oldest']}"
    print(f"{'ok ' if record['right'] else 'BAD'} {case:<36}{after:>6.1f} s  {ages}  {record['words']}", flush=True)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="these cases")
    parser.add_argument("--times", nargs="+", type=float, default=TIMES, help="seconds after which a run is killed")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "kill9_age.json")
    args = parser.parse_args()
    number, records = random.Random(0), list[Record]()
    load = harness.load_average()
    with tempfile.TemporaryDirectory() as temporary:
        for case in args.only:
            for index, after in enumerate(args.times):
                folder = Path(temporary) / f"{len(records)}-{index}"
                records.append(killed(case, after + number.uniform(0.05, 0.5), folder))
    found = {name: max(record[name] for record in records if record[name] is not None) for name in ("age", "oldest", "longest_iteration")}
    return finish(
        "kill9_age", records, args.out, protocol=PROTOCOL, settings=CASES, times=list(args.times), load_average_before=load, found=found
    )


if __name__ == "__main__":
    raise SystemExit(main())
