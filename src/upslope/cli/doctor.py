"""``upslope doctor RUN``: what did not go well in a run, with its evidence and a change to try."""

import json
import sys
from pathlib import Path
from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import SWITCH, Flag
from upslope.cli.plot import is_report
from upslope.run.doctor import Diagnosis, diagnose
from upslope.run.load import Run

FLAGS = (Flag("json", SWITCH, False, "print one JSON object for each run and nothing else"),)

HELP = """\
usage: upslope doctor RUN... [flags]

Look through the metrics, evaluations and settings of runs, finished or not, for what goes wrong in training: entropy collapse, KL
runaway, clip saturation, a dead critic, dead groups, advantages without signal, exploding gradients, weights that do not move, stale
log-probabilities, a discount too short for the episodes, rewards out of scale, longer completions for nothing, a return far below its
best. Each finding shows what was seen and names a change to try; what could not be checked is named. The same rules speak while a run
goes on and in its last lines. Exit code 0: nothing is found, 1: something is.

  upslope doctor runs/ppo-CartPole-v1-0
  upslope doctor runs/* --json
"""


def examine(plain: list[str], given: dict[str, Any]) -> int:
    """Report on each run."""
    found: list[Diagnosis] = []
    for folder in plain:
        if len(plain) > 1 and is_report(Path(folder)):
            print(f"left out {folder}: a report, not a run", file=sys.stderr)
            continue
        found.append(diagnosis := diagnose(Run.load(folder)))
        print(json.dumps(diagnosis.as_json(), ensure_ascii=False) if given["json"] else "\n".join(diagnosis.lines()))
    return 1 if any(diagnosis.found for diagnosis in found) else 0


MISSING = "doctor: expected RUN…, one or more run folders; try: upslope doctor runs/ppo-CartPole-v1-0"
COMMAND = Command(examine, HELP, FLAGS, MISSING, most_arguments=None)
