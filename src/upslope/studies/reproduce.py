"""``upslope reproduce``: figures of Sutton & Barto (2nd edition) run again, drawn beside the published numbers, and judged.

A figure is a function ``(runs, seed) -> (checks, panel)``. Its numbers are checked against bounds; intervals are 1.96 standard errors over
runs to either side. The folder holds ``figure.png`` and ``verdict.json``.
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope._version import __version__
from upslope.errors import require, unknown
from upslope.run.drawing import INK, PALETTE, Array, Line, Panel, draw, save
from upslope.run.folder import RunFolder, check_free
from upslope.run.report import plural
from upslope.studies.textbook import corridor_runs, gradient_bandit_runs

OPTIMUM = -(6.0 + 4.0 * 2.0**0.5)  # the corridor's best value, −11.657, at p(right) = 2 − √2
NUM_EPISODES, NUM_PULLS, SHIFT = 1000, 1000, 4.0
TEN_RUNS = "an independent simulation of 10 runs:"


@dataclass(frozen=True)
class Check:
    """One number, its standard error over runs (None of a single run), the bounds that it must keep, and what others found."""

    what: str
    found: float
    standard_error: float | None
    low: float | None
    high: float | None
    beside: str

    @property
    def within(self) -> bool:
        """Whether the number keeps its bounds; one without bounds does."""
        return (self.low is None or self.found >= self.low) and (self.high is None or self.found <= self.high)

    @property
    def bounds(self) -> str:
        """``-13.2 to -11.6``, ``at least 6``, ``at most …`` or nothing."""
        if self.low is None:
            return "" if self.high is None else f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Figure:
    """One figure of the book: what is run, and how many times by default."""

    protocol: str
    runs: int
    simulate: Callable[[int, int], tuple[Sequence[Check], Panel]]


def check_of(what: str, of_each_run: Array, low: float | None, high: float | None, beside: str) -> Check:
    error = float(of_each_run.std(ddof=1) / len(of_each_run) ** 0.5) if len(of_each_run) > 1 else None
    return Check(what, float(of_each_run.mean()), error, low, high, beside)


def curve(returns: Array, color: str, label: str) -> Line:
    """Mean over runs ``[runs, episodes]``, the interval shaded."""
    mean, count = returns.mean(0), len(returns)
    half = 1.96 * returns.std(0, ddof=1) / count**0.5 if count > 1 else np.zeros_like(mean)
    return Line(np.arange(1.0, len(mean) + 1.0), mean, color, label, width=1.4, low=mean - half, high=mean + half)


def window(first: int, last: int, value: float, bounds: tuple[float, float] | None, label: str = "") -> Line:
    """A mean over some steps that was found elsewhere, as a level stroke; bounds are shaded."""
    x = np.array([first, last], dtype=np.float64)
    low, high = (None, None) if bounds is None else (np.full(2, bounds[0]), np.full(2, bounds[1]))
    return Line(x, np.full(2, value), INK, label, width=3.0, low=low, high=high)


def power(exponent: int) -> str:
    """``2⁻¹³``."""
    return "2" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def corridor_panel(title: str, lines: Sequence[Line]) -> Panel:
    """Total reward of an episode over episodes, in the book's range, and the best that there is."""
    return Panel(title, "episode", "total reward on episode (mean, 95 % interval)", lines, [(OPTIMUM, "optimum −11.66")], (-90.0, -5.0))


def figure_13_1(runs: int, seed: int) -> tuple[Sequence[Check], Panel]:
    beside = {-12: "-14.5 (8.2 from run to run)", -13: "-12.4 (0.95)", -14: "-14.3 (1.1)"}
    bounds = {-13: (-13.2, -11.6)}
    rates = np.repeat([2.0**k for k in beside], runs)
    result = corridor_runs(rates, np.zeros_like(rates), NUM_EPISODES, np.random.default_rng(seed))
    returns = result.returns.reshape(len(beside), runs, NUM_EPISODES)
    last = [
        check_of(f"mean of the last 100 episodes at α = 2^{k}", found[:, -100:].mean(1), *bounds.get(k, (None, None)), f"{TEN_RUNS} {text}")
        for (k, text), found in zip(beside.items(), returns, strict=True)
    ]
    lines = [curve(found, color, f"step size {power(k)}") for k, found, color in zip(beside, returns, PALETTE, strict=False)]
    lines.append(window(NUM_EPISODES - 99, NUM_EPISODES, -12.4, bounds[-13], f"reference at {power(-13)}, and bounds"))
    return last, corridor_panel("REINFORCE on the short corridor (Figure 13.1)", lines)


def figure_13_2(runs: int, seed: int) -> tuple[Sequence[Check], Panel]:
    rates, rates_w = np.repeat([2.0**-9, 2.0**-13], runs), np.repeat([2.0**-6, 0.0], runs)
    returns = corridor_runs(rates, rates_w, NUM_EPISODES, np.random.default_rng(seed)).returns.reshape(2, runs, NUM_EPISODES)
    baseline, plain = returns[:, :, 99:200].mean(-1)
    where = "mean of episodes 100 to 200"
    checks = [
        check_of(f"{where}, with baseline", baseline, -14.0, None, f"{TEN_RUNS} -12.1"),
        check_of(f"{where}, without", plain, None, None, f"{TEN_RUNS} -25.3"),
        check_of(f"{where}, gain of the baseline", baseline - plain, 6.0, None, f"{TEN_RUNS} 13.2"),
    ]
    lines = [
        curve(returns[0], PALETTE[0], f"with baseline, step sizes {power(-9)} and {power(-6)}"),
        curve(returns[1], PALETTE[1], f"without, {power(-13)}"),
        window(100, 200, -12.1, (-14.0, OPTIMUM), "reference, and bounds"),
        window(100, 200, -25.3, None),
    ]
    return checks, corridor_panel("REINFORCE with baseline (Figure 13.2)", lines)


def figure_2_5(runs: int, seed: int) -> tuple[Sequence[Check], Panel]:
    beside = {
        (True, 0.1): (82.0, 88.0, "the book's graph: about 80; an independent simulation of 10,000 bandits: 85"),
        (False, 0.1): (46.0, 53.0, "the book's graph: about 60; an independent simulation of 10,000 bandits: 49"),
    }
    checks: list[Check] = []
    lines: list[Line] = []
    for baseline, rate in ((True, 0.1), (True, 0.4), (False, 0.1), (False, 0.4)):
        found = gradient_bandit_runs(runs, NUM_PULLS, rate, baseline, np.random.default_rng(seed), shift=SHIFT).optimal
        x, y, error = np.arange(1.0, NUM_PULLS + 1.0), 100.0 * found, 100.0 * np.sqrt(found * (1.0 - found) / runs)
        which = "with baseline" if baseline else "without"
        low, high, text = beside.get((baseline, rate), (None, None, ""))
        what = f"% optimal action at step {NUM_PULLS}, {which}, α = {rate:g}"
        checks.append(Check(what, float(y[-1]), float(error[-1]) if runs > 1 else None, low, high, text))
        lines.append(Line(x, y, PALETTE[len(lines)], f"{which}, step size {rate:g}", 1.8, low=y - 1.96 * error, high=y + 1.96 * error))
    lines += [window(950, 1000, 85.0, (82.0, 88.0), "reference at 0.1, and bounds"), window(950, 1000, 49.0, (46.0, 53.0))]
    levels = [(80.0, "book, with baseline, 0.1"), (60.0, "book, without, 0.1")]
    return checks, Panel("Gradient bandits, rewards shifted by +4 (Figure 2.5)", "step", "% optimal action", lines, levels)


FIGURES = {
    "sb-2.5": Figure(
        "gradient bandits on 10-armed testbeds with q* ~ N(4, 1), 1000 steps, α = 0.1 and 0.4, with and without baseline",
        10_000,
        figure_2_5,
    ),
    "sb-13.1": Figure(
        "REINFORCE on the short corridor, 1000 episodes, α = 2^-12, 2^-13, 2^-14, θ changed after each episode", 100, figure_13_1
    ),
    "sb-13.2": Figure(
        "REINFORCE on the short corridor, 1000 episodes, with baseline (α = 2^-9, α_w = 2^-6) and without (α = 2^-13)", 100, figure_13_2
    ),
}
"""The names that the command line knows."""


@dataclass(frozen=True)
class Verdict:
    """What was found, and where it was written."""

    path: Path
    within: bool
    fields: dict[str, Any]
    paragraph: str  # the verdict in sentences


def reproduce(figure: str, *, runs: int | None = None, seed: int = 0, out: Path | None = None) -> Verdict:
    """Run a figure, draw it, judge it; write ``figure.png`` and ``verdict.json`` into ``out`` (none: ``runs/FIGURE-SEED``).

    Raises :class:`UsageError` for an unknown figure, a number of runs or a seed that cannot be, and a folder that is not free.
    """
    if figure not in FIGURES:
        raise unknown("figure", figure, FIGURES)
    what = FIGURES[figure]
    runs = what.runs if runs is None else runs
    require(1 <= runs <= 100 * what.runs, f"--runs: expected an integer from 1 to {100 * what.runs}, found {runs}")
    require(seed >= 0, f"--seed: expected an integer ≥ 0, found {seed}")
    if out is not None:
        check_free(out)
    started, source = time.perf_counter(), f"Sutton & Barto 2018, Figure {figure.removeprefix('sb-')}"
    checks, panel = what.simulate(runs, seed)
    within = all(check.within for check in checks)
    fields: dict[str, Any] = {"figure": figure, "source": source, "protocol": what.protocol, "runs": runs, "seed": seed}
    fields |= {"within_bounds": within, "checks": [asdict(check) | {"within": check.within} for check in checks]}
    fields["seconds"] = round(time.perf_counter() - started, 2)
    fields["versions"] = {"upslope": __version__, "numpy": np.__version__, "python": platform.python_version()}
    with RunFolder.create(out, Path("runs") / f"{figure}-{seed}") as folder:
        save(draw([panel], size=(10.0, 6.0)), folder.path / "figure.png")
        folder.write_json("verdict.json", fields)
    head = f"{source}, {plural(runs, 'run')}: {'within' if within else 'OUTSIDE'} its bounds (± standard error)."
    return Verdict(folder.shown, within, fields, " ".join([head, *map(sentence, checks)]))


def sentence(check: Check) -> str:
    """``Mean of …: -12.42 ± 0.11 (bounds -13.2 to -11.6; the book's graph: …).``"""
    found = f"{check.found:.2f}" + ("" if check.standard_error is None else f" ± {check.standard_error:.2f}")
    bounds = f"bounds {check.bounds}" + ("" if check.within else ", not kept") if check.bounds else ""
    notes = "; ".join(part for part in (bounds, check.beside) if part)
    return f"{check.what[0].upper()}{check.what[1:]}: {found}" + (f" ({notes})." if notes else ".")
