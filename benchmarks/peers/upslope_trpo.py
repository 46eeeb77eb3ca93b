"""Our side of the speed comparison with SB3-contrib's TRPO: the preset, with the processor's time beside the clock's.

python upslope_trpo.py --seed 0 --total-steps 61440
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from upslope.run.config import RunConfig
from upslope.run.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description="TRPO on HalfCheetah-v5, timed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-steps", type=int, default=61_440)
    args = parser.parse_args()
    prepared = RunConfig.of("trpo", "HalfCheetah-v5", seed=args.seed).prepare()
    started = time.process_time()
    state: Any = train(prepared.config.algorithm, prepared.policy, prepared.collect, total_steps=args.total_steps, seed=args.seed)
    found = {"total_steps": state.total_steps, "train_seconds": state.train_seconds, "train_cpu_seconds": time.process_time() - started}
    print(json.dumps({"system": "upslope", "seed": args.seed, **found}))


if __name__ == "__main__":
    main()
