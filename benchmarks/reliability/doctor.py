"""How often `upslope doctor` is right: runs that are made sick in a known way, and runs that are well.

python benchmarks/reliability/doctor.py                                  # about forty minutes
python benchmarks/reliability/doctor.py --only sick --kinds "dead critic" --seeds 0 --keep work --out /tmp/doctor.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import FOLDER, SOURCE, Record, finish, harness

from upslope.run.doctor import diagnose
from upslope.run.load import Run

PPO_SHORT = "--total-steps 40000 --eval-episodes 10"
SICK: dict[str, list[tuple[str, int]]] = {
    "KL runaway": [
        ("ppo Pendulum-v1 --total-steps 40000 --learning-rate 0.01 --num-epochs 60 --clip-range 1 1e6 --target-kl none", 3),
        ("ppo CartPole-v1 --total-steps 40000 --learning-rate 0.03 --clip-range 1 1e6 --target-kl none", 2),
    ],
    "clip saturation": [
        ("ppo Pendulum-v1 --total-steps 40000 --clip-range 0.002 --learning-rate 3e-3 --target-kl none --schedule constant", 3),
        ("ppo CartPole-v1 --total-steps 20000 --clip-range 0.002 --target-kl none --schedule constant", 2),
    ],
    "entropy collapse": [
        ("ppo Acrobot-v1 --total-steps 60000 --learning-rate 0.1 --target-kl none", 3),
        ("a2c CartPole-v1 --total-steps 60000 --learning-rate 0.3", 2),
    ],
    "dead groups": [
        ("grpo MountainCar-v0 --total-steps 24000 --group-size 4 --num-groups 3", 3),
        ("rloo Acrobot-v1 --total-steps 20000 --max-episode-steps 50", 2),
    ],
    "advantage without signal": [
        ("ppo sick:indifferent --total-steps 20000", 3),
        ("trpo MountainCar-v0 --total-steps 40000", 2),
    ],
    "dead critic": [
        ("ppo Pendulum-v1 --total-steps 40000 --value-coef 0", 3),
        ("trpo Pendulum-v1 --total-steps 60000 --value-learning-rate 0", 2),
    ],
    "gradient explosion": [
        ("ppo sick:growing --total-steps 40000 --no-normalize-value --max-grad-norm none", 3),
        ("a2c sick:growing --total-steps 40000 --no-normalize-value --max-grad-norm none", 2),
    ],
    "weights that do not move": [
        ("ppo Pendulum-v1 --total-steps 60000 --learning-rate 1e-10", 3),
        ("trpo CartPole-v1 --total-steps 30000 --max-kl 1e-14", 2),
    ],
    "stale log-probabilities": [("sick:StalePPO Pendulum-v1 --total-steps 20000", 3), ("sick:StalePPO CartPole-v1 --total-steps 20000", 2)],
    "discount too short": [
        ("ppo Acrobot-v1 --total-steps 100000 --gamma 0.3", 3),
        ("ppo Pendulum-v1 --total-steps 60000 --gamma 0.3", 2),
    ],
    "reward scale": [
        ("ppo Pendulum-v1 --total-steps 40000 --no-normalize-value --reward-scale 1e6", 3),
        ("ppo CartPole-v1 --total-steps 20000 --no-normalize-value --reward-scale 1e-7", 2),
    ],
    "far below its best": [
        ("ppo sick:turning --total-steps 80000 --num-steps 32 --learning-rate 3e-3 --schedule constant --eval-episodes 10", 3),
        ("ppo CartPole-v1 --num-epochs 60 --clip-range 1 1e6 --target-kl none --schedule constant --total-steps 60000", 2),
    ],
    "longer for nothing": [
        (
            "grpo --model tiny --task addition --reward sick:of_no_use --entropy-coef 0.5 --warm-start 0.3 --max-tokens 24 --iterations 30",
            5,
        ),
    ],
}
"""The rule that should speak, and runs that give it reason to, with how many seeds of each."""
HEALTHY = {
    "ppo CartPole-v1": 7,
    "a2c CartPole-v1": 5,
    "reinforce CartPole-v1": 4,
    "trpo CartPole-v1": 4,
    "grpo CartPole-v1": 4,
    "rloo CartPole-v1": 2,
    "actor-critic CartPole-v1": 2,
    "ppo Pendulum-v1": 5,
    "trpo Pendulum-v1": 3,
    "off-policy Pendulum-v1": 2,
    "ppo Acrobot-v1": 4,
    "a2c Acrobot-v1": 3,
    'ppo FrozenLake-v1 --env-kwargs {"is_slippery":false} --total-steps 40000 --until-return 0.9': 3,
    "ppo InvertedDoublePendulum-v5 --total-steps 60000": 3,
    "ppo Blackjack-v1 --total-steps 40000": 3,
    "ppo InvertedPendulum-v5 --total-steps 60000": 3,
    "grpo --model tiny --task addition --iterations 40": 3,
}
"""Presets at their own budgets and defaults on tasks without one, and how many seeds of each."""
PROTOCOL = (
    "`upslope train …` in a fresh process, then `upslope doctor` on its folder. sick: right if the findings name the kind; others beside "
    "it are listed. healthy: right if nothing is found and no line of the run's output was a warning. Thresholds were set on seeds 0 to 9; "
    "seeds here begin at 100."
)


def cases(only: str | None, kinds: list[str] | None, first: int, most: int | None) -> Iterator[tuple[str | None, str, int]]:
    """``(kind or None, words, seed)``."""
    if only != "healthy":
        for kind, runs in SICK.items():
            if kinds is None or kind in kinds:
                yield from ((kind, words, seed) for words, count in runs for seed in range(first, first + min(count, most or count)))
    if only != "sick":
        for words, count in HEALTHY.items():
            if kinds is None or any(kind in words for kind in kinds):
                yield from ((None, words, seed) for seed in range(first, first + min(count, most or count)))


def examined(kind: str | None, words: str, seed: int, run: Path) -> Record:
    """Train, look at the folder."""
    said = run.parent / f"{run.name}.out"
    if not said.exists():
        environment = {**os.environ, "PYTHONPATH": f"{SOURCE}:{FOLDER}"}
        command = [sys.executable, "-m", "upslope", "train", *words.split(), "--seed", str(seed), "--out", str(run)]
        done = subprocess.run(command, env=environment, cwd=run.parent, capture_output=True, text=True, check=False, timeout=1200)
        said.write_text(done.stdout + done.stderr, encoding="utf-8")
    if not run.exists():
        raise SystemExit(f"{words} left no folder; {said} has what it said")
    found = diagnose(Run.load(run))
    names = [finding.rule for finding in found.found]
    lines = said.read_text(encoding="utf-8").split("learning curve:")[0].splitlines()  # behind it come those of the end
    live = sum(line.lstrip().startswith("warning:") for line in lines)
    record: Record = {
        "kind": kind or "healthy",
        "words": words,
        "seed": seed,
        "found": [*map(str, found.found)],
        "rules": names,
        "live": live,
    }
    record["right"] = kind in names if kind else not names and not live
    print(f"{'ok ' if record['right'] else 'BAD'} {record['kind']:<26}{words[:70]:<72}{seed:>4}  {', '.join(names)}", flush=True)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("sick", "healthy"))
    parser.add_argument("--kinds", nargs="+", help="these kinds or tasks only")
    parser.add_argument("--seeds", type=int, default=100, help="the first seed")
    parser.add_argument("--most", type=int, help="seeds of each run at most")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; those that are there already are only examined again")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "doctor.json")
    args = parser.parse_args()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.keep or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for kind, words, seed in cases(args.only, args.kinds, args.seeds, args.most):
            name = "".join(c if c.isalnum() or c in ".-" else "_" for c in words)
            records.append(examined(kind, words, seed, work / f"{name[:150]}-{seed}"))
    sick, well = ([record for record in records if (record["kind"] != "healthy") is ill] for ill in (True, False))
    by_kind: dict[str, Any] = {
        kind: f"{sum(r['right'] for r in sick if r['kind'] == kind)} of {sum(r['kind'] == kind for r in sick)}" for kind in SICK
    }
    found = {
        "recall": f"{sum(r['right'] for r in sick)} of {len(sick)}",
        "by_kind": by_kind,
        "false_alarms": f"{sum(not r['right'] for r in well)} of {len(well)}",
        "live": f"{sum(r['live'] > 0 for r in sick)} of {len(sick)} warned before their end",
    }
    print(json.dumps(by_kind, indent=1))
    return finish("doctor", records, args.out, protocol=PROTOCOL, found=found)


if __name__ == "__main__":
    raise SystemExit(main())
