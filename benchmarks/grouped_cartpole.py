"""GRPO and RLOO on CartPole-v1, episodes compared within groups from one start: solved or not, steps and seconds of 5 seeds each.

python benchmarks/grouped_cartpole.py                       # some minutes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness import RESULTS, Record, load_average, ours_is_ready, run_ours, summarize, write

ALGORITHMS = ("grpo", "rloo")
PROTOCOL = (
    "`upslope train ALGORITHM CartPole-v1 --until-return 475 --seed S` with nothing else set, pinned to one core, one thread: the run ends "
    "once the greedy policy returns 475 or more on average over 20 fresh episodes, twice in a row. train_seconds: collecting and updating."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "grouped_cartpole.json")
    args = parser.parse_args()
    ours_is_ready()
    load, records = load_average(), list[Record]()
    for seed in range(args.seeds):
        for name in ALGORITHMS:
            flags = [name, "CartPole-v1", "--until-return", "475", "--seed", str(seed), "--quiet"]
            records.append(run_ours(flags, args.core) | {"system": name})
            print(json.dumps(records[-1]), flush=True)
    table = summarize(records, ("total_steps", "train_seconds", "process_seconds"))
    met = {name: f"{table[name]['solved']} of {table[name]['runs']} seeds solved" for name in ALGORITHMS}
    write("grouped_cartpole", [], records, args.out, protocol=PROTOCOL, load_average_before=load, measures=met, summary=table)


if __name__ == "__main__":
    main()
