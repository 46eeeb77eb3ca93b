"""``upslope ladder``: the rungs of :mod:`upslope.studies.ladder_rungs` on one task, with the same budget and the same seeds, on one page.

Each rung is the run that ``upslope train`` makes of its settings. The folder holds ``index.html``, ``ladder.png`` and
``ladder.json``; page and numbers are written after each rung, so whatever ends a ladder, its finished rungs are kept.
"""

import json
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import Signaled, is_kind, require, unknown
from upslope.intervals import bootstrap_band
from upslope.run.drawing import save
from upslope.run.folder import RunFolder, check_free, versions
from upslope.studies.ladder_page import interval, page, picture
from upslope.studies.ladder_rungs import RUNGS, TASKS, Rung, Task, settings_for
from upslope.studies.ladder_runs import POINTS, Climb, climb, grid, noises

TAIL = POINTS // 10  # the last points, over which a run's result is averaged
MIN_BUDGET, MAX_BUDGET, MAX_SEEDS = 100, 10**12, 1000


def ladder(
    task: str, *, budget: int | None = None, seeds: int = 5, out: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Climb every rung and write the folder (``runs/ladder-TASK`` unless ``out`` is given); returns what ``ladder.json`` holds.

    Ctrl-C ends it after what is finished; ``status`` is then ``"interrupted"``, and ``signal`` which one it was.
    ``say`` is given a line for each rung.
    Raises :class:`UsageError` for an unknown task, a budget or a number of seeds that cannot be, a folder that is not free.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    what = TASKS[task]
    budget = what.budget if budget is None else budget
    require(MIN_BUDGET <= budget <= MAX_BUDGET, f"--budget: expected {MIN_BUDGET} to {MAX_BUDGET} environment steps, found {budget}")
    require(1 <= seeds <= MAX_SEEDS, f"--seeds: expected an integer from 1 to {MAX_SEEDS}, found {seeds}")
    if out is not None:
        check_free(out)
    fields: dict[str, Any] = {"task": task, "env_id": what.env_id, "budget": budget, "seeds": seeds, "status": "running"}
    fields |= {"best_return": what.best, "gradient": {"episodes": what.episodes, "steps": None}, "steps": grid(budget).tolist()}
    fields |= {"rungs": [], "versions": versions()}
    started = time.perf_counter()
    with RunFolder.create(out, Path("runs") / f"ladder-{task}") as folder:
        fields["folder"] = str(folder.shown)
        try:
            say(f"{what.title}: {budget:,} steps × {seeds} seeds × {len(RUNGS)} rungs, into {folder.shown}")
            fields["gradient"]["steps"], noise = noises(what, RUNGS)
            for rung in RUNGS:
                climbs = [climb(what, rung, seed, budget) for seed in range(seeds)]
                fields["rungs"].append(found_on(what, rung, climbs, noise[rung.key], budget))
                say(rung_line(fields["rungs"][-1]))
                write_report(folder, fields)
            fields["status"] = "finished"
        except KeyboardInterrupt as stop:
            fields |= {"status": "interrupted", "signal": int(stop.number if isinstance(stop, Signaled) else signal.SIGINT)}
        except BaseException:
            fields["status"] = "failed"
            raise
        finally:
            fields["seconds"] = round(time.perf_counter() - started, 2)
            write_report(folder, fields)
            if fields["rungs"]:
                title, every = f"The ladder on {task}, {seeds} seeds", range(len(fields["rungs"]))
                save(picture(fields, (10.0, 6.2), every, title=title, named=True), folder.path / "ladder.png")
    return fields


def found_on(task: Task, rung: Rung, climbs: list[Climb], noise: dict[str, Any], budget: int) -> dict[str, Any]:
    table = np.stack([c.returns for c in climbs])
    low, high = bootstrap_band(table)
    last = table[:, -TAIL:].mean(1)
    ends = bootstrap_band(last[:, None])
    curve = {"mean": table.mean(0).tolist(), "low": low.tolist(), "high": high.tolist(), "each": table.tolist()}
    final = {"mean": float(last.mean()), "low": float(ends[0][0]), "high": float(ends[1][0]), "each": last.tolist()}
    seconds = {"median": statistics.median(c.seconds for c in climbs), "each": [c.seconds for c in climbs]}
    found = {"key": rung.key, "name": rung.name, "command": command(task, rung, budget), "curve": curve, "final": final}
    return {**found, "gradient": noise, "seconds": seconds, "file": rung.file, "test": rung.test}


def command(task: Task, rung: Rung, budget: int) -> str:
    argv = ["upslope", "train", rung.algorithm, task.env_id]
    for name, value in {**settings_for(task, rung), "total_steps": budget}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            argv += [f"--{flag}", flag_value(value)]
    return " ".join(argv)


def flag_value(value: Any) -> str:
    if isinstance(value, dict):
        return f"'{json.dumps(value)}'"
    return "none" if value is None else " ".join(map(str, value)) if is_kind(value, tuple) else str(value)


def rung_line(rung: dict[str, Any]) -> str:
    variance = rung["gradient"]["relative_variance"]
    noise = "" if variance is None else f"   gradient noise {variance:8.3g}"
    return f"{rung['name']:<24} return {interval(rung['final']):<26}{noise}   {rung['seconds']['median']:.2f} s"


def write_report(folder: RunFolder, fields: dict[str, Any]) -> None:
    folder.write_json("ladder.json", fields)
    folder.write_bytes("index.html", page(fields, folder.shown).encode())
