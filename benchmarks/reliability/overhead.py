"""What it costs that nothing is lost: the share of the time that saving takes, and whether a long run grows.

python benchmarks/reliability/overhead.py                                # about half an hour
python benchmarks/reliability/overhead.py --only growth --seconds 600
python benchmarks/reliability/overhead.py --only saving --smollm2 FOLDER  # what `upslope model smollm2` wrote
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Record, ended, finish, forked, fresh, harness, said

from upslope.cli.main import main as upslope
from upslope.run import session as of_session
from upslope.run.folder import is_kept
from upslope.run.saving import CHECKPOINT_SHARE, SAVE_SHARE

ROUNDS, LIMIT = 5, 0.02
"""Runs of each case, and the share of the time that saving may take in their median."""
SECONDS = 60.0
"""Of each of those runs, about."""
CASES = {
    "ppo CartPole-v1": "--total-steps 100000000 --eval-every 0",
    "ppo HalfCheetah-v5": "--total-steps 100000000 --eval-every 0",
    "grpo SmolLM2-135M": "--task sums --iterations 100000 --eval-every 0 --warm-start 0",
}
GROWTH, DAY, MOST_BYTES = 1.05, 86_400, 50e6
"""How much larger memory may be at the end than after the first third; a day in seconds; bytes of metrics in it."""
PROTOCOL = (
    "saving: `upslope train …` with defaults, ended after about a minute; in its process the seconds in checkpoints and in saves of the "
    "policy are added up (perf_counter around both), from the end of the first iteration and its checkpoint on, whose seconds stand "
    "in `first`; `share` is theirs of the run's time, so a busy machine inflates both alike. What takes more than a tenth of a second "
    "comes again only when it is a hundredth of the time since: `bound` is the most that checkpoints and saves may take by that rule. "
    "growth: a run of ten minutes in a fresh process; resident memory and open files are read every second from /proc. "
    "`bytes_a_day`: what metrics.jsonl holds after a day at the run's own rate of iterations, by the rule of which rows are kept and the "
    "mean length of a row."
)


def timed(out: Path, words: list[str]) -> int:
    """In the process: a run whose saving is timed; writes what it took beside the folder."""
    spent: dict[str, float] = {"checkpoint": 0.0, "policy": 0.0}
    counts = dict.fromkeys(spent, 0)
    first: dict[str, float] = {}
    started: list[float] = []

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(session: Any, *arguments: Any) -> Any:
            inside = getattr(session, "inside", False)
            session.inside, before = True, time.perf_counter()
            try:
                return work(session, *arguments)
            finally:
                session.inside = inside
                if not inside and session.state is not None:
                    spent[name] += time.perf_counter() - before
                    counts[name] += 1

        return call

    def after_iteration(session: Any, state: Any, work: Any = of_session.Session._after_iteration) -> bool:
        end = work(session, state)
        if not started:
            return end
        report = {"seconds": time.perf_counter() - started[0], **spent, "counts": counts, "iterations": state.iteration, "first": first}
        out.with_suffix(".json").write_text(json.dumps(report))
        return end or report["seconds"] > SECONDS

    def saved(session: Any, state: Any, work: Any = of_session.Session._saved) -> None:
        work(session, state)
        if not started:  # what comes after the first iteration comes once, however long the run is
            started.append(time.perf_counter())
            first.update(spent)
            spent.update(dict.fromkeys(spent, 0.0))
            counts.update(dict.fromkeys(counts, 0))

    of_session.Session._checkpoint = watched("checkpoint", of_session.Session._checkpoint)  # type: ignore[method-assign]
    of_session.Session._save = watched("policy", of_session.Session._save)  # type: ignore[method-assign]
    of_session.Session._after_iteration = after_iteration  # type: ignore[method-assign]
    of_session.Session._saved = saved  # type: ignore[method-assign]
    return upslope(["train", *words, "--eval-episodes", "1", "--quiet", "--out", str(out)])


def saving(case: str, words: str, rounds: int, work: Path, model: Path | None) -> list[Record]:
    """The share of a case."""
    found: list[dict[str, Any]] = []
    chosen = [*case.split()[:1], "--model", str(model), *words.split()] if "SmolLM2" in case else [*case.split(), *words.split()]
    for index in range(rounds):
        out = work / f"{case.replace(' ', '-')}-{index}"
        command = [*chosen, "--seed", str(100 + index)]
        if ended(forked(lambda out=out, command=command: timed(out, command), out.with_suffix(".output"))):
            raise SystemExit(f"{case} failed: {said(out.with_suffix('.output'))}")
        found.append(json.loads(out.with_suffix(".json").read_text()))
    shares = [(one["checkpoint"] + one["policy"]) / one["seconds"] for one in found]
    record: Record = {
        "what": "saving",
        "case": case,
        "share": statistics.median(shares),
        "shares": shares,
        "bound": CHECKPOINT_SHARE + SAVE_SHARE,
        "runs": found,
    }
    record["right"] = record["share"] <= LIMIT
    print(f"{'ok ' if record['right'] else 'BAD'} {case:<24}{record['share']:.2%} of the time", flush=True)
    return [record]


def growth(seconds: float, work: Path) -> list[Record]:
    """Memory, open files and metrics of a long run."""
    out, samples = work / "long", list[tuple[float, int, int]]()
    words = ["train", "ppo", "CartPole-v1", "--total-steps", "10000000000", "--quiet", "--out", out]
    with fresh(words, work / "long-output") as process:
        started = time.monotonic()
        while time.monotonic() - started < seconds and process.poll() is None:
            time.sleep(1.0)
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            samples.append((time.monotonic() - started, pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{process.pid}/fd"))))
        elapsed = time.monotonic() - started
        process.terminate()
        code = process.wait()
    if code != 143:
        raise SystemExit(f"the long run ended with {code}: {said(work / 'long-output')}")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    iterations = json.loads(lines[-1])["iteration"]
    a_day = round(iterations / elapsed * DAY)
    rows = sum(is_kept(i) for i in range(1, 100_001))
    count, step = 100_000, 100
    while count < a_day:  # by decades, as the rule goes
        upto = min(a_day, count * 10)
        rows, count, step = rows + (upto - count) // step, upto, step * 10
    bytes_a_day = rows * statistics.mean(map(len, lines))
    third = len(samples) // 3
    early, late = ([sample[1] for sample in part] for part in (samples[third : 2 * third], samples[2 * third :]))
    memory, files = statistics.median(late) / statistics.median(early), (samples[third][2], samples[-1][2])
    record: Record = {
        "what": "growth", "case": "ppo CartPole-v1", "seconds": elapsed, "iterations": iterations, "memory": memory, "open_files": files,
        "resident_bytes": [statistics.median(early), statistics.median(late)], "rows": len(lines), "bytes_a_day": bytes_a_day,
        "right": memory <= GROWTH and files[1] <= files[0] and bytes_a_day < MOST_BYTES,
    }  # fmt: skip
    words = f"memory × {memory:.3f}, files {files}, {bytes_a_day / 1e6:.1f} MB of metrics a day"
    print(f"{'ok ' if record['right'] else 'BAD'} {elapsed:.0f} s, {iterations:,} iterations: {words}", flush=True)
    return [record]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("saving", "growth"))
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the long run")
    parser.add_argument("--smollm2", type=Path, help="the model's folder; without it that case is left out")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "overhead.json")
    args = parser.parse_args()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases if args.only != "growth" else ():
            if "SmolLM2" not in case or args.smollm2 is not None:
                records += saving(case, CASES[case], args.rounds, Path(folder), args.smollm2)
        if args.only != "saving":
            records += growth(args.seconds, Path(folder))
    found = {record["case"] + " " + record["what"]: record.get("share", record.get("memory")) for record in records}
    return finish("overhead", records, args.out, protocol=PROTOCOL, found=found)


if __name__ == "__main__":
    raise SystemExit(main())
