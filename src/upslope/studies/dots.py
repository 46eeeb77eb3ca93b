"""Named values with intervals, several measures side by side: one row for each name, drawn with Pillow like :mod:`upslope.run.chart`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from upslope.run.chart import FAINT, GRID, INK, LABEL, PALETTE, PAPER, SCALE, TICK, TITLE, _font, tick_texts, ticks

ROW, TOP, BOTTOM, GAP = 30, 84, 36, 34
"""Pixels: a row, above and below them, between measures."""


@dataclass(frozen=True)
class Dots:
    """One measure: ``(value, low, high)`` for each name; numbers that are not finite (or not positive, on a log axis) are left out."""

    title: str
    values: Sequence[tuple[float, float, float]]
    logarithmic: bool = False


def draw_dots(title: str, names: Sequence[str], measures: Sequence[Dots], width: int = 1200) -> Image.Image:
    """The names at the left, a column for each measure."""
    left = 24 + math.ceil(max(_font(LABEL).getlength(name) for name in names) / SCALE)
    height = TOP + ROW * len(names) + BOTTOM
    sheet = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((16 * SCALE, 14 * SCALE), title, fill=INK, font=_font(TITLE), anchor="lt")
    for row, name in enumerate(names):
        pen.text((16 * SCALE, middle(row)), name, fill=INK, font=_font(LABEL), anchor="lm")
    room = (width - left) / len(measures)
    for index, measure in enumerate(measures):
        x0 = left + index * room + GAP / 2
        column(pen, measure, (x0 * SCALE, (x0 + room - GAP) * SCALE), (height - BOTTOM) * SCALE)
    return sheet.reduce(SCALE)


def middle(row: int) -> float:
    """The height at which a row stands."""
    return (TOP + ROW * (row + 0.5)) * SCALE


def column(pen: ImageDraw.ImageDraw, measure: Dots, edges: tuple[float, float], floor: float) -> None:
    """One measure between two edges."""

    def scaled(x: float) -> float:
        return (math.log10(x) if x > 0 else -math.inf) if measure.logarithmic else x

    rows = [tuple(map(scaled, row)) for row in measure.values]
    seen = [x for row in rows for x in row if math.isfinite(x)] or [0.0, 1.0]
    low, high = min(seen), max(seen)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def at(x: float) -> float:
        return edges[0] + (x - low) / (high - low) * (edges[1] - edges[0])

    pen.text((edges[0], (TOP - 26) * SCALE), measure.title, fill=INK, font=_font(LABEL), anchor="lm")
    for mark, text in axis(low, high, measure.logarithmic):
        pen.line([(at(mark), TOP * SCALE), (at(mark), floor)], fill=GRID, width=SCALE)
        pen.text((at(mark), floor + 8 * SCALE), text, fill=FAINT, font=_font(TICK), anchor="mt")
    for row, (value, least, most) in enumerate(rows):
        color, y = PALETTE[row % len(PALETTE)], middle(row)
        if math.isfinite(least) and math.isfinite(most):
            pen.line([(at(least), y), (at(most), y)], fill=color, width=round(2.4 * SCALE))
        if math.isfinite(value):
            radius = 4.4 * SCALE
            pen.ellipse([at(value) - radius, y - radius, at(value) + radius, y + radius], fill=color, outline=PAPER, width=SCALE)


def axis(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    """Where the axis is marked, and with what: round numbers, on a log axis powers of ten and, where there is room, 2 and 5 times them."""
    if not logarithmic:
        marks = ticks(low, high, 4)
        return list(zip(marks, tick_texts(marks), strict=True))
    factors = (1, 2, 5) if high - low < 1.8 else (1,)
    step = max(1, round((high - low) / 5))
    powers = range(math.floor(low), math.ceil(high) + 1, step)
    marks = [factor * 10.0**power for power in powers for factor in factors]
    return [(math.log10(mark), short(mark)) for mark in marks if low <= math.log10(mark) <= high]


def short(number: float) -> str:
    """``0.2``, ``50``, ``20k``, ``1M``: narrow enough to stand beside its neighbors."""
    unit, suffix = (1e6, "M") if number >= 1e6 else (1e3, "k") if number >= 1e3 else (1.0, "")
    return f"{number / unit:g}{suffix}"
