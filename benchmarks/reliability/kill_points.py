"""Runs that are killed (SIGKILL) at named points and at random times, resumed until they are done, and compared to the bit with the run
that was never interrupted: 120 kill points, 16 on each of five methods in environments, 20 on each of two on language models.

python benchmarks/reliability/kill_points.py                        # about ten minutes
python benchmarks/reliability/kill_points.py --only trpo dpo        # of these methods
python benchmarks/reliability/kill_points.py --only ppo --points "half a line" "between cut and tidy" --out ppo.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import Record, ended, finish, forked, fresh, harness, orphans, said, without

SMALL = "--eval-episodes 2 --seed 1"
TINY = "--model tiny --task addition --iterations 8 --warm-start 0.99 --warm-start-iterations 3 --eval-episodes 4 --eval-every 3 --seed 1"
METHODS = {
    "reinforce": f"CartPole-v1 --num-envs 2 --num-episodes 4 --total-steps 800 --eval-every 200 {SMALL}",
    "a2c": f"CartPole-v1 --num-envs 2 --vectorization async --num-steps 16 --total-steps 320 --eval-every 64 {SMALL}",
    "trpo": f"CartPole-v1 --num-envs 2 --num-steps 64 --total-steps 1152 --eval-every 256 {SMALL}",
    "ppo": f"Pendulum-v1 --no-fast --num-envs 2 --num-steps 32 --num-minibatches 4 --num-epochs 2 --total-steps 640 --eval-every 128 "
    f"{SMALL}",
    "actor-critic": f"CartPole-v1 --num-steps 100 --total-steps 900 --eval-every 200 {SMALL}",
    "grpo": f"{TINY} --group-size 4 --num-prompts 2 --max-tokens 6 --kl-coef 0.1 "
    "--reward regular-expression:1 max-length:4=0.5 --reward-timeout 20",
    "dpo": f"{TINY} --batch-size 4",
}
LANGUAGE = ("grpo", "dpo")
MEASURED = ("train_seconds", "wall_seconds", "steps_per_second", "resumed_at", "warm_start_seconds")
"""What summaries may differ in."""
PROTOCOL = (
    "A process that was forked after the imports trains with `upslope train METHOD …` (`settings`), saving policy and checkpoint after "
    "every iteration, and kills itself with SIGKILL at the n-th passage of a named function (`place`, `nth` of `passages` in the "
    "uninterrupted run, drawn); points `resume …` kill the first `upslope resume` as well, at its first passage. The random times are "
    "killed from outside: fresh processes, checkpoints at the default cadence. Then `upslope resume` in further processes until it is "
    "done. Right: the process was killed there; every row of metrics, every number of the last state (parameters, optimizer, "
    "generators, environments), policy, best policy, completions and summary are equal to the bit to those of an uninterrupted run in a "
    "fresh process, but for measured times; no row is missing or twice; it goes on from no earlier checkpoint than the last one that "
    "was complete (`lost` iterations; at the default cadence from one at most ten seconds old); nothing temporary is left in the "
    "folder, and no process. A run that was killed before its first checkpoint is right if `upslope resume` exits 2 with one line, and "
    "the same command with another --out is equal to the bit."
)


# ------------------------------------------------------------------------------------------------------------------- points


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_rows(original: Callable[..., None], folder: Any, name: str, rows: Sequence[Any]) -> None:
    """All but the last of some lines, and half of that."""
    from upslope.run.folder import json_line

    original(folder, name, [])
    text = "".join(map(json_line, rows))
    folder._open[name].write(text[: max(len(text) - 20, len(text) // 2)])
    folder._open[name].flush()


def half_whole_file(original: Callable[..., None], path: Path, content: bytes) -> None:
    """Half of a file, under its temporary name."""
    from upslope import files

    with files.whole_file(path) as file:
        file.write(content[: len(content) // 2])
        file.flush()
        die()


def half_plain_file(original: Callable[..., int], path: Path, content: bytes) -> None:
    """Half of a file."""
    original(path, content[: len(content) // 2])


def half_model(original: Callable[..., None], policy: Any, folder: Path) -> None:
    """A model whose largest file is cut in half."""
    original(policy, folder)
    largest = max(Path(folder).iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def half_removed(original: Callable[..., None], path: Path) -> None:
    """A checkpoint of which one file is gone."""
    next(path.iterdir()).unlink()


@dataclass(frozen=True)
class Point:
    """Where a process kills itself: ``before`` or ``after`` the n-th passage of ``module:Class.function``, or by way of a function in it.

    ``match`` is in an argument of the passages that count. ``n`` is drawn between these shares of all passages; None is the last.
    ``then`` is where the first resume is killed.
    """

    name: str
    place: str
    when: str | Callable[..., None] = "before"
    match: str = ""
    drawn: tuple[float, float] | None = (0.25, 0.95)
    then: Point | None = None
    nothing: bool = False
    """whether there is nothing to go on from yet"""


SESSION, FILES, WRITE, APPEND = "upslope.run.session", "upslope.files", "pathlib:Path.write_bytes", "upslope.run.folder:RunFolder.append"
WHOLE, FIRST = f"{FILES}:write_bytes", (0.0, 0.0)
ROW = Point("a row was written", APPEND, "after", "metrics.jsonl")
HALF_ROW = Point("half a line of metrics.jsonl", APPEND, half_rows, "metrics.jsonl")
RENAMED = Point("checkpoint: before its rename", f"{FILES}:replace_folder", "before", "iteration-")
CHECKPOINT = [
    Point("checkpoint: half of its tensors", WRITE, half_plain_file, "tensors.safetensors"),
    Point("checkpoint: before its manifest", WRITE, "before", "manifest.json"),
    RENAMED,
    Point("checkpoint: after its rename", f"{FILES}:replace_folder", "after", "iteration-"),
    Point("retention: an old checkpoint half removed", f"{FILES}:remove", half_removed, "iteration-"),
]
RESUME = [
    replace(HALF_ROW, name="resume: before the cut", then=Point("", f"{SESSION}:cut_files")),
    replace(ROW, name="resume: between cut and tidy", then=Point("", f"{SESSION}:tidy")),
    replace(RENAMED, name="resume: after tidy", then=Point("", f"{SESSION}:tidy", "after")),
]
LAST = Point("summary.json: half of it", WHOLE, half_whole_file, "summary.json")
EVALUATION = {
    "control": Point("in the last evaluation", "upslope.control.evaluate:Evaluator.__call__", "before", drawn=None),
    "language": Point("in the last evaluation", "upslope.run.language:evaluate", "before", drawn=None),
}
CONFIG = Point("config.json: half of it", WHOLE, half_whole_file, "config.json", FIRST, nothing=True)
RANDOM = "at a random time"
STEPS = {
    "reinforce": "gymnasium.envs.classic_control:CartPoleEnv.step",
    "a2c": "upslope.control.workers:Line.recv",
    "trpo": "gymnasium.envs.classic_control:CartPoleEnv.step",
    "ppo": "gymnasium.envs.classic_control:PendulumEnv.step",
    "actor-critic": "gymnasium.envs.classic_control:CartPoleEnv.step",
}
"""Each method's own step of the environment; of a2c, whose environments are processes of their own, the answer that is waited for."""
UPDATES = {
    "reinforce": "upslope.fast.update:CompiledUpdate.addresses",
    "a2c": "upslope.fast.update:CompiledUpdate.addresses",
    "trpo": "upslope.updates.trust_region:Line.go",
    "ppo": "upslope.updates.state:AscentState.descend",
    "actor-critic": "upslope.algorithms.online:Trace.ascend",
    "grpo": "upslope.updates.state:AscentState.descend",
    "dpo": "upslope.updates.state:AscentState.descend",
}
"""What moves the parameters, or is called in the middle of it."""


def points_of(method: str) -> list[Point]:
    """The kill points of a method."""
    optimizer = Point("in the optimizer's step", UPDATES[method], "after")
    first = replace(optimizer, name="in the first optimizer's step", drawn=FIRST, nothing=True)
    if method not in LANGUAGE:
        policy = Point("policy.safetensors: half of it", WHOLE, half_whole_file, "/policy.safetensors")
        step = Point("in the environment's step", STEPS[method], "after", drawn=(0.05, 0.5))
        end = EVALUATION["control"] if method in ("a2c", "trpo") else LAST
        return [step, optimizer, first, HALF_ROW, policy, CONFIG, *CHECKPOINT, *RESUME, end]
    reward = Point("in the reward's call", "upslope.language.calls:next_outcome", "after")
    sampling = [Point("in the generation", "upslope.language.engine:Decoding.step", "after"), reward]
    scoring = [
        Point("in the collector", "upslope.language.recorded:Recorded.rollout", "after"),
        Point("in the objective", "upslope.algorithms.dpo:DPO.objective", "after"),
    ]
    policy = Point("policy: half a model", "upslope.language:LanguagePolicy.save_pretrained", half_model, "/.policy.")
    old = Point("policy: the old one not removed", f"{FILES}:remove", "before", "/.policy.")
    return [
        *(sampling if method == "grpo" else scoring),
        *(optimizer, replace(first, name="in the warm start"), HALF_ROW, replace(HALF_ROW, name="half a line of completions.jsonl")),
        *(policy, old, CONFIG, *CHECKPOINT, *RESUME, EVALUATION["language"], LAST),
    ]


class Passages:
    """Counts the passages of a place in this process, and dies at the n-th."""

    def __init__(self, point: Point, nth: int | None) -> None:
        self.count, module, _, names = 0, *point.place.partition(":")
        owner, (*parts, name) = importlib.import_module(module), names.split(".")
        for part in parts:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        def passed(*arguments: Any, **options: Any) -> Any:
            if point.match and not any(point.match in str(each) for each in arguments if isinstance(each, str | Path)):
                return original(*arguments, **options)
            self.count += 1
            if self.count == nth and point.when != "after":
                if callable(point.when):
                    point.when(original, *arguments, **options)
                die()
            result = original(*arguments, **options)
            if self.count == nth:
                die()
            return result

        setattr(owner, name, passed)


# ------------------------------------------------------------------------------------------------------------------ processes


def import_everything() -> None:
    for name in ("cli.main", "run.session", "run.control", "run.language", "run.verify", "fast.update", "cli.train", "cli.resume"):
        importlib.import_module(f"upslope.{name}")


def save_always(path: Path) -> None:
    """In a forked process: a policy and a checkpoint after every iteration; which checkpoints are complete is written to ``path``."""
    from upslope.run import session
    from upslope.run.saving import SavePace

    SavePace.due = lambda self: True
    write = session.write_checkpoint

    def noted(run: Path, iteration: int, state: Any) -> Path:
        found = write(run, iteration, state)
        with path.open("a") as file:
            file.write(f"{iteration}\n")
        return found

    session.write_checkpoint = noted


def trained(words: Sequence[str], folder: Path, point: Point, nth: int) -> int:
    """In a forked process: the run that is killed."""
    from upslope.cli.main import main

    save_always(folder / "written")
    Passages(point, nth)
    return main([*words, "--quiet", "--out", str(folder / "run")])


def counted(words: Sequence[str], folder: Path, points: Sequence[Point]) -> int:
    """In a forked process: the run that is not, with the passages of each point."""
    from upslope.cli.main import main

    save_always(folder / "written")
    found = {point.name: Passages(point, None) for point in points}
    code = main([*words, "--quiet", "--out", str(folder / "run")])
    (folder / "passages.json").write_text(json.dumps({name: each.count for name, each in found.items()}))
    return code


def resumed(folder: Path, point: Point | None) -> int:
    """In a forked process: the run goes on; killed again where a point says so."""
    from upslope.cli.main import main

    save_always(folder / "written")
    if point is not None:
        Passages(point, 1)
    return main(["resume", str(folder / "run"), "--quiet"])


# ------------------------------------------------------------------------------------------------------------------- judging


def difference(whole: Path, run: Path) -> list[str]:
    """What of a finished run is not, to the bit, as in the uninterrupted one."""
    from upslope.run.verify import compare_runs

    differs = list(compare_runs(whole, run, 0).differs)
    summaries = [without(json.loads((path / "summary.json").read_text()), *MEASURED) for path in (whole, run)]
    differs += [f"summary.json: {name}" for name in summaries[0] if summaries[0][name] != summaries[1].get(name)]
    for path in sorted(whole.rglob("*")):
        name = path.relative_to(whole)
        if path.is_file() and name.parts[0].split(".")[0] in ("policy", "best_policy", "completions"):
            same = (run / name).is_file() and (run / name).read_bytes() == path.read_bytes()
            differs += [] if same else [str(name)]
    return differs


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.rglob(".*") if path.name.endswith((".partial", ".replaced"))]


def whole_lines(path: Path) -> list[int]:
    """The iterations of the whole lines of a metrics.jsonl."""
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    return [json.loads(line)["iteration"] for line in lines]


def judged(whole: Path, folder: Path, words: Sequence[str], nothing: bool, record: Record) -> Record:
    """What came of a killed run in ``folder / "run"`` once it was resumed, or started anew."""
    run = folder / "run"
    if nothing:
        faults = [f"exit code {record['code']}"] if record["code"] != 2 or record["said"].count("\n") or not record["said"] else []
        again = folder / "again"
        from upslope.cli.main import main

        code = ended(forked(lambda: main([*words, "--quiet", "--out", str(again)]), folder / "again-output"))
        return record | {"faults": [*faults, *([f"again: exit code {code}"] if code else difference(whole, again))]}
    if record["code"] != 0:
        return record | {"faults": [f"resume: exit code {record['code']}: {record['said'][:300]}"]}
    iterations = whole_lines(run / "metrics.jsonl")
    record["twice"] = len(iterations) - len(set(iterations))
    record["missing"] = len(set(whole_lines(whole / "metrics.jsonl")) - set(iterations))
    record["leftovers"] = leftovers(run)
    faults = difference(whole, run)
    faults += [f"{name}: {record[name]}" for name in ("twice", "missing", "lost", "leftovers", "orphans") if record[name]]
    faults += [f"resume said: {record['said'][:300]}"] if record["said"] else []
    return record | {"resumed_at": json.loads((run / "summary.json").read_text())["resumed_at"], "faults": faults}


def at_point(method: str, words: Sequence[str], point: Point, passages: int, whole: Path, folder: Path, number: random.Random) -> Record:
    """A run that kills itself at a point."""
    low, high = (1.0, 1.0) if point.drawn is None else point.drawn
    nth = max(1, min(passages, round(passages * number.uniform(low, high))))
    started = time.perf_counter()
    record: Record = {"method": method, "point": point.name, "place": point.place, "nth": nth, "passages": passages}
    process = forked(lambda: trained(words, folder, point, nth), folder)
    code = ended(process)
    if code != -signal.SIGKILL:
        return record | {"faults": [f"it was not killed: exit code {code}: {said(folder)[:300]}"], "seconds": time.perf_counter() - started}
    record["orphans"] = orphans(process)
    written = [int(line) for line in (folder / "written").read_text().split()] if (folder / "written").exists() else []
    record["rows_at_kill"] = len(whole_lines(folder / "run" / "metrics.jsonl"))
    if point.then is not None:
        code = ended(forked(lambda: resumed(folder, point.then), folder / "killed-resume"))
        if code != -signal.SIGKILL:
            record |= {"code": code, "said": said(folder / "killed-resume"), "lost": 0}
            return record | {"faults": [f"resume was not killed: exit code {code}: {record['said'][:300]}"]}
    from upslope.run.checkpoints import newest

    found = None if point.nothing else newest(folder / "run")
    record["lost"] = max(0, (written[-1] if written else 0) - (0 if found is None else found.state["run"]["iteration"]))
    output = folder / "resume"
    record["code"] = ended(forked(lambda: resumed(folder, None), output))
    record["said"] = said(output)
    return judged(whole, folder, words, point.nothing, record) | {"seconds": round(time.perf_counter() - started, 2)}


def at_random(method: str, words: Sequence[str], seconds: float, whole: Path, folder: Path, number: random.Random) -> Record:
    """A run in a fresh process that is killed from outside, ``seconds`` being what it takes once its folder is there."""
    started = time.perf_counter()
    for attempt in range(8):
        shutil.rmtree(folder, ignore_errors=True)
        wait = number.uniform(0.0, seconds * 0.8**attempt)
        with fresh([*words, "--quiet", "--out", folder / "run"], folder) as process:
            while not (folder / "run" / "config.json").exists() and process.poll() is None:
                time.sleep(0.002)
            time.sleep(wait)
            process.kill()
            if process.wait() == -signal.SIGKILL:
                break
    record: Record = {"method": method, "point": RANDOM, "seconds_after_config": round(wait, 3), "attempt": attempt}
    if process.returncode != -signal.SIGKILL:
        return record | {"faults": ["it ended before it was killed"]}
    from upslope.run.checkpoints import newest

    record["orphans"], record["lost"] = orphans(process.pid), 0  # it takes less than ten seconds
    record["rows_at_kill"] = len(whole_lines(folder / "run" / "metrics.jsonl"))
    found = newest(folder / "run")
    with fresh(["resume", folder / "run", "--quiet"], folder / "resume") as process:
        record["code"] = process.wait()
    record["said"] = said(folder / "resume")
    return judged(whole, folder, words, found is None, record) | {"seconds": round(time.perf_counter() - started, 2)}


def of_method(method: str, only: Sequence[str], work: Path) -> list[Record]:
    """All kill points of a method."""
    words = ["train", method, *METHODS[method].split()]
    whole, counting = work / method / "whole", work / method / "counted"
    points, number = points_of(method), random.Random(f"{method} 0")
    with fresh([*words, "--quiet", "--out", whole], work / method / "fresh") as process:
        while not (whole / "config.json").exists() and process.poll() is None:
            time.sleep(0.002)
        started = time.perf_counter()
        if process.wait():
            raise SystemExit(f"{method}: the uninterrupted run failed: {said(work / method / 'fresh')}")
        seconds = time.perf_counter() - started
    if ended(forked(lambda: counted(words, counting, points), counting)):
        raise SystemExit(f"{method}: the run that is counted failed: {said(counting)}")
    passages = json.loads((counting / "passages.json").read_text())
    if differs := difference(whole, counting / "run"):
        raise SystemExit(f"{method}: the run is not the same in a fresh and in a forked process: {differs[:3]}")
    records: list[Record] = []
    for index, name in enumerate([*(point.name for point in points), RANDOM]):
        if only and not any(word in name for word in only):
            continue
        folder = work / method / str(index)
        if name == RANDOM:
            record = at_random(method, words, seconds, whole, folder, number)
        else:
            record = at_point(method, words, points[index], passages[name], whole, folder, number)
        record["right"] = not record["faults"]
        record["faults"] = record["faults"][:5]
        place = f"{record['nth']}/{record['passages']}" if "nth" in record else f"{record['seconds_after_config']} s"
        print(f"{'ok ' if record['right'] else 'BAD'} {method:<13}{name:<44}{place:>12}  {record.get('resumed_at', '-')}", flush=True)
        records.append(without(record, "code"))
        if record["right"]:
            shutil.rmtree(folder)
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="these methods")
    parser.add_argument("--points", nargs="+", default=[], help="points with one of these words in their names")
    parser.add_argument("--keep", type=Path, help="folder for the runs, to be looked at")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "kill_points.json")
    args = parser.parse_args()
    import_everything()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        for method in args.only:
            records += of_method(method, args.points, args.keep or Path(temporary))
    found = {name: sum(record.get(name) or 0 for record in records) for name in ("lost", "twice", "missing", "orphans")}
    return finish("kill_points", records, args.out, protocol=PROTOCOL, settings=METHODS, found=found)


if __name__ == "__main__":
    raise SystemExit(main())
