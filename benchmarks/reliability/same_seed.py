"""The same seed gives the same numbers: in fresh processes, however environments are stepped, with one thread or two.

python benchmarks/reliability/same_seed.py                              # about fifteen minutes
python benchmarks/reliability/same_seed.py --only ppo grpo --out two.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import Record, finish, fresh, harness, said

from upslope.run.load import Run
from upslope.run.methods import METHODS, methods_in
from upslope.run.verify import compare_runs, differences

STEPS = "--num-envs 4 --num-steps 32 --total-steps 1280"
CONTROL = {
    "reinforce": "--num-envs 4 --num-episodes 4 --total-steps 800",
    **dict.fromkeys(("actor-critic", "continuing-actor-critic", "sarsa"), "--num-steps 128 --total-steps 1280"),
    **dict.fromkeys(
        ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "reinforce-pp", "rloo"), "--group-size 4 --num-groups 2 --total-steps 1000"
    ),
    "off-policy": "--data {data} --num-rows 2 --total-steps 2000",
}
"""What makes a run on CartPole short; ``STEPS`` where a method is not named."""
ENVIRONMENTS = {"continuing-actor-critic": "Pendulum-v1"}
"""What has no end, for a method that refuses one; CartPole for all others."""
TINY = "--model tiny --task addition --iterations 6 --warm-start 0.99 --warm-start-iterations 3 --eval-every 2 --eval-episodes 4"
CHECKS = ("processes", "threads", "workers")
WORKERS = ("a2c", "ppo", "reinforce", "trpo")
PROTOCOL = (
    "`upslope train METHOD …` with one seed in `processes` fresh processes: every row of metrics but for measured times, and every "
    "number of the last state (parameters, optimizer, generators, environments) are equal to the bit. `2 threads`: a further process "
    "with OMP_NUM_THREADS=2 (and MKL's) against one with 1. `workers`: --vectorization async, a process for each of 1, 2 and 4 "
    "environments, against --vectorization sync, all of them in the run's own process: rows of metrics and the policy's file are "
    "equal to the bit."
)


def train(words: Sequence[object], run: Path, threads: int = 1) -> None:
    with fresh(["train", *words, "--seed", "3", "--quiet", "--out", run], run.with_name(f"{run.name}-output"), threads) as process:
        if process.wait():
            raise SystemExit(f"{' '.join(map(str, words))} failed: {said(run.with_name(f'{run.name}-output'))}")


def words_of(method: str, world: str, data: Path) -> list[str]:
    if world == "language":
        return [method, *TINY.split()]
    flags = CONTROL.get(method, STEPS).format(data=data)
    return [method, ENVIRONMENTS.get(method, "CartPole-v1"), *flags.split(), "--eval-every", "400", "--eval-episodes", "4"]


def rows_and_policy(one: Path, other: Path) -> list[str]:
    """Where two runs differ in rows and policy; the states of environments in and out of the process are written differently."""
    found = differences(*({"metrics.jsonl": Run.load(run).metrics()} for run in (one, other)))
    same = (one / "policy.safetensors").read_bytes() == (other / "policy.safetensors").read_bytes()
    return found if same else [*found, "policy.safetensors"]


def checked(what: str, method: str, words: Sequence[str], runs: Sequence[Path], differs: Sequence[str], **more: object) -> Record:
    rows = len(Run.load(runs[0]).metrics())
    record = {"what": what, "method": method, "words": " ".join(words), "rows": rows, **more, "differs": list(differs)[:5]}
    record["right"] = not differs and rows > 1
    print(f"{'ok ' if record['right'] else 'BAD'} {what:<34}{method:<26}{rows:>4} rows  {'; '.join(record['differs'])}", flush=True)
    return record


def of_method(method: str, world: str, checks: Sequence[str], processes: int, work: Path, data: Path) -> list[Record]:
    """The processes of a method, and in the control world its threads and workers."""
    words, records = words_of(method, world, data), list[Record]()
    shown = [word if word != str(data) else "DATA" for word in words]
    runs = [work / f"{world}-{method}-{index}" for index in range(processes if "processes" in checks else 1)]
    for run in runs:
        train(words, run)
    if "processes" in checks:
        verdicts = [compare_runs(runs[0], run, 0) for run in runs[1:]]
        differs = [place for verdict in verdicts for place in verdict.differs]
        records.append(checked(f"{processes} processes", method, shown, runs, differs, world=world, tensors=verdicts[0].tensors))
    if world == "control" and "threads" in checks:
        run = work / f"{method}-threads"
        train(words, run, threads=2)
        records.append(checked("2 threads", method, shown, runs, compare_runs(runs[0], run, 0).differs, world=world))
    for count in (1, 2, 4) if world == "control" and "workers" in checks and method in WORKERS else ():
        ways = ("sync", "async")
        those = [work / f"{method}-{count}-{way}" for way in ways]
        for run, way in zip(those, ways, strict=True):
            train([*words, "--num-envs", str(count), "--vectorization", way], run)
        records.append(checked(f"{count} workers", method, shown, those, rows_and_policy(*those), world=world))
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="these methods")
    parser.add_argument("--worlds", nargs="+", choices=["control", "language"], default=["control", "language"])
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "same_seed.json")
    args = parser.parse_args()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = work / "data.safetensors"
        if "off-policy" in args.only and "control" in args.worlds:
            with fresh(["record", "CartPole-v1", "--random", "--steps", "2000", "--out", data], work / "record") as process:
                if process.wait():
                    raise SystemExit(f"record failed: {said(work / 'record')}")
        for world in args.worlds:
            for method in methods_in(world):
                records += of_method(method, world, args.checks, args.processes, work, data) if method in args.only else []
    return finish("same_seed", records, args.out, protocol=PROTOCOL, processes=args.processes)


if __name__ == "__main__":
    raise SystemExit(main())
