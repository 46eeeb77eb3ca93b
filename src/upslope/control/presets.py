"""Tuned settings for well-known tasks, read from ``presets.toml``; the command line starts from them, and flags override them.

A preset holds flat setting names, as on the command line. What a task is not listed for starts from its family
(:data:`FAMILIES`), else from the defaults of the dataclasses.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from upslope.control.kinds import AnyList

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """Settings of one algorithm on one task, and what they were measured to reach."""

    settings: Values = field(default_factory=dict[str, Any])
    result: str = ""


def read_presets() -> tuple[dict[str, dict[str, Preset]], dict[str, dict[str, Preset]]]:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    shared, families = tables.pop("shared"), tables.pop("families")

    def preset(like: str = "", result: str = "", **values: Any) -> Preset:
        """A table on top of the shared one that it names."""
        base: Values = preset(**shared[like]).settings if like else {}
        return Preset({**base, **{name: tuple(x) if isinstance(x, AnyList) else x for name, x in values.items()}}, result)

    def presets(by_name: dict[str, Any]) -> dict[str, dict[str, Preset]]:
        return {name: {algorithm: preset(**table) for algorithm, table in tables.items()} for name, tables in by_name.items()}

    return presets(tables), presets(families)


PRESETS, FAMILIES = read_presets()  # task → algorithm → preset, and the same by the beginning of the environment's id

SAMPLED = ("upslope/ShortCorridor-v0",)
"""Tasks whose best policy is random: its most likely action alone never arrives, so evaluations sample."""

GOALS = {"Pendulum-v1": -200.0}  # mean returns at which a task counts as solved, where Gymnasium names none

MEASURED_WITH: Values = {"normalize_value": False}
"""What every preset was measured with unless it says otherwise: values in the units of the task's rewards, whose size the settings fit."""


def preset_for(algorithm: str, env_id: str) -> Preset | None:
    """The preset of an algorithm on a task, or of the task's family; an id without a version means the listed one."""
    found = tuned_preset(algorithm, env_id)
    return None if found is None else replace(found, settings={**MEASURED_WITH, **found.settings})


def tuned_preset(algorithm: str, env_id: str) -> Preset | None:
    tasks = [presets for name, presets in PRESETS.items() if env_id in (name, name.rpartition("-v")[0])]
    families = [presets for beginning, presets in FAMILIES.items() if env_id.startswith(beginning)]
    return next((presets[algorithm] for presets in (*tasks, *families) if algorithm in presets), None)
