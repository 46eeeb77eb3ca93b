"""What the shipped presets reach: whole runs of each, the final policy evaluated on fresh episodes. The table in the README is from here.

python benchmarks/presets.py                                       # about 2 hours
python benchmarks/presets.py --tasks Acrobot-v1 --core 1           # some; the results of the others are kept
python benchmarks/presets.py --methods trpo npg
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from harness import OURS, RESULTS, Record, load_average, ours_is_ready, run, write

SOLVED = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "Pendulum-v1": -200.0}
METHODS = {
    "CartPole-v1": ("ppo a2c reinforce all-actions actor-critic sarsa off-policy trpo npg grpo rloo", range(5)),
    "Acrobot-v1": ("a2c reinforce actor-critic sarsa off-policy trpo npg grpo rloo", range(3)),
    "Pendulum-v1": ("ppo", range(5)),
}
OTHERS_ON_PENDULUM = ("actor-critic off-policy trpo npg grpo rloo", range(3))
TASKS = {
    **{
        f"{env_id} {method}": (seeds, ["--until-return", str(int(SOLVED[env_id]))], SOLVED[env_id])
        for env_id, (methods, seeds) in [*METHODS.items(), ("Pendulum-v1", OTHERS_ON_PENDULUM)]
        for method in methods.split()
    },
    "Acrobot-v1 ppo": (range(3), [], -100.0),
    "LunarLander-v3 ppo": (range(3), [], 200.0),
    "HalfCheetah-v5 ppo": (range(3), [], 1443.0),
}
"""Seeds, how the run ends (else the preset's number of steps), and the return that is asked of it."""
PROTOCOL = (
    "`upslope train ALGORITHM TASK --seed S` with nothing else set, pinned to one core, one thread; CartPole, Pendulum and (PPO apart) "
    "Acrobot until two evaluations in a row reach the return that is asked for, the others for the preset's number of steps. "
    "return: the mean over 100 fresh episodes of the final policy, greedy, seeds 10000 and up (`upslope evaluate`); solved: as the run "
    "itself reported it, null where it was not asked. wall_seconds: the whole run with its evaluations and pictures."
)


def one_run(task: str, ending: list[str], seed: int, core: int) -> Record:
    """Train and evaluate in fresh processes."""
    env_id, algorithm = task.split()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        seconds, _ = run([OURS / "upslope", "train", algorithm, env_id, *ending, "--seed", str(seed), "--out", out, "--quiet"], core)
        summary = json.loads((Path(out) / "summary.json").read_text(encoding="utf-8"))
        _, said = run([OURS / "upslope", "evaluate", out, "--episodes", "100", "--seed", "10000", "--json"], core)
    found = json.loads(said)
    return {
        "task": task,
        "seed": seed,
        "return": round(found["return_mean"], 2),
        "return_interval": [round(x, 2) for x in found["return_interval"]],
        "solved": summary["solved"] if ending else None,
        "total_steps": summary["total_steps"],
        "train_seconds": round(summary["train_seconds"], 3),
        "wall_seconds": round(summary["wall_seconds"], 2),
        "process_seconds": round(seconds, 2),
    }


def measure(records: list[Record]) -> Record:
    """For each task: every seed's return, the mean of them, and whether the target was met."""
    measures: Record = {}
    for task, (seeds, ending, target) in TASKS.items():
        mine = sorted((r for r in records if r["task"] == task), key=lambda r: r["seed"])
        if not mine:
            continue
        returns = [r["return"] for r in mine]
        measures[task] = {
            "returns": returns,
            "mean": round(statistics.mean(returns), 2),
            "target": target,
            "seeds_met": sum(bool(r["solved"]) if ending else r["return"] >= target for r in mine),
            "seeds": len(mine),
            "total_steps_median": statistics.median(r["total_steps"] for r in mine),
            "train_seconds_median": statistics.median(r["train_seconds"] for r in mine),
            "longest_wall_seconds": max(r["wall_seconds"] for r in mine),
            "complete": len(mine) == len(seeds),
        }
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted({task.split()[0] for task in TASKS}), help="all unless given")
    parser.add_argument("--methods", nargs="+", choices=sorted({task.split()[1] for task in TASKS}), help="all unless given")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "presets.json")
    args = parser.parse_args()
    ours_is_ready()
    wanted = (args.tasks, args.methods)
    chosen = [task for task in TASKS if all(names is None or name in names for name, names in zip(task.split(), wanted, strict=True))]
    kept = json.loads(args.out.read_text(encoding="utf-8"))["runs"] if args.out.exists() else []
    records = [record for record in kept if record["task"] not in chosen]
    load = load_average()
    for task in chosen:
        seeds, ending, _ = TASKS[task]
        for seed in seeds:
            records.append(one_run(task, ending, seed, args.core))
            print(json.dumps(records[-1]), flush=True)
    write("presets", [], records, args.out, protocol=PROTOCOL, load_average_before=load, measures=measure(records))


if __name__ == "__main__":
    main()
