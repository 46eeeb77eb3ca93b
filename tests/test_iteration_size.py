"""What a reader meets who follows one iteration stays little: the limits of ``benchmarks/iteration_size.py``."""

import importlib.util
import inspect
from pathlib import Path

import pytest

from upslope import train

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "iteration_size.py"


@pytest.mark.parametrize("world", ["ppo", "grpo"])
def test_an_iteration_needs_few_functions_and_lines(world: str) -> None:
    spec = importlib.util.spec_from_file_location("iteration_size", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    watch = script.Watch()
    train(*getattr(script, world)(), iterations=3, seed=0, fast=False, callbacks=watch)
    functions, lines = script.LIMITS[{"ppo": "PPO on CartPole-v1", "grpo": "GRPO on tiny"}[world]]
    assert 40 < len(watch.found) <= functions
    assert sum(len(inspect.getsourcelines(code)[0]) for code in watch.found) <= lines
