"""The ladder's pictures and its page: one HTML file with its style and its pictures inside, light or dark as the reader's system is.

Everything that states a number is made from the numbers of ``ladder.json``; the page's text is ``templates/ladder.html``.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

import upslope
from upslope.run.drawing import FAINT, GRID, INK, PAPER, Array, Line, Panel, draw, svg
from upslope.studies.ladder_rungs import RUNGS, TASKS

Found = Mapping[str, Any]

COLORS = (
    ("#7d8387", "#9791a7"),
    ("#31a2e7", "#62c4fb"),
    ("#2848a9", "#6588f6"),
    ("#81ac6e", "#bbcd21"),
    ("#247a56", "#5db985"),
    ("#d88c07", "#f5c889"),
    ("#c73f23", "#fd7d55"),
    ("#af5bb9", "#e99ccc"),
    ("#722c7d", "#b167c6"),
)
"""Of each rung, on light and on dark paper: a family of methods has one hue, and color-blind eyes tell all of them apart."""


# ------------------------------------------------------------------------------------------------------------ numbers


def few_digits(x: float | None, digits: int = 4) -> str:
    """A few digits, a true minus sign: ``−11.66``, ``5.6``, ``1.2e+05``."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:,.{digits}g}".replace("-", "−")


def interval(found: Found) -> str:
    """``5.58 [5.57, 5.59]``."""
    return f"{few_digits(found['mean'])} [{few_digits(found['low'])}, {few_digits(found['high'])}]"


def times(x: float, before: float) -> str:
    """``0.31 ×``."""
    ratio = x / before
    return f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.2g} ×"


# ----------------------------------------------------------------------------------------------------------- pictures


def picture(found: Found, size: tuple[float, float], shown: Sequence[int], *, title: str = "", named: bool = False) -> Any:
    """The curves of the rungs ``shown`` with their intervals; one alone stands before the rung that it changes, in gray."""
    rungs, task = found["rungs"], TASKS[found["task"]]
    steps = np.array(found["steps"])

    def curve(index: int, name: str) -> Array:
        return np.maximum(rungs[index]["curve"][name], task.floor)

    lines = [
        Line(steps, curve(i, "mean"), COLORS[i][0], rungs[i]["name"] if named else "", low=curve(i, "low"), high=curve(i, "high"))
        for i in shown
    ]
    if len(shown) == 1 and shown[0]:
        lines.insert(0, Line(steps, curve(shown[0] - 1, "mean"), FAINT, width=1.5, faint=True))
    drawn = np.array([task.best, *(v for i in range(len(rungs)) for name in ("low", "high") for v in curve(i, name))])
    limits = float(np.nanmin(drawn)), float(np.nanmax(drawn))
    best = [(task.best, f"best: {few_digits(task.best)}" if named else "")]
    return draw([Panel(title, "environment steps", "return (mean, 95 % interval)", lines, best, limits)], size)


def element(figure: Any) -> Markup:
    """A picture for the page, in the colors of the page."""
    names = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper"} | {light: f"r{i}" for i, (light, _) in enumerate(COLORS)}
    return Markup(re.sub("|".join(names), lambda found: f"var(--{names[found[0]]})", svg(figure)))


# -------------------------------------------------------------------------------------------------------------- text


def compare_rungs(rung: Found, before: Found | None, found: Found) -> str:
    """What the numbers say about a rung, beside the rung before it."""
    end, noise, seconds = rung["final"], rung["gradient"]["relative_variance"], rung["seconds"]["median"]
    parts = [f"Ends at {interval(end)}"]
    if before is not None:
        other = before["final"]
        verdict = "more" if end["low"] > other["high"] else "less" if end["high"] < other["low"] else "the intervals overlap"
        parts = [f"Ends at {interval(end)}, the rung before at {few_digits(other['mean'])}: {verdict}"]
    if noise is None:
        parts.append(f"the gradient does not stand out of its noise in {found['gradient']['episodes']:,} episodes")
    else:
        against = "" if before is None or not before["gradient"]["relative_variance"] else before["gradient"]["relative_variance"]
        parts.append(f"gradient noise {few_digits(noise, 3)}" + (f", {times(noise, against)} that of the rung before" if against else ""))
    last = f"{seconds:.2f} s" + ("" if before is None else f", {times(seconds, before['seconds']['median'])} the time")
    return "; ".join([*parts, last]) + "."


def bias(rung: Found, scale_free: bool) -> str:
    """How far the mean gradient is from the exact one, where that is known."""
    found = rung["gradient"]
    if "bias" not in found:
        return ""
    if scale_free:
        return f"Its gradient has another scale; its cosine to the exact one is {few_digits(found['cosine'])}."
    by, chance = few_digits(found["bias"], 2), few_digits(found["bias_by_chance"], 2)
    off = f"its mean is off by {by} of the exact gradient's length, where chance explains {chance}"
    return f"Biased here: {off}." if found["biased"] else f"No bias to be seen: {off}."


# --------------------------------------------------------------------------------------------------------------- page


def link(path: str, folder: Path) -> dict[str, str]:
    """Text and address of a file of this installation, with a test's line where the file is text; no address where it is not here."""
    name, _, test = path.partition("::")
    package = Path(upslope.__file__).resolve().parent
    target = package / name.removeprefix("src/upslope/") if name.startswith("src/upslope/") else package.parents[1] / name
    text = f"{name} :: {test}" if test else name
    if not target.exists():
        return {"text": text}
    address = quote(Path(os.path.relpath(target, folder.resolve())).as_posix())
    return {"text": text, "address": address + (f"#:~:text=def%20{test}" if test else "")}


def bars(values: Sequence[float | None]) -> list[float | None]:
    """The lengths of bars, equal ratios equally long: 1 for the largest value, none where nothing is known."""
    known = [v for v in values if v is not None and v > 0]
    least, most = (min(known), max(known)) if known else (1.0, 1.0)
    scale = math.log(most / least) or math.inf
    return [None if v is None or v <= 0 else 1.0 - 0.96 * math.log(most / v) / scale for v in values]


def cards(found: Found, folder: Path) -> list[dict[str, Any]]:
    """Of each finished rung: its place in the table, what was measured, as text, its picture, and where to read on."""
    rungs = found["rungs"]
    noise, time = bars([r["gradient"]["relative_variance"] for r in rungs]), bars([r["seconds"]["median"] for r in rungs])
    made: list[dict[str, Any]] = []
    for index, (rung, here) in enumerate(zip(RUNGS, rungs, strict=False)):
        note = rung.coincides.get(found["task"], "")
        before = rungs[index - 1] if index and not note else None
        parts = [note, compare_rungs(here, before, found), bias(here, rung.scale_free)]
        drawn = element(picture(found, (3.6, 2.4), [index]))
        card = {"rung": rung, "found": here, "measured": " ".join(filter(None, parts)), "picture": drawn}
        links = {"method": link(rung.file, folder), "test": link(rung.test, folder)}
        made.append({**card, **links, "noise_bar": noise[index], "time_bar": time[index]})
    return made


def page(found: Found, folder: Path) -> str:
    """The whole page of a ladder that stands in ``folder``, as far as it has come."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("upslope.studies"), autoescape=True, undefined=StrictUndefined)
    every = range(len(found["rungs"]))
    wide = element(picture(found, (10.0, 4.6), every, named=True)) if every else ""
    narrow = element(picture(found, (3.8, 3.3), every)) if every else ""
    shown = {"found": found, "task": TASKS[found["task"]], "count": len(RUNGS), "cards": cards(found, folder), "colors": COLORS}
    return environment.get_template("ladder.html").render(**shown, wide=wide, narrow=narrow, number=few_digits)
