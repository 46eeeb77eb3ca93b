"""``upslope sweep METHOD …``: search the settings with which a run does best."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from upslope.cli.command import HELP_FLAGS, asks_for_help, section
from upslope.cli.flags import Flag, Kind, Values, flags_of, value_of
from upslope.cli.train import requested
from upslope.errors import UsageError, require, require_packages, unknown
from upslope.run.config import RunConfig
from upslope.run.folder import Output
from upslope.run.settings import settings_of
from upslope.studies.sweep import Sweep, SweepOptions
from upslope.studies.sweep_space import Choices, Range, default_space

SEARCHED = re.compile(r"([A-Za-z][\w-]*)=(.+)", re.DOTALL)


def searched(words: Values) -> tuple[str, ...]:
    for word in words:
        if not SEARCHED.fullmatch(word):
            raise ValueError(f"expected NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=a,b,c, found {word!r}")
    return tuple(words)


SEARCH = Kind(searched, "NAME=SPACE ...", 1, None)
FLAGS = (
    Flag("search", SEARCH, None, "what is searched: a range, or a few values (none: what suits the method, shown before it starts)"),
    *flags_of(settings_of(SweepOptions())).values(),
)

HELP = """\
usage: upslope sweep ALGORITHM ENV_ID [flags]
       upslope sweep ALGORITHM --model MODEL --task TASK [flags]

Search the settings with which a run does best, with Optuna (TPE). A trial is a few ordinary runs that differ in their seed, each with its
run folder, and ends early where it lies below the median of the others. Arguments and flags are those of `upslope train`; a setting that
is given is held fixed. The folder of --out (none: sweeps/ALGORITHM-TASK-SEED) holds everything: a sweep that was stopped or killed
goes on where --out names its folder, with finished trials kept and running ones resumed; more --trials go on with one that has ended.
`best.json` in it is a file for `upslope train … --config`.

  upslope sweep ppo CartPole-v1 --trials 50 --jobs 2
  upslope sweep ppo CartPole-v1 --search learning_rate=1e-4:1e-2:log num_steps=32,64,128 "hidden_sizes=64 64,128 128"
  upslope sweep a2c mytasks:make_maze --total-steps 100000 --objective final --out sweeps/maze
  upslope sweep grpo --model tiny --task addition --iterations 30 --trials 20
"""


def space_of(config: RunConfig, words: Sequence[str], given: Mapping[str, Any]) -> dict[str, Range | Choices]:
    """``learning_rate=1e-4:1e-2:log``, ``gamma=0.9,0.99``: what is searched, each word for one setting."""
    if not words:
        return default_space(config, frozenset(given))
    flags = flags_of(settings_of(*config.parts()))
    space: dict[str, Range | Choices] = {}
    for word in words:
        name, _, text = word.partition("=")
        name = name.replace("-", "_")
        if name not in flags:
            raise unknown("setting", name, flags)
        require(name not in space, f"search: {name} is named twice")
        require(name not in given, f"search: {name} is held fixed by {flags[name].option}; leave one of them out")
        space[name] = dimension(flags[name], text)
    return space


def dimension(flag: Flag, text: str) -> Range | Choices:
    try:
        if "," in text:
            return Choices(tuple(switched(flag, item) for item in text.split(",")))
        low, _, rest = text.partition(":")
        high, _, log = rest.partition(":")
        if not high or log not in ("", "log"):
            raise UsageError(f"expected LOW:HIGH, LOW:HIGH:log or a,b,c, found {text!r}")
        ends = [switched(flag, end) for end in (low, high)]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
            raise UsageError(f"it is no number, so it has no range; name values, a,b,c, found {text!r}")
        return Range(*ends, log=bool(log))
    except UsageError as error:
        raise UsageError(f"--search {flag.name}: {str(error).removeprefix('search: ').removeprefix(f'{flag.option}: ')}") from None


def switched(flag: Flag, text: str) -> Any:
    """One value as the flag would read it; of a switch, true or false."""
    if flag.is_switch:
        require(text in ("true", "false"), f"expected true or false, found {text!r}")
        return text == "true"
    return value_of(flag, text.split())


def main(argv: list[str]) -> int:
    if asks_for_help(argv) or not argv:
        print(f"{HELP}\n{section('Flags, besides those of `upslope train`:', FLAGS)}")
        return 0
    require_packages("sweep", "optuna")
    asked = requested([word for word in argv if word not in HELP_FLAGS], FLAGS, command="sweep")
    if isinstance(asked, int):
        return asked
    output = asked.output
    for name, why in (("play", "a sweep has many policies; play the best one afterwards"), ("resume", "a sweep goes on by itself")):
        require(not output.pop(name, None), f"{name}: {why}; leave it out")
    words: Sequence[str] = output.pop("search", None) or ()
    options = {name: output.pop(name) for name in settings_of(SweepOptions()) if name in output}
    space = space_of(asked.config, words, asked.given)
    found = Sweep(config=asked.config, space=space, **options).run(Output(**output))
    return 0 if found.signal is None else 128 + found.signal


COMMAND = main
