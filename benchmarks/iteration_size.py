"""How much one must read to know one iteration: the library's functions that run in it, and their source lines.

python benchmarks/iteration_size.py             # writes results/iteration_size.json
python benchmarks/iteration_size.py --functions # lists them

The second iteration of ``train(..., fast=False)`` is watched with ``sys.setprofile``: PPO on CartPole-v1 with 8 × 32 steps, GRPO on the
tiny language model with 2 prompts of 4 completions. A function counts once, with its docstring; comprehensions and lambdas belong to the
function that they stand in.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src" / "upslope"
RESULT = Path(__file__).parent / "results" / "iteration_size.json"
LIMITS = {"PPO on CartPole-v1": (60, 600), "GRPO on tiny": (90, 950)}
"""What an iteration should need at most: functions, lines."""


class Watch:
    """A callback that follows the calls of the second iteration, and ends the run after it."""

    def __init__(self) -> None:
        self.found: set[CodeType] = set()
        self.iterations = 0

    def __call__(self, state: Any) -> bool:
        sys.setprofile(self.follow if self.iterations == 0 else None)
        self.iterations += 1
        return self.iterations == 2

    def follow(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(SOURCE)) and not code.co_name.startswith("<"):
            self.found.add(code)


def ppo() -> tuple[Any, Any, Any]:
    """PPO on CartPole."""
    from upslope import PPO, control

    envs = control.make("CartPole-v1", num_envs=8, seed=0)
    return PPO(), control.MLPPolicy.for_envs(envs, seed=0), control.Steps(envs, num_steps=32)


def grpo() -> tuple[Any, Any, Any]:
    """GRPO on the tiny language model."""
    from upslope import GRPO, Ascent, language

    def short(*, prompts: list[str], completions: list[str]) -> list[float]:
        return [-float(len(completion)) for completion in completions]

    policy = language.tiny(seed=0)
    return GRPO(update=Ascent(learning_rate=1e-3)), policy, language.Completions(["12+34=", "7+8="], short, group_size=4, max_tokens=8)


def main() -> None:
    """Both worlds, against their limits."""
    from upslope import train

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", action="store_true", help="list every function with its lines")
    listed, result = parser.parse_args().functions, {}
    for (name, limits), parts in zip(LIMITS.items(), (ppo, grpo), strict=True):
        watch = Watch()
        train(*parts(), iterations=3, seed=0, fast=False, callbacks=watch)
        rows = sorted((c.co_filename, c.co_firstlineno, c.co_qualname, len(inspect.getsourcelines(c)[0])) for c in watch.found)
        files, lines = len({row[0] for row in rows}), sum(row[3] for row in rows)
        result[name] = {
            "files": files,
            "functions": len(rows),
            "lines": lines,
            "at_most": dict(zip(("functions", "lines"), limits, strict=True)),
        }
        print(f"{name}: {len(rows)} functions, {lines} lines, {files} files; at most {limits[0]} and {limits[1]}")
        for file, _, function, count in rows if listed else ():
            print(f"  {Path(file).relative_to(SOURCE)}  {function}  {count}")
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
