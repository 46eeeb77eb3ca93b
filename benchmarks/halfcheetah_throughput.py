"""HalfCheetah-v5 steps per second, training included: upslope at 16 × 128 / 64 / 10, SB3 at 8 × 256, and the environment alone.

python benchmarks/halfcheetah_throughput.py     # about 8 minutes, 5 rounds
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from harness import OURS, PEERS, Record, alternate, load_average, median, ours_is_ready, ratio, run, run_ours, run_peer, summarize, write

SYSTEMS = ("raw", "upslope", "sb3-64", "sb3-256")
SHAPE = ("--num-envs", "16", "--num-steps", "128", "--num-minibatches", "32", "--num-epochs", "10", "--normalize-observation")
PROTOCOL = (
    "Whole processes, pinned to one core, one thread; the same number of steps each. steps_per_second: steps over train_seconds "
    "(first collect to last update, compilation included, evaluation excluded). All normalize observations. sb3-64 and sb3-256: 8 "
    "environments × 256 steps, 10 epochs, minibatches of 64 (SB3's default, the same work for each transition as upslope's) and of "
    "256 (the faster). raw: the environments of upslope (SyncVectorEnv of 16) stepped with prepared random actions; raw single: one "
    "environment in a bare loop."
)


def with_rate(record: Record) -> Record:
    """Adds steps per second of training."""
    return record | {"steps_per_second": round(record["total_steps"] / record["train_seconds"], 1)}


def make_systems(names: list[str], core: int, total_steps: int) -> dict[str, Callable[[int], Record | None]]:
    """The systems by name, each a function of the seed."""
    budget = ("--total-steps", str(total_steps))

    def raw(seed: int) -> Record:
        _, output = run([OURS / "python", PEERS / "raw_environment.py", "HalfCheetah-v5", "--seed", str(seed)], core)
        return json.loads(output.strip().splitlines()[-1])

    def sb3(batch_size: int) -> Callable[[int], Record | None]:
        arguments = ("halfcheetah", "--batch-size", str(batch_size), *budget)
        return lambda seed: with_rate(run_peer("sb3", "sb3_ppo.py", [*arguments, "--seed", str(seed)], core))

    everything: dict[str, Callable[[int], Record | None]] = {
        "raw": raw,
        "upslope": lambda seed: with_rate(run_ours(["ppo", "HalfCheetah-v5", *SHAPE, *budget, "--seed", str(seed)], core)),
        "sb3-64": sb3(64),
        "sb3-256": sb3(256),
    }
    return {name: everything[name] for name in SYSTEMS if name in names}


def measure(records: list[Record]) -> Record:
    """The numbers that the measure asks for, and whether each is met; None where a system was left out."""
    rate = {name: median(records, name, "steps_per_second") for name in SYSTEMS}
    fastest = max((rate[name] or 0.0 for name in ("sb3-64", "sb3-256")), default=0.0) or None
    over_peer, over_raw = ratio(rate["upslope"], fastest), ratio(rate["upslope"], rate["raw"])
    return {
        "steps_per_second_over_fastest_sb3": {"value": over_peer, "target": ">= 2", "met": None if over_peer is None else over_peer >= 2},
        "steps_per_second_over_sb3_same_minibatch": {"value": ratio(rate["upslope"], rate["sb3-64"])},
        "steps_per_second_over_raw": {"value": over_raw, "target": ">= 0.5", "met": None if over_raw is None else over_raw >= 0.5},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total-steps", type=int, default=61_440)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if {"upslope", "raw"} & set(args.systems):
        ours_is_ready()
    systems, load = make_systems(args.systems, args.core, args.total_steps), load_average()
    for system in make_systems(
        args.systems, args.core, 2_048
    ).values():  # once unmeasured and short: byte code, page cache, compiled programs
        system(0)
    records = alternate(systems, args.rounds)
    summary = summarize(records, ("steps_per_second", "single_steps_per_second", "train_seconds", "process_seconds"))
    peers = ["sb3"] if any(name.startswith("sb3") for name in args.systems) else []
    write(
        "halfcheetah_throughput",
        peers,
        records,
        args.out,
        protocol=PROTOCOL,
        load_average_before=load,
        summary=summary,
        measures=measure(records),
    )


if __name__ == "__main__":
    main()
