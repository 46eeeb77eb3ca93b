"""A language small enough to enumerate: 4 tokens, at most 3 of them, a table of logits for every prefix, in float64.

``Language.sequences`` holds all completions, so that expectations are sums: a recording of every sequence, or of every group of
them, with each unit's weight multiplied by its probability, has the expected gradient as its gradient.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import nn

from upslope import functional as F
from upslope.records import Evaluation, Rollout

VOCABULARY = 4
END = 3


class Toy(nn.Module):
    """``π(token | prefix) = softmax(logits[prefix])`` and a value per prefix; prefixes are numbered by :class:`Language`."""

    def __init__(self, num_prefixes: int, seed: int | None = None, spread: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        drawn = torch.randn(num_prefixes, VOCABULARY, generator=generator, dtype=torch.float64) * (0.0 if seed is None else spread)
        self.logits = nn.Parameter(drawn)
        self.value = nn.Parameter(torch.randn(num_prefixes, generator=generator, dtype=torch.float64))

    def evaluate(self, *, token, prefix):
        logits = self.logits[prefix]
        return Evaluation(log_prob=F.categorical_log_prob(logits, token), entropy=F.categorical_entropy(logits), value=self.value[prefix])


class Language:
    """All completions of at most ``length`` tokens; with ``ends``, token 3 ends one early."""

    def __init__(self, length: int = 3, ends: bool = True, seed: int = 7) -> None:
        self.length = length
        rows = []
        for words in itertools.product(range(VOCABULARY), repeat=length):
            stop = next((t + 1 for t, word in enumerate(words) if ends and word == END), length)
            row = words[:stop]
            if row not in rows:
                rows.append(row)
        self.rows = rows
        prefixes = sorted({row[:t] for row in rows for t in range(len(row))}, key=lambda p: (len(p), p))
        self.prefixes = {prefix: i for i, prefix in enumerate(prefixes)}
        self.token = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
        self.prefix = torch.tensor([[self.prefixes[row[: min(t, len(row) - 1)]] for t in range(length)] for row in rows])
        self.mask = torch.tensor([[t < len(row) for t in range(length)] for row in rows])
        self.reward = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.last = torch.zeros_like(self.mask)
        self.last[torch.arange(len(rows)), self.mask.sum(1) - 1] = True

    def policy(self, seed: int | None = None, spread: float = 1.0) -> Toy:
        return Toy(len(self.prefixes), seed, spread)

    def log_prob(self, policy: Toy) -> torch.Tensor:
        """``[sequences, T]``, 0 where masked."""
        return policy.evaluate(token=self.token, prefix=self.prefix).log_prob.masked_fill(~self.mask, 0.0)

    def probability(self, policy: Toy) -> torch.Tensor:
        """``[sequences]``."""
        return self.log_prob(policy).sum(-1).exp()

    def expected_reward(self, policy: Toy, reference: Toy | None = None, beta: float = 0.0) -> torch.Tensor:
        """``E r − β KL(π‖π_ref)``, differentiable."""
        p = self.probability(policy)
        score = self.reward if reference is None else self.reward - beta * (p / self.probability(reference).detach()).log()
        return (p * score).sum()

    def optimum(self, reference: Toy, beta: float) -> torch.Tensor:
        """``π* ∝ π_ref e^{r/β}``, ``[sequences]``."""
        p = self.probability(reference).detach() * (self.reward / beta).exp()
        return p / p.sum()

    def rollout(self, policy: Toy, reference: Toy | None = None, *, index: torch.Tensor | None = None, unit: str = "sequence") -> Rollout:
        """Every sequence once; or the sequences at ``index [..., rows]``, ``[..., rows, T]``."""
        rows = torch.arange(len(self.rows)) if index is None else index
        mask, last = self.mask[rows], self.last[rows]
        with torch.no_grad():
            value = policy.value[self.prefix[rows]].masked_fill(~mask, 0.0)
            following = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)
            return Rollout(
                inputs={"token": self.token[rows], "prefix": self.prefix[rows]},
                reward=self.reward[rows].unsqueeze(-1) * last,
                terminated=last,
                truncated=torch.zeros_like(mask),
                mask=mask,
                behavior_log_prob=self.log_prob(policy)[rows],
                value=value,
                next_value=following.masked_fill(last, 0.0),
                reference_log_prob=None if reference is None else self.log_prob(reference)[rows],
                max_steps=self.length,
                unit=unit,
            )

    def drawn(self, shape: tuple[int, ...], seed: int) -> torch.Tensor:
        """Random sequences, every length equally likely, none twice in a row of ``shape``."""
        length = self.mask.sum(-1)
        rarity = 1.0 / (length.unsqueeze(0) == length.unsqueeze(1)).sum(-1)
        rows = rarity.expand(*shape[:-1], -1).reshape(-1, len(length))
        return torch.multinomial(rows, shape[-1], generator=torch.Generator().manual_seed(seed)).reshape(shape)

    def groups(self, size: int) -> torch.Tensor:
        """All groups, ``[sequences ** size, size]``."""
        return torch.cartesian_prod(*[torch.arange(len(self.rows))] * size)

    def group_probability(self, policy: Toy, size: int) -> torch.Tensor:
        with torch.no_grad():
            return self.probability(policy)[self.groups(size)].prod(-1)


def reweighted(batch, share):
    """The batch with the weights of unit i multiplied by ``share[i]`` times the number of units: an expectation over units."""
    extra = batch.weight.dim() - share.dim()
    return replace(batch, weight=batch.weight * (share * len(share)).view(*share.shape, *[1] * extra))


def gradient(value, policy):
    """Of a scalar with respect to the logits."""
    return torch.autograd.grad(value, policy.logits, retain_graph=True)[0]


def expected_gradient(algorithm, policy, rollout, share):
    batch = reweighted(algorithm.estimate(policy, rollout), share)
    return gradient(algorithm.objective(policy, batch)[0], policy)
