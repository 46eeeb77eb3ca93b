"""Whether runs say when they did not go well: presets that should be silent, and runs made to diverge that should not.

python benchmarks/run_warnings.py                     # all of both, about half an hour
python benchmarks/run_warnings.py --runs 10 --only diverging     # the other runs in the file stay there
python benchmarks/run_warnings.py --only healthy --methods a2c npg
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from harness import OURS, RESULTS, Record, load_average, ours_is_ready, run, write

OPEN = {"target_kl": "none"}
HEALTHY: dict[str, int] = {
    "ppo CartPole-v1": 8,
    "a2c CartPole-v1": 8,
    "reinforce CartPole-v1": 6,
    "trpo CartPole-v1": 8,
    "npg CartPole-v1": 6,
    "grpo CartPole-v1": 6,
    "rloo CartPole-v1": 4,
    "ppo Pendulum-v1": 6,
    "trpo Pendulum-v1": 3,
    "ppo Acrobot-v1": 3,
    "grpo Acrobot-v1": 2,
}
"""Shipped presets at their own budgets, and how many seeds of each."""
DIVERGING: list[tuple[str, dict[str, Any], int]] = [
    ("ppo CartPole-v1", {**OPEN, "learning_rate": 0.09}, 4),
    ("ppo CartPole-v1", {**OPEN, "learning_rate": 0.03, "clip_range": [1.0, 1e6]}, 3),
    ("ppo CartPole-v1", {**OPEN, "num_epochs": 60, "clip_range": [1.0, 1e6], "total_steps": 60_000}, 2),
    ("ppo Pendulum-v1", {**OPEN, "learning_rate": 0.1, "schedule": "constant"}, 4),
    ("a2c CartPole-v1", {"learning_rate": 0.3}, 3),
    ("grpo CartPole-v1", {"learning_rate": 3.0}, 2),
    ("npg CartPole-v1", {"max_kl": 3.0}, 2),
]
"""What takes the brakes off or asks for far too much: 20 runs."""
PROTOCOL = (
    "`upslope train METHOD TASK --seed S`, seeds from 100. healthy: nothing else set. diverging: settings that take the brakes off. "
    "A run warns if `warnings` in its summary.json is not empty."
)


def one_run(kind: str, task: str, settings: dict[str, Any], seed: int, core: int) -> Record:
    """Train in a fresh process and read what it says of itself."""
    method, env_id = task.split()
    flags: list[str] = []
    for name, value in settings.items():
        flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        try:
            run([OURS / "upslope", "train", method, env_id, "--seed", str(seed), "--quiet", "--out", out, *flags], core)
        except SystemExit as error:  # numbers that are not finite end a run, with a word and exit code 1
            if "exited 1" not in str(error) or "diverged" not in str(error):
                raise
            return {"kind": kind, "task": task, "settings": settings, "seed": seed, "warnings": [f"exit: {error}"]}
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    kept = {name: summary[name] for name in ("return_mean", "best_return", "solved", "total_steps", "warnings")}
    return {"kind": kind, "task": task, "settings": settings, "seed": seed, **kept}


def of(record: Record) -> str:
    """What tells a run from the others."""
    return json.dumps([record[name] for name in ("kind", "task", "settings", "seed")])


def jobs(only: str | None, most: int | None) -> list[tuple[str, str, dict[str, Any], int]]:
    """All runs, the tasks by turns, so that a part of them is a fair sample."""
    healthy = [[("healthy", task, {}, seed) for seed in range(100, 100 + count)] for task, count in HEALTHY.items()]
    diverging = [[("diverging", task, settings, seed) for seed in range(100, 100 + count)] for task, settings, count in DIVERGING]
    chosen = []
    for kind, groups in (("healthy", healthy), ("diverging", diverging)):
        turns = [job for jobs in itertools.zip_longest(*groups) for job in jobs if job is not None]
        chosen += turns[:most] if only in (None, kind) else []
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("healthy", "diverging"))
    parser.add_argument("--runs", type=int, help="of each kind (all unless given)")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "run_warnings.json")
    args = parser.parse_args()
    ours_is_ready()
    load = load_average()
    earlier = json.loads(args.out.read_text(encoding="utf-8"))["runs"] if args.out.exists() else []
    planned = {json.dumps(list(job)) for job in jobs(None, None)}
    found = {of(record): record for record in earlier if of(record) in planned}
    for job in jobs(args.only, args.runs):
        if args.methods is None or job[1].split()[0] in args.methods:
            record = one_run(*job, args.core)
            found[of(record)] = record
            print(json.dumps(record), flush=True)
    records = sorted(found.values(), key=of)
    measures = {}
    for kind, target in (("healthy", "at most 1 of 60 warns"), ("diverging", "at least 18 of 20 warn")):
        those = [record for record in records if record["kind"] == kind]
        solved = sum(bool(record.get("solved")) for record in those)
        warned = sum(bool(record["warnings"]) for record in those)
        measures[kind] = {"runs": len(those), "that_warn": warned, "solved": solved, "target": target}
    write("run_warnings", [], records, args.out, protocol=PROTOCOL, load_average_before=load, measures=measures)


if __name__ == "__main__":
    main()
