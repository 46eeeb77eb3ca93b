"""The policy in a language run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from upslope.language import LanguagePolicy


def load_language_policy(folder: Path, recorded: Mapping[str, Any]) -> LanguagePolicy:
    """A Transformers folder as a policy that is not trained any more, with the ``recorded`` temperature and precision of passes.

    Raises:
        UsageError: the folder is missing or damaged.
    """
    has_head = (folder / "value_head.safetensors").exists()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(str(recorded.get("compute_dtype")))
    temperature = float(recorded.get("temperature", 1.0))
    policy = LanguagePolicy.from_pretrained(folder, temperature=temperature, value_head=has_head, compute_dtype=dtype)
    return policy.requires_grad_(False)
