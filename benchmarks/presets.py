"""What the shipped presets reach: the final policy at the end of the full budget, on seeds that nobody tuned on. For README's tables.

python benchmarks/presets.py --seeds 20                            # everything, hours; --cores 0 1 runs two processes at a time
python benchmarks/presets.py --seeds 20 --tasks Acrobot-v1         # some; the results of the others are kept
python benchmarks/presets.py --seeds 20 --methods ppo --peers      # with Stable-Baselines3 and the zoo's settings, as many steps

Presets may be tuned on seeds 0 to 9; the seeds here begin at 100. A run that is in the results already is not repeated (--again does).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from harness import OURS, RESULTS, Record, ours_is_ready, run, run_peer, write

GOALS = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "Pendulum-v1": -200.0, "LunarLander-v3": 200.0}
METHODS = {
    "CartPole-v1": "ppo a2c reinforce all-actions actor-critic sarsa off-policy trpo npg grpo rloo",
    "Acrobot-v1": "ppo a2c reinforce actor-critic sarsa off-policy trpo npg grpo rloo",
    "Pendulum-v1": "ppo actor-critic off-policy trpo npg grpo rloo",
    "LunarLander-v3": "ppo",
}
PEERS = {("ppo", task) for task in GOALS} | {("a2c", "CartPole-v1"), ("a2c", "Acrobot-v1")}
"""Where rl-baselines3-zoo has settings."""
FIRST_SEED = 100
MAX_SEEDS = {"LunarLander-v3": 5}
"""A run takes minutes there."""
PROTOCOL = (
    "`upslope train METHOD TASK --seed S` with nothing else set, one process and one thread each, to the end of the preset's budget; "
    "seeds 100 and up, presets were tuned on 0 to 9. return: the mean over 100 fresh episodes of the final policy, greedy, seeds 10000 "
    "and up. iqm: the interquartile mean over seeds, with the 95 % percentile bootstrap interval over seeds. at_goal: seeds that lose at "
    "most a tenth of the goal. Stable-Baselines3 with rl-baselines3-zoo's settings (benchmarks/peers/sb3_final.py), as many steps, final "
    "policy, as many episodes from the same seed."
)


def one_run(method: str, task: str, seed: int, core: int) -> Record:
    """Train and evaluate in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run([OURS / "upslope", "train", method, task, "--seed", str(seed), "--out", str(out), "--quiet"], core)
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        _, said = run([OURS / "upslope", "evaluate", str(out), "--policy", "final", "--episodes", "100", "--seed", "10000", "--json"], core)
    found = json.loads(said)
    return {
        "system": "upslope",
        "task": task,
        "method": method,
        "seed": seed,
        "return": round(found["return_mean"], 2),
        "total_steps": summary["total_steps"],
        "warnings": summary.get("warnings", []),
        "settings": {name: config[name] for name in ("algorithm", "collector", "policy", "env")},
    }


def one_peer(method: str, task: str, seed: int, total_steps: int, core: int) -> Record:
    """The peer for as many steps."""
    record = run_peer("sb3", "sb3_final.py", [method, task, "--seed", str(seed), "--total-steps", str(total_steps)], core)
    return {
        "system": "sb3",
        **{key: record[key] for key in ("task", "method", "seed", "return", "total_steps")},
        "asked_steps": total_steps,
    }


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of the middle half: as many values are left out at either end as make a quarter, rounded down (Agarwal et al. 2021)."""
    ordered, cut = sorted(values), len(values) // 4
    return statistics.mean(ordered[cut : len(ordered) - cut])


def interval(values: Sequence[float], resamples: int = 5000) -> list[float]:
    """The 95 % percentile bootstrap interval of the interquartile mean."""
    draw = random.Random(0)
    means = sorted(interquartile_mean(draw.choices(values, k=len(values))) for _ in range(resamples))
    return [round(means[int(resamples * share)], 2) for share in (0.025, 0.975)]


def measure(records: Sequence[Record]) -> dict[str, Record]:
    """For each preset: the seeds' returns, what they say, and the peer beside it."""
    measures: dict[str, Record] = {}
    for task, methods in METHODS.items():
        floor = GOALS[task] - abs(GOALS[task]) / 10
        for method in methods.split():
            mine = [sorted((r for r in records if (r["system"], r["task"], r["method"]) == (system, task, method)),
                           key=lambda r: r["seed"]) for system in ("upslope", "sb3")]  # fmt: skip
            if not mine[0]:
                continue
            found = measures[f"{task} {method}"] = {"goal": GOALS[task]}
            for system, runs in zip(("upslope", "sb3"), mine, strict=True):
                if runs:
                    returns = [r["return"] for r in runs]
                    found[system] = {
                        "seeds": len(returns),
                        "iqm": round(interquartile_mean(returns), 2),
                        "interval": interval(returns),
                        "lowest": min(returns),
                        "at_goal": sum(x >= floor for x in returns),
                        "total_steps": int(statistics.median(r["total_steps"] for r in runs)),
                        "returns": returns,
                    }
    return measures


def number(x: float) -> str:
    """With a true minus sign and no decimals where none are needed."""
    return f"{x:,.0f}".replace("-", "−")


def table(measures: dict[str, Record]) -> str:
    """The README's table."""
    lines = [
        "| task | command | steps | IQM, 95 % interval | lowest seed | seeds at the goal | SB3 zoo, as many steps |",
        "|" + " --- |" * 7,
    ]
    for name, found in measures.items():
        task, method = name.split()
        ours, peer = found["upslope"], found.get("sb3")
        beside = "–" if peer is None else f"{number(peer['iqm'])} ({number(peer['interval'][0])} to {number(peer['interval'][1])})"
        low, high = map(number, ours["interval"])
        cells = [
            *(task, f"`upslope train {method} {task}`", f"{ours['total_steps']:,}", f"{number(ours['iqm'])} ({low} to {high})"),
            *(number(ours["lowest"]), f"{ours['at_goal']} of {ours['seeds']}", beside),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each preset (LunarLander: 5 at most)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="seeds from here on")
    parser.add_argument("--tasks", nargs="+", choices=sorted(GOALS), default=list(GOALS), help="all unless given")
    parser.add_argument("--methods", nargs="+", help="all unless given")
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="one process at a time on each")
    parser.add_argument("--peers", action="store_true", help="run Stable-Baselines3 too, where its results are missing")
    parser.add_argument("--again", action="store_true", help="repeat what is in the results already")
    parser.add_argument("--out", type=Path, default=RESULTS / "presets.json")
    args = parser.parse_args()
    ours_is_ready()
    earlier = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    records: list[Record] = earlier.get("runs", [])
    settings: dict[str, Record] = earlier.get("settings", {})
    cores: SimpleQueue[int] = SimpleQueue()
    for core in args.cores:
        cores.put(core)

    def kept(record: Record) -> None:
        if "settings" in record:
            name, found = f"{record['task']} {record['method']}", record.pop("settings")
            if settings.setdefault(name, found) != found:  # the preset is another one now
                settings[name] = found
                records[:] = [r for r in records if (r["system"], f"{r['task']} {r['method']}") != ("upslope", name)]
        key = ("system", "task", "method", "seed")
        records[:] = [r for r in records if any(r[k] != record[k] for k in key)] + [record]
        print(json.dumps(record), flush=True)
        write("presets", [], records, args.out, quiet=True, protocol=PROTOCOL, measures=measure(records), settings=settings)

    def job(system: str, method: str, task: str, seed: int) -> None:
        core = cores.get()
        try:
            if system == "upslope":
                kept(one_run(method, task, seed, core))
            else:
                steps = next(r["total_steps"] for r in records if (r["system"], r["task"], r["method"]) == ("upslope", task, method))
                kept(one_peer(method, task, seed, steps, core))
        finally:
            cores.put(core)

    wanted = [
        (system, method, task, args.first_seed + number)
        for system in (("upslope", "sb3") if args.peers else ("upslope",))
        for task in args.tasks
        for method in METHODS[task].split()
        if (args.methods is None or method in args.methods) and (system == "upslope" or (method, task) in PEERS)
        for number in range(min(args.seeds, MAX_SEEDS.get(task, args.seeds)))
    ]
    there = set() if args.again else {(r["system"], r["method"], r["task"], r["seed"]) for r in records}
    with ThreadPoolExecutor(len(args.cores)) as pool:
        for done in [pool.submit(job, *each) for each in wanted if each not in there]:
            done.result()
    print(table(measure(records)))


if __name__ == "__main__":
    main()
