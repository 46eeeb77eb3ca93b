"""``upslope plot RUN… --out FILE.png``: learning curves, seeds of one algorithm and task as a mean with an interval."""

from __future__ import annotations

import os
from pathlib import Path

from upslope.cli.flags import PATH, Flag, parse
from upslope.cli.help import section
from upslope.errors import UsageError
from upslope.run.load import Run

FLAGS = (Flag("out", PATH, Path("comparison.png"), "picture to write"),)

HELP = """\
usage: upslope plot RUN... [--out FILE.png]

Draw the learning curves of run folders: one panel per environment, one curve per algorithm. Runs of the same algorithm
on the same environment (other seeds) become their mean with a 95 % bootstrap interval.

  upslope plot runs/ppo-CartPole-v1-* runs/a2c-CartPole-v1-* --out cartpole.png
"""


def main(words: list[str]) -> int:
    """Parse, draw, say where."""
    if "--help" in words or "-h" in words:
        print(HELP + "\n" + section("Flags:", FLAGS))
        return 0
    plain, values = parse(words, FLAGS)
    if not plain:
        raise UsageError("plot: expected RUN…, one or more run folders; try: upslope plot runs/* --out comparison.png")
    path: Path = values.get("out", FLAGS[0].default)
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out: expected a name that ends in .png, found {path}")
    runs = [Run.load(folder) for folder in dict.fromkeys(os.path.realpath(folder) if folder else folder for folder in plain)]
    from upslope.run.curve import draw_comparison

    draw_comparison(path, runs)
    print(f"wrote {path} ({len(runs)} run{'s' if len(runs) > 1 else ''})")
    return 0
