"""The policy in a language run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from upslope.files import survivor
from upslope.run.load import check_inside


def is_model_folder(path: str | Path) -> bool:
    """Whether this is the folder of a Transformers model (a run's ``policy`` for one), not that of a run."""
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None  # a pipe would be waited for
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "model_type" in config and "world" not in config


def load_language_policy(run: Any, name: str) -> Any:
    """The Transformers folder ``<run>/<name>`` as a policy that is not trained any more, with the run's temperature and
    the precision that its passes had.

    Raises:
        UsageError: the folder is missing or damaged.
    """
    import torch

    from upslope.language import LanguagePolicy

    folder = survivor(run.path / name)
    for path in (folder, *folder.rglob("*")):
        check_inside(path, run.path)
    has_head = (folder / "value_head.safetensors").exists()
    recorded = run.config["policy"]
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(recorded.get("compute_dtype"))
    temperature = float(recorded.get("temperature", 1.0))
    policy = LanguagePolicy.from_pretrained(folder, temperature=temperature, value_head=has_head, compute_dtype=dtype)
    return policy.requires_grad_(False)
