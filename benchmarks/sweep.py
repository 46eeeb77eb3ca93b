"""A sweep of PPO on CartPole-v1 that is killed in the middle and goes on; what it finds is judged on other seeds beside the preset.

python benchmarks/sweep.py                       # 40 trials by two processes, then 20 seeds twice: about 10 minutes
python benchmarks/sweep.py --trials 8 --judged 3 # a look
python benchmarks/sweep.py --without-preset --out benchmarks/results/sweep_without_preset.json    # the preset is no trial: harder
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ONE_THREAD, OURS, Record, load_average, ours_is_ready, ratio, run_ours, write

TASK = ("ppo", "CartPole-v1")
FIRST_FRESH = 100  # the sweep's own seeds are 0 to 9
MOST = 1.2  # steps of what was found over those of the preset
PROTOCOL = (
    "`upslope sweep ppo CartPole-v1 --trials N --jobs 2`, whose first trial is the preset but with --no-baseline; 100,000 steps a run, "
    "objective: fewest steps to 475 (the mean of 20 greedy episodes every 2,048 steps, twice in a row), seeds 0 and 1, median pruner, the "
    "best five and the preset confirmed on seeds 2 to 9. Its process is killed with SIGKILL once half of the trials have ended; the same "
    "command is given again. Then best.json and the preset train with --until-solved on seeds that neither was tuned on; steps are means."
)


def table(folder: Path) -> list[Record]:
    """The trials that have ended."""
    path = folder / "trials.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def command(args: argparse.Namespace, folder: Path) -> list[str]:
    words = ["sweep", *TASK, "--trials", str(args.trials), "--jobs", "2", "--out", str(folder)]
    words += ["--no-baseline"] if args.without_preset else []
    return ["taskset", "-c", args.cores, str(OURS / "upslope"), *words]


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()]


def killed(args: argparse.Namespace, folder: Path, environment: dict[str, str]) -> Record:
    """Begin the sweep and kill it once half of its trials have ended: what it has left."""
    started = time.perf_counter()
    with subprocess.Popen(command(args, folder), env=environment, stdout=subprocess.DEVNULL) as process:
        while len(table(folder)) < args.trials // 2:
            if process.poll() is not None:
                raise SystemExit(f"the sweep ended by itself with exit code {process.returncode}")
            time.sleep(0.05)
        children = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
    time.sleep(1.0)
    left = [child for child in children if Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()]
    begun = len(list(folder.glob("trial-*")))
    return {"ended": len(table(folder)), "begun": begun, "processes_left": len(left), "seconds": round(time.perf_counter() - started, 1)}


def search(args: argparse.Namespace, folder: Path) -> Record:
    """The sweep, killed and carried on: whether every trial of before is what it was, and each counts once."""
    environment = {**os.environ, **ONE_THREAD}
    first = killed(args, folder, environment)
    before, started = table(folder), time.perf_counter()
    done = subprocess.run(command(args, folder), env=environment, capture_output=True, text=True, check=False)
    rows = table(folder)
    if done.returncode != 0 or not rows:
        raise SystemExit(f"the sweep that went on exited {done.returncode}:\n{done.stderr[-2000:]}")
    print(done.stdout.split("try next")[0][-1500:], file=sys.stderr)
    counts = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed")}
    confirmed = [row for row in rows if row["confirmed"]]
    best = min(confirmed, key=lambda row: statistics.fmean([*row["values"], *row["confirmed"]]))
    was, now = ([{name: row[name] for name in row if name != "confirmed"} for row in each] for each in (before, rows))
    return {
        "when_killed": first,
        "trials": len(rows),
        **counts,
        "numbered_once": [row["trial"] for row in rows] == list(range(args.trials)),
        "kept_as_they_were": all(row in now for row in was),
        "seconds_after": round(time.perf_counter() - started, 1),
        "finalists": [{name: row[name] for name in ("trial", "values", "confirmed")} for row in confirmed],
        "best": best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--judged", type=int, default=20, help="fresh seeds")
    parser.add_argument("--without-preset", action="store_true", help="leave the preset out of the trials, of which it is the first else")
    parser.add_argument("--cores", default="0,1", help="those that the sweep runs on, as taskset names them")
    parser.add_argument("--core", type=int, default=1, help="the one on which the runs that judge take turns")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    ours_is_ready()
    load = load_average()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sweep"
        found = search(args, folder)
        preset = ["--config", str(folder / "best.json")]
        for seed in range(FIRST_FRESH, FIRST_FRESH + args.judged):
            for name, words in (("found", preset), ("preset", [])):
                record = run_ours([*TASK, *words, "--until-solved", "--seed", str(seed)], args.core)
                records.append(record | {"system": name})
                print(f"seed {seed}  {name:<7} {record['total_steps']} steps, solved {record['solved']}", file=sys.stderr, flush=True)
        settings = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    steps = {name: [record["total_steps"] for record in records if record["system"] == name] for name in ("found", "preset")}
    judged = {
        name: {
            "mean_steps": round(statistics.fmean(each)),
            "median_steps": statistics.median(each),
            "solved": sum(bool(record["solved"]) for record in records if record["system"] == name),
        }
        for name, each in steps.items()
    }
    over = ratio(judged["found"]["mean_steps"], judged["preset"]["mean_steps"])
    met = {
        "steps_over_preset": over is not None and over <= MOST and judged["found"]["solved"] == args.judged,
        "killed_and_resumed": found["numbered_once"] and found["kept_as_they_were"] and found["when_killed"]["processes_left"] == 0,
    }
    sections: Record = {"protocol": PROTOCOL, "load_before": load, "sweep": found, "preset_file": settings}
    sections["preset_among_trials"] = not args.without_preset
    write("sweep", (), records, args.out, **sections, judged=judged, ratio=over, target=MOST, met=met)


if __name__ == "__main__":
    main()
