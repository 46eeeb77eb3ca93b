"""``upslope ladder TASK``: from REINFORCE to GRPO on one task, rung by rung, on one page."""

import json
from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import INTEGER, PATH, SWITCH, Flag
from upslope.run.folder import finite_or_none
from upslope.studies.ladder_rungs import TASKS

FLAGS = (
    Flag("budget", INTEGER, None, "environment steps of each run (none: the task's)"),
    Flag("seeds", INTEGER, 5, "runs of each rung, with seeds 0, 1, …"),
    Flag("out", PATH, None, "folder for index.html, ladder.png and ladder.json (none: runs/ladder-TASK)"),
    Flag("json", SWITCH, False, "print the numbers as one JSON object and nothing else"),
    Flag("quiet", SWITCH, False, "print nothing"),
)

HELP = """\
usage: upslope ladder TASK [flags]

REINFORCE, rewards to go, baseline, actor–critic, traces, TRPO, PPO, RLOO, GRPO: each rung changes one formula, all have the same
budget and the same seeds. One page shows learning curves, gradient noise, seconds and the formula that changed.

{tasks}

  upslope ladder bandit
  upslope ladder CartPole-v1 --seeds 3 --budget 20000
"""


def usage() -> str:
    return HELP.format(tasks="\n".join(f"  {name:<13}{task.budget:>6,} steps: {task.title}" for name, task in TASKS.items()))


def climb(plain: list[str], values: dict[str, Any]) -> int:
    """Climb, say where the page is; 128 and the number of the signal that ended it (130 after Ctrl-C), with what was finished kept."""
    from upslope.studies.ladder import ladder  # loads PyTorch

    as_json, quiet = values.pop("json"), values.pop("quiet")
    silent = as_json or quiet
    found = ladder(plain[0], say=(lambda _: None) if silent else lambda text: print(text, flush=True), **values)
    if as_json:
        print(json.dumps(finite_or_none(found), ensure_ascii=False))
    elif not silent:
        picture = " · picture: ladder.png" * bool(found["rungs"])  # there is nothing to draw before the first one
        print(f"page: {found['folder']}/index.html{picture} · numbers: ladder.json · {found['seconds']:.1f} s")
    return 0 if found["status"] == "finished" else 128 + found["signal"]


COMMAND = Command(climb, usage, FLAGS, f"ladder: expected TASK, one of {', '.join(TASKS)}; try: upslope ladder bandit")
