"""The chart's arithmetic: ticks, labels, smoothing, intervals; and that a picture has ink where it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from upslope.run.chart import PALETTE, PAPER, Line, Panel, draw, save, tick_texts, ticks
from upslope.run.curve import bootstrap_band, draw_curve, group_line, series, smoothed


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_numbers_inside_the_range(low: float, span: float):
    marks = ticks(low, low + span)
    assert 3 <= len(marks) <= 10
    assert all(low - 1e-6 * span <= mark <= low + span + 1e-6 * span for mark in marks)
    step = marks[1] - marks[0]
    assert round(step / 10 ** np.floor(np.log10(step) + 1e-9), 6) in (1.0, 2.0, 5.0, 10.0)


@pytest.mark.parametrize(
    "marks, texts",
    [
        ([0, 200, 400], ["0", "200", "400"]),
        ([-1500, -1000, -500, 0], ["-1,500", "-1,000", "-500", "0"]),
        ([0, 5000, 10000], ["0", "5k", "10k"]),
        ([0, 500_000, 1_000_000, 1_500_000, 2_000_000], ["0", "0.5M", "1.0M", "1.5M", "2.0M"]),
        ([0.0, 0.2, 0.4], ["0", "0.2", "0.4"]),
        ([0.0, 0.02, 0.04], ["0", "0.02", "0.04"]),
    ],
)
def test_tick_labels(marks: list[float], texts: list[str]):
    assert tick_texts(marks) == texts


def test_smoothing_is_the_mean_of_a_window():
    values = np.arange(100.0) ** 2
    result = smoothed(values, share=0.1)
    assert result[50] == pytest.approx(values[45:56].mean(), rel=1e-12)
    assert result[0] == pytest.approx(values[:6].mean(), rel=1e-12)
    assert result[-1] == pytest.approx(values[-6:].mean(), rel=1e-12)
    np.testing.assert_allclose(smoothed(np.full(7, 3.0)), 3.0, rtol=1e-12)
    assert len(smoothed(np.array([]))) == 0


def test_series_leaves_out_what_was_not_recorded():
    rows = [{"total_steps": 1, "x": 2.0}, {"total_steps": 2}, {"total_steps": 3, "x": None}, {"total_steps": 4, "x": 5.0}]
    x, y = series(rows, "x")
    assert x.tolist() == [1, 4] and y.tolist() == [2, 5]
    assert len(series([], "x")[0]) == 0


def test_the_band_is_the_bootstrap_interval_of_the_mean():
    table = np.random.default_rng(1).normal(size=(40, 3)) * 2 + np.array([0.0, 10.0, -10.0])
    low, high = bootstrap_band(table)
    half = 1.96 * table.std(0, ddof=1) / np.sqrt(40)
    # 1000 resamples place a 2.5 % quantile to within a few percent of the standard error
    np.testing.assert_allclose(table.mean(0) - low, half, rtol=0.15)
    np.testing.assert_allclose(high - table.mean(0), half, rtol=0.15)
    low, high = bootstrap_band(np.array([[1.0], [1.0]]))
    assert low == high == 1.0


def test_groups_are_averaged_over_shared_steps():
    line = group_line("ppo", [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([5.0, 20.0]), np.array([15.0, 0.0]))], PALETTE[0])
    assert line.x[0] == 5 and line.x[-1] == 10 and line.label == "ppo, 2 runs"
    assert line.y[0] == pytest.approx((5 + 15) / 2) and line.y[-1] == pytest.approx((10 + 10) / 2)
    alone = group_line("ppo", [(np.array([0.0]), np.array([1.0]))], PALETTE[0])
    assert alone.low is None and alone.label == "ppo, 1 run"


def test_a_line_is_drawn_where_the_numbers_are(tmp_path: Path):
    level = np.full(50, 5.0)
    line, levels = Line(np.linspace(0, 100, 50), level, PALETTE[0], width=3), [(10.0, "goal"), (0.0, "start")]
    image = np.asarray(draw([Panel("title", "x", "y", [line], levels)]))
    rows, columns = np.nonzero((image == PALETTE[0]).all(-1))
    assert len(rows) > 500 and np.ptp(rows) <= 4  # a horizontal line
    assert columns.min() < 100 and columns.max() > 780  # from axis to axis
    assert (image[0, 0] == PAPER).all()


def test_pictures_for_every_amount_of_data(tmp_path: Path):
    one = [{"total_steps": 10, "episode_return": 3.0}]
    for number, rows in enumerate(([], one, one * 2, [{"total_steps": 10, "episode_return": None, "evaluation_return": 2.0}])):
        path = tmp_path / f"{number}.png"
        draw_curve(path, rows, title="a", solved_at=None if number else 5.0)
        with Image.open(path) as picture:
            assert picture.size == (840, 500)
    assert len(list(tmp_path.iterdir())) == 4


def test_saving_replaces_the_file_at_once(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_text("old")
    save(Image.new("RGB", (2, 2)), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_long_legend_is_broken_into_rows():
    """Eight names of 30 letters do not fit beside each other: each gets its swatch, none leaves the picture."""
    x = np.array([0.0, 1.0])
    lines = [Line(x, x + i, color, "abcdefghij" * 3, width=0.0) for i, color in enumerate(PALETTE)]
    image = np.asarray(draw([Panel("title", "x", "y", lines)]))
    places = [np.argwhere((image == color).all(-1)).mean(0) for color in PALETTE]
    assert len({round(y) for y, _ in places}) == 3 and all(84 < x < 812 - 200 for _, x in places)
