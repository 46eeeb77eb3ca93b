"""A small line chart drawn with Pillow: axes with units, lines, bands, points, a legend.

Importing Matplotlib takes about half a second, half of what a whole CartPole run may cost above its imports; Pillow is
needed for animations anyway and draws the same picture in a tenth of that. Everything is drawn at twice the size and
scaled down, which is what smooths the lines.

Left out: logarithmic axes, vector output. ``metrics.jsonl`` is one line away from any plotting library.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from upslope.files import whole_file

Array = NDArray[np.float64]
Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (31, 95, 168),
    (210, 95, 30),
    (38, 132, 92),
    (146, 72, 160),
    (176, 44, 68),
    (110, 98, 60),
    (60, 140, 170),
    (90, 90, 90),
)
"""Colors that stay apart in print and for color-blind eyes."""

INK, FAINT, GRID, PAPER = (38, 42, 48), (110, 116, 124), (228, 231, 235), (255, 255, 255)
SCALE = 2
TITLE, LABEL, TICK = 19, 15, 13


@dataclass(frozen=True)
class Line:
    """One curve ``y`` over ``x``; ``low``/``high`` shade a band, ``marks`` draws dots, ``faint`` lightens it."""

    x: Array
    y: Array
    color: Color
    label: str = ""
    width: float = 2.0
    faint: bool = False
    marks: bool = False
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class Panel:
    """One set of axes; each of ``levels`` is a dashed horizontal line with a label."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = field(default_factory=tuple)
    levels: Sequence[tuple[float, str]] = ()


def draw(panels: Sequence[Panel], size: tuple[int, int] = (840, 500)) -> Image.Image:
    """The panels under each other, each of ``size`` pixels."""
    width, height = size
    sheet = Image.new("RGB", (width * SCALE, height * SCALE * len(panels)), PAPER)
    for index, panel in enumerate(panels):
        _Axes(sheet, panel, (0, index * height, width, (index + 1) * height)).paint()
    return sheet.reduce(SCALE)


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name and rename it."""
    with whole_file(path) as file:
        image.save(file, format="PNG", compress_level=1)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.7)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_texts(marks: Sequence[float]) -> list[str]:
    """``0 200 400``, ``0 1.5 3.0``, ``0 20k 40k``, ``0 0.5M 1.0M``: one unit and as many digits as the step needs."""
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    largest = max((abs(mark) for mark in marks), default=0.0)
    unit, suffix = (1e6, "M") if largest >= 2e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
    return ["0" if mark == 0 else f"{mark / unit:,.{_digits(step / unit)}f}{suffix}" for mark in marks]


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def _mix(color: Color, share: float) -> Color:
    """``share`` of the color on white paper."""
    red, green, blue = (round(255 + share * (c - 255)) for c in color)
    return red, green, blue


class _Axes:
    """Places one panel on the sheet; coordinates inside are those of the sheet, SCALE times the final pixels."""

    def __init__(self, sheet: Image.Image, panel: Panel, box: tuple[int, int, int, int]) -> None:
        self.sheet, self.panel = sheet, panel
        self.pen = ImageDraw.Draw(sheet)
        x0, y0, x1, y1 = (b * SCALE for b in box)
        self.outer = (x0, y0, x1, y1)
        self.legend = self._legend_rows(x1 - x0 - (84 + 28) * SCALE)
        top = 52 + 26 * len(self.legend)
        self.left, self.right, self.top, self.bottom = x0 + 84 * SCALE, x1 - 28 * SCALE, y0 + top * SCALE, y1 - 62 * SCALE
        self.x_range, self.y_range = self._ranges()

    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        xs = [line.x for line in self.panel.lines if len(line.x)]
        ys = [part for line in self.panel.lines for part in (line.y, line.low, line.high) if part is not None and len(part)]
        ys.append(np.array([value for value, _ in self.panel.levels]))
        x = np.concatenate(xs) if xs else np.array([0.0, 1.0])
        y = np.concatenate(ys) if ys else np.array([0.0, 1.0])
        y = y[np.isfinite(y)] if np.isfinite(y).any() else np.array([0.0, 1.0])
        low, high = float(y.min()), float(y.max())
        pad = 0.05 * (high - low) or 0.5 * max(1.0, abs(high) * 0.1)
        return (min(0.0, float(x.min())), float(x.max()) or 1.0), (low - pad, high + pad)

    def at(self, x: Array, y: Array) -> list[tuple[float, float]]:
        """Sheet coordinates of data points; those that are not finite are left out."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        keep = np.isfinite(x) & np.isfinite(y)
        px = self.left + (x[keep] - x0) / (x1 - x0) * (self.right - self.left)
        py = self.bottom - (y[keep] - y0) / (y1 - y0) * (self.bottom - self.top)
        return list(zip(px.tolist(), py.tolist(), strict=True))

    def paint(self) -> None:
        """Grid and labels, bands, lines, levels, legend: from back to front."""
        self._grid()
        for line in self.panel.lines:
            self._band(line)
        for line in self.panel.lines:
            self._line(line)
        self._levels()
        self._legend()

    def _grid(self) -> None:
        font = _font(TICK)
        for vertical, limits in ((True, self.x_range), (False, self.y_range)):
            marks = ticks(*limits)
            for mark, text in zip(marks, tick_texts(marks), strict=True):
                if vertical:
                    ((x, _),) = self.at(np.array([mark]), np.array([self.y_range[0]]))
                    self.pen.line([(x, self.top), (x, self.bottom)], fill=GRID, width=SCALE)
                    self.pen.text((x, self.bottom + 8 * SCALE), text, fill=FAINT, font=font, anchor="mt")
                else:
                    ((_, y),) = self.at(np.array([self.x_range[0]]), np.array([mark]))
                    self.pen.line([(self.left, y), (self.right, y)], fill=GRID, width=SCALE)
                    self.pen.text((self.left - 9 * SCALE, y), text, fill=FAINT, font=font, anchor="rm")
        self.pen.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], fill=FAINT, width=SCALE)
        x0, y0, _, y1 = self.outer
        self.pen.text((self.left, y0 + 16 * SCALE), self.panel.title, fill=INK, font=_font(TITLE), anchor="lt")
        self.pen.text(((self.left + self.right) / 2, y1 - 14 * SCALE), self.panel.x_label, fill=INK, font=_font(LABEL), anchor="ms")
        self._upright(self.panel.y_label, x0 + 14 * SCALE)

    def _upright(self, text: str, x: int) -> None:
        """Text that reads upwards, centered along the vertical axis."""
        font = _font(LABEL)
        left, top, right, bottom = (round(v) for v in font.getbbox(text))
        tile = Image.new("L", (right - left + 4, bottom - top + 4), 0)
        ImageDraw.Draw(tile).text((2 - left, 2 - top), text, fill=255, font=font)
        tile = tile.rotate(90, expand=True)
        y = round((self.top + self.bottom) / 2 - tile.height / 2)
        self.sheet.paste(INK, (x, y), tile)

    def _band(self, line: Line) -> None:
        if line.low is None or line.high is None or len(line.x) < 2:
            return
        outline = self.at(line.x, line.high) + self.at(line.x, line.low)[::-1]
        x0, y0, x1, y1 = self.outer
        tile = Image.new("L", (x1 - x0, y1 - y0), 0)
        ImageDraw.Draw(tile).polygon([(x - x0, y - y0) for x, y in outline], fill=46)  # bands of several groups stay visible
        self.sheet.paste(line.color, (x0, y0), tile)

    def _line(self, line: Line) -> None:
        points = self.at(line.x, line.y)
        color = _mix(line.color, 0.3) if line.faint else line.color
        if len(points) > 1 and line.width > 0:
            self.pen.line(points, fill=color, width=round(line.width * SCALE), joint="curve")
        if line.marks or len(points) == 1:
            radius = 3.4 * SCALE
            for x, y in points:
                self.pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color, outline=PAPER, width=SCALE)

    def _levels(self) -> None:
        for value, text in self.panel.levels:
            ((_, y),) = self.at(np.array([self.x_range[0]]), np.array([value]))
            for x in range(self.left, self.right, 12 * SCALE):
                self.pen.line([(x, y), (min(x + 6 * SCALE, self.right), y)], fill=FAINT, width=round(1.2 * SCALE))
            self.pen.text((self.left + 8 * SCALE, y - 5 * SCALE), text, fill=FAINT, font=_font(TICK), anchor="lb")

    def _legend_rows(self, width: float) -> list[list[Line]]:
        """The named lines, as many in a row as fit; none where there is nothing to tell apart."""
        named = [line for line in self.panel.lines if line.label]
        rows: list[list[Line]] = []
        room = 0.0
        for line in named if len(named) > 1 else []:
            needed = self._legend_width(line)
            if not rows or needed > room + 22 * SCALE:  # the gap after the last one may be cut off
                rows.append([])
                room = width
            rows[-1].append(line)
            room -= needed
        return rows

    @staticmethod
    def _legend_width(line: Line) -> float:
        return 24 * SCALE + _font(TICK).getlength(line.label) + 22 * SCALE

    def _legend(self) -> None:
        for number, row in enumerate(self.legend):
            x, y = float(self.left), self.outer[1] + (56 + 22 * number) * SCALE
            for line in row:
                color = _mix(line.color, 0.3) if line.faint else line.color
                if line.marks:
                    radius = 3.4 * SCALE
                    self.pen.ellipse([x + 9 * SCALE - radius, y - radius, x + 9 * SCALE + radius, y + radius], fill=color)
                else:
                    self.pen.line([(x, y), (x + 18 * SCALE, y)], fill=color, width=round(max(line.width, 2) * SCALE))
                self.pen.text((x + 24 * SCALE, y), line.label, fill=INK, font=_font(TICK), anchor="lm")
                x += self._legend_width(line)
