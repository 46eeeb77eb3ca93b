"""Sampling completions: one prefill for each prompt, shared by its group; static caches; finished rows cost nothing more.

The engine decodes ``width`` rows side by side: groups in slots, a lane for each completion. A row that has ended is left out of
every layer; a slot whose rows have all ended takes the next prompt. Each token's random number is drawn beforehand, by prompt,
lane and place, so the schedule cannot change what is sampled. The log-probabilities returned are those of the distribution that was
sampled from: all of the softmax at the policy's temperature, nothing cut off.

The last layer is a product with a matrix that stays the same (:class:`Product`). With few rows, most of its time goes into bringing the
matrix into the order in which the processor's kernel reads it, at every call anew; oneDNN can be handed it in that order. With the last
layer of SmolLM2 on an AVX2 core, a product of 32 rows took 38 ms instead of 73.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from upslope.errors import UsageError, require
from upslope.language.attention import NEVER, AttentionOptions, Layout, Mask, Packed, group_attention
from upslope.language.head import finished, inverse_cdf
from upslope.language.plain import PlainDecoding
from upslope.typed import as_list

if TYPE_CHECKING:
    from upslope.language.policy import LanguagePolicy


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Completions of prompts: token ids and log-probabilities ``[prompts, G, T]``, 0 behind the end; ``length [prompts, G]``.

    The end token counts and is scored. ``finished [prompts, G]`` is False where ``max_tokens`` cut a completion short.
    """

    completion_ids: Tensor
    log_prob: Tensor
    length: Tensor
    finished: Tensor
    policy_version: int = 0

    @property
    def finish_reason(self) -> list[list[str]]:
        """``stop`` or ``length``, as servers say it."""
        return [["stop" if done else "length" for done in row] for row in as_list(self.finished)]


class Engine(Protocol):
    """Who samples: the embedded engine here, or a server behind the same two calls."""

    def sync(self, policy: LanguagePolicy, version: int = 0) -> None: ...

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], *, group_size: int, max_tokens: int, seed: int = 0, greedy: bool = False
    ) -> Generated: ...


class EmbeddedEngine:
    """Decodes with the policy's modules, in its compute precision.

    ``width`` is the number of rows decoded side by side; None takes more for smaller models: 64 for one of 135 million parameters,
    which cost little more than one, and 1024 for a tiny one, whose time goes into calls rather than arithmetic.
    """

    def __init__(self, policy: LanguagePolicy, *, width: int | None = None) -> None:
        require(width is None or width >= 1, f"width: expected an integer ≥ 1 or None, found {width}")
        self.width = width or max(64, min(1024, (1 << 33) // sum(p.numel() for p in policy.model.parameters())))
        self.sync(policy)

    @torch.no_grad()
    def sync(self, policy: LanguagePolicy, version: int = 0) -> None:
        """Take the policy's present weights."""
        self.policy, self.version = policy, version
        weights = policy.weights()
        self.weights = None if weights is None else {name: w.detach() for name, w in weights.items()}

    @torch.no_grad()
    def generate(
        self, prompt_ids: Sequence[Sequence[int]], *, group_size: int, max_tokens: int, seed: int = 0, greedy: bool = False
    ) -> Generated:
        """``group_size`` completions of each prompt, up to an end token or ``max_tokens``; UsageError for what leaves no room for them."""
        require(group_size >= 1, f"group_size: expected an integer ≥ 1, found {group_size}")
        check_prompts(self.policy, prompt_ids, max_tokens)
        self.policy.look_up_to(max(map(len, prompt_ids)) + max_tokens)
        shape = len(prompt_ids), group_size, max_tokens
        uniform = None if greedy else uniforms(shape, seed, self.policy.body.model.device)
        if not self.policy.attention.packed:
            return self.one_by_one(prompt_ids, shape, uniform)
        run = Decoding(self, prompt_ids, shape, uniform)
        while run.next_prompt < len(prompt_ids) or bool(run.alive.any()):
            run.fill()
            run.step()
        ids, log_prob = (x[..., : int(run.length.max())] for x in (run.ids, run.log_prob))
        return Generated(completion_ids=ids, log_prob=log_prob, length=run.length, finished=run.finished, policy_version=self.version)

    def one_by_one(self, prompt_ids: Sequence[Sequence[int]], sizes: tuple[int, ...], uniform: Tensor | None) -> Generated:
        """The plain way; the same random numbers choose."""
        policy, device, shape, (_, group_size, max_tokens) = self.policy, self.policy.device, sizes[:2], sizes
        decoding = PlainDecoding(policy, self.weights)
        numbers = [None] * len(prompt_ids) if uniform is None else list(uniform)
        made = [row for ids, u in zip(prompt_ids, numbers, strict=True) for row in decoding.completions(ids, u, group_size, max_tokens)]
        ids, length = padded([tokens for tokens, _ in made], device)
        finished = torch.tensor([tokens[-1] in policy.stop_ids for tokens, _ in made], device=device)
        said = pad_sequence([torch.tensor(said, device=device) for _, said in made], batch_first=True).view(*shape, -1)
        found = {"completion_ids": ids.view(*shape, -1), "log_prob": said, "length": length.view(shape), "finished": finished.view(shape)}
        return Generated(**found, policy_version=self.version)


def check_prompts(policy: LanguagePolicy, prompt_ids: Sequence[Sequence[int]], max_tokens: int) -> None:
    require(bool(prompt_ids), "prompts: expected at least one, found none")
    require(max_tokens >= 1, f"max_tokens: expected an integer ≥ 1, found {max_tokens}")
    for i, ids in enumerate(prompt_ids):
        require(bool(ids), f"prompts[{i}]: it has no token")
        if len(ids) + max_tokens > policy.context:
            context = f"the model's context of {policy.context}{policy.beyond}"
            hint = f"shorten the prompt, which begins with {policy.decode(ids[:12])!r}, or lower max_tokens"
            raise UsageError(f"prompts[{i}]: its {len(ids)} tokens and max_tokens {max_tokens} exceed {context}; {hint}")


def padded(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Ragged ids as a right-padded tensor ``[rows, longest]`` and their lengths ``[rows]``."""
    length = torch.tensor([len(row) for row in rows], device=device)
    longest = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long, device=device), length


@dataclass
class Cache:
    """Keys and values by layer: of prompts ``[slots, key heads, P, D]``, of completions ``[slots, key heads, lanes, T, D]``."""

    slots: int
    lanes: int
    prompt_size: int
    size: int
    layers: dict[int, tuple[Tensor, ...]] = field(default_factory=dict[int, tuple[Tensor, ...]])

    def fill(self, slots: Tensor, layer: int, key: Tensor, value: Tensor) -> None:
        """Prompts ``[key heads, B, P, D]`` into these slots; a layer's tensors are made when its first prompt shows heads and sizes."""
        if layer not in self.layers:
            shapes = (self.slots, len(key), self.prompt_size), (self.slots, len(key), self.lanes, self.size)
            self.layers[layer] = tuple(x.new_zeros(*shape, x.shape[-1]) for shape in shapes for x in (key, value))
        for kept, x in zip(self.layers[layer], (key, value), strict=False):
            kept[slots, :, : x.shape[2]] = x.transpose(0, 1)


@dataclass
class Step:
    """One token for each active row ``(slot, lane)``; slot b is at place ``at[b]`` of its completions, none beyond ``length``."""

    cache: Cache
    slot: Tensor
    lane: Tensor
    at: Tensor
    ids: Tensor
    positions: Tensor
    length: int
    mask: Mask

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """``[heads, rows, D]`` → ``[rows, heads, D]``."""
        prompt_keys, prompt_values, keys, values = self.cache.layers[layer]
        place = self.at[self.slot]
        keys[self.slot, :, self.lane, place] = key.transpose(0, 1)
        values[self.slot, :, self.lane, place] = value.transpose(0, 1)
        (B, K, G), (heads, rows, D), grid = keys.shape[:3], query.shape, query.transpose(0, 1)
        all_active = rows == B * G
        if not all_active:
            grid = query.new_zeros(B, G, heads, D)
            grid[self.slot, self.lane] = query.transpose(0, 1)
        q = grid.reshape(B, G, K, -1, 1, D).transpose(1, 2).contiguous()  # [B, K, G, repeat, 1, D]
        keys, values, mask = keys[..., : self.length, :], values[..., : self.length, :], self.mask.of(options.window, query.dtype)
        found = group_attention(q, prompt_keys, prompt_values, keys, values, options, mask)
        by_row = found.transpose(1, 2).reshape(B, G, heads, -1)
        return by_row.flatten(0, 1) if all_active else by_row[self.slot, self.lane]


class Decoding:
    """One call of :meth:`EmbeddedEngine.generate` under way: what was sampled, by prompt and lane, and where each slot is."""

    def __init__(self, engine: EmbeddedEngine, prompts: Sequence[Sequence[int]], shape: tuple[int, ...], uniform: Tensor | None) -> None:
        self.policy, self.weights, self.head = engine.policy, engine.weights, engine.policy.head(engine.weights)
        (_, group_size, max_tokens), device = shape, self.head.weight.device
        self.prompts, self.next_prompt, self.max_tokens = prompts, 0, max_tokens
        self.ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.log_prob = torch.zeros(shape, device=device)
        self.length = torch.zeros(shape[:2], dtype=torch.long, device=device)
        self.finished = torch.zeros(shape[:2], dtype=torch.bool, device=device)
        self.uniform = uniform
        self.stop = torch.tensor(sorted(self.policy.stop_ids), device=device, dtype=torch.long)
        slots, prompt_size = min(len(prompts), max(1, engine.width // group_size)), max(map(len, prompts))
        self.cache = Cache(slots, group_size, prompt_size, max_tokens)
        self.product = Product(self.head.weight, slots * group_size)
        self.prompt, self.prompt_length, self.at = torch.zeros(3, slots, dtype=torch.long, device=device)
        self.places = torch.full((slots, prompt_size + max_tokens), NEVER, device=device)
        self.alive = torch.zeros(slots, group_size, dtype=torch.bool, device=device)
        self.token = torch.zeros(slots, group_size, dtype=torch.long, device=device)

    def fill(self) -> None:
        """Prefill the next prompts into slots that are free, and draw their first tokens."""
        free = (~self.alive.any(1)).nonzero().squeeze(1)
        taken = self.prompts[self.next_prompt : self.next_prompt + len(free)]
        if not taken:
            # nobody waits any more: once half of the slots are done, the rest move together
            if self.next_prompt >= len(self.prompts) and 2 * len(free) >= len(self.at) > 1 and len(free) < len(self.at):
                self.compact()
            return
        slots, lanes = free[: len(taken)], self.alive.shape[1]
        ids, length = padded(taken, slots.device)
        row = Packed.of(ids, length, ids.new_zeros(len(ids), 1, 0), length.new_zeros(len(ids), 1))
        log_p = self.predict(replace(row, keep=partial(self.cache.fill, slots)), row.last[:, 0])
        self.prompt[slots] = torch.arange(self.next_prompt, self.next_prompt + len(ids), device=slots.device)
        self.next_prompt += len(ids)
        self.prompt_length[slots], self.at[slots], self.alive[slots] = length, 0, True
        p, size = torch.arange(self.places.shape[1], device=slots.device), self.cache.prompt_size
        self.places[slots] = torch.where(p < size, p.where(p < length[:, None], NEVER), length[:, None] + p - size)
        self.draw(log_p.repeat_interleave(lanes, 0), slots.repeat_interleave(lanes), torch.arange(lanes, device=p.device).repeat(len(ids)))

    def step(self) -> None:
        slot, lane = self.alive.nonzero(as_tuple=True)
        if len(slot) == 0:
            return
        place, longest = self.prompt_length + self.at, int(self.at.max()) + 1
        seen = self.places[:, : self.cache.prompt_size + longest]
        mask = Mask(place[:, None, None, None, None], seen[:, None, None, None])
        log_p = self.predict(Step(self.cache, slot, lane, self.at, self.token[slot, lane], place[slot], longest, mask))
        self.at += self.alive.any(1)
        self.draw(log_p, slot, lane)

    def predict(self, layout: Layout, rows: Tensor | slice = slice(None)) -> Tensor:
        """Log-probabilities of every token behind these rows of a layout, in float32 at least: ``[rows, vocabulary]``."""
        hidden = self.policy.run(layout, self.weights)[rows]
        return finished(self.product(hidden), self.head.bias, self.head.scale, self.head.cap)[0].log_softmax(-1)

    def draw(self, log_p: Tensor, slot: Tensor, lane: Tensor) -> None:
        """Choose the tokens at place ``at`` of these rows, write them down, and see who has ended."""
        prompt, place = self.prompt[slot], self.at[slot]
        token = log_p.argmax(-1) if self.uniform is None else inverse_cdf(log_p, self.uniform[prompt, lane, place])
        self.ids[prompt, lane, place] = token
        self.log_prob[prompt, lane, place] = log_p.gather(1, token[:, None]).squeeze(1)
        self.length[prompt, lane] = place + 1
        stopped = torch.isin(token, self.stop)
        self.finished[prompt, lane] = stopped
        self.token[slot, lane] = token
        self.alive[slot, lane] = ~stopped & (place + 1 < self.max_tokens)

    def compact(self) -> None:
        kept = self.alive.any(1).nonzero().squeeze(1)
        for name in ("prompt", "prompt_length", "at", "places", "alive", "token"):
            setattr(self, name, getattr(self, name)[kept])
        self.cache.slots = len(kept)
        self.cache.layers = {layer: tuple(x[kept] for x in tensors) for layer, tensors in self.cache.layers.items()}


def uniforms(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """A random number for each place of each completion, drawn before anything is sampled."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


MIN_PACKED_ENTRIES = 1 << 20  # entries from which on a second copy is worth its memory

MIN_PACKED_ROWS = 4  # rows at a time from which on the other order is worth the time it takes to get there


class Product:
    """``x [rows, K]`` → ``x · weightᵀ [rows, N]``, with ``weight [N, K]`` as it was when this was made."""

    def __init__(self, weight: Tensor, rows: int = MIN_PACKED_ROWS) -> None:
        self.weight = weight
        self.packed = packed(weight) if rows >= MIN_PACKED_ROWS and weight.numel() >= MIN_PACKED_ENTRIES else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return torch.mm(x, self.weight.t())
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


def packed(weight: Tensor) -> Tensor | None:
    """A copy in oneDNN's order; None where this build of PyTorch, this processor or this precision has none."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    except (AttributeError, RuntimeError):  # no such operator, or no such kernel (bfloat16 without AVX512)
        return None
