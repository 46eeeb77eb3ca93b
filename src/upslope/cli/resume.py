"""``upslope resume RUN``: go on with a run that was stopped or killed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from upslope.cli.command import Command, check_alone
from upslope.cli.flags import COUNT, TEXT, Flag, Kind, flags_of, several
from upslope.errors import UsageError, require
from upslope.run.config import RunConfig, recorded_settings
from upslope.run.control_settings import PolicySettings
from upslope.run.folder import Output
from upslope.run.load import AtItsEnd, NoCheckpoint, Run
from upslope.run.settings import settings_of

if TYPE_CHECKING:
    from upslope.run.session import Session

FUNCTIONS = ("advantage", "estimator", "preference", "q", "ratio", "returns", "schedule", "surrogate")
"""Settings that may be functions of the user's."""
NAMED = (
    Flag("algorithm", TEXT, None, "the algorithm again, where it is module:Class"),
    Flag("env", TEXT, None, "the environment again, where it is module:name"),
    Flag("reward", several(TEXT, None), None, "the rewards again, where they are module:function"),
    *(Flag(name, TEXT, None, f"the {name} again, where it is module:function") for name in FUNCTIONS),
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
iteration, every ten seconds, and where a signal ends the run; one that is damaged is passed over, which is said. Loggers and the pace
of checkpoints change no number and are not remembered: name them again; one with state_dict() and load_state_dict() goes on where it was.

  upslope resume runs/ppo-CartPole-v1-0
  upslope resume runs/ppo-CartPole-v1-0 --total-steps 200000
"""


def named_again(run: Run, given: dict[str, Any]) -> RunConfig:
    """The run's configuration, with what the caller names again; ``given`` keeps what is no setting."""
    if run.world == "control":
        run.environment(given["env"])  # says how it is named here
    rewards = list(map(str, run.config["task"].get("reward") or ())) if run.world == "language" else None
    recorded = recorded_settings(run.config)
    named = {"algorithm": run.algorithm, "env": run.env_id if run.world == "control" else None, "reward": rewards}
    for name, found in (named | {name: recorded.get(name) for name in FUNCTIONS}).items():
        again = given.get(name)
        same = again in (None, found) or (name == "env" and again == str(found).rpartition("-v")[0]) or (again and list(again) == found)
        require(bool(same), f"{name}: this run's is {found}, and it cannot go on with another one, {again}; name that one, or train anew")
    other, unit = ("total_steps", "--iterations") if run.world == "language" else ("iterations", "--total-steps")
    require(given.get(other) is None, f"{other}: this run's budget is counted otherwise, found {given.get(other)}; name {unit} instead")
    taken = {"algorithm": given.pop("algorithm"), "env_id": given.pop("env")}
    changed = ("total_steps", "iterations", "reward", *FUNCTIONS)
    settings = {name: value for name in changed if (value := given.pop(name, None)) is not None}
    return RunConfig.from_config(run.config, **taken, **settings)


def auto(words: Sequence[str]) -> str:
    if words[0] != "auto":
        raise ValueError(f"expected auto, found {words[0]!r}; `upslope resume RUN` goes on with a run by itself")
    return words[0]


AUTO = Flag("resume", Kind(auto, "auto"), None, "auto: go on with the run in --out where one has been stopped, else begin it there")


def train_or_go_on(config: RunConfig, output: Output) -> Session | None:
    """For ``--resume auto``: the run in the output's folder where there is one, else a new one; None where it has come to its end.

    Raises:
        UsageError: no folder is named, or the run there is another one.
    """
    out = output.out
    if out is None:
        raise UsageError("resume: auto goes on with the run in the folder that --out names; give --out")
    if not (out / "config.json").exists():
        return config.session(output)
    run = Run.load(out)
    planned, recorded = (
        {"algorithm": each["algorithm"]["name"], "env": each.get("env_id"), **recorded_settings(each)}
        for each in (config.settled().config(), run.config)
    )
    free = {"total_steps", "iterations"}  # the budget may be another one
    free |= {"compute_dtype"} if planned.get("compute_dtype") == "auto" else set()  # recorded is what it stood for
    free |= set() if planned.get("init") is None else set(settings_of(PolicySettings()))  # which are those of the policy it began with
    for name, value in planned.items():
        short = name == "env" and value == str(recorded["env"]).rpartition("-v")[0]  # without the version
        if value != recorded.get(name) and name not in free and not short:
            was = f"{name} {recorded.get(name)!r}, here it is {value!r}"
            raise UsageError(f"resume: {out} holds another run, with {was}; name another folder")
    try:
        return config.session(replace(output, out=None), resumed=out)
    except AtItsEnd as end:
        print(end)
        return None
    except NoCheckpoint:  # it was stopped before anything was learned
        aside = next(path for number in itertools.count(1) if not (path := out.with_name(f"{out.name}-stopped-{number}")).exists())
        out.rename(aside)
        print(f"the run in {out} was stopped before its first checkpoint; it is {aside} now, and begins anew")
        return config.session(output)


def go_on(plain: list[str], given: dict[str, Any]) -> int:
    """Find what the run has left, and carry it on."""
    check_alone("resume", os.environ)
    run = Run.load(plain[0])
    session = named_again(run, given).session(Output(**given), resumed=run.path)
    session.run()
    return session.exit_code


COMMAND = Command(go_on, HELP, FLAGS, "resume: expected RUN, a run folder; try: upslope resume runs/ppo-CartPole-v1-0")
