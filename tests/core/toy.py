"""A one-state policy that needs no world: softmax over three actions and a learned value."""

from __future__ import annotations

import torch
from torch import nn

from upslope import functional as F
from upslope.records import Evaluation, Rollout, Sample


class Bandit(nn.Module):
    """``π = softmax(logits)``, ``V = value``; inputs are actions only."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=dtype))
        self.value = nn.Parameter(torch.zeros(1, dtype=dtype))

    def sample(self, inputs, *, generator=None):
        logits = self.logits.detach().expand(*inputs["row"].shape, 3)
        action = F.categorical_sample(logits, generator)
        return Sample(action=action, log_prob=F.categorical_log_prob(logits, action), value=self.value.detach().expand(action.shape))

    def evaluate(self, *, action, row=None):
        logits = self.logits.expand(*action.shape, 3)
        return Evaluation(
            log_prob=F.categorical_log_prob(logits, action),
            entropy=F.categorical_entropy(logits),
            value=self.value.expand(action.shape),
        )


class Pulls:
    """A collector: every row pulls ``T`` arms; rewards are the arm's number. Some rows are masked at the end."""

    def __init__(self, rows: int = 4, steps: int = 6, seed: int = 0, unit: str = "step") -> None:
        self.shape, self.unit = (rows, steps), unit
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, policy: Bandit) -> Rollout:
        drawn = policy.sample({"row": torch.zeros(self.shape)}, generator=self.generator)
        mask = torch.ones(self.shape, dtype=torch.bool)
        mask[1, 4:] = False
        mask[3, 2:] = False
        terminated = torch.zeros_like(mask)
        terminated[torch.arange(self.shape[0]), mask.sum(1) - 1] = True
        dtype = drawn.log_prob.dtype
        return Rollout(
            inputs={"action": drawn.action},
            reward=drawn.action.to(dtype) * mask,
            terminated=terminated,
            truncated=torch.zeros_like(mask),
            mask=mask,
            behavior_log_prob=drawn.log_prob,
            value=drawn.value,
            next_value=torch.zeros(self.shape, dtype=dtype),
            unit=self.unit,
            metrics={"episode_return": 1.0},
        )
