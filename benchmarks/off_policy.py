"""Learning from data alone: steps of a mediocre PPO policy, recorded in a file; does off-policy learning improve on who recorded them?

python benchmarks/off_policy.py                                    # about 10 minutes
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from harness import OURS, RESULTS, Record, load_average, ours_is_ready, run, write

TASK, BEHAVIOR_STEPS, RECORDED_STEPS, ROWS = "CartPole-v1", 4_000, 50_000, 64
PROTOCOL = (
    f"For each seed: `upslope train ppo {TASK} --total-steps {BEHAVIOR_STEPS}`, stopped long before it is solved; `upslope record` "
    f"writes {RECORDED_STEPS} steps of it, sampled, from {ROWS} environments; `upslope train off-policy {TASK} --data FILE` learns from "
    "that file and nothing else. Returns are means over 100 fresh episodes, seeds 10000 and up, behavior and learner alike: greedy, and "
    "with sampled actions. improves: the learner's 95 % interval lies above the behavior policy's, greedy against greedy."
)


def evaluated(folder: str, core: int, *flags: str) -> Record:
    """Mean return and its interval over 100 fresh episodes."""
    _, said = run([OURS / "upslope", "evaluate", folder, "--episodes", "100", "--seed", "10000", "--json", *flags], core)
    found = json.loads(said)
    return {"return": round(found["return_mean"], 2), "interval": [round(x, 2) for x in found["return_interval"]]}


def one_seed(seed: int, core: int) -> Record:
    """Behavior, data, learner."""
    with tempfile.TemporaryDirectory() as folder:
        behavior, data, learner = (str(Path(folder) / name) for name in ("behavior", "steps.safetensors", "learner"))
        common = ["--seed", str(seed)]
        run([OURS / "upslope", "train", "ppo", TASK, "--total-steps", str(BEHAVIOR_STEPS), *common, "--out", behavior, "--quiet"], core)
        flags = ["--steps", str(RECORDED_STEPS), "--num-envs", str(ROWS)]
        run([OURS / "upslope", "record", behavior, *flags, *common, "--out", data], core)
        run([OURS / "upslope", "train", "off-policy", TASK, "--data", data, *common, "--out", learner, "--quiet"], core)
        summary = json.loads((Path(learner) / "summary.json").read_text(encoding="utf-8"))
        last = json.loads((Path(learner) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        found: Record = {"seed": seed, "steps_read": summary["total_steps"], "train_seconds": round(summary["train_seconds"], 2)}
        found |= {name: round(last[name], 3) for name in ("effective_sample_size", "ratio_max", "capped_fraction")}
        for name, path in (("behavior", behavior), ("learner", learner)):
            found |= {name: evaluated(path, core), f"{name}_sampled": evaluated(path, core, "--sample")}
    found["improves"] = found["learner"]["interval"][0] > found["behavior"]["interval"][1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "off_policy.json")
    args = parser.parse_args()
    ours_is_ready()
    load = load_average()
    records: list[Record] = []
    for seed in range(args.seeds):
        records.append(one_seed(seed, args.core))
        print(json.dumps(records[-1]), flush=True)
    measures = {
        name: {
            "returns": [r[name]["return"] for r in records],
            "median": statistics.median(r[name]["return"] for r in records),
        }
        for name in ("behavior", "behavior_sampled", "learner", "learner_sampled")
    }
    measures["improves"] = {"seeds": sum(r["improves"] for r in records), "of": len(records)}
    write("off_policy", [], records, args.out, protocol=PROTOCOL, load_average_before=load, measures=measures)


if __name__ == "__main__":
    main()
