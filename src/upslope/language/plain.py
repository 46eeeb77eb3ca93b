"""The plain way: one row at a time through the model's forward pass. Slower than the packed pass, and right for any causal model.

It serves architectures whose layers cannot take part in the shared attention (state-space and recurrent layers, convolutions over
time, other kinds of attention); :mod:`~upslope.language.architecture` says which.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from upslope.errors import UsageError
from upslope.language.head import inverse_cdf
from upslope.records import Evaluation
from upslope.typed import as_list

if TYPE_CHECKING:
    from upslope.language.policy import LanguagePolicy

STATES = ("past_key_values", "cache_params", "state", "mems")
"""Where Transformers models keep what they remember of a text; each takes back what it returned under the same name."""


@dataclass
class PlainText:
    """One text as the model itself reads it: ``ids [N]``, behind what ``state`` remembers.

    ``keeps``: remember it for the tokens that follow. ``wants_hidden``: also what the output layer receives.
    """

    ids: Tensor
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    keeps: bool = False
    wants_hidden: bool = False

    def run(self, model: Any) -> tuple[Tensor, Tensor | None]:
        """Logits ``[N, vocabulary]``, and last hidden states ``[N, H]`` where they were asked for."""
        seen: list[Tensor] = []
        layer: nn.Module | None = model.get_output_embeddings() if self.wants_hidden else None
        hook = None if layer is None else layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            found = model(input_ids=self.ids.unsqueeze(0), use_cache=self.keeps, **self.state)
        finally:
            if hook is not None:
                hook.remove()
        if self.keeps:
            self.state = {name: found[name] for name in STATES if found.get(name) is not None}
        return found.logits[0], seen[-1][0] if seen else None


def texts_of(prompt_ids: Tensor, prompt_length: Tensor, completion_ids: Tensor, completion_length: Tensor) -> Iterator[tuple[Tensor, int]]:
    """The text of each row in the order of the cells, without padding, and where its completion begins."""
    for b, start in enumerate(as_list(prompt_length)):
        for g, length in enumerate(as_list(completion_length[b])):
            yield torch.cat([prompt_ids[b, :start], completion_ids[b, g, :length]]), start


def evaluate(
    policy: LanguagePolicy, prompt_ids: Tensor, prompt_length: Tensor, completion_ids: Tensor, completion_length: Tensor
) -> Evaluation:
    """What :meth:`LanguagePolicy.evaluate` says, ``[B, G, T]``, from one call of the model for each row."""
    real = torch.arange(completion_ids.shape[-1], device=completion_ids.device) < completion_length[..., None]
    weights, valued = policy.weights(), policy.has_value
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for ids, start in texts_of(prompt_ids, prompt_length, completion_ids, completion_length):
        if len(ids) > start:
            logits, hidden = policy.run(PlainText(ids[:-1], wants_hidden=valued), weights)
            log_p = scaled_log_probs(logits[start - 1 :], policy.temperature)
            entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
            value = policy.values(required(hidden)[start - 1 :]) if valued else None
            parts.append((log_p.gather(-1, ids[start:, None]).squeeze(-1), entropy, value))
    if not parts:
        zeros = torch.zeros(real.shape, device=real.device)
        return Evaluation(log_prob=zeros, entropy=zeros, value=zeros if valued else None)
    joined = [torch.cat(cast(Any, column)) for column in zip(*parts, strict=True) if column[0] is not None]
    on_grid = [x.new_zeros(real.shape).masked_scatter(real, x) for x in joined]
    return Evaluation(log_prob=on_grid[0], entropy=on_grid[1], value=on_grid[2] if valued else None)


def score(policy: LanguagePolicy, *texts: Tensor) -> Tensor:
    weights = policy.weights()
    last = [required(policy.run(PlainText(ids, wants_hidden=True), weights)[1])[-1] for ids, _ in texts_of(*texts)]
    return policy.values(torch.stack(last)).view(texts[-1].shape)


def required(hidden: Tensor | None) -> Tensor:
    """Hidden states, which models that have no output layer of one piece do not show."""
    if hidden is None:
        raise UsageError("value_head: this model does not show what its output layer receives; train it without a value head")
    return hidden


def scaled_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """In float32 at least."""
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


@dataclass
class PlainDecoding:
    """Sampling one completion after the other, with the cache that the model itself keeps, or without where that is not exact."""

    policy: LanguagePolicy
    weights: dict[str, Tensor] | None

    def completions(
        self, prompt: Sequence[int], uniform: Tensor | None, group_size: int, max_tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        """Token ids and their log-probabilities for each lane; ``uniform [G, T]`` are the random numbers, None is greedy."""
        ids = torch.tensor(prompt, device=self.policy.device)
        state, first = self.read(ids, {})
        lanes = [None] * group_size if uniform is None else uniform
        return [self.one(ids, copy.deepcopy(state), first, numbers, max_tokens) for numbers in lanes]

    def read(self, ids: Tensor, state: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """What is remembered after these tokens, and log-probabilities of the next one ``[1, vocabulary]``."""
        row = PlainText(ids, state, keeps=self.policy.attention.cached)
        logits, _ = self.policy.run(row, self.weights)
        if row.keeps and not row.state:
            raise UsageError("model: it keeps no cache")
        return row.state, scaled_log_probs(logits[-1:], self.policy.temperature)

    def one(
        self, ids: Tensor, state: dict[str, Any], log_p: Tensor, uniform: Tensor | None, max_tokens: int
    ) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        said: list[float] = []
        while True:
            token = log_p.argmax(-1) if uniform is None else inverse_cdf(log_p, uniform[len(tokens), None])
            tokens.append(int(token))
            said.append(float(log_p[0, tokens[-1]]))
            if tokens[-1] in self.policy.stop_ids or len(tokens) == max_tokens:
                return tokens, said
            ids = torch.cat([ids, token])
            state, log_p = self.read(token if self.policy.attention.cached else ids, state)
