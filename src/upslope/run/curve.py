"""Learning curves: ``curve.png`` of one run, and the comparison of several (``upslope plot``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from upslope.errors import UsageError
from upslope.files import folder_for
from upslope.intervals import bootstrap_band
from upslope.run.drawing import PALETTE, Array, Line, Panel, draw, save
from upslope.run.load import Run
from upslope.run.settings import flattened

Rows = Sequence[Mapping[str, Any]]
STEPS, RETURN, PER_STEP = "environment steps", "episode return", "reward per step"
RETURN_OF = {"control": "episode_return", "language": "reward"}  # what is compared between runs
OTHERWISE = {"reward_per_step": PER_STEP, "evaluation_return": "return in evaluations"}
"""What is compared where no run in an environment ended an episode: what they were paid, or evaluations, with their axes."""


def series(rows: Rows, name: str) -> tuple[Array, Array]:
    """Steps and values of one metric, where it was recorded."""
    pairs = [(row["total_steps"], row[name]) for row in rows if row.get(name) is not None and row.get("total_steps") is not None]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def window(count: int, share: float = 0.05) -> int:
    """How many points of a curve a running mean is over: ``share`` of them, at least 3."""
    return max(3, round(count * share))


def smoothed(values: Array, share: float = 0.05) -> Array:
    """The mean of each value and those before it, :func:`window` of them where there are so many: nothing of what was to come."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window(len(values), share), 0)
    return (total[last] - total[first]) / (last - first)


def curve_lines(rows: Rows, shown: str, label: str, evaluated: str, evaluated_label: str) -> list[Line]:
    """The curves of one run: a metric of each iteration, its running mean, and where there are any its evaluations."""
    (x, y), points = series(rows, shown), series(rows, evaluated)
    mean = Line(x, smoothed(y), PALETTE[0], f"mean of the last {window(len(y))}", width=2.4)
    lines = [Line(x, y, PALETTE[0], label, width=1.2, faint=True), mean]
    return [*lines, *([Line(*points, PALETTE[1], evaluated_label, width=1.4, marks=True)] if len(points[0]) else [])]


def draw_curve(path: Path, rows: Rows, *, title: str, solved_at: float | None = None) -> None:
    """Write the learning curve of one run: returns of training episodes, their running mean, evaluations.

    Where no episode of training ended, what a step was paid stands in for the return.
    """
    if len(series(rows, "reward_per_step")[0]) and not len(series(rows, "episode_return")[0]):
        axis, levels = PER_STEP, []
        lines = curve_lines(rows, "reward_per_step", "training", "evaluation_reward_per_step", "evaluation")
    else:
        axis, levels = RETURN, [] if solved_at is None else [(solved_at, f"solved: {solved_at:g}")]
        lines = curve_lines(rows, "episode_return", "training episodes", "evaluation_return", "evaluation")
    save(draw([Panel(title, STEPS, axis, lines, levels)]), path)


def draw_comparison(path: Path, runs: Sequence[Run]) -> None:
    """Write one panel per environment: for each algorithm and its settings the mean over their runs with a 95 % bootstrap interval.

    Of an environment in which no run ended an episode, the panel shows what a step was paid, or evaluations.
    """
    groups: dict[str, dict[str, list[tuple[Array, Array]]]] = {}
    measures = measured(runs)
    for run, name in zip(runs, names(runs), strict=True):
        x, y = series(run.metrics(), measures[run.world, run.env_id])
        if not len(x):
            raise UsageError(f"run folder {run.path}: {nothing_to_plot(run)}")
        groups.setdefault(run.env_id, {}).setdefault(name, []).append((x, smoothed(y)))
    panels: list[Panel] = []
    for env_id, by_name in groups.items():
        lines = [group_line(name, curves, PALETTE[i % len(PALETTE)]) for i, (name, curves) in enumerate(by_name.items())]
        title = env_id if len(lines) > 1 else f"{env_id}: {lines[0].label}"
        worlds = {run.world for run in runs if run.env_id == env_id}
        axes = (STEPS, OTHERWISE.get(measures["control", env_id], RETURN)) if worlds == {"control"} else ("tokens", "reward")
        panels.append(Panel(title, axes[0], f"{axes[1]} (mean and 95 % interval)", lines))
    folder_for(path)
    save(draw(panels), path)


def measured(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """By world and environment, the metric to compare: the first that one of its runs has."""
    rows: dict[tuple[str, str], list[Rows]] = {}
    for run in runs:
        rows.setdefault((run.world, run.env_id), []).append(run.metrics())
    found: dict[tuple[str, str], str] = {}
    for (world, env_id), alike in rows.items():
        names = [RETURN_OF[world], *(OTHERWISE if world == "control" else ())]
        found[world, env_id] = next((name for name in names if any(len(series(each, name)[0]) for each in alike)), names[0])
    return found


def comparable(runs: Sequence[Run]) -> list[Run]:
    measures = measured(runs)
    return [run for run in runs if len(series(run.metrics(), measures[run.world, run.env_id])[0])]


def nothing_to_plot(run: Run) -> str:
    if not run.metrics():
        return "its metrics.jsonl is empty, for it ended before its first iteration did"
    if run.world == "language":
        return f"{run.algorithm} is given no reward, so there is none in its metrics.jsonl to compare; its curve.png shows what there is"
    if comparable([run]):
        return "no episode ended in its training, as in other runs of its environment; plotted alone it shows what there is"
    return "no episode ended in its training, and its metrics.jsonl holds neither a reward per step nor evaluations"


UNNAMED = ("format_version", "versions", "world", "algorithm.name", "goal", "earlier_budgets")
WITHOUT_EFFECT = tuple(f"settings.{name}" for name in ("seed", "device", "fast", "eval_every", "eval_episodes", "eval_sample"))
"""Settings that change nothing of what is learned, but for chance."""
MAX_NAMED = 4  # settings that a legend names at most


def names(runs: Sequence[Run]) -> list[str]:
    """What each run is called in a legend: ``PPO``, with the settings in which those of its algorithm and environment differ.

    Runs with one name have the same settings but for the seed. A setting that not all of them recorded does not count.
    """
    found: list[str] = []
    known = [(run.env_id, run.algorithm, result_settings(run)) for run in runs]
    unnamed: dict[str, list[list[str]]] = {}
    for env_id, algorithm, settings in known:
        alike = [others for *where, others in known if where == [env_id, algorithm]]
        shared = [key for key in settings if all(key in others for others in alike)]
        different = [key for key in shared if any(others[key] != settings[key] for others in alike)]
        differ = [f"{key.rpartition('.')[2]} {value_text(settings[key])}" for key in telling_first(different, alike)]
        name = ", ".join([algorithm.upper(), *differ[:MAX_NAMED]])
        if len(differ) > MAX_NAMED:
            others = unnamed.setdefault(name, [])
            others += [] if differ in others else [differ]
            number = others.index(differ) + 1
            name += " …" if number == 1 else f" … ({number})"
        found.append(name)
    return found


def telling_first(keys: Sequence[str], alike: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys as they are where a legend has room for all; else each time the one that tells most of what is left apart."""
    left, chosen = list(keys), list[str]()
    while len(keys) > MAX_NAMED > len(chosen):
        kinds = {key: len({repr([settings[name] for name in (*chosen, key)]) for settings in alike}) for key in left}
        chosen.append(max(left, key=lambda key: kinds[key]))
        left.remove(chosen[-1])
    return chosen + left


def result_settings(run: Run) -> dict[str, Any]:
    """A run's configuration by flat names, without what does not change what is learned."""
    known = flattened(run.config, values_whole=True).items()
    return {name: value for name, value in known if not name.startswith(UNNAMED) and name not in WITHOUT_EFFECT}


def value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={value_text(each)}" for name, each in cast("Mapping[str, Any]", value).items()) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def repeated(runs: Sequence[Run]) -> dict[Path, Path]:
    """Runs with the settings *and* the seed of another one, which would count twice: each with that other, the longest."""
    kept: dict[Any, Run] = {}
    found: dict[Path, Path] = {}
    for run in runs:
        key = repr((run.env_id, run.algorithm, run.config["settings"].get("seed"), result_settings(run)))
        other = kept.setdefault(key, run)
        if other is run:
            continue
        better, worse = (run, other) if len(run.metrics()) > len(other.metrics()) else (other, run)
        kept[key], found[worse.path] = better, better.path
    return found


def group_line(name: str, curves: Sequence[tuple[Array, Array]], color: str) -> Line:
    """Mean over runs on the steps that they share, with the interval of the mean."""
    start, end = max(float(x[0]) for x, _ in curves), min(float(x[-1]) for x, _ in curves)
    if len(curves) == 1 or end <= start:  # runs that share no steps cannot be averaged: the longest stands for them
        x, y = max(curves, key=lambda curve: curve[0][-1])
        return Line(x, y, color, f"{name}, 1 run", width=2.4)
    grid: Array = np.linspace(start, end, 300)
    table: Array = np.stack([np.interp(grid, x, y) for x, y in curves])
    low, high = bootstrap_band(table)
    return Line(grid, table.mean(0), color, f"{name}, {len(curves)} runs", width=2.4, low=low, high=high)
