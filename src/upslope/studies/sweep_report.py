"""What a sweep says and draws: its plan, a line for each trial, the table's rows, what it has found and how to judge that."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.errors import UsageError
from upslope.run import drawing
from upslope.run.config import WORLDS, RunConfig
from upslope.run.drawing import PALETTE, Dots, Line, Panel
from upslope.run.report import plural
from upslope.run.settings import check_imports_nothing, flat_config, settings_of
from upslope.studies.sweep_optuna import importances
from upslope.studies.sweep_space import value_name
from upslope.studies.sweep_trials import SLACK, Measure, Trial

if TYPE_CHECKING:
    from upslope.studies.sweep import Sweep
    from upslope.studies.sweep_search import Swept

FRESH_SEED = 100
"""The seed from which on a finding is judged, if the sweep has not used it."""
NAMES = {"total_steps": "steps", "iterations": "iterations"}
CONFIRMED = "confirmed"  # what the study calls the values on further seeds
Row = Mapping[str, Any]


def rows_of(study: Any, sweep: Sweep) -> list[dict[str, Any]]:
    """A row for each trial that has ended, in their order."""
    rows, confirmed = list[dict[str, Any]](), study.user_attrs.get(CONFIRMED, {})
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
        seconds = (trial.datetime_complete - trial.datetime_start).total_seconds() if trial.datetime_start else None
        row: dict[str, Any] = {"trial": trial.number, "state": state, "value": trial.value if state == "complete" else None}
        row["confirmed"] = confirmed.get(str(trial.number), [])
        row |= {"values": trial.user_attrs.get("values", []), "points": trial.last_step or 0, "why": trial.user_attrs.get("why", "")}
        rows.append(row | {"seconds": seconds, "settings": {name: trial.params.get(name) for name in sweep.space}})
    return rows


def best_first(sweep: Sweep, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The complete trials by their value, those with the same one in their order."""
    sign = 1.0 if sweep.objective == "steps" else -1.0
    return sorted((row for row in rows if row["state"] == "complete"), key=lambda row: sign * row["value"])


def best_of(sweep: Sweep, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best trial: of those that were confirmed on further seeds by the mean over all of them, else by its value."""
    sign = 1.0 if sweep.objective == "steps" else -1.0
    complete = best_first(sweep, rows)
    confirmed = [row for row in complete if row["confirmed"]]
    return min(confirmed or complete, key=lambda row: sign * float(np.mean(known_values(row))), default=None)


def known_values(row: Row) -> list[float]:
    """What a trial's runs are worth, on further seeds too."""
    return [*row["values"], *row["confirmed"]]


def settings_in(sweep: Sweep, row: Row) -> dict[str, Any]:
    """The settings of a row as a run takes them."""
    return {name: sweep.space[name].value(recorded) for name, recorded in row["settings"].items()}


def settings_text(row: Row) -> str:
    return ", ".join(f"{name} {value_name(value)}" for name, value in row["settings"].items())


# ------------------------------------------------------------------------------------------------------------------- texts


def task(sweep: Sweep) -> str:
    config = sweep.config
    return config.env_id if config.env_id is not None else str(getattr(config.problem, "task", None) or "recorded texts")


def plan(sweep: Sweep, measure: Measure, folder: Path, resumed: tuple[int, int]) -> str:
    """What is going to happen, or to go on."""
    config, first = sweep.config, sweep.config.settings.seed
    unit = NAMES[sweep.unit]
    last = first + sweep.seeds - 1
    seeds = f"seed {first}" if sweep.seeds == 1 else f"seeds {first} to {last}"
    judged = {
        "steps": f"{unit} to {measure.goal:g}, the fewer the better; who does not get there lies behind, by its last evaluation"
        if measure.goal is not None
        else "",
        "return": "the mean of all evaluations",
        "final": "the last evaluation",
    }
    width = max(map(len, sweep.space))
    lines = [
        f"sweep: {config.name} on {task(sweep)}, {plural(sweep.trials, 'trial')} of {plural(sweep.seeds, 'run')} ({seeds}), "
        f"{sweep.jobs} side by side, up to {measure.budget:,} {unit} each",
        f"judged by: {judged[measure.objective]}",
        f"pruned: {'where it lies below the median of what complete trials had at that point' if sweep.prune else 'nothing'}",
        f"first trial: {'what a run starts with' if sweep.baseline else 'drawn as all others'}",
        f"at the end: {closing_round(sweep)}",
        *(f"  {name:<{width}}  {dimension}" for name, dimension in sweep.space.items()),
    ]
    ended, under_way = resumed
    if ended or under_way:
        lines.append(f"going on: {plural(ended, 'trial')} ended, {under_way} under way")
    return "\n  ".join([*lines, f"writing to {folder}; the same command with --out {shlex.quote(str(folder))} goes on after a stop"])


def trial_line(sweep: Sweep, measure: Measure, row: Row, best: Row | None) -> str:
    """``trial 7: 9,216 steps (8,192 to 10,240) · learning_rate 0.002, … · best so far: trial 3``."""
    unit = NAMES[sweep.unit]
    ends = f"after {round(row['points'] * measure.interval):,} {unit}"
    said = {
        "complete": lambda: measure.text(row["values"], unit),
        "pruned": lambda: f"pruned {ends}" + (f" ({row['why']})" if row["why"] else ""),
        "failed": lambda: f"failed: {row['why']}",
    }[row["state"]]()
    known = "" if best is None else f" · best so far: trial {best['trial']}, {measure.text(known_values(best), unit)}"
    known = " · the best so far" if best is not None and best["trial"] == row["trial"] else known
    return f"trial {row['trial']}: {said} · {settings_text(row)}{known}"


def closing_round(sweep: Sweep) -> str:
    if not sweep.confirm:
        return "nothing is run on further seeds"
    first = sweep.config.settings.seed + sweep.seeds
    further = f"seed {first}" if sweep.confirm == 1 else f"seeds {first} to {first + sweep.confirm - 1}"
    return f"the best trials{' and the first one' if sweep.baseline else ''} run on {further}, to choose among them"


def confirmed_line(sweep: Sweep, measure: Measure, trial: Trial, rows: Sequence[Row]) -> str:
    """``trial 7 on further seeds: 9,216 steps (…), with the first ones 8,700 steps (…)``."""
    unit, row = NAMES[sweep.unit], next(row for row in rows if row["trial"] == trial.number)
    if not row["confirmed"]:
        return f"trial {trial.number} on further seeds: failed: {trial.faults[0] if trial.faults else 'it came to no end'}"
    both = measure.text(known_values(row), unit)
    return f"trial {trial.number} on further seeds: {measure.text(row['confirmed'], unit)}; with the first ones {both}"


def closing(sweep: Sweep, measure: Measure, found: Swept) -> str:
    """The best setting, what it is worth, what that means, and what to try next."""
    folder, unit = found.folder, NAMES[sweep.unit]
    count = {state: sum(row["state"] == state for row in found.rows) for state in ("complete", "pruned", "failed")}
    lines = ["", f"{plural(len(found.rows), 'trial')} ended: " + ", ".join(f"{number} {state}" for state, number in count.items())]
    if found.signal is not None:
        lines.append(f"stopped on request; the same command with --out {shlex.quote(str(folder))} goes on")
    if found.best is None:
        return "\n".join([*lines, "no trial is complete, so there is no best one"])
    best = found.best
    lines.append(f"best: trial {best['trial']}, {measure.text(known_values(best), unit)}, settings in {folder / 'best.json'}")
    lines += [f"  {name} {value_name(value)}" for name, value in best["settings"].items()]
    if sweep.baseline and found.rows[0]["trial"] == 0:
        first = found.rows[0]
        lines.append(f"what a run starts with (trial 0): {measure.text(known_values(first), unit) if first['values'] else first['state']}")
    lines.append(f"the best of {len(found.rows)} looks better than it is on the seeds that it was chosen by: judge it on others")
    commands = next_commands(sweep, best, folder)
    width = max(map(len, commands)) + 4
    pictures = ", ".join(name for name in ("history.png", "importance.png") if (folder / name).exists())
    lines += [f"table: {folder / 'trials.jsonl'}, pictures: {pictures}", "", "try next:"]
    return "\n".join([*lines, *(f"  {command:<{width}}{why}" for command, why in commands.items())])


def next_commands(sweep: Sweep, best: Row, folder: Path) -> dict[str, str]:
    """Judge it on a fresh seed, look at its runs, search longer."""
    shown, seed = shlex.quote(str(folder)), fresh_seed(sweep)
    run = shlex.quote(str(folder / f"trial-{best['trial']:04d}"))
    return {
        f"{train_command(sweep)} --config {shown}/best.json{until(sweep)} --seed {seed}": f"judge it on seed {seed}, and on others",
        f"upslope plot {run}/*": "its learning curves",
        f"upslope doctor {run}/seed-{sweep.config.settings.seed}": "what did not go well in one of them",
    }


def fresh_seed(sweep: Sweep) -> int:
    return max(FRESH_SEED, sweep.config.settings.seed + sweep.seeds + sweep.confirm)


def until(sweep: Sweep) -> str:
    """The flag with which a run ends at the goal of the trials, where they have one."""
    settings = sweep.config.settings
    if getattr(settings, "until_solved", False):
        return " --until-solved"
    for name in ("until_return", "until_accuracy"):
        if (goal := getattr(settings, name, None)) is not None:
            return f" --{name.replace('_', '-')} {goal:g}"
    return ""


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def train_command(sweep: Sweep) -> str:
    """``upslope train`` with what no file may say: the task, the model, and modules."""
    config = sweep.config
    words = ["upslope", "train", config.name]
    again = {name: value for name, value in flat_config(config.config()).items() if name != "reward" and names_module(name, value, config)}
    modules = [word for name, value in again.items() if name in settings_of(*config.parts()) for word in (option(name), str(value))]
    if config.env_id is not None:
        return shlex.join([*words, config.env_id, *modules])
    words += ["--model", str(config.policy.model), *modules]
    words += ["--task", str(config.problem.task)] if config.problem.task else []
    rewards = [str(each) for each in getattr(config.problem, "reward", None) or ()]
    return shlex.join([*words, *(word for each in rewards for word in ("--reward", each))])


def names_module(name: str, value: Any, config: RunConfig) -> bool:
    """Whether a setting is refused in a file because it names something to import."""
    try:
        check_imports_nothing({name: value}, "", WORLDS[config.world].alive.imports)
    except UsageError:
        return True
    return False


# ---------------------------------------------------------------------------------------------------------------- pictures


def draw(study: Any, sweep: Sweep, measure: Measure, folder: Path) -> None:
    """``history.png`` once a trial is complete, ``importance.png`` once there are enough of them."""
    rows = [row for row in rows_of(study, sweep) if row["state"] == "complete"]
    if rows:
        drawing.save(history(sweep, measure, rows), folder / "history.png")
    if found := importances(study):
        names = sorted(found, key=lambda name: -found[name])
        title = f"which settings mattered: {sweep.config.name} on {task(sweep)}"
        shares = Dots("share of the difference between the best tenth and the rest", [(found[name], 0.0, found[name]) for name in names])
        drawing.save(drawing.draw_dots(title, names, [shares], width=9.0), folder / "importance.png")


def history(sweep: Sweep, measure: Measure, rows: Sequence[Row]) -> Any:
    """Each complete trial as a dot, and the best so far."""
    numbers = np.array([row["trial"] for row in rows], dtype=np.float64)
    values = np.array([row["value"] for row in rows], dtype=np.float64)
    best = (np.minimum if sweep.objective == "steps" else np.maximum).accumulate(values)
    if sweep.objective == "steps":  # what was not solved has no place among numbers of steps
        values = np.where([max(row["values"]) <= measure.budget * SLACK for row in rows], values, math.nan)
        best = np.where(best <= measure.budget * SLACK, best, math.nan)
    axis = f"{NAMES[sweep.unit]} to {measure.goal:g}" if measure.goal is not None else "evaluation"
    lines = [Line(numbers, values, PALETTE[0], "complete trials", width=0.0, marks=True), Line(numbers, best, PALETTE[1], "best so far")]
    return drawing.draw([Panel(f"{sweep.config.name} on {task(sweep)}", "trial", axis, lines)])
