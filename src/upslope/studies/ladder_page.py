"""The ladder's page: one HTML file with its style and its pictures inside, light or dark as the reader's system is.

Everything that states a number is made from the numbers of ``ladder.json``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import upslope
from upslope.run.chart import tick_texts, ticks
from upslope.studies.ladder_rungs import RUNGS, TASKS, Rung
from upslope.studies.ladder_style import style

Found = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------------------ numbers


def number(x: float | None, digits: int = 4) -> str:
    """A few digits, a true minus sign: ``−11.66``, ``5.6``, ``1.2e+05``."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:,.{digits}g}".replace("-", "−")


def interval(found: Found) -> str:
    """``5.58 [5.57, 5.59]``."""
    return f"{number(found['mean'])} [{number(found['low'])}, {number(found['high'])}]"


def times(x: float, before: float) -> str:
    """``0.31 ×``."""
    ratio = x / before
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"


# ----------------------------------------------------------------------------------------------------------- pictures


class Frame:
    """Axes of a picture of ``width`` by ``height``: from data to places, and the grid with its numbers."""

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.width, self.height, self.x, self.y = width, height, x, y
        self.left, self.right, self.top, self.bottom = 46, width - 8, 8, height - 24

    def place(self, x: float, y: float) -> str:
        """``"123.4 56.7"``; what lies below the frame is drawn on its edge."""
        (x0, x1), (y0, y1) = self.x, self.y
        px = self.left + (x - x0) / (x1 - x0) * (self.right - self.left)
        py = self.bottom - (min(max(y, y0), y1) - y0) / (y1 - y0) * (self.bottom - self.top)
        return f"{px:.1f} {py:.1f}"

    def grid(self) -> str:
        """Lines and numbers behind the curves."""
        parts: list[str] = []
        for vertical, limits in ((True, self.x), (False, self.y)):
            marks = ticks(*limits, count=4)
            for mark, text in zip(marks, tick_texts(marks), strict=True):
                px, py = self.place(mark if vertical else self.x[0], self.y[0] if vertical else mark).split()
                shown = text.replace("-", "−")
                if vertical:
                    parts.append(f'<line x1="{px}" x2="{px}" y1="{self.top}" y2="{self.bottom}"/>')
                    anchor = "end" if float(px) > self.right - 16 else "middle"
                    parts.append(f'<text x="{px}" y="{self.bottom + 16}" text-anchor="{anchor}">{shown}</text>')
                else:
                    parts.append(f'<line x1="{self.left}" x2="{self.right}" y1="{py}" y2="{py}"/>')
                    parts.append(f'<text x="{self.left - 6}" y="{float(py) + 4:.1f}" text-anchor="end">{shown}</text>')
        return f'<g class="grid">{"".join(parts)}</g>'


def chart(found: Found, shown: Sequence[int], size: tuple[int, int], beside: int | None = None) -> str:
    """The curves of the rungs ``shown``, with their intervals; ``beside`` is drawn faintly behind them."""
    rungs, task = found["rungs"], TASKS[found["task"]]
    clipped = [max(v, task.floor) for rung in rungs for name in ("low", "high") for v in rung["curve"][name] if math.isfinite(v)]
    low, high = min([*clipped, task.best]), max([*clipped, task.best])
    pad = 0.04 * (high - low) or 1.0
    frame = Frame(*size, (0.0, found["budget"]), (low - pad, high + pad))
    parts = [frame.grid(), best_line(frame, task.best)]
    if beside is not None:
        parts.append(f'<path class="beside" d="{outline(frame, found["steps"], rungs[beside]["curve"]["mean"])}"/>')
    for index in shown:
        curve, steps = rungs[index]["curve"], found["steps"]
        band = outline(frame, steps, curve["high"]) + outline(frame, steps[::-1], curve["low"][::-1]).replace("M", "L", 1) + "Z"
        parts.append(f'<path class="band r{index}" d="{band}"/>')
    for index in shown:
        title = escape(rungs[index]["name"])
        line = outline(frame, found["steps"], rungs[index]["curve"]["mean"])
        parts.append(f'<path class="curve r{index}" d="{line}"><title>{title}</title></path>')
    names = escape(", ".join(rungs[index]["name"] for index in shown))
    return f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="Learning curves: {names}">{"".join(parts)}</svg>'


def outline(frame: Frame, xs: Sequence[float], ys: Sequence[float]) -> str:
    """A path through the points that are numbers."""
    points = [frame.place(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    return "M" + "L".join(points) if points else "M0 0"


def best_line(frame: Frame, best: float) -> str:
    """A dashed line where nothing is better."""
    y = frame.place(0.0, best).split()[1]
    return f'<line class="best" x1="{frame.left}" x2="{frame.right}" y1="{y}" y2="{y}"/>'


def bar(value: float | None, least: float, most: float, index: int) -> str:
    """A bar from ``least`` to ``most``, equal ratios equally long."""
    if value is None or value <= 0:
        return ""
    share = 0.04 + 0.96 * math.log(value / least) / math.log(most / least) if most > least else 1.0
    return f'<div class="bar r{index}" style="width:{100 * share:.1f}%"></div>'


# ------------------------------------------------------------------------------------------------------------- words


def compared(rung: Found, before: Found | None, found: Found) -> str:
    """What the numbers say about a rung, beside the rung before it."""
    end, noise, seconds = rung["final"], rung["gradient"]["relative_variance"], rung["seconds"]["median"]
    words = [f"Ends at {interval(end)}"]
    if before is not None:
        other = before["final"]
        verdict = "more" if end["low"] > other["high"] else "less" if end["high"] < other["low"] else "the intervals overlap"
        words = [f"Ends at {interval(end)}, the rung before at {number(other['mean'])}: {verdict}"]
    if noise is None:
        words.append(f"the gradient does not stand out of its noise in {found['gradient']['episodes']:,} episodes")
    else:
        against = "" if before is None or not before["gradient"]["relative_variance"] else before["gradient"]["relative_variance"]
        words.append(f"gradient noise {number(noise, 3)}" + (f", {times(noise, against)} that of the rung before" if against else ""))
    last = f"{seconds:.2f} s" + ("" if before is None else f", {times(seconds, before['seconds']['median'])} the time")
    return "; ".join([*words, last]) + "."


def bias(rung: Found, own_scale: bool) -> str:
    """How far the mean gradient is from the exact one, where that is known."""
    found = rung["gradient"]
    if "bias" not in found:
        return ""
    if own_scale:
        return f"Its gradient has a scale of its own; its cosine to the exact one is {number(found['cosine'])}."
    by, chance = number(found["bias"], 2), number(found["bias_by_chance"], 2)
    off = f"its mean is off by {by} of the exact gradient's length, where chance explains {chance}"
    return f"Biased here: {off}." if found["biased"] else f"No bias to be seen: {off}."


def link(path: str, folder: Path) -> str:
    """A link to a file of this installation, to a test's own line where the file is text; only its name where it is not here."""
    name, _, test = path.partition("::")
    package = Path(upslope.__file__).resolve().parent
    target = package / name.removeprefix("src/upslope/") if name.startswith("src/upslope/") else package.parents[1] / name
    text = escape(f"{name} :: {test}" if test else name)
    if not target.exists():
        return f"<code>{text}</code>"
    address = quote(Path(os.path.relpath(target, folder.resolve())).as_posix())
    return f'<a href="{address}{f"#:~:text=def%20{test}" if test else ""}"><code>{text}</code></a>'


def card(index: int, rung: Rung, found: Found, folder: Path) -> str:
    """One rung: formula, what it buys and costs, what was measured, its curve, where to read on."""
    here, before = found["rungs"][index], found["rungs"][index - 1] if index else None
    note = rung.coincides.get(found["task"], "")
    words = [note, compared(here, None if note else before, found), bias(here, rung.own_scale)]
    lines = [
        f'<h3><span class="dot r{index}"></span>{index + 1}. {escape(rung.name)}</h3>',
        f'<p class="formula">{rung.formula}</p>',
        f"<p><em>Buys:</em> {rung.buys} <em>Costs:</em> {rung.costs}</p>",
        f'<p class="measured">{" ".join(filter(None, words))}</p>',
        f'<p class="links">Method {link(rung.file, folder)}<br>Test {link(rung.test, folder)}</p>',
        f"<details><summary>Settings, as a command</summary><code>{escape(here['command'])}</code></details>",
    ]
    picture = chart(found, [index], (360, 210), index - 1 if index else None)
    caption = "" if before is None else f'<p class="caption">gray: {escape(before["name"])}</p>'
    return f'<section class="card"><div>{"".join(lines)}</div><figure>{picture}{caption}</figure></section>'


def overview(found: Found) -> str:
    """The table: result, noise and time of each rung."""
    rungs = found["rungs"]
    columns = [[r["gradient"]["relative_variance"] for r in rungs], [r["seconds"]["median"] for r in rungs]]
    limits = [(min(k), max(k)) if (k := [v for v in column if v]) else (1.0, 1.0) for column in columns]
    rows: list[str] = []
    for index, rung in enumerate(rungs):
        end, cells = rung["final"], ""
        for value, (least, most), unit in zip((c[index] for c in columns), limits, ("", " s"), strict=True):
            cells += f"<td>{number(value, 3)}{unit}{bar(value, least, most, index)}</td>"
        result = f"<td>{number(end['mean'])}<small>{number(end['low'])} to {number(end['high'])}</small></td>"
        rows.append(f'<tr><th><span class="dot r{index}"></span>{escape(rung["name"])}</th>{result}{cells}</tr>')
    head = "<tr><th>rung</th><th>return at the end</th><th>gradient noise</th><th>seconds</th></tr>"
    note = '<p class="caption">bars: equal ratios are equal lengths</p>'
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>{note}"


def method(found: Found) -> str:
    """How everything was measured, in plain words."""
    task, gradient = TASKS[found["task"]], found["gradient"]
    curves = "the policy's exact expected return" if task.problem else "returns of training episodes"
    where = "where the runs begin" if task.problem else "one that PPO has trained for some thousand steps"
    begin = f" Every run begins at p(right) = {1 / (1 + task.odds):.2f}, which the commands do not set." if task.odds != 1 else ""
    noise = (
        "<p><em>Gradient noise</em> is the variance of the gradient from one episode over the squared length of its mean: the number of"
        " episodes that have to be averaged before noise and signal are equally large (a biased gradient may have little noise around a"
        " wrong mean). All rungs are measured on the same"
        f" {gradient['episodes']:,} episodes ({number(gradient['steps'], 9)} steps, groups of {task.group_size}) at one policy that stands"
        f" still, {where}, with a critic fitted on other episodes. The actor–critics count with all their steps of an episode added up;"
        " TRPO and PPO with their first step, which is the gradient of generalized advantages for both: what they change is how far it"
        " is followed.</p>"
    )
    exact = "<p>The exact gradient is known here, so bias is told as well.</p>" if task.problem else ""
    return (
        f"<p><em>Curves</em> are {curves}: mean over {found['seeds']} seeds with a 95 % bootstrap interval of whole runs; <em>return at"
        f" the end</em> is that of the last tenth of the budget. All rungs have the same seeds and {found['budget']:,} environment steps"
        f" (whole iterations; what is beyond is cut off).{begin}</p>{noise}{exact}"
        "<p><em>Seconds</em> are the median of training time over seeds, on one thread. Step sizes are tuned for each rung, a little and"
        " on other seeds; the commands name them. Advantages are not normalized (but by GRPO, whose formula it is) and gradients not"
        " clipped, so that only the formula changes.</p>"
    )


# -------------------------------------------------------------------------------------------------------------- page


def page(found: Found, folder: Path) -> str:
    """The whole page of a ladder that stands in ``folder``, as far as it has come."""
    count, task = len(found["rungs"]), TASKS[found["task"]]
    title = f"The ladder on {found['task']}"
    missing = "" if count == len(RUNGS) else f'<p class="missing">{count} of {len(RUNGS)} rungs are finished.</p>'
    body = missing
    if count:
        every = range(count)
        legend = "".join(f'<span><span class="dot r{i}"></span>{escape(found["rungs"][i]["name"])}</span>' for i in every)
        pictures = f'<div class="wide">{chart(found, every, (960, 400))}</div><div class="narrow">{chart(found, every, (370, 300))}</div>'
        dashed = f'<p class="caption">environment steps across, return up; dashed: the best there is, {number(task.best)}</p>'
        cards = "".join(card(i, RUNGS[i], found, folder) for i in every)
        body += f'<figure>{pictures}<div class="legend">{legend}</div>{dashed}</figure>{overview(found)}<h2>Rung by rung</h2>{cards}'
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lead = f"Each rung changes one formula of the rung before it. The task: {escape(task.title)}."
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{style()}</style>"
        f'</head><body><main><h1>{escape(title)}</h1><p class="lead">{lead}</p>{body}<h2>How it was measured</h2>{method(found)}'
        f"<footer>{escape(versions)}</footer></main></body></html>\n"
    )
