"""``upslope plot RUN… --out FILE``: learning curves, seeds of one configuration as a mean with an interval."""

import os
import sys
from pathlib import Path
from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import PATH, Flag
from upslope.errors import UsageError, require
from upslope.run.load import Run
from upslope.run.report import plural

FLAGS = (Flag("out", PATH, Path("comparison.png"), "picture to write; .svg and .pdf stay sharp at every size"),)

HELP = """\
usage: upslope plot RUN... [--out FILE.png]

Draw the learning curves of run folders: one panel per environment, one curve for each algorithm and its settings. Runs that
differ in the seed only become their mean with a 95 % bootstrap interval; the legend says in what the others differ.

  upslope plot runs/ppo-CartPole-v1-* runs/a2c-CartPole-v1-* --out cartpole.png
"""


def plot(plain: list[str], values: dict[str, Any]) -> int:
    path: Path = values["out"]
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--out: expected a name that ends in .png, .svg or .pdf, found {path}")
    folders = list(dict.fromkeys(os.path.realpath(folder) if folder else folder for folder in plain))
    several = len(folders) > 1
    others = {folder: "a report, which is drawn alone" for folder in folders if several and is_report(Path(folder))}
    runs = [Run.load(folder) for folder in folders if folder not in others]
    from upslope.run.curve import comparable, draw_comparison, nothing_to_plot, repeated  # loads NumPy

    if several and (drawn := comparable(runs)):
        others |= {str(run.path): nothing_to_plot(run) for run in runs if run not in drawn}
        runs = drawn
    twice = repeated(runs)
    others |= {str(path): f"same settings and seed as {other}" for path, other in twice.items()}
    runs = [run for run in runs if run.path not in twice]
    require(bool(runs), "plot: each of these folders holds a report, which is drawn alone; name the folder of a run")
    for folder, reason in others.items():
        print(f"left out {folder}: {reason}", file=sys.stderr)
    draw_comparison(path, runs)
    print(f"wrote {path} ({plural(len(runs), 'run')})")
    return 0


def is_report(folder: Path) -> bool:
    """Whether this is what ``ladder``, ``reproduce`` or ``variance`` wrote: under ``runs/*`` they stand beside the runs."""
    reports = ("ladder.json", "verdict.json", "variance.json")
    return not (folder / "config.json").exists() and any((folder / name).exists() for name in reports)


MISSING = "plot: expected RUN…, one or more run folders; try: upslope plot runs/* --out comparison.png"
COMMAND = Command(plot, HELP, FLAGS, MISSING, most_arguments=None)
