"""``upslope list``: algorithms, presets and what they were measured to reach."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upslope.cli.command import Command
from upslope.run.methods import Method, methods_in

HELP = """\
usage: upslope list

Show the algorithms, the tasks with tuned presets, and what each preset was measured to reach."""


def show(plain: list[str], values: dict[str, Any]) -> int:
    print("Algorithms (upslope train ALGORITHM ENV_ID):")
    control, language = methods_in("control"), methods_in("language")
    print_methods(control)
    both = ", ".join(name for name in language if name in control)
    print(f"\nFor language models (upslope train ALGORITHM --model MODEL --task TASK):\n  {both}, and")
    print_methods({name: method for name, method in language.items() if name not in control})
    from upslope.control.presets import PRESETS  # loads PyTorch and Gymnasium

    print("\nPresets (the defaults for these tasks; any other Gymnasium task works too).")
    print("final: interquartile mean over fresh seeds of the final policy, with its 95 % interval;")
    print("the rest: on the seeds of the tuning, before updates were bounded.")
    for env_id, by_algorithm in PRESETS.items():
        for algorithm, preset in by_algorithm.items():
            steps = f"{preset.settings.get('total_steps', 0):,} steps"
            print(f"  {f'upslope train {algorithm} {env_id}':<48}{steps:<17}{preset.result or 'not measured yet'}")
    print("\n`upslope train ppo CartPole-v1 --help` shows a preset's settings.")
    return 0


def print_methods(table: Mapping[str, Method]) -> None:
    """A line for each module, and one for the relatives that it holds as well."""
    by_module: dict[str, list[str]] = {}
    for name, method in table.items():
        by_module.setdefault(method.path.partition(":")[0], []).append(name)
    for module, (name, *relatives) in by_module.items():
        print(f"  {name:<14}{summary_of(module)}")
        if relatives:
            print(f"  {'':<14}also: {', '.join(relatives)}")


def summary_of(module: str) -> str:
    """The first sentence of an algorithm's module, read without importing it (which would import torch)."""
    source = (Path(__file__).parents[1] / "algorithms" / f"{module}.py").read_text(encoding="utf-8")
    return " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split()).rstrip(".")


COMMAND = Command(show, HELP, most_arguments=0)
