"""A trained reward model as a reward function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from upslope.errors import UsageError
from upslope.language.checks import Prompt, text_of
from upslope.language.engine import padded
from upslope.language.policy import LanguagePolicy


def score_with(policy: LanguagePolicy, size: int = 32) -> Callable[..., list[float]]:
    """``reward(*, prompts, completions) -> list[float]``: what the value head says at each completion's end token.

    Raises:
        UsageError: a policy without a value head.
    """
    if not policy.has_value:
        raise UsageError("reward: this model has no value head, so it is no reward model")

    @torch.no_grad()
    def reward_model(*, prompts: Sequence[Prompt], completions: Sequence[Any]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            texts = [[text_of(completion)] for completion in completions[part]]
            places = [f"item {i + 1}" for i in range(len(prompts))][part]
            rows = [row for (row,) in policy.rendering.rows(prompts[part], texts, places)]
            prompt_ids, prompt_length = padded([row.ids[: row.start] for row in rows], policy.device)
            ids, length = padded([row.ids[row.start :] for row in rows], policy.device)
            inputs = {"prompt_ids": prompt_ids, "prompt_length": prompt_length}
            found += policy.score(**inputs, completion_ids=ids[:, None], completion_length=length[:, None])[:, 0].tolist()
        return found

    reward_model.no_timeout = True  # pyright: ignore[reportFunctionMemberAccess]  # no thread for each call of our own function
    return reward_model
