"""``upslope train ALGORITHM ENV_ID``: from words to a :class:`~upslope.run.control_run.ControlRun`, and run it."""

from __future__ import annotations

import itertools
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from upslope.cli.flags import PATH, SWITCH, Flag, flags_of, parse, value_of
from upslope.cli.help import section
from upslope.errors import UsageError, unknown
from upslope.run.control_run import ALGORITHMS, ControlRun, algorithm_for, read_config
from upslope.run.control_settings import Output, PolicySettings, RunSettings
from upslope.run.folder import check_free
from upslope.run.language_run import ALGORITHMS as LANGUAGE
from upslope.run.settings import check_imports_nothing, check_names, settings_of

HELP = """\
usage: upslope train ALGORITHM ENV_ID [flags]

Train a policy and write a run folder: settings, metrics, the policy, a learning curve and a summary.

  upslope train ppo CartPole-v1 --until-return 475
  upslope train ppo Pendulum-v1 --seed 3 --out runs/pendulum
  upslope train a2c LunarLander-v3 --env-kwargs '{{"gravity": -8.0}}' --total-steps 1e6
  upslope train grpo CartPole-v1 --group-size 8 --num-groups 8
  upslope train reinforce mytasks:make_maze --num-envs 4

{algorithms}
ENV_ID is a Gymnasium id, `module:Env-v0` for an id that a module registers,
or `module:factory` for a function that makes an environment; modules in the current folder are found.
Well-known tasks start from tuned presets (`upslope list`); every flag overrides.

{language}
see `upslope train grpo --model tiny --help`.

Ctrl-C ends the run after the iteration and saves everything (exit code 130); once more ends it at once. So do
SIGTERM (143) and a closed terminal (129; under nohup the run goes on)."""

ONLY_LANGUAGE = tuple(name for name in LANGUAGE if name not in ALGORITHMS)
BOTH = tuple(name for name in LANGUAGE if name in ALGORITHMS)
"""Algorithms that train language models: nothing else, and environments as well."""

EXTRA = (
    Flag("play", SWITCH, False, "record an animation of the final policy in the run folder (play.gif)"),
    Flag("config", PATH, None, "start from the settings in this JSON file or run folder; flags override"),
)

LAUNCHERS = {
    "WORLD_SIZE": "torchrun, accelerate launch, deepspeed",
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPICH, Intel MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "HOROVOD_SIZE": "horovodrun",
}
"""Where launchers of several processes say how many; ``SLURM_NTASKS`` is not among them: a single shell of an allocation has it too."""


def main(words: list[str]) -> int:
    """Parse, check, run."""
    if not {"--help", "-h"} & set(words):
        check_alone(os.environ)
    if concerns_language(words):
        from upslope.cli import train_language

        return train_language.main(words)
    others = [*flags_of(settings_of(Output())).values(), *EXTRA]
    name = named(words, ALGORITHMS, lambda candidate: [*flags_for(candidate).values(), *others])
    if name is None:
        return without_algorithm(words)
    flags = flags_for(name)
    wants_help = "--help" in words or "-h" in words
    check_owners(name, words, flags)
    plain, values = parse([w for w in words if w not in ("--help", "-h")], [*flags.values(), *others])
    if wants_help:
        return show_help(name, plain, flags)
    if not plain:  # the name was a flag's value
        return without_algorithm(words)
    if plain[0] != name:
        raise unknown("algorithm", plain[0], ALGORITHMS)
    if len(plain) != 2:
        text = f", or: upslope train {name} --model tiny --task addition" if name in BOTH else ""
        found = f"found also {plain[2]!r}" if len(plain) > 2 else f"try: upslope train {name} CartPole-v1{text}"
        raise UsageError(f"train: expected ALGORITHM ENV_ID, {found}")
    output = {flag.name: values.pop(flag.name) for flag in others if flag.name in values}
    return run(name, plain[1], flags, values, output)


def flags_for(name: str) -> dict[str, Flag]:
    """The settings of a run with this algorithm."""
    return flags_of(settings_of(*ControlRun(env_id="", algorithm=algorithm_for(name), collector=ALGORITHMS[name][2]).parts()))


def named(words: list[str], algorithms: Iterable[str], flags: Callable[[str], Iterable[Flag]]) -> str | None:
    """The algorithm that the words name, None for none; it may stand behind flags, and a flag's value may be called like another."""
    candidates = [word for word in words if word in algorithms]
    if not candidates or words[0] == candidates[0]:
        return candidates[0] if candidates else None
    for name in candidates:
        try:
            if parse([word for word in words if word not in ("--help", "-h")], flags(name))[0][:1] == [name]:
                return name
        except UsageError:  # these flags are not this algorithm's; what is wrong is said once it is known which one is meant
            continue
    after_flag = [word for before, word in itertools.pairwise(words) if before.startswith("--")]
    return next((word for word in candidates if word not in after_flag), candidates[0])


def check_alone(environment: Mapping[str, str]) -> None:
    """Refuse several processes, each of which would be the same run; raises :class:`UsageError`."""
    for name, launcher in LAUNCHERS.items():
        size = environment.get(name, "").strip()
        if size.isdecimal() and int(size) > 1:
            raise UsageError(
                f"train: started as one of {name}={size} processes ({launcher}), but a run is one process: each would train the same; "
                f"start upslope by itself, or unset {name} where each of them has settings of its own"
            )


def concerns_language(words: list[str]) -> bool:
    """Whether a model is to be trained: an algorithm for text only, or a flag that only models have."""
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    return (bool(words) and words[0] in ONLY_LANGUAGE) or bool(flags & {"--model", "--task", "--pairs"})


def introduction() -> str:
    """The page's first half."""
    algorithms = f"ALGORITHM is {', '.join(ALGORITHMS)}."
    language = f"Language models are trained by {', '.join(BOTH)} with --model and --task, and by {', '.join(ONLY_LANGUAGE)};"
    return HELP.format(algorithms=textwrap.fill(algorithms, 110), language=textwrap.fill(language, 110))


def without_algorithm(words: list[str]) -> int:
    """Help, or the error for a command line that names no shipped algorithm."""
    if "--help" in words or "-h" in words or not words:
        common = [*flags_of(settings_of(Output())).values(), *EXTRA]
        running = flags_of(settings_of(RunSettings())).values()
        print(introduction())
        print("\n" + section("The run:", running))
        print("\n" + section("What it writes:", common))
        print("\n`upslope train ppo --help` adds the settings of an algorithm, of collecting and of the policy;")
        print("`upslope train ppo CartPole-v1 --help` shows the task's preset as the defaults.")
        return 0
    if words[0].startswith("-"):
        raise UsageError(f"train: expected ALGORITHM ENV_ID first, ALGORITHM one of {', '.join(ALGORITHMS)}; found {words[0]!r}")
    raise unknown("algorithm", words[0], [*ALGORITHMS, *ONLY_LANGUAGE])


def check_owners(name: str, words: list[str], flags: dict[str, Flag]) -> None:
    """Say whose a flag is, where it belongs to another algorithm; the nearest name would mislead."""
    for word in words:
        key = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if not word.startswith("--") or key in flags:
            continue
        owners: dict[str, str] = {}  # one name of each class
        for other, (_, kind, collector) in ALGORITHMS.items():
            if other != name and key in settings_of(algorithm_for(other), collector):
                owners.setdefault(kind, other)
        if owners:
            whose = ", ".join(owners.values())
            raise UsageError(f"{word.partition('=')[0]}: a setting of {whose}, not of {name}; `upslope train {name} --help` lists its own")


def show_help(name: str, plain: list[str], flags: dict[str, Flag]) -> int:
    """Every setting of an algorithm; with a task, the task's preset as the defaults."""
    run = ControlRun.of(name, plain[1] if len(plain) > 1 else "")
    shown = flags_of(settings_of(*run.parts()))
    titles = (f"{type(run.algorithm).__name__}:", "Collecting:", "The policy:", "The environment:", "The run:")
    print(introduction())
    for title, part in zip(titles, run.parts(), strict=True):
        print("\n" + section(title, [shown[setting] for setting in settings_of(part)]))
    print("\n" + section("What it writes:", [*flags_of(settings_of(Output())).values(), *EXTRA]))
    return 0


def run(name: str, env_id: str, flags: dict[str, Flag], values: dict[str, Any], output: dict[str, Any]) -> int:
    """Carry the run out; returns the exit code."""
    from upslope.run.session import Session

    play, config = output.pop("play", False), output.pop("config", None)
    if output.get("out") is not None:
        check_free(output["out"])
    if "init" in values and (shape := [flags[key].option for key in values if flags[key].owner is PolicySettings]):
        raise UsageError(f"init: the policy's shape comes from {values['init']}; leave out {', '.join(shape)}")
    chosen = ControlRun.of(name, env_id, **{**from_file(config, flags, values), **values})
    if values.get("step_timeout") is not None and chosen.env.vectorization != "async":
        raise UsageError(
            f"step_timeout: an environment in this process cannot be interrupted (--vectorization {chosen.env.vectorization}); "
            "add --vectorization async, or leave --step-timeout out"
        )
    session = Session(chosen, Output(**output))
    if play:
        from upslope.run.play import check_renders

        check_renders(env_id, chosen.env.env_kwargs)
    finished = session.run()
    if play and session.exit_code == 0:
        from upslope.run.play import record

        path = finished.path / "play.gif"
        words = record(finished, path, env=env_id, seed=chosen.settings.seed)
        if not session.output.quiet:
            print(f"\n{words}")
    return session.exit_code


def from_file(path: Path | None, flags: dict[str, Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a JSON file that were not ``given``, checked like flags: an unknown key names the nearest one.

    Raises:
        UsageError: also for a ``module:function``, which only a flag may name.
    """
    if path is None:
        return {}
    found = read_config(path)
    check_names(found, flags, f"key in {path}:")
    left = {key: value for key, value in found.items() if key not in given}
    check_imports_nothing(left, str(path), imports)
    return {key: from_json(flags[key], value) for key, value in left.items()}


def imports(name: str, text: str) -> bool:
    """Whether a text in a file names something to import: a reward may have an argument, ``contains:word``."""
    if name != "reward":
        return True
    from upslope.language.checks import BUILTIN

    return text.partition(":")[0] not in BUILTIN


def from_json(flag: Flag, value: Any) -> Any:
    """A JSON value as the flag would read it."""
    return switch(flag.name, value) if flag.is_switch else value_of(flag, as_words(value))


def switch(key: str, value: Any) -> bool:
    """A JSON true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{key}: expected true or false, found {json.dumps(value)}")
    return value


def as_words(value: Any) -> list[str]:
    """A JSON value as one would type it."""
    if value is None:
        return ["none"]
    if isinstance(value, list):
        return [str(item) for item in value] or ["none"]
    if isinstance(value, dict | bool):
        return [json.dumps(value)]
    return [str(value)]
