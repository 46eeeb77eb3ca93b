"""``upslope variance ENV_ID``: gradient estimators on the same samples at a fixed policy."""

import json
import textwrap
from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import PATH, SWITCH, Flag, flags_of
from upslope.run.folder import check_free, finite_or_none
from upslope.run.settings import settings_of
from upslope.studies.estimators import ESTIMATORS
from upslope.studies.variance_run import VarianceRun

FLAGS = (
    *(flag for name, flag in flags_of(settings_of(VarianceRun(env_id=""))).items() if name != "env_id"),
    Flag("out", PATH, None, "folder for variance.png and variance.json (none: runs/variance-TASK-SEED)"),
    Flag("json", SWITCH, False, "print one JSON object and nothing else"),
)

HELP = """\
usage: upslope variance ENV_ID [flags]

Measure gradient estimators on the same whole episodes at one policy, which does not learn: variance, distance from a reference gradient
and its cosine, effective sample size, cost. Each estimate is made by the code that trains.

  upslope variance CartPole-v1 --estimators reinforce-to-go reinforce-to-go-baseline a2c:0.95 rloo
  upslope variance upslope/ShortCorridor-v0 --gamma 1 --samples 1000
  upslope variance CartPole-v1 --policy runs/ppo-CartPole-v1-0 --behavior uniform --estimators off-policy-per-decision

Estimators (a2c, ppo and off-policy-vtrace take λ: a2c:0 is one step; 1 unless given):
"""


def usage() -> str:
    return HELP + textwrap.fill(", ".join(ESTIMATORS), 110, initial_indent="  ", subsequent_indent="  ") + "\n"


def measure(plain: list[str], values: dict[str, Any]) -> int:
    out, as_json = values.pop("out"), values.pop("json")
    if out is not None:
        check_free(out)
    comparison = VarianceRun(env_id=plain[0], **values).run()
    folder = comparison.write(out)
    if as_json:
        print(json.dumps(finite_or_none(comparison.fields()), ensure_ascii=False))
    else:
        print(f"{comparison.text()}\npicture: {folder / 'variance.png'} · numbers: {folder / 'variance.json'}")
    return 0


COMMAND = Command(measure, usage, FLAGS, "variance: expected ENV_ID; try: upslope variance CartPole-v1")
