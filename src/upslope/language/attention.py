"""The attention function that unmodified Transformers models call: one row of real tokens, with the prompt shared by its group.

A training pass is one row ``[1, N]`` that holds the real tokens only: every prompt once, then every completion. Layers that see
tokens one by one (nearly all arithmetic) thus never see padding, and a prompt costs once, not once for each of its completions.
Attention alone needs to know who belongs to whom: it puts the tokens on a grid, ``[groups, P]`` prompts and
``[groups, G, T]`` completions; a completion's query meets the keys of its group's prompt and the tokens before it, under one softmax.

The layout reaches the function as a keyword of the model call (Transformers passes keywords through). Outside such a call the
model's attention is untouched: :func:`borrowed` puts it back.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from upslope.errors import UsageError
from upslope.typed import unflatten

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


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **asked: Any) -> tuple[Tensor, None]:
    """``[1, heads, N, D]`` queries, ``[1, key heads, N, D]`` keys and ``[1, key heads, N, E]`` values → ``[1, N, heads, E]``."""
    layout: Layout | None = asked.get("layout")
    if layout is None:
        raise UsageError("model: its attention is upslope's, which needs a layout; call it through the policy")
    if asked.get("s_aux") is not None or asked.get("dropout"):
        raise UsageError("model: attention with sinks or dropout is not supported")
    scaling, window, softcap = (asked.get(name) for name in ("scaling", "sliding_window", "softcap"))
    options = AttentionOptions(query.shape[-1] ** -0.5 if scaling is None else scaling, window, softcap)
    return layout.attend(module.layer_idx, query[0], key[0], value[0], options).contiguous().unsqueeze(0), None


cast(Any, AttentionInterface).register(NAME, attention)


@contextlib.contextmanager
def borrowed(model: PreTrainedModel) -> Generator[None]:
    """The model calls :func:`attention` inside this block, and its unchanged attention after it."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


# ----------------------------------------------------------------------------------------------------- who sees whom, and where


NEVER = 1 << 30  # the place of padding, which no token ever reaches


@dataclass(frozen=True)
class Mask:
    """What is added to scores: 0 where a token at one of the places ``query [..., Q]`` sees one at ``key [..., K]``, −∞ elsewhere."""

    query: Tensor
    key: Tensor
    made: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])

    def of(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """``[..., Q, K]``, made once for all layers that see equally far."""
        if (window, dtype) not in self.made:
            distance = self.query[..., :, None] - self.key[..., None, :]
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            self.made[window, dtype] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)
        return self.made[window, dtype]


@dataclass(frozen=True)
class Grid:
    """Where the tokens of a part of the row lie: ``index [cells]`` of each cell's token in the row, ``real [tokens]`` their cells."""

    shape: tuple[int, ...]
    index: Tensor | slice
    real: Tensor | slice

    @classmethod
    def of(cls, real: Tensor, start: int) -> Grid:
        """From which cells are real ``[*shape]``; the part's tokens stand in the row from ``start`` on, in the cells' order."""
        flat = real.flatten()
        if bool(flat.all()):
            return cls(tuple(real.shape), slice(start, start + len(flat)), slice(None))
        return cls(tuple(real.shape), start + (flat.cumsum(0) - 1).clamp(min=0), flat.nonzero().squeeze(1))

    def spread(self, x: Tensor) -> Tensor:
        """``[..., N, D]`` → ``[..., *shape, D]``; padding cells repeat a real token, so that nothing is ever NaN."""
        return unflatten(x[..., self.index, :], -2, self.shape)

    def gather(self, x: Tensor) -> Tensor:
        """``[..., *shape, D]`` → ``[..., tokens, D]``."""
        return x.flatten(-1 - len(self.shape), -2)[..., self.real, :]


# -------------------------------------------------------------------------------------------------------- the training pass


RECOMPUTED_FROM = 1 << 26
"""Attention weights of one layer from which on they are computed again in the backward pass instead of being kept."""


@dataclass(frozen=True)
class Packed:
    """Some groups in one row: the real tokens and their positions ``[N]``, and the attention between them.

    ``predicts [M]`` is the index in the row whose output predicts each real completion token, in the cells' order;
    ``last [B, G]`` the index of each completion's last input, which has seen all of it. ``keep``, if there is one, is shown each
    layer's keys and values of the prompts, ``[key heads, B, P, D]``.
    """

    ids: Tensor
    positions: Tensor
    prompts: Grid
    completions: Grid | None
    inner: Mask
    outer: Mask
    predicts: Tensor
    last: Tensor
    keep: Callable[[int, Tensor, Tensor], None] | None = None

    @classmethod
    def of(
        cls, prompt_ids: Tensor, prompt_length: Tensor, completion_ids: Tensor, completion_length: Tensor, *, whole: bool = False
    ) -> Packed:
        """From :meth:`LanguagePolicy.evaluate`'s arguments; a completion's last token is no input unless ``whole`` asks for its output."""
        device, longest = completion_ids.device, max(1, int(completion_length.max()))
        inputs = completion_length if whole else (completion_length - 1).clamp(min=0)
        p, t = torch.arange(int(prompt_length.max()), device=device), torch.arange(longest, device=device)
        steps = t if whole else t[:-1]
        prompt_real, real = p < prompt_length[:, None], steps < inputs[..., None]
        ids = torch.cat([prompt_ids[:, : len(p)][prompt_real], completion_ids[..., : len(steps)][real]])
        after = prompt_length[:, None] + steps
        positions = torch.cat([p.expand_as(prompt_real)[prompt_real], after[:, None].expand_as(real)[real]])
        places = torch.cat([p.where(prompt_real, NEVER), after], 1)
        num_prompt = int(prompt_length.sum())
        # the first completion token is predicted by the prompt's last token, every other one by the token before it
        first = (prompt_length.cumsum(0) - 1)[:, None, None].expand(*inputs.shape, 1)
        outputs = torch.cat([first, (real.flatten().cumsum(0) - 1 + num_prompt).view_as(real)], -1)
        predicts, last = outputs[..., :longest][t < completion_length[..., None]], outputs.gather(-1, inputs[..., None]).squeeze(-1)
        grids = Grid.of(prompt_real, 0), Grid.of(real, num_prompt) if len(ids) > num_prompt else None
        return cls(ids, positions, *grids, Mask(p, p), Mask(after[:, None, None], places[:, None, None]), predicts, last)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """``[heads, N, D]`` → ``[N, heads, D]``."""
        query = unflatten(query, 0, (len(key), -1))  # [key heads, repeat, N, D]
        q, k, v = (self.prompts.spread(x) for x in (query, key, value))
        if self.keep is not None:
            self.keep(layer, k, v)
        weight = softmax(options.scores(q, k.unsqueeze(1)) + self.inner.of(options.window, query.dtype))  # of prompts, for themselves
        rows = [self.prompts.gather(torch.matmul(weight, v.unsqueeze(1)))]
        if self.completions is not None:
            qs, ks, vs = (self.completions.spread(x) for x in (query, key, value))
            qs, mask = qs.permute(0, 2, 3, 1, 4, 5).contiguous(), self.outer.of(options.window, query.dtype)
            attend: Any = group_attention
            if torch.is_grad_enabled() and qs[..., 0].numel() * mask.shape[-1] > RECOMPUTED_FROM:
                attend = functools.partial(cast(Any, checkpoint).checkpoint, group_attention, use_reentrant=False)
            found = attend(qs, k, v, ks, vs, options, mask)
            rows.append(self.completions.gather(found.permute(0, 3, 1, 2, 4, 5)))
        return torch.cat(rows, -2).flatten(0, 1).transpose(0, 1)


def softmax(scores: Tensor) -> Tensor:
    """In float32 whatever the scores are, as the models' attention does it."""
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def group_attention(
    query: Tensor, prompt_key: Tensor, prompt_value: Tensor, key: Tensor, value: Tensor, options: AttentionOptions, mask: Tensor
) -> Tensor:
    """Completions with their group's prompt and the tokens before, under one softmax; a group's queries meet the prompt in one product.

    Queries ``[X, Y, G, repeat, T, D]``; keys of prompts ``[X, Y, P, D]``, of completions ``[X, Y, G, L, D]``; X, Y: key heads, groups.
    """
    X, Y, G, repeat, T, D = query.shape
    P, L, wide = prompt_key.shape[2], key.shape[3], value.shape[-1]
    to_prompt = options.scores(query.view(X, Y, G * repeat * T, D), prompt_key).view(X, Y, G, repeat, T, P)
    to_completion = options.scores(query.view(X, Y, G, repeat * T, D), key).view(X, Y, G, repeat, T, L)
    weight = softmax(torch.cat([to_prompt, to_completion], -1).add_(mask))
    by_prompt = torch.matmul(weight[..., :P].reshape(X, Y, G * repeat * T, P), prompt_value)
    by_completion = torch.matmul(weight[..., P:].reshape(X, Y, G, repeat * T, L), value)
    return by_prompt.view(X, Y, G, repeat, T, wide) + by_completion.view(X, Y, G, repeat, T, wide)
