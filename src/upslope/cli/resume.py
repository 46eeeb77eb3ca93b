"""``upslope resume RUN``: go on with a run that was stopped or killed."""

from __future__ import annotations

from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import COUNT, TEXT, Flag, flags_of, several
from upslope.run.config import RunConfig
from upslope.run.folder import Output
from upslope.run.load import Run
from upslope.run.settings import settings_of

NAMED = (
    Flag("algorithm", TEXT, None, "the algorithm again, where it is module:Class"),
    Flag("env", TEXT, None, "the environment again, where it is module:name"),
    Flag("reward", several(TEXT, None), None, "the rewards again, where they are module:function"),
)
"""What a run's files name and the caller must name again before it is imported."""
FLAGS = (
    Flag("total_steps", COUNT, None, "go on to so many environment steps (none: as it was planned)"),
    Flag("iterations", COUNT, None, "language models: go on to so many iterations (none: as it was planned)"),
    *NAMED,
    *(flag for name, flag in flags_of(settings_of(Output())).items() if name != "out"),
)

HELP = """\
usage: upslope resume RUN [flags]

Go on with the run in this folder from its newest checkpoint, as if it had never been stopped: the same numbers to the bit, in the
same folder. Rows of metrics that were written behind the checkpoint are computed again. A checkpoint is written after the first
iteration, every ten seconds, and where a signal ends the run; one that is damaged is passed over, which is said.

  upslope resume runs/ppo-CartPole-v1-0
  upslope resume runs/ppo-CartPole-v1-0 --total-steps 200000
"""


def named_again(run: Run, given: dict[str, Any]) -> RunConfig:
    """The run's configuration, with what the caller names again; ``given`` keeps what is no setting."""
    if run.world == "control":
        run.environment(given["env"])  # says how it is named here
    named = {"algorithm": given.pop("algorithm"), "env_id": given.pop("env")}
    settings = {name: value for name in ("total_steps", "iterations", "reward") if (value := given.pop(name, None)) is not None}
    return RunConfig.from_config(run.config, **named, **settings)


def go_on(plain: list[str], given: dict[str, Any]) -> int:
    """Find what the run has left, and carry it on."""
    run = Run.load(plain[0])
    session = named_again(run, given).session(Output(**given), resumed=run.path)
    session.run()
    return session.exit_code


COMMAND = Command(go_on, HELP, FLAGS, "resume: expected RUN, a run folder; try: upslope resume runs/ppo-CartPole-v1-0")
