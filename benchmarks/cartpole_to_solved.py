"""CartPole-v1 from the command to solved: upslope, SB3 (zoo), rejax and CleanRL in alternating fresh processes on one core.

python benchmarks/cartpole_to_solved.py                                  # about 10 minutes, 10 seeds
python benchmarks/cartpole_to_solved.py --rounds 1 --systems upslope sb3 # a look
python benchmarks/cartpole_to_solved.py --before OLD/src --systems bare-import upslope upslope-before   # beside an older version
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import (
    FOLDER,
    Record,
    alternate,
    load_average,
    median,
    ours_is_ready,
    ratio,
    run_bare_import,
    run_ours,
    run_peer,
    summarize,
    values,
    write,
)

SYSTEMS = ("bare-import", "upslope", "upslope-before", "sb3", "upslope-first", "rejax", "rejax-cached", "cleanrl")
OURS = ("ppo", "CartPole-v1", "--until-return", "475")
CLEANRL = FOLDER / ".envs" / "cleanrl-source" / "cleanrl" / "ppo.py"
PROTOCOL = (
    "Whole processes, pinned to one core, one thread. Every 2,048 steps the greedy policy plays 20 fresh, differently seeded "
    "episodes; two means in a row of at least 475 end the run. process_seconds: from the command to the process's exit; "
    "solved_seconds: to the evaluation that reached the goal. "
    "train_seconds: first collect to last update, compilation included, evaluation excluded. upslope-first: no compiled kernels kept. "
    "rejax-cached: JAX's compilation cache filled by a run before. rejax trains and is evaluated on gymnax's CartPole-v1, the others "
    "on Gymnasium's."
)


def make_systems(names: list[str], args: argparse.Namespace, cache: Path) -> dict[str, Callable[[int], Record | None]]:
    """The systems by name, each a function of the round."""
    core: int = args.core

    def seeded(number: int) -> list[str]:
        return ["--seed", str(args.first_seed + number)]

    def first(number: int) -> Record | None:
        if number >= args.first_runs:
            return None
        with tempfile.TemporaryDirectory() as folder:
            return run_ours([*OURS, *seeded(number)], core, cache_folder=folder)

    everything: dict[str, Callable[[int], Record | None]] = {
        "bare-import": lambda _: run_bare_import(core),
        "upslope": lambda number: run_ours([*OURS, *seeded(number)], core),
        "upslope-before": lambda number: run_ours([*OURS, *seeded(number)], core, source=args.before),
        "upslope-first": first,
        "sb3": lambda number: run_peer("sb3", "sb3_ppo.py", ["cartpole", *seeded(number)], core),
        "rejax": lambda number: run_peer("rejax", "rejax_ppo.py", seeded(number), core),
        "rejax-cached": lambda number: run_peer("rejax", "rejax_ppo.py", [*seeded(number), "--cache", cache], core),
        "cleanrl": lambda number: run_peer("cleanrl", "cleanrl_ppo.py", [CLEANRL, *seeded(number)], core),
    }
    return {name: everything[name] for name in SYSTEMS if name in names}


def measure(records: list[Record]) -> Record:
    """The numbers that the measures ask for, and whether each is met; None where a system was left out."""
    wall = {name: median(records, name, "process_seconds") for name in SYSTEMS}
    train = {name: median(records, name, "train_seconds") for name in SYSTEMS}
    pairs = list(zip(values(records, "upslope", "process_seconds"), values(records, "bare-import", "process_seconds"), strict=False))
    above = round(statistics.median(ours - bare for ours, bare in pairs), 4) if pairs else None
    warm = median(records, "rejax", "train_seconds_without_compilation")
    solved = values(records, "upslope", "solved")
    sb3_wall, sb3_train = ratio(wall["sb3"], wall["upslope"]), ratio(train["sb3"], train["upslope"])
    first, rejax = ratio(wall["upslope-first"], wall["sb3"]), ratio(train["upslope"], train["rejax"])
    fast = None if wall["upslope"] is None else wall["upslope"] <= 2.5 or (above is not None and above <= 1.0)
    return {
        "solved": {"value": f"{sum(map(bool, solved))} of {len(solved)}", "target": "all", "met": all(solved) if solved else None},
        "process_seconds_median": {
            "value": wall["upslope"],
            "above_bare_import": above,
            "target": "<= 2.5, or <= 1.0 above bare",
            "met": fast,
        },
        "sb3_process_seconds_over_ours": {"value": sb3_wall, "target": ">= 4", "met": None if sb3_wall is None else sb3_wall >= 4},
        "first_run_over_sb3_process_seconds": {"value": first, "target": "<= 1", "met": None if first is None else first <= 1},
        "sb3_train_seconds_over_ours": {"value": sb3_train, "target": ">= 15", "met": None if sb3_train is None else sb3_train >= 15},
        "our_train_seconds_over_rejax": {"value": rejax, "target": "<= 1", "met": None if rejax is None else rejax <= 1},
        "our_train_seconds_over_rejax_without_compilation": {"value": ratio(train["upslope"], warm)},
        "steps_over_before": compared(records, "total_steps"),
        "train_seconds_over_before": compared(records, "train_seconds"),
        "solved_seconds_over_before": compared(records, "solved_seconds"),
        "process_seconds_over_before": compared(records, "process_seconds"),
    }


def compared(records: list[Record], key: str) -> Record | None:
    """Mean of ours over the mean of the older version's, with the 95 % bootstrap interval over rounds; None where either was left out."""
    ours, before = values(records, "upslope", key), values(records, "upslope-before", key)
    if not ours or len(ours) != len(before):
        return None
    draw = random.Random(0)
    drawn = [draw.choices(range(len(ours)), k=len(ours)) for _ in range(5000)]
    cuts = statistics.quantiles([sum(ours[i] for i in rows) / sum(before[i] for i in rows) for rows in drawn], n=40)
    return {"value": round(sum(ours) / sum(before), 3), "interval": [round(cuts[0], 3), round(cuts[-1], 3)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="seeds 100, 101, …, one round each")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--before", type=Path, help="folder that holds the package of an older version, for upslope-before")
    parser.add_argument("--first-runs", type=int, default=5, help="rounds that also run upslope with an empty cache of compiled kernels")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.before is None:
        args.systems = [name for name in args.systems if name != "upslope-before"]
    if any(name.startswith("upslope") for name in args.systems):
        ours_is_ready()
    load = load_average()
    with tempfile.TemporaryDirectory() as cache:
        systems = make_systems(args.systems, args, Path(cache))
        for name in systems:  # once unmeasured: byte code, page cache, compiled programs
            if name != "upslope-first":
                systems[name](0)
        records = alternate(systems, args.rounds)
    summary = summarize(records, ("process_seconds", "solved_seconds", "train_seconds", "train_seconds_without_compilation", "total_steps"))
    peers = [name for name in ("sb3", "rejax", "cleanrl") if any(system.startswith(name) for system in args.systems)]
    write(
        "cartpole_to_solved",
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
