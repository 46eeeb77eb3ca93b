"""Pictures, drawn with Matplotlib: curves with bands, and named values with intervals, all in one style.

What is to be drawn is plain data, a :class:`Panel` or :class:`Dots`. Matplotlib costs a quarter of a second to import, so it is imported
when the first picture is drawn. While it draws for us its settings are its defaults and :data:`STYLE`; a user's are left as they are.
Curves are named at their right end, where the eye is, rather than in a legend. Text of others is shown as it is: no formula, no markup.
"""

import contextlib
import io
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.files import whole_file
from upslope.terminal import printable

Array = NDArray[np.float64]
Name = tuple[str, float, float, Any]  # of a curve or level: text, the point where it belongs, and color

PALETTE = ("#0072b2", "#d55e00", "#00a174", "#a7427d", "#dc9f0f", "#53b1e8", "#423995", "#50403a")
"""Colors that stay apart for color-blind eyes: near those of Okabe and Ito (2008)."""
INK, FAINT, GRID, PAPER = "#23272e", "#626a75", "#e4e7eb", "#ffffff"
STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "figure.facecolor": PAPER,
    "lines.solid_joinstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "upslope",
    **dict.fromkeys(("text.color", "axes.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT),
    **dict.fromkeys(("text.parse_math", "ytick.left", "axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
}
DPI = 150
LEFT, RIGHT, TOP, BOTTOM = 0.75, 0.3, 0.8, 0.62  # inches around a set of axes, for numbers, title and labels
UNTITLED = 0.45  # inches above axes without a title
LABEL_GAP = 0.25  # inches from the axes to the names of the curves
ROW = 0.19  # inches that a line of text needs


@dataclass(frozen=True)
class Line:
    """One curve ``y`` over ``x``; ``low``/``high`` shade a band, ``marks`` draws dots, ``faint`` lightens it."""

    x: Array
    y: Array
    color: str
    label: str = ""
    width: float = 2.0
    faint: bool = False
    marks: bool = False
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class Panel:
    """One set of axes; each of ``levels`` is a dashed horizontal line with a label; the vertical axis spans ``y_range`` where given."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    levels: Sequence[tuple[float, str]] = ()
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dots:
    """One measure: ``(value, low, high)`` for each name; what cannot be placed (not finite, not positive on a log axis) is said."""

    title: str
    values: Sequence[tuple[float, float, float]]
    logarithmic: bool = False


@contextlib.contextmanager
def style() -> Generator[None]:
    """Matplotlib in our style and without messages: nothing about its font cache, its folder or a letter that its font lacks."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        import matplotlib as found

        matplotlib: Any = found
        defaults: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with matplotlib.rc_context(defaults | STYLE):
                yield
    finally:
        log.setLevel(level)


def save(figure: Any, path: Path) -> None:
    """Write a whole file, never through a link; its suffix says what: ``.png``, ``.svg`` or ``.pdf``."""
    kind = path.suffix.lower().lstrip(".")
    fast = {"pil_kwargs": {"compress_level": 1}} if kind == "png" else {}
    with style(), whole_file(path) as file:
        figure.savefig(file, format=kind, dpi=DPI, **fast)


def svg(figure: Any) -> str:
    """The picture as an ``<svg>`` element to stand in a page, its text as text."""
    file = io.StringIO()
    with style():
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = file.getvalue().partition("<svg")[2]
    return re.sub(r' id="[\w.]+_\d+"', "", f"<svg{element}")  # every picture has a figure_1; a page has several pictures


def drawable(text: str, width: int = 90) -> str:
    """Text of others on a picture: control characters and halves of characters as ``\\uXXXX``, and not longer than there is room."""
    line = printable(" ".join(text.split())).encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= width else line[: width - 1] + "…"


def tick_texts(marks: Sequence[float]) -> list[str]:
    """``0 200 400``, ``0 1.5 3.0``, ``0 20k 40k``, ``0 0.5M 1.0M``: one unit and as many digits as the step needs."""
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    largest = max((abs(mark) for mark in marks), default=0.0)
    if step < 1e-6 or largest >= 1e9:
        return [f"{mark:g}".replace("-", "−") for mark in marks]
    unit, suffix = (1e6, "M") if largest >= 2e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
    digits = max(0, -int(np.floor(np.log10(step / unit) + 1e-9)))
    return ["0" if abs(mark) < step / 2 else f"{mark / unit:,.{digits}f}{suffix}".replace("-", "−") for mark in marks]


def spread_labels(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> Array:
    """Middles of labels between ``low`` and ``high``, in the order of the wanted places and as near to them as none overlaps another.

    With m_i the middle of label i when all are stacked without gaps, wanted_i − m_i has to grow with i: isotonic regression.
    """
    order = np.argsort(wanted, kind="stable")
    tall = np.asarray(heights, dtype=np.float64)[order]
    middle = np.cumsum(tall) - tall / 2
    blocks: list[tuple[float, int]] = []
    for place in np.asarray(wanted)[order] - middle:
        blocks.append((float(place), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, m), (other, n) = blocks[-2:]
            blocks[-2:] = [((m * one + n * other) / (m + n), m + n)]
    shift = np.repeat([place for place, _ in blocks], [count for _, count in blocks])
    places = np.empty(len(order))
    places[order] = np.clip(shift, low, max(low, high - tall.sum())) + middle
    return places


def draw(panels: Sequence[Panel], size: tuple[float, float] = (8.4, 5.0)) -> Any:
    """A Matplotlib figure of the panels under each other, each of ``size`` inches or as high as the names of its curves."""
    with style():
        from matplotlib.figure import Figure

        named = [_names(panel) for panel in panels]
        tops = [TOP if panel.title else UNTITLED for panel in panels]
        rows = [sum(name.count("\n") + 1 for name, *_ in names) for names in named]
        heights = [max(size[1], top + BOTTOM + ROW * count) for top, count in zip(tops, rows, strict=True)]
        figure = Figure(figsize=(size[0], sum(heights)))
        floor = sum(heights)
        for panel, names, height, top in zip(panels, named, heights, tops, strict=True):
            floor -= height
            right = max((LABEL_GAP + _width(figure, name) + 0.1 for name, *_ in names), default=RIGHT)
            room = (LEFT, floor + BOTTOM, max(size[0] - LEFT - right, 1.0), height - top - BOTTOM)
            _draw_panel(_place(figure, *room), panel, names, room[2:])
        return figure


def _names(panel: Panel) -> list[Name]:
    """Of every level and of every curve that has a name and a point."""
    found: list[Name] = []
    for line in panel.lines:
        known = np.flatnonzero(np.isfinite(line.x) & np.isfinite(line.y))
        if line.label and len(known):
            color = (line.color, 0.5) if line.faint else line.color
            found.append((line.label, float(line.x[known[-1]]), float(line.y[known[-1]]), color))
    found += [(text, np.inf, value, FAINT) for value, text in panel.levels if text]
    return [("\n".join(textwrap.wrap(drawable(text, 150), 28)), x, y, color) for text, x, y, color in found]


def _width(figure: Any, text: str) -> float:
    """Inches of the longest line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties

    renderer = FigureCanvasAgg(figure).get_renderer()
    return max(renderer.get_text_width_height_descent(row, FontProperties(), False)[0] for row in text.split("\n")) / figure.dpi


def _place(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _draw_panel(axes: Any, panel: Panel, names: Sequence[Name], room: tuple[float, float]) -> None:
    """From back to front: bands, curves, levels, axes, names."""
    axes.set_title(drawable(panel.title), x=-0.45 / room[0], pad=28)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label, rotation=0, ha="left", va="bottom")
    axes.yaxis.set_label_coords(-0.45 / room[0], 1 + 0.1 / room[1])
    axes.grid(axis="y")
    for line in panel.lines:
        if line.low is not None and line.high is not None and len(line.x) > 1:
            axes.fill_between(line.x, _finite(line.low), _finite(line.high), color=line.color, alpha=0.18, linewidth=0)
    for line in panel.lines:
        marks = {"marker": "o", "markersize": 6, "markeredgecolor": PAPER, "clip_on": False} if line.marks or len(line.x) == 1 else {}
        axes.plot(line.x, _finite(line.y), color=line.color, linewidth=line.width, alpha=0.35 if line.faint else 1.0, **marks)
    for value, _ in panel.levels:
        axes.axhline(value, color=FAINT, linewidth=1.3, linestyle=(0, (4, 3)))
    ends = [end for line in panel.lines if len(line.x) for end in (line.x.min(), line.x.max())] or [0.0, 1.0]
    axes.set_xlim(min(0.0, *ends), max(ends) or 1.0)
    if panel.y_range is not None:
        pad = 0.04 * (panel.y_range[1] - panel.y_range[0]) or 1.0
        axes.set_ylim(panel.y_range[0] - pad, panel.y_range[1] + pad)
    _mark(axes.xaxis, max(2, min(7, round(room[0] / 0.8))))
    if any(np.isfinite(line.y).any() for line in panel.lines):
        _mark(axes.yaxis, 6)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing to draw: no finite value", ha="center", va="center", transform=axes.transAxes, color=FAINT)
    _name(axes, names, (72 * room[0], 72 * room[1]))


def _finite(values: Array) -> Array:
    """The values, with a gap for each that has no place on paper."""
    return np.where(np.isfinite(values), values, np.nan)


def _mark(axis: Any, count: int) -> None:
    """Round numbers along an axis, with :func:`tick_texts`, small where they are long."""
    from matplotlib.ticker import MaxNLocator

    low, high = axis.get_view_interval()
    slack, found = 1e-9 * (high - low), MaxNLocator(count, steps=[1, 2, 5, 10], min_n_ticks=3).tick_values(low, high)
    marks = [float(mark) for mark in found if low - slack <= mark <= high + slack]
    texts = tick_texts(marks)
    axis.set_ticks(marks, texts, fontsize=min(10.5, 84 / max(map(len, texts), default=1)))


def _name(axes: Any, names: Sequence[Name], size: tuple[float, float]) -> None:
    """Write each name beside the axes, with a stroke from the end of its curve; with one of its color only, where that ends early."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    wanted = [size[1] * (min(max(y, low), high) - low) / (high - low) for _, _, y, _ in names]
    heights = [72 * ROW * (text.count("\n") + 1) for text, *_ in names]
    for (text, x, y, color), place in zip(names, spread_labels(wanted, heights, -20.0, size[1] + 20.0), strict=True):
        stroke = {"arrowstyle": "-", "color": color, "linewidth": 1.6, "shrinkA": 3, "shrinkB": 1, "relpos": (0, 0.5), "patchA": None}
        beside = (size[0] + 72 * LABEL_GAP, place)
        early = x < left + 0.95 * (right - left) or not low <= y <= high
        end, where = ((beside[0] - 12, place), "axes points") if early else ((min(x, right), y), "data")
        axes.annotate(text, end, beside, where, textcoords="axes points", va="center", color=INK, arrowprops=stroke, annotation_clip=False)


def draw_dots(title: str, names: Sequence[str], measures: Sequence[Dots], width: float = 12.0) -> Any:
    """A Matplotlib figure: a row for each name, a column for each measure."""
    with style():
        from matplotlib.figure import Figure

        height, floor = 0.36 * len(names), 0.45
        figure: Any = Figure(figsize=(width, TOP + height + floor))
        rows = [drawable(name, 40) for name in names]
        left = 0.35 + max(_width(figure, row) for row in rows)
        room = (width - left) / len(measures)
        for index, measure in enumerate(measures):
            axes = _place(figure, left + index * room, floor, room - 0.3, height)
            axes.set_yticks(range(len(rows)), rows if index == 0 else [""] * len(rows), color=INK)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            _draw_column(axes, measure)
        figure.text(0.2 / width, 1 - 0.2 / (TOP + height + floor), drawable(title), va="top", fontsize=14, fontweight="bold")
        return figure


def _draw_column(axes: Any, measure: Dots) -> None:
    axes.set_title(measure.title, fontsize=11, fontweight="normal")
    axes.set_xscale("log" if measure.logarithmic else "linear")
    axes.grid()
    for row, numbers in enumerate(measure.values):
        value, low, high = (x if np.isfinite(x) and (x > 0 or not measure.logarithmic) else np.nan for x in numbers)
        axes.plot([low, high], [row, row], color=PALETTE[0], linewidth=2.4, solid_capstyle="round")
        axes.plot([value], [row], "o", color=PALETTE[0], markersize=8, markeredgecolor=PAPER)
        if not np.isfinite([value, low, high]).any():
            axes.text(0.02, row, "not known", transform=axes.get_yaxis_transform(), va="center", color=FAINT, fontsize=9)
    axes.margins(x=0.08)
    if measure.logarithmic:
        _mark_logarithmic(axes)
    else:
        _mark(axes.xaxis, 4)


def _mark_logarithmic(axes: Any) -> None:
    """Powers of ten and, where there is room, 2 and 5 times them."""
    low, high = map(float, axes.get_xlim())
    decades = math.log10(high / low)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, max(1, round(decades / 5)))
    marks = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if decades < 1.8 else (1,))]
    marks = [mark for mark in marks if low <= mark <= high]
    axes.set_xticks(marks, [short_number(mark) for mark in marks])
    axes.minorticks_off()


def short_number(number: float) -> str:
    """``0.2``, ``50``, ``20k``, ``1M``: narrow enough to stand beside its neighbors."""
    unit, suffix = (1e6, "M") if number >= 1e6 else (1e3, "k") if number >= 1e3 else (1.0, "")
    return f"{number / unit:g}{suffix}"
