"""What the ladder climbs on (:data:`TASKS`) and its steps (:data:`RUNGS`): a formula each, settings, and where to read and check it.

Both are read from ``ladder_rungs.toml``.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.errors import is_kind

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A problem, the budget of one run in environment steps, and how its runs are looked at.

    ``problem`` names the function of :mod:`upslope.tabular.problems` where everything is known exactly; ``odds`` are those of
    the first action where the policy begins. Returns below ``floor`` are cut off in pictures. Gradients are measured on ``episodes``
    episodes in groups of ``group_size``. ``shared`` settings are those of every rung.
    """

    name: str
    env_id: str
    title: str
    budget: int
    best: float
    floor: float
    episodes: int
    shared: Values
    problem: str = ""
    odds: float = 1.0
    group_size: int = 8


@dataclass(frozen=True)
class Rung:
    """One method: the formula that changed (HTML, the new part in ``<b>``), what it buys and costs, file and test, settings by task.

    ``estimator`` is what :mod:`upslope.studies.estimators` calls its gradient, without λ. Of methods that learn at every step it is the sum
    of their steps while parameters stand still, which is A2C's with the same λ; of TRPO and PPO it is the first step's.
    """

    key: str
    name: str
    algorithm: str
    formula: str
    buys: str
    costs: str
    file: str
    test: str
    estimator: str
    settings: Values
    tuned: Mapping[str, Values]
    scale_free: bool = False  # its gradient is divided by a spread, so only its direction can be compared
    coincides: Mapping[str, str] = field(default_factory=dict[str, str])


def read_ladder() -> tuple[dict[str, Task], tuple[Rung, ...]]:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

    def settings(like: str | None = None, **values: Any) -> dict[str, Any]:
        base = settings(**tables["shared"][like]) if like else {}
        return base | {name: None if x == "none" else tuple(x) if is_kind(x, list) else x for name, x in values.items()}

    def tuned(by_task: Mapping[str, Values]) -> dict[str, Values]:
        return {task: settings(**values) for task, values in by_task.items()}

    tasks = {name: Task(**(fields | {"name": name, "shared": settings(**fields["shared"])})) for name, fields in tables["tasks"].items()}
    rungs = [
        Rung(**(fields | {"key": key, "settings": settings(**fields.get("settings", {})), "tuned": tuned(fields["tuned"])}))
        for key, fields in tables["rungs"].items()
    ]
    return tasks, tuple(rungs)


TASKS, RUNGS = read_ladder()  # the tasks, by the names that the command line knows, and the rungs in their order


def settings_for(task: Task, rung: Rung) -> Values:
    """Everything that this rung sets on this task, by flat names."""
    found = {**task.shared, **rung.settings, **rung.tuned[task.name]}
    if rung.algorithm in ("grpo", "rloo"):  # they look at whole episodes, which nothing discounts
        del found["gamma"]
    return found
