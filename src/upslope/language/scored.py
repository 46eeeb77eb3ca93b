"""Completions of one iteration with their scores, and what is logged of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.language.engine import Generated
from upslope.language.rewards import Scores


@dataclass(frozen=True)
class Scored:
    """How one round of completions was scored: the score that is trained on ``[prompts, G]``, and which of them are known."""

    score: Tensor
    known: Tensor
    spread: Tensor
    penalty: Tensor | None
    generated: Generated
    scores: Scores


def reward_metrics(rounds: Sequence[Scored]) -> dict[str, float]:
    """What the progress display and ``metrics.jsonl`` show of all rounds together.

    Means of scores are over the completions that have one, those of a reward's own values over the ones it spoke about.
    """

    def every(name: str, source: str | None = None) -> Tensor:
        return torch.cat([getattr(r if source is None else getattr(r, source), name).flatten() for r in rounds])

    score, known, finished = every("score"), every("known"), every("finished", "generated")
    spoken = {name: [v for r in rounds for v in r.scores.parts[name] if v is not None] for name in rounds[0].scores.parts}
    return {
        "reward": float(score[known].mean()),
        **{f"reward/{name}": math.fsum(values) / len(values) for name, values in spoken.items() if values},
        **({} if rounds[0].penalty is None else {"overlong_penalty": float(every("penalty")[known].mean())}),
        "completion_length": float(every("length", "generated").float().mean()),
        "cut_short": float((~finished).float().mean()),
        "groups_with_spread": float(every("spread").float().mean()),
        "missing_rewards": float((~known).float().mean()),
        "rewards_none": float(sum(r.scores.num_none for r in rounds)),
        "rewards_raised": float(sum(r.scores.num_raised for r in rounds)),
        "rewards_timed_out": float(sum(r.scores.num_timed_out for r in rounds)),
    }
