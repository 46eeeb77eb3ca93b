"""Pictures: what is drawn is what was given, named where it ends, legible whatever it is called; and the arithmetic of the curves."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from PIL import Image

from upslope.intervals import bootstrap_band
from upslope.run.curve import draw_curve, group_line, series, smoothed, telling_first
from upslope.run.drawing import FAINT, PALETTE, Dots, Line, Panel, draw, draw_dots, drawable, save, spread_labels, svg, tick_texts
from upslope.studies.ladder_page import COLORS

X = np.array([0.0, 1000.0, 2500.0, 4000.0])
RISING = Line(
    X, np.array([1.0, 3.0, 2.0, 8.0]), PALETTE[0], "rising", low=np.array([0.0, 2.0, 1.0, 7.0]), high=np.array([2.0, 4.0, 3.0, 9.0])
)
DOTTED = Line(X[1:3], np.array([5.0, 6.0]), PALETTE[1], "dotted", marks=True)


# ------------------------------------------------------------------------------------------------------ what is drawn


def test_the_picture_holds_the_data():
    figure = draw([Panel("Title", "environment steps", "episode return", [RISING, DOTTED], [(7.5, "goal")])])
    (axes,) = figure.axes
    rising, dotted, goal = axes.get_lines()
    for drawn, line in ((rising, RISING), (dotted, DOTTED)):
        assert drawn.get_xdata().tolist() == line.x.tolist() and drawn.get_ydata().tolist() == line.y.tolist()
        assert to_hex(drawn.get_color()) == line.color
    assert (rising.get_marker(), dotted.get_marker()) == ("None", "o")
    assert list(goal.get_ydata()) == [7.5, 7.5] and goal.get_linestyle() == "--"
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    for edge in (RISING.low, RISING.high):
        assert edge is not None and corners >= set(zip(X, edge, strict=True))
    assert to_hex(band.get_facecolor()[0][:3]) == PALETTE[0]
    assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == ("Title", "environment steps", "episode return")
    assert axes.get_xlim() == (0.0, 4000.0) and axes.get_ylim()[0] < 0.0 and axes.get_ylim()[1] > 9.0


def test_each_name_points_at_the_end_of_its_curve():
    figure = draw([Panel("t", "x", "y", [RISING, DOTTED], [(7.5, "goal")])])
    names = {note.get_text(): note for note in figure.axes[0].texts}
    assert set(names) == {"rising", "dotted", "goal"}
    assert names["rising"].xy == (4000.0, 8.0) and names["goal"].xy == (4000.0, 7.5)
    assert names["dotted"].xycoords == "axes points"  # it ends in the middle: a stroke of its color, not one across the picture
    assert [names[name].arrow_patch.get_edgecolor()[:3] for name in ("rising", "goal")] == [to_rgb(PALETTE[0]), to_rgb(FAINT)]


def test_names_stay_apart_and_inside():
    """Twelve curves that end at one place, with names of a sentence each."""
    lines = [Line(X, X, PALETTE[i % 8], f"PPO, learning_rate 0.{i}03, num_envs {i}, clip_range 0.2, 3 runs") for i in range(12)]
    figure = draw([Panel("t", "x", "y", lines), Panel("t", "x", "y", lines[:2])])
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes, count in zip(figure.axes, (12, 2), strict=True):
        for note in axes.texts:
            note.update_positions(renderer)
        texts = [Text.get_window_extent(note, renderer) for note in axes.texts]  # without the stroke
        assert len(texts) == count and not any(a.overlaps(b) for a, b in itertools.combinations(texts, 2))
        assert all(t.x0 > axes.bbox.x1 and t.x1 < figure.bbox.x1 and figure.bbox.y0 < t.y0 and t.y1 < figure.bbox.y1 for t in texts)


@given(st.lists(st.tuples(st.floats(-50, 150), st.floats(1, 20)), max_size=12))
def test_labels_are_spread_without_overlap(labels: list[tuple[float, float]]):
    wanted, heights = [place for place, _ in labels], [height for _, height in labels]
    places = spread_labels(wanted, heights, 0.0, 250.0)
    for (one, a, place), (other, b, next_place) in itertools.combinations(zip(wanted, heights, places, strict=True), 2):
        assert abs(next_place - place) >= (a + b) / 2 - 1e-9
        assert one == other or (one < other) == (place < next_place)
    assert all(height / 2 - 1e-9 <= place <= 250.0 - height / 2 + 1e-9 for place, height in zip(places, heights, strict=True))


def test_labels_that_have_room_stay_where_they_belong():
    assert spread_labels([10.0, 90.0, 50.0], [10.0, 10.0, 10.0], 0.0, 100.0).tolist() == [10.0, 90.0, 50.0]
    assert spread_labels([50.0, 52.0], [10.0, 10.0], 0.0, 100.0).tolist() == [46.0, 56.0]  # the nearest places: each moves by 4


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_axes_are_marked_with_round_numbers(low: float, span: float):
    figure = draw([Panel("t", "x", "y", [Line(np.array([0.0, 1.0]), np.array([low, low + span]), PALETTE[0])])])
    axes = figure.axes[0]
    marks, (bottom, top) = axes.get_yticks(), axes.get_ylim()
    assert 3 <= len(marks) <= 8 and bottom - 1e-6 * span <= marks[0] and marks[-1] <= top + 1e-6 * span
    step = marks[1] - marks[0]
    assert round(step / 10 ** np.floor(np.log10(step) + 1e-9), 6) in (1.0, 2.0, 5.0, 10.0)
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert texts == tick_texts(marks) and len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    "marks, texts",
    [
        ([0, 200, 400], ["0", "200", "400"]),
        ([-1500, -1000, -500, 0], ["−1,500", "−1,000", "−500", "0"]),
        ([0, 5000, 10000], ["0", "5k", "10k"]),
        ([0, 500_000, 1_000_000, 1_500_000, 2_000_000], ["0", "0.5M", "1.0M", "1.5M", "2.0M"]),
        ([0.0, 0.2, 0.4], ["0", "0.2", "0.4"]),
        ([0.0, 0.02, 0.04], ["0", "0.02", "0.04"]),
        ([-1e300, 0.0, 1e300], ["−1e+300", "0", "1e+300"]),
        ([], []),
    ],
)
def test_tick_labels(marks: list[float], texts: list[str]):
    assert tick_texts(marks) == texts


def test_what_is_not_finite_is_a_gap_and_nothing_says_so():
    y = np.array([1.0, np.nan, np.inf, 4.0])
    figure = draw([Panel("t", "x", "y", [Line(X, y, PALETTE[0], low=y - 1, high=y + 1)])])
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_ydata(), [1.0, np.nan, np.nan, 4.0])
    assert figure.axes[0].get_ylim()[1] < 6.0 and not figure.axes[0].texts
    for nothing in ([], [Line(X[:0], X[:0], PALETTE[0], "a"), Line(X, np.full(4, np.nan), PALETTE[1], "b")]):
        axes = draw([Panel("t", "x", "y", nothing)]).axes[0]
        assert [text.get_text() for text in axes.texts] == ["nothing to draw: no finite value"] and len(axes.get_yticks()) == 0
    one = draw([Panel("t", "x", "y", [Line(X[1:2], X[1:2], PALETTE[0])])]).axes[0].get_lines()[0]
    assert one.get_marker() == "o"  # a line through one point is nothing


def test_values_with_intervals():
    nan, inf = float("nan"), float("inf")
    log = Dots("variance", [(1.0, 0.5, 2.0), (nan, nan, inf), (0.0, -1.0, 40.0)], logarithmic=True)
    figure = draw_dots("title", ["a", "b$", "c"], [log, Dots("bias", [(-1.0, -2.0, 3.0)] * 3)])
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b$", "c"] and left.get_ylim() == (2.5, -0.5)
    drawn = [line.get_xdata().tolist() for line in left.get_lines()]
    np.testing.assert_array_equal(list(itertools.chain(*drawn)), [0.5, 2.0, 1.0, nan, nan, nan, nan, 40.0, nan])
    assert [line.get_ydata()[0] for line in left.get_lines()] == [0, 0, 1, 1, 2, 2]
    assert [(text.get_text(), text.get_position()[1]) for text in left.texts] == [("not known", 1)] and not right.texts
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    assert [text.get_text() for text in left.get_xticklabels()] == ["1", "10"] or len(left.get_xticks()) > 2
    assert right.get_lines()[0].get_xdata().tolist() == [-2.0, 3.0] and right.get_lines()[1].get_xdata().tolist() == [-1.0]
    wide = draw_dots("t", ["a"], [Dots("x", [(1.0, 1.0, 1e5)], logarithmic=True), Dots("x", [(1.0, 1.0, 12.0)], logarithmic=True)])
    assert [[text.get_text() for text in axes.get_xticklabels()] for axes in wide.axes] == [
        ["1", "10", "100", "1k", "10k", "100k"],
        ["1", "2", "5", "10"],
    ]


# ------------------------------------------------------------------------------------------------- style and manners


def test_colors_stay_apart_for_every_eye():
    """Distances in OKLab, ×100, as seen with normal, deutan and protan sight (Machado et al. 2009, severity 1)."""
    sights = [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ]
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    for colors in (PALETTE, [light for light, _ in COLORS], [dark for _, dark in COLORS]):
        rgb = np.array([to_rgb(color) for color in colors])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        for sight, least in zip(sights, (12.0, 7.5, 7.5), strict=True):
            places = 100 * np.cbrt(np.clip(linear @ np.transpose(sight), 0, 1) @ np.transpose(cones)) @ np.transpose(lab)
            assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)) > least


@pytest.mark.parametrize("text", ["$\\frac{$", "<script>&amp;", "a\x1b[31m\x00\nb", "\udcff", "日本 ≥ ✓", "", " " * 9, "x" * 5000])
def test_text_of_others_is_only_text(text: str, tmp_path: Path):
    figure = draw([Panel(text, "x", "y", [Line(X, X, PALETTE[0], text or "a")])])
    dots = draw_dots(text, [text], [Dots("x", [(1.0, 0.0, 2.0)])])
    for picture in (figure, dots):
        element = svg(picture)
        tags = {tag.tag.rpartition("}")[2] for tag in ET.fromstring(element).iter()}
        assert tags <= {"svg", "defs", "style", "g", "path", "use", "text", "clipPath", "rect", "tspan"}
        save(picture, tmp_path / "a.png")
    assert drawable(text) in [figure.axes[0].get_title("left")] and len(drawable(text)) <= 90 and "\x1b" not in svg(figure)


def test_settings_of_a_user_neither_matter_nor_change():
    panel = Panel("a", "x", "y", [RISING])
    before = svg(draw([panel]))
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.grid": True, "savefig.bbox": "tight", "svg.fonttype": "path"}):
        changed = dict(matplotlib.rcParams)
        assert svg(draw([panel])) == before
        assert dict(matplotlib.rcParams) == changed


def test_a_run_imports_matplotlib_when_it_is_over_and_without_a_word(tmp_path: Path):
    """In a folder with settings for Matplotlib of its own, and nowhere to keep the list of fonts."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nno such setting: 3\n")
    code = """
import sys
from upslope.cli.main import main
from upslope.run import curve

def loaded():
    return [name for name in ("matplotlib", "matplotlib.pyplot") if name in sys.modules]

def spy(*arguments, **options):
    print("before", loaded())
    draw_curve(*arguments, **options)
    print("after", loaded())

draw_curve, curve.draw_curve = curve.draw_curve, spy
flags = "--total-steps 64 --num-envs 2 --num-steps 16 --num-minibatches 1 --eval-episodes 1 --no-fast --quiet --out run"
sys.exit(main(["train", "ppo", "CartPole-v1", *flags.split()]))
"""
    environment = {**os.environ, "MPLCONFIGDIR": "/dev/null/nowhere"}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stderr) == (0, "") and found.stdout.splitlines() == ["before []", "after ['matplotlib']"]
    assert (tmp_path / "run" / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize("suffix, first", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")])
def test_saving_replaces_the_file_at_once(suffix: str, first: bytes, tmp_path: Path):
    path, secret = tmp_path / f"a.{suffix}", tmp_path / "secret"
    secret.write_text("old")
    path.symlink_to(secret)
    save(draw([Panel("t", "x", "y", [RISING])]), path)
    assert path.read_bytes().startswith(first) and not path.is_symlink() and secret.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "secret"]


def test_pictures_for_every_amount_of_data(tmp_path: Path):
    one = [{"total_steps": 10, "episode_return": 3.0}]
    for number, rows in enumerate(([], one, one * 2, [{"total_steps": 10, "episode_return": None, "evaluation_return": 2.0}])):
        path = tmp_path / f"{number}.png"
        draw_curve(path, rows, title="a", solved_at=None if number else 5.0)
        with Image.open(path) as picture:
            assert picture.size == (1260, 750)
    assert len(list(tmp_path.iterdir())) == 4


# ------------------------------------------------------------------------------------------------ numbers of the curves


def test_smoothing_is_the_mean_of_what_was_up_to_now():
    values = np.arange(100.0) ** 2
    result = smoothed(values, share=0.1)
    assert result[50] == pytest.approx(values[41:51].mean(), rel=1e-12)
    assert result[0] == 0.0
    assert result[-1] == pytest.approx(values[-10:].mean(), rel=1e-12)
    np.testing.assert_allclose(smoothed(np.full(7, 3.0)), 3.0, rtol=1e-12)
    assert len(smoothed(np.array([]))) == 0


@pytest.mark.parametrize("share", (0.02, 0.1, 1.0))
def test_no_smoothed_value_knows_a_later_one(share):
    values = np.sin(np.arange(60.0))
    changed = values.copy()
    changed[30:] = 1e6
    np.testing.assert_array_equal(smoothed(values, share)[:30], smoothed(changed, share)[:30])


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


def test_where_a_legend_has_no_room_for_all_that_differs_it_names_what_tells_runs_apart():
    shared = {"features": "network", "num_tiles": 8, "low": 0, "high": 1}
    alike = [{**shared, "scale": scale, "env_kwargs": kwargs} for scale in (1, 2) for kwargs in ("none", "wind")]
    alike.append({"features": "tiles", "num_tiles": 4, "low": -1, "high": 2, "scale": 3, "env_kwargs": "ice"})
    assert telling_first(list(alike[0]), alike)[:2] == ["scale", "env_kwargs"]
    assert telling_first(["low", "scale"], alike) == ["low", "scale"]
