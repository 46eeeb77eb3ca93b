"""The first hour of a new user, ``benchmarks/first_hour.py``: it has every command of the README, and the cheapest ones do what it says."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHEAP = (
    "upslope --help",
    "upslope list",
    "upslope train ppo my_module:MyEnv-v0 --num-envs 16 --total-steps 500000",
    """upslope train ppo my_module:make_env --env-kwargs '{"level": 2}' --hidden-sizes 128 128""",
    "upslope play runs/ppo-make_env-0 --env my_module:make_env",
    "upslope train reinforce upslope/ShortCorridor-v0",
    "upslope check mine:estimator",
    "upslope train ppo CartPole-v1 --lr 0.001",
    "upslope train ppo CartPole-v1 --resume",
    "upslope train pp0 CartPole-v1",
    "upslope train ppo",
)


@pytest.fixture(scope="module")
def hour() -> ModuleType:
    """The script as a module; it stands beside ``harness.py``, which it imports."""
    path = ROOT / "benchmarks" / "first_hour.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec = importlib.util.spec_from_file_location("first_hour", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "first_hour", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def test_every_command_of_the_readme_is_in_it(hour: ModuleType):
    shell = re.sub(r"^```python\n.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```\n(.*?)^```", shell, re.DOTALL | re.MULTILINE)
    lines = [re.split(r"  +#|   +|  # ", line)[0].strip() for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if line.startswith(("upslope ", "echo "))]
    assert len(commands) >= 25
    assert [command for command in commands if command not in {step.command for step in hour.STEPS}] == []


def test_the_cheapest_commands(hour: ModuleType, cli: Command, monkeypatch: pytest.MonkeyPatch):
    for name in ("mine", "my_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, text in hour.user_files(README).items():
        Path(name).write_text(text, encoding="utf-8")
    steps = {step.command: step for step in hour.STEPS}
    verdicts = {}
    for command in CHEAP:
        answer = cli(*shlex.split(steps[command].line)[1:])
        verdicts[command] = hour.judge(steps[command], answer.code, answer.out + answer.err)
    assert verdicts == dict.fromkeys(CHEAP, "right")
