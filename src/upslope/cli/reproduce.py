"""``upslope reproduce FIGURE``: a published figure run again, drawn beside its numbers, and judged."""

import json
from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import INTEGER, PATH, SWITCH, Flag
from upslope.studies.reproduce import FIGURES, reproduce

FLAGS = (
    Flag("runs", INTEGER, None, "independent runs (none: those of the figure, 100; sb-2.5: 10,000 bandits)"),
    Flag("seed", INTEGER, 0, "of all random numbers"),
    Flag("out", PATH, None, "folder for figure.png and verdict.json (none: runs/FIGURE-SEED)"),
    Flag("json", SWITCH, False, "print the verdict as one JSON object and nothing else"),
)

HELP = """\
usage: upslope reproduce FIGURE [flags]

Run a figure of Sutton & Barto's book again, draw it beside the published numbers and say whether it is within bounds:
exit code 0 within, 1 outside.

{figures}

  upslope reproduce sb-13.1
  upslope reproduce sb-2.5 --runs 2000 --json
"""


def usage() -> str:
    return HELP.format(figures="\n".join(f"  {name:<9}{figure.protocol}" for name, figure in FIGURES.items()))


def judge(plain: list[str], values: dict[str, Any]) -> int:
    verdict = reproduce(plain[0], runs=values["runs"], seed=values["seed"], out=values["out"])
    if values["json"]:
        print(json.dumps(verdict.fields, ensure_ascii=False))
    else:
        print(f"{verdict.paragraph}\nfigure: {verdict.path / 'figure.png'} · verdict: {verdict.path / 'verdict.json'}")
    return 0 if verdict.within else 1


COMMAND = Command(judge, usage, FLAGS, f"reproduce: expected FIGURE, one of {', '.join(FIGURES)}; try: upslope reproduce sb-13.1")
