"""Tuned settings for the built-in tasks; the command line starts from them, and flags override them."""

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

TINY: Values = {
    "learning_rate": 5e-4,
    "schedule": "linear",
    "num_prompts": 96,
    "group_size": 8,
    "num_minibatches": 3,
    "warm_start": 0.5,
    "iterations": 90,
}
PRETRAINED: Values = {"learning_rate": 1e-5, "num_prompts": 8, "group_size": 8, "micro_batch_size": 1}
"""One group in a pass takes no more time than all at once, and a good deal less memory."""

PRESETS: dict[tuple[str, str], Values] = {
    ("tiny", "addition"): TINY,
    ("tiny", "copy"): TINY,
    ("pretrained", "sums"): {**PRETRAINED, "iterations": 12, "max_tokens": 16, "micro_batch_size": 4, "eval_every": 12},
}
"""(``tiny`` or ``pretrained``, task) → flat settings."""

PER_ALGORITHM: dict[str, Values] = {
    "sft": {"iterations": 300, "warm_start": 0.0},
    **{name: {"warm_start": 0.0} for name in ("dpo", "kto", "reward-model")},
}
"""What an algorithm changes on every task."""

ON_TINY: dict[str, Values] = {
    "sft": {"learning_rate": 3e-3, "batch_size": 256},
    **{name: {"learning_rate": 3e-4, "batch_size": 64, "warm_start": 0.5, "iterations": 150} for name in ("dpo", "kto")},
    "reward-model": {"learning_rate": 1e-3, "batch_size": 64, "warm_start": 0.5, "iterations": 200},
}

NEED_A_WARM_START = ("addition", "copy", "sums")
"""Tasks in which a model that was made on the spot, and says anything, would wait very long for its first reward."""

PAIRS_IN_A_PASS = 4  # for pretrained models: pairs or single texts, which are fewer tokens than a group


def preset_for(algorithm: str, model: str, task: str | None, known: set[str], *, recorded: bool = False) -> dict[str, Any]:
    """The settings to start from, of those that are ``known`` to this algorithm; ``recorded``: it learns from texts in a file.

    A warm start is part of them only where a built-in task needs one; elsewhere it has to be asked for.
    """
    kind = "tiny" if model == "tiny" else "pretrained"
    found = dict(PRESETS.get((kind, task or ""), PRETRAINED if kind == "pretrained" else TINY)) | dict(PER_ALGORITHM.get(algorithm, {}))
    if kind == "tiny":
        found |= ON_TINY.get(algorithm, {})
    elif algorithm in PER_ALGORITHM:
        found["micro_batch_size"] = PAIRS_IN_A_PASS
    if task not in NEED_A_WARM_START or recorded:
        found["warm_start"] = 0.0
    return {name: value for name, value in found.items() if name in known}
