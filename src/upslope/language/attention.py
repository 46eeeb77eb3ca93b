"""The attention function that unmodified Transformers models call: one row of real tokens, with the prompt shared by its group.

A training pass is one row ``[1, N]`` that holds the real tokens only: every prompt once, then every completion. Layers that see
tokens one by one (nearly all arithmetic) thus never see padding, and a prompt costs once, not once for each of its completions.
Attention alone needs to know who belongs to whom: it puts the tokens on a grid, ``[groups, P]`` prompts and
``[groups, G, T]`` completions; a completion's query meets the keys of its group's prompt and its own past, under one softmax.

The layout reaches the function as a keyword of the model call (Transformers passes keywords through). Outside such a call the
model's own attention is untouched: :func:`borrowed` puts it back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from upslope.errors import UsageError

NAME = "upslope"


class Layout(Protocol):
    """Knows which token of the row meets which."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor: ...


@dataclass(frozen=True)
class AttentionOptions:
    """What a model asks of its attention besides queries and keys."""

    scaling: float
    window: int | None = None
    softcap: float | None = None

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """``q · kᵀ · scaling``, capped where the model does that: ``[..., Q, D]``, ``[..., K, D]`` → ``[..., Q, K]``."""
        found = torch.matmul(query * self.scaling, key.transpose(-1, -2))
        return found if self.softcap is None else torch.tanh(found / self.softcap) * self.softcap


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """``[1, heads, N, D]`` queries, ``[1, key heads, N, D]`` keys and ``[1, key heads, N, E]`` values → ``[1, N, heads, E]``."""
    if layout is None:
        raise UsageError("model: its attention is upslope's, which needs a layout; call it through the policy")
    if others.get("s_aux") is not None or dropout:
        raise UsageError("model: attention with sinks or dropout is not supported")
    options = AttentionOptions(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return layout.attend(module.layer_idx, query[0], key[0], value[0], options).contiguous().unsqueeze(0), None


AttentionInterface.register(NAME, attention)


@contextlib.contextmanager
def borrowed(model: PreTrainedModel) -> Iterator[None]:
    """The model calls :func:`attention` inside this block, and its own attention after it."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


# -------------------------------------------------------------------------------------------------------- the training pass


@dataclass(frozen=True)
class Grid:
    """Where a part of the row lies: ``index [cells]`` into the part, or None where the part fills its cells one by one."""

    shape: tuple[int, ...]
    index: Tensor | None
    real: Tensor | None

    @classmethod
    def of(cls, real: Tensor) -> Grid:
        """From which cells are real ``[*shape]``; the tokens of the part lie in the cells' order."""
        if bool(real.all()):
            return cls(tuple(real.shape), None, None)
        flat = real.flatten()
        return cls(tuple(real.shape), (flat.cumsum(0) - 1).clamp(min=0), flat.nonzero().squeeze(1))

    def spread(self, x: Tensor) -> Tensor:
        """``[heads, tokens, D]`` → ``[heads, *shape, D]``; padding cells repeat a real token, so that nothing is ever NaN."""
        found = x if self.index is None else x[:, self.index]
        return found.unflatten(1, self.shape)

    def gather(self, x: Tensor) -> Tensor:
        """``[heads, cells, D]`` → ``[heads, tokens, D]``."""
        return x if self.real is None else x[:, self.real]


@dataclass(frozen=True)
class Packed:
    """Some groups in one row: the real tokens and their positions ``[N]``, and the attention between them.

    ``predicts [M]`` is the index in the row whose output predicts each real completion token, in the cells' order;
    ``last [B, G]`` the index of each completion's last input, which has seen all of it.
    """

    ids: Tensor
    positions: Tensor
    num_prompt: int
    prompts: Grid
    completions: Grid
    prompt_length: Tensor
    predicts: Tensor
    last: Tensor
    masks: dict[Any, tuple[Tensor, Tensor | None, Tensor]] = field(default_factory=dict[Any, Any])

    @classmethod
    def of(
        cls, prompt_ids: Tensor, prompt_length: Tensor, completion_ids: Tensor, completion_length: Tensor, *, whole: bool = False
    ) -> Packed:
        """Pack right-padded ``[B, P]`` prompts and ``[B, G, T]`` completions with lengths ``[B]`` and ``[B, G]``.

        The last token of a completion predicts nothing, so it is no input unless ``whole`` asks for its output (reward models do).
        """
        device = completion_ids.device
        longest = max(1, int(completion_length.max()))
        width = longest if whole else longest - 1
        inputs = completion_length if whole else (completion_length - 1).clamp(min=0)
        p, t = torch.arange(int(prompt_length.max()), device=device), torch.arange(longest, device=device)
        prompt_real, real = p < prompt_length[:, None], t[:width] < inputs[..., None]
        ids = torch.cat([prompt_ids[:, : len(p)][prompt_real], completion_ids[..., :width][real]])
        positions = torch.cat([p.expand_as(prompt_real)[prompt_real], (prompt_length[:, None, None] + t[:width]).expand_as(real)[real]])
        num_prompt = int(prompt_length.sum())
        # the first completion token is predicted by the prompt's last token, every other one by the token before it
        first = (prompt_length.cumsum(0) - 1)[:, None, None].expand(*inputs.shape, 1)
        row = (real.flatten().cumsum(0) - 1 + num_prompt).view_as(real)
        outputs = torch.cat([first, row], -1)
        predicts = outputs[..., :longest][t < completion_length[..., None]]
        last = outputs.gather(-1, inputs[..., None]).squeeze(-1)
        return cls(ids, positions, num_prompt, Grid.of(prompt_real), Grid.of(real), prompt_length, predicts, last)

    def masked(self, options: AttentionOptions, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
        """What is added to the scores, made once for all layers: prompt to prompt ``[P, P]``, completion to prompt
        ``[B, 1, 1, T or 1, P]`` (None: everything is visible), completion to itself ``[T, T]``."""
        key = (options.window, dtype)
        if key not in self.masks:
            p, t = (torch.arange(grid.shape[-1], device=self.ids.device) for grid in (self.prompts, self.completions))
            inner, own, across = p[:, None] >= p, t[:, None] >= t, p < self.prompt_length[:, None, None]
            if options.window is not None:
                inner, own = inner & (p[:, None] - p < options.window), own & (t[:, None] - t < options.window)
                across = across & (self.prompt_length[:, None, None] + t[:, None] - p < options.window)
            hidden = None if bool(across.all()) else additive(across, dtype)[:, None, None]
            self.masks[key] = additive(inner, dtype), hidden, additive(own, dtype)
        return self.masks[key]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """``[heads, N, D]`` → ``[N, heads, D]``."""
        split = self.num_prompt
        q, k, v = (self.prompts.spread(x[:, :split]) for x in (query, key, value))
        inner, across, own = self.masked(options, query.dtype)
        rows = [self.prompts.gather(prompt_attention(q, k, v, options, inner).flatten(1, 2))]
        if query.shape[1] > split:
            own_q, own_k, own_v = (self.completions.spread(x[:, split:]) for x in (query, key, value))
            heads, (B, G, T), P = query.shape[0], self.completions.shape, self.prompts.shape[-1]
            if torch.is_grad_enabled() and heads * B * G * T * (P + T) > RECOMPUTED_FROM:
                found = checkpoint(completion_attention, own_q, own_k, own_v, k, v, options, across, own, use_reentrant=False)
            else:
                found = completion_attention(own_q, own_k, own_v, k, v, options, across, own)
            rows.append(self.completions.gather(cast(Tensor, found).flatten(1, 3)))
        return torch.cat(rows, 1).transpose(0, 1)


RECOMPUTED_FROM = 1 << 26
"""Attention weights of one layer from which on they are computed again in the backward pass instead of being kept."""


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, −∞ elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, -math.inf)


def softmax(scores: Tensor) -> Tensor:
    """In float32 whatever the scores are, as the models' own attention does it."""
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def prompt_attention(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions, inner: Tensor) -> Tensor:
    """Prompts with themselves: ``[heads, B, P, D]`` and ``[key heads, B, P, D]`` → ``[heads, B, P, D]``."""
    q = query.unflatten(0, (key.shape[0], -1))  # [K, repeat, B, P, D]
    scores = options.scores(q, key.unsqueeze(1)) + inner
    return torch.matmul(softmax(scores), value.unsqueeze(1)).flatten(0, 1)


def completion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    options: AttentionOptions,
    across: Tensor | None,
    own: Tensor,
) -> Tensor:
    """Completions with their group's prompt and their own past: ``[heads, B, G, T, D]``, prompts ``[key heads, B, P, D]``.

    A group's queries stand side by side, so that they meet the prompt in one product.
    """
    heads, B, G, T, D = query.shape
    K, P = key.shape[0], prompt_key.shape[2]
    repeat = heads // K
    q = query.unflatten(0, (K, repeat)).permute(0, 2, 3, 1, 4, 5).contiguous()  # [K, B, G, repeat, T, D]
    grid = (K, B, G, repeat, T)
    to_prompt = options.scores(q.view(K, B, G * repeat * T, D), prompt_key).view(*grid, P)
    to_prompt = to_prompt if across is None else to_prompt + across
    to_own = options.scores(q.view(K, B, G, repeat * T, D), key).view(*grid, T) + own
    weight, wide = softmax(torch.cat([to_prompt, to_own], -1)), value.shape[-1]  # a value may be wider or narrower than its key
    found = torch.matmul(weight[..., :P].reshape(K, B, G * repeat * T, P), prompt_value).view(*grid, wide)
    found = found + torch.matmul(weight[..., P:].reshape(K, B, G, repeat * T, T), value).view(*grid, wide)
    return found.permute(0, 3, 1, 2, 4, 5).reshape(heads, B, G, T, wide)
