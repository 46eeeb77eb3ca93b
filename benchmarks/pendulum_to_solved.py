"""Pendulum-v1 to -200: upslope's preset and SB3 (zoo) in alternating fresh processes on one core.

python benchmarks/pendulum_to_solved.py     # about 4 minutes, 5 seeds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from harness import Record, alternate, load_average, median, ours_is_ready, ratio, run_ours, run_peer, summarize, values, write

SYSTEMS = ("upslope", "sb3")
OURS = ("ppo", "Pendulum-v1", "--until-return", "-200")
PROTOCOL = (
    "Whole processes, pinned to one core, one thread. Every 2,048 steps, or after the first whole iteration past them (SB3's zoo "
    "settings take 4,096 a time), the greedy policy plays 20 fresh, differently seeded episodes; two means in a row of at least -200 "
    "end the run. train_seconds: first collect to last update, compilation included, evaluation excluded."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="seeds 0, 1, …, one round each")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if "upslope" in args.systems:
        ours_is_ready()
    everything: dict[str, Callable[[int], Record | None]] = {
        "upslope": lambda seed: run_ours([*OURS, "--seed", str(seed)], args.core),
        "sb3": lambda seed: run_peer("sb3", "sb3_ppo.py", ["pendulum", "--seed", str(seed)], args.core),
    }
    systems = {name: everything[name] for name in SYSTEMS if name in args.systems}
    load = load_average()
    for system in systems.values():  # once unmeasured: byte code, page cache, compiled programs
        system(0)
    records = alternate(systems, args.rounds)
    ours, peer, solved = (
        median(records, "upslope", "train_seconds"),
        median(records, "sb3", "train_seconds"),
        values(records, "upslope", "solved"),
    )
    measures = {
        "solved": {"value": f"{sum(map(bool, solved))} of {len(solved)}", "target": "all", "met": all(solved) if solved else None},
        "train_seconds_median": {"value": ours, "target": "<= 2", "met": None if ours is None else ours <= 2},
        "sb3_train_seconds_over_ours": {"value": ratio(peer, ours)},
    }
    summary = summarize(records, ("process_seconds", "train_seconds", "total_steps"))
    peers = ["sb3"] if "sb3" in args.systems else []
    write("pendulum_to_solved", peers, records, args.out, protocol=PROTOCOL, load_average_before=load, summary=summary, measures=measures)


if __name__ == "__main__":
    main()
