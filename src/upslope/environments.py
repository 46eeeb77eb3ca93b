"""The Gymnasium environments that this package brings, by id. Registering them loads nothing: each is made when asked for.

Gymnasium 1.0 and later load no plugins, so ids become known by ``import upslope.tabular.envs``, or at once by
``gymnasium.make("upslope.tabular.envs:upslope/ShortCorridor-v0")``; ``upslope train`` and ``control.make`` know them anyway.
"""

from typing import Any

NAMESPACE = "upslope"

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "Bandit-v0": {"problem": "bandit"},
    "Gridworld-v0": {"problem": "gridworld", "time_limit": 1000},
    "Loop-v0": {"problem": "loop"},
    "RandomMDP-v0": {"problem": "random_mdp", "time_limit": 1000},
    "Ring-v0": {"problem": "ring", "time_limit": 1000},
    "ShortCorridor-v0": {"problem": "short_corridor", "time_limit": 1000},
}
"""Id without its namespace → a problem of :mod:`upslope.tabular.problems` and its options. What may go on for ever is recorded for
1000 steps, unless ``gymnasium.make`` is given another ``time_limit`` (None: no limit)."""


def register() -> None:
    """Make the ids known to Gymnasium; a second call changes nothing."""
    import gymnasium

    for name, options in ENVIRONMENTS.items():
        if f"{NAMESPACE}/{name}" not in gymnasium.registry:
            gymnasium.register(id=f"{NAMESPACE}/{name}", entry_point="upslope.tabular.envs:make", kwargs=options)
