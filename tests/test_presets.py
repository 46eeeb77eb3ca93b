"""What is quoted of a preset was measured with the settings that ship."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from upslope import RunConfig
from upslope.control.presets import PRESETS

RESULTS = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "presets.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name, measured", RESULTS["settings"].items())
def test_judged_runs_had_the_settings_that_ship(name: str, measured: dict[str, dict[str, Any]]):
    task, method = name.split()
    now = json.loads(json.dumps(RunConfig.of(method, task).config()))
    for part, recorded in measured.items():
        assert recorded == {name: now[part][name] for name in recorded}, part
    planned = now["settings"]["total_steps"]
    assert planned <= RESULTS["measures"][name]["upslope"]["total_steps"] < planned * 1.1


@pytest.mark.parametrize("name, found", RESULTS["measures"].items())
def test_what_is_quoted_is_what_was_measured(name: str, found: dict[str, Any]):
    task, method = name.split()
    ours = found["upslope"]
    middle, low, high, lowest = (f"{x:,.0f}".replace("-", "−") for x in (ours["iqm"], *ours["interval"], ours["lowest"]))
    expected = f"final {middle} ({low} to {high}), {ours['at_goal']} of {ours['seeds']} seeds at the goal"
    assert PRESETS[task][method].result == expected
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {task} \| `upslope train {method} {task}` \|.*$", readme, re.M)
    assert f"| {middle} ({low} to {high}) | {lowest} | {ours['at_goal']} of {ours['seeds']} |" in row


def test_every_preset_of_ppo_says_how_its_rate_moves():
    """PPO's rate falls on environments by default, and a preset was measured with one or the other."""
    assert all("schedule" in by_algorithm["ppo"].settings for by_algorithm in PRESETS.values() if "ppo" in by_algorithm)
