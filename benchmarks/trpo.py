"""TRPO: CartPole-v1 solved, HalfCheetah-v5 steps per second against SB3-contrib, and what both return after a million steps.

python benchmarks/trpo.py                                   # some 3 hours, most of it the peer's millions of steps
python benchmarks/trpo.py --parts cartpole speed            # some; the runs of the others are kept
python benchmarks/trpo.py --parts returns --systems upslope --seeds 0
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import OURS, PEERS, RESULTS, Record, alternate, load_average, median, ours_is_ready, ratio, run, run_ours, run_peer, write

PARTS = ("cartpole", "speed", "returns")
SYSTEMS = ("upslope", "sb3-contrib")
ENV_ID = "HalfCheetah-v5"
PROTOCOL = (
    "Fresh processes pinned to one core, one thread; systems take turns. cartpole: `upslope train trpo CartPole-v1 --until-return 475`. "
    "speed: HalfCheetah-v5, training included, batches of 2,048 and the settings of rl-baselines3-zoo on both sides (20 passes of the "
    "critic in minibatches of 128, at most 25 iterations of conjugate gradient). upslope collects them as 16 environments × 128 steps; "
    "SB3-contrib as 2 × 1024, which is the zoo's, and as 16 × 128. Steps per second of the clock (train_seconds), and per second of the "
    "process's own processor time (train_cpu_seconds), which other work on the machine disturbs less. returns: 1,000,000 steps, then "
    "the final greedy policy over 100 fresh episodes."
)
PUBLISHED = {
    "source": "DLR-RM/rl-baselines3-zoo, benchmark.md at 0088472: trpo on HalfCheetah-v3, 1M steps, one run, 150 episodes",
    "return_mean": 1785.476,
    "return_std": 68.672,
}


def with_rates(record: Record) -> Record:
    """Adds steps per second, by the clock and by the processor."""
    found = {"steps_per_second": record["total_steps"] / record["train_seconds"]}
    if record.get("train_cpu_seconds"):
        found["steps_per_cpu_second"] = record["total_steps"] / record["train_cpu_seconds"]
    return record | {name: round(value, 1) for name, value in found.items()}


def make_systems(core: int, total_steps: int) -> dict[str, Callable[[int], Record | None]]:
    """What the part ``speed`` compares, each a function of the seed."""

    def ours(seed: int) -> Record:
        arguments = [PEERS / "upslope_trpo.py", "--seed", str(seed), "--total-steps", str(total_steps)]
        _, output = run([OURS / "python", *arguments], core)
        return with_rates(json.loads(output.strip().splitlines()[-1]))

    def peer(num_envs: int) -> Callable[[int], Record]:
        arguments = ["--total-steps", str(total_steps), "--num-envs", str(num_envs)]
        return lambda seed: with_rates(run_peer("sb3-contrib", "sb3_trpo.py", [*arguments, "--seed", str(seed)], core))

    return {"upslope": ours, "sb3-contrib-2": peer(2), "sb3-contrib-16": peer(16)}


def cartpole(seed: int, core: int) -> Record:
    """One seed to 475."""
    return run_ours(["trpo", "CartPole-v1", "--until-return", "475", "--seed", str(seed), "--quiet"], core) | {"system": "upslope"}


def returned(system: str, seed: int, core: int, total_steps: int) -> Record:
    """A whole run, and what its final policy returns."""
    if system == "sb3-contrib":
        return run_peer("sb3-contrib", "sb3_trpo.py", ["--seed", str(seed), "--total-steps", str(total_steps), "--episodes", "100"], core)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        run(
            [OURS / "upslope", "train", "trpo", ENV_ID, "--seed", str(seed), "--total-steps", str(total_steps), "--out", out, "--quiet"],
            core,
        )
        summary = json.loads((Path(out) / "summary.json").read_text(encoding="utf-8"))
        _, said = run([OURS / "upslope", "evaluate", out, "--episodes", "100", "--seed", "10000", "--json"], core)
    keys = ("total_steps", "train_seconds", "seed")
    return {key: summary[key] for key in keys} | {"system": system, "return_mean": round(json.loads(said)["return_mean"], 2)}


def interval(values: list[float]) -> Record:
    """Mean and its 95 % interval (Student's t) over seeds."""
    mean = statistics.mean(values)
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values))
    half = quantile * statistics.stdev(values) / len(values) ** 0.5 if quantile else None
    return {"returns": values, "mean": round(mean, 1), "interval": None if half is None else [round(mean - half, 1), round(mean + half, 1)]}


def measure(records: list[Record]) -> Record:
    """The numbers that the measure asks for, and whether each is met; parts that were not run are left out."""
    by_part = {part: [r for r in records if r["part"] == part] for part in PARTS}
    measures: Record = {}
    if by_part["cartpole"]:
        solved = sum(bool(r["solved"]) for r in by_part["cartpole"])
        steps = statistics.median(r["total_steps"] for r in by_part["cartpole"])
        measures["cartpole_solved"] = {"value": solved, "of": len(by_part["cartpole"]), "total_steps_median": steps, "met": solved >= 5}
    for clock in ("steps_per_second", "steps_per_cpu_second"):
        rate = {name: median(by_part["speed"], name, clock) for name in ("upslope", "sb3-contrib-2", "sb3-contrib-16")}
        if rate["upslope"]:
            fastest = max(rate["sb3-contrib-2"] or 0.0, rate["sb3-contrib-16"] or 0.0) or None
            over = {"over_zoo": ratio(rate["upslope"], rate["sb3-contrib-2"]), "over_16_environments": ratio(rate["upslope"], fastest)}
            met = None if over["over_zoo"] is None else over["over_zoo"] >= 3
            measures[f"halfcheetah_{clock}"] = {**rate, **over, "target": "over_zoo >= 3", "met": met}
    returns = {name: [r["return_mean"] for r in by_part["returns"] if r["system"] == name] for name in SYSTEMS}
    if returns["upslope"]:
        measures["halfcheetah_return"] = {name: interval(found) for name, found in returns.items() if found} | {"published": PUBLISHED}
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="of the part returns")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the part returns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--speed-steps", type=int, default=61_440)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "trpo.json")
    args = parser.parse_args()
    ours_is_ready()
    records: list[Record] = json.loads(args.out.read_text(encoding="utf-8"))["runs"] if args.out.exists() else []
    load = load_average()
    if "cartpole" in args.parts:
        records = [r for r in records if r["part"] != "cartpole"]
        records += [cartpole(seed, args.core) | {"part": "cartpole"} for seed in range(5)]
    if "speed" in args.parts:
        records = [r for r in records if r["part"] != "speed"]
        for system in make_systems(args.core, 4_096).values():  # once unmeasured: byte code, page cache, compiled programs
            system(0)
        records += [r | {"part": "speed"} for r in alternate(make_systems(args.core, args.speed_steps), args.rounds)]
    if "returns" in args.parts:
        for seed in args.seeds:
            for system in args.systems:
                records = [r for r in records if (r["part"], r.get("system"), r.get("seed")) != ("returns", system, seed)]
                records.append(returned(system, seed, args.core, args.total_steps) | {"part": "returns"})
    measures = measure(records)
    write("trpo", ["sb3-contrib"], records, args.out, protocol=PROTOCOL, load_average_before=load, measures=measures)


if __name__ == "__main__":
    main()
