"""Sampling completions: one prefill for each prompt, shared by its group; static caches; finished rows cost nothing more.

The engine decodes ``width`` rows side by side: groups in slots, a lane for each completion. A row that has ended is left out of
every layer; a slot whose rows have all ended takes the next prompt. Each token's random number is drawn beforehand, by prompt,
lane and place, so the schedule cannot change what is sampled. The log-probabilities returned are those of the distribution that was
sampled from: all of the softmax at the policy's temperature, nothing cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from upslope.errors import UsageError, require
from upslope.language.attention import AttentionOptions, Grid, additive, prompt_attention, softmax
from upslope.language.head import finished
from upslope.language.layers import TextPolicy, cast_parameter, changes_with_length, logit_cap, logit_scale, output_layer
from upslope.language.plain import PlainDecoding
from upslope.language.product import Product
from upslope.language.sampling import inverse_cdf


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
        return [["stop" if done else "length" for done in row] for row in self.finished.tolist()]


class Engine(Protocol):
    """Who samples: the embedded engine here, or a server behind the same two calls."""

    def sync(self, policy: TextPolicy, version: int = 0) -> None: ...

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], *, group_size: int, max_tokens: int, seed: int = 0, greedy: bool = False
    ) -> Generated: ...


class EmbeddedEngine:
    """Decodes with the policy's own modules, in its compute precision.

    ``width`` is the number of rows decoded side by side; None takes more for smaller models: 64 for one of 135 million parameters,
    which cost little more than one, and 1024 for a tiny one, whose time goes into calls rather than arithmetic.
    """

    def __init__(self, policy: TextPolicy, *, width: int | None = None) -> None:
        require(width is None or width >= 1, f"width: expected an integer ≥ 1 or None, found {width}")
        size = sum(p.numel() for p in policy.model.parameters())
        self.width = width or max(64, min(1024, (1 << 33) // size))
        self.sync(policy)

    @torch.no_grad()
    def sync(self, policy: TextPolicy, version: int = 0) -> None:
        """Take the policy's present weights."""
        self.policy, self.version = policy, version
        weights = policy.weights()
        self.weights = None if weights is None else {name: w.detach() for name, w in weights.items()}
        if not policy.attention.packed:
            return
        layer, body = output_layer(policy.model), policy.body
        bias = None if layer.bias is None else cast_parameter(self.weights, body, layer.bias)
        scale = logit_scale(policy.model) / policy.temperature
        self.head = cast_parameter(self.weights, body, layer.weight), bias, scale, logit_cap(policy.model)

    @torch.no_grad()
    def generate(
        self, prompt_ids: Sequence[Sequence[int]], *, group_size: int, max_tokens: int, seed: int = 0, greedy: bool = False
    ) -> Generated:
        """``group_size`` completions of each prompt, each up to its end token or ``max_tokens``.

        Raises:
            UsageError: no prompt, an empty one, or one that leaves no room for ``max_tokens`` in the model's context; sizes below 1.
        """
        require(group_size >= 1, f"group_size: expected an integer ≥ 1, found {group_size}")
        check_prompts(self.policy, prompt_ids, max_tokens)
        self.policy.look_up_to(max(map(len, prompt_ids)) + max_tokens)
        if not self.policy.attention.packed:
            return self.one_by_one(prompt_ids, group_size, max_tokens, seed, greedy)
        run = Decoding(self, prompt_ids, group_size, max_tokens, seed, greedy)
        while run.active:
            run.fill()
            run.step()
        return run.result()

    def one_by_one(self, prompt_ids: Sequence[Sequence[int]], group_size: int, max_tokens: int, seed: int, greedy: bool) -> Generated:
        """The plain way; the same random numbers choose."""
        policy = self.policy
        decoding = PlainDecoding(policy, self.weights, cached=policy.attention.cached)
        uniform = None if greedy else uniforms((len(prompt_ids), group_size, max_tokens), seed, policy.device)
        made = [
            decoding.completions(ids, None if uniform is None else uniform[i], group_size, max_tokens) for i, ids in enumerate(prompt_ids)
        ]
        length = torch.tensor([[len(tokens) for tokens, _ in lanes] for lanes in made], device=policy.device)
        shape = (*length.shape, int(length.max()))
        ids, log_prob = torch.zeros(shape, dtype=torch.long, device=policy.device), torch.zeros(shape, device=policy.device)
        for i, lanes in enumerate(made):
            for lane, (tokens, said) in enumerate(lanes):
                ids[i, lane, : len(tokens)], log_prob[i, lane, : len(tokens)] = torch.tensor(tokens), torch.tensor(said)
        last = ids.gather(-1, length[..., None] - 1).squeeze(-1)
        stopped = torch.isin(last, torch.tensor(sorted(policy.stop_ids), device=policy.device, dtype=torch.long))
        return Generated(completion_ids=ids, log_prob=log_prob, length=length, finished=stopped, policy_version=self.version)


def check_prompts(policy: TextPolicy, prompt_ids: Sequence[Sequence[int]], max_tokens: int) -> None:
    """Refuse what cannot be completed, naming the prompt."""
    require(bool(prompt_ids), "prompts: expected at least one, found none")
    require(max_tokens >= 1, f"max_tokens: expected an integer ≥ 1, found {max_tokens}")
    for i, ids in enumerate(prompt_ids):
        require(bool(ids), f"prompts[{i}]: it has no token")
        if len(ids) + max_tokens > policy.context:
            raise UsageError(
                f"prompts[{i}]: its {len(ids)} tokens and max_tokens {max_tokens} exceed the model's context of {policy.context}"
                f"{', beyond which its rotary scaling changes for the whole text' if changes_with_length(policy.model) else ''}; "
                f"shorten the prompt, which begins with {policy.decode(ids[:12])!r}, or lower max_tokens"
            )


@dataclass
class Cache:
    """Keys and values by layer: of prompts ``[slots, key heads, P, D]``, of completions ``[slots, key heads, lanes, T, D]``."""

    slots: int
    lanes: int
    prompt_size: int
    size: int
    layers: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict[int, Any])

    def of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors of a layer, made on first use, when their heads and sizes are known."""
        if layer not in self.layers:
            prompt, own = (self.slots, len(key), self.prompt_size), (self.slots, len(key), self.lanes, self.size)
            pk, pv, k, v = (x.new_zeros(*shape, x.shape[-1]) for shape in (prompt, own) for x in (key, value))
            self.layers[layer] = pk, pv, k, v
        return self.layers[layer]

    def keep(self, slots: Tensor) -> None:
        """Forget every slot but these."""
        self.slots = len(slots)
        self.layers = {layer: (pk[slots], pv[slots], k[slots], v[slots]) for layer, (pk, pv, k, v) in self.layers.items()}


@dataclass
class Prefill:
    """Prompts in one row, each into its slot."""

    cache: Cache
    slots: Tensor
    ids: Tensor
    positions: Tensor
    grid: Grid
    masks: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """``[heads, N, D]`` → ``[N, heads, D]``; keys and values stay in the cache."""
        P = self.grid.shape[-1]
        if options.window not in self.masks:
            p = torch.arange(P, device=query.device)
            visible = p[:, None] >= p
            self.masks[options.window] = additive(
                visible if options.window is None else visible & (p[:, None] - p < options.window), query.dtype
            )
        q, k, v = (self.grid.spread(x) for x in (query, key, value))
        prompt_keys, prompt_values, _, _ = self.cache.of(layer, key, value)
        prompt_keys[self.slots, :, :P] = k.transpose(0, 1)
        prompt_values[self.slots, :, :P] = v.transpose(0, 1)
        found = prompt_attention(q, k, v, options, self.masks[options.window])
        return self.grid.gather(found.flatten(1, 2)).transpose(0, 1)


@dataclass
class Step:
    """One token for each active row ``(slot, lane)``; slot b is at place ``at[b]`` of its completions."""

    cache: Cache
    slot: Tensor
    lane: Tensor
    at: Tensor
    prompt_length: Tensor
    ids: Tensor
    positions: Tensor
    length: int
    masks: dict[Any, Tensor] = field(default_factory=dict[Any, Tensor])

    def hidden(self, options: AttentionOptions, dtype: torch.dtype) -> Tensor:
        """What is added to the scores ``[slots, 1, 1, 1, P + length]``: −∞ on what a row must not see."""
        if options.window not in self.masks:
            p = torch.arange(self.cache.prompt_size, device=self.at.device)
            t = torch.arange(self.length, device=self.at.device)
            prompt, own = p < self.prompt_length[:, None], t <= self.at[:, None]
            if options.window is not None:
                prompt = prompt & ((self.prompt_length + self.at)[:, None] - p < options.window)
                own = own & (self.at[:, None] - t < options.window)
            self.masks[options.window] = additive(torch.cat([prompt, own], 1), dtype)[:, None, None, None]
        return self.masks[options.window]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """``[heads, rows, D]`` → ``[rows, heads, D]``."""
        prompt_keys, prompt_values, keys, values = self.cache.of(layer, key, value)
        place = self.at[self.slot]
        keys[self.slot, :, self.lane, place] = key.transpose(0, 1)
        values[self.slot, :, self.lane, place] = value.transpose(0, 1)
        B, K, G, _, D = keys.shape
        heads, rows = query.shape[:2]
        all_active = rows == B * G
        if all_active:
            grid = query.reshape(K, -1, B, G, D).permute(2, 0, 3, 1, 4).contiguous()  # [B, K, G, repeat, D]
        else:
            spread = query.new_zeros(B, G, heads, D)
            spread[self.slot, self.lane] = query.transpose(0, 1)
            grid = spread.view(B, G, K, -1, D).transpose(1, 2).contiguous()
        repeat, P = heads // K, prompt_keys.shape[2]
        to_prompt = options.scores(grid.view(B, K, G * repeat, D), prompt_keys).view(B, K, G, repeat, P)
        to_own = options.scores(grid, keys[:, :, :, : self.length])
        weight = softmax(torch.cat([to_prompt, to_own], -1) + self.hidden(options, query.dtype))
        found = torch.matmul(weight[..., :P].reshape(B, K, G * repeat, P), prompt_values).view(B, K, G, repeat, -1)
        found = found + torch.matmul(weight[..., P:], values[:, :, :, : self.length])
        by_row = found.transpose(1, 2).reshape(B, G, heads, -1)
        return by_row.flatten(0, 1) if all_active else by_row[self.slot, self.lane]


class Decoding:
    """One call of :meth:`EmbeddedEngine.generate` under way."""

    def __init__(
        self, engine: EmbeddedEngine, prompt_ids: Sequence[Sequence[int]], group_size: int, max_tokens: int, seed: int, greedy: bool
    ) -> None:
        self.engine, self.greedy, self.max_tokens = engine, greedy, max_tokens
        device = engine.policy.device
        self.prompts = [torch.tensor(ids, device=device) for ids in prompt_ids]
        shape = (len(prompt_ids), group_size, max_tokens)
        self.ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.log_prob = torch.zeros(shape, device=device)
        self.length = torch.zeros(shape[:2], dtype=torch.long, device=device)
        self.finished = torch.zeros(shape[:2], dtype=torch.bool, device=device)
        self.uniform = None if greedy else uniforms(shape, seed, device)
        self.stop = torch.tensor(sorted(engine.policy.stop_ids), device=device, dtype=torch.long)
        slots = min(len(prompt_ids), max(1, engine.width // group_size))
        self.cache = Cache(slots, group_size, max(map(len, self.prompts)), max_tokens)
        self.product = Product(engine.head[0], slots * group_size)
        self.prompt = torch.full((slots,), -1, device=device)
        self.at = torch.zeros(slots, dtype=torch.long, device=device)
        self.alive = torch.zeros(slots, group_size, dtype=torch.bool, device=device)
        self.token = torch.zeros(slots, group_size, dtype=torch.long, device=device)
        self.next_prompt = 0

    @property
    def active(self) -> bool:
        """Whether anything is left to do."""
        return self.next_prompt < len(self.prompts) or bool(self.alive.any())

    def fill(self) -> None:
        """Prefill the next prompts into slots that are free, and draw their first tokens."""
        free = (~self.alive.any(1)).nonzero().squeeze(1)
        count = min(len(free), len(self.prompts) - self.next_prompt)
        if count == 0:
            # nobody waits any more: once half of the slots are done, the rest move together
            if self.next_prompt >= len(self.prompts) and 2 * len(free) >= len(self.at) > 1 and len(free) < len(self.at):
                self.compact()
            return
        slots, device = free[:count], free.device
        prompts = self.prompts[self.next_prompt : self.next_prompt + count]
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        p = torch.arange(int(lengths.max()), device=device)
        real = p < lengths[:, None]
        row = Prefill(self.cache, slots, torch.cat(prompts), p.expand_as(real)[real], Grid.of(real))
        hidden = self.engine.policy.hidden(row, self.engine.weights)[lengths.cumsum(0) - 1]
        self.prompt[slots] = torch.arange(self.next_prompt, self.next_prompt + count, device=device)
        self.next_prompt += count
        self.at[slots] = 0
        self.alive[slots] = True
        lanes = self.alive.shape[1]
        log_p = self.log_probs(hidden).repeat_interleave(lanes, 0)
        self.draw(log_p, slots.repeat_interleave(lanes), torch.arange(lanes, device=device).repeat(count))

    def step(self) -> None:
        """One more token for every active row."""
        slot, lane = self.alive.nonzero(as_tuple=True)
        if len(slot) == 0:
            return
        lengths = torch.tensor([len(self.prompts[i]) for i in self.prompt.clamp(min=0).tolist()], device=slot.device)
        positions = (lengths + self.at)[slot]
        longest = int(self.at.max()) + 1
        row = Step(self.cache, slot, lane, self.at, lengths, self.token[slot, lane], positions, longest)
        hidden = self.engine.policy.hidden(row, self.engine.weights)
        self.at += self.alive.any(1)
        self.draw(self.log_probs(hidden), slot, lane)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of every token, float32 ``[rows, vocabulary]``."""
        return finished(self.product(hidden), *self.engine.head[1:])[0].log_softmax(-1)

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
        """Keep the slots in which a row is still active."""
        slots = self.alive.any(1).nonzero().squeeze(1)
        self.cache.keep(slots)
        self.prompt, self.at, self.alive, self.token = (x[slots] for x in (self.prompt, self.at, self.alive, self.token))

    def result(self) -> Generated:
        """What was sampled, as long as the longest completion."""
        longest = int(self.length.max())
        return Generated(
            completion_ids=self.ids[..., :longest],
            log_prob=self.log_prob[..., :longest],
            length=self.length,
            finished=self.finished,
            policy_version=self.engine.version,
        )


def uniforms(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """A random number for each place of each completion, drawn before anything is sampled."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)
