"""Whether a model's layers can take part in the shared attention: compared with plain Transformers before anything is trained.

The comparison runs on a small copy of the model with random weights (:mod:`~upslope.language.reduced`), whose windows, chunks and
switches lie within some dozen tokens: rows of unlike lengths side by side, log-probabilities, entropies and gradients of the training
pass, and what the engine samples, against one eager call of the unmodified model for each row. The model itself is then compared with the
forward pass on a short text. What differs takes the plain way (:mod:`~upslope.language.plain`); what fails there too is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from upslope.errors import UsageError, first_line, require
from upslope.language.engine import EmbeddedEngine
from upslope.language.models import PACKED, Attention, changes_with_length, quiet
from upslope.language.plain import scaled_log_probs, texts_of
from upslope.language.reduced import reduced, small_settings
from upslope.typed import as_list, norm

if TYPE_CHECKING:
    from upslope.language.policy import LanguagePolicy

TOLERANCE = 1e-3
"""Largest difference of log-probabilities, and of a gradient relative to its norm, that float32 sums in another order explain."""


BRIEF, MAX_LENGTH = 34, 2048
"""Texts up to the first length are covered by the small copy with short windows; beyond the second, attention itself is too dear to try."""
FOUND: dict[tuple[type, str], Attention] = {}
"""What comparisons in this process have found, by class and small settings."""


def inspect(policy: LanguagePolicy) -> Attention:
    """The way that a policy's model takes.

    Raises UsageError for no causal language model, or one that gives other log-probabilities than its forward pass even row by row.
    """
    model = policy.model
    kind = type(model).__name__
    require(not getattr(model.config, "is_encoder_decoder", False), f"model: {kind} has an encoder; expected a decoder-only model")
    layer: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if layer is None:
        raise UsageError(f"model: {kind} has no output layer over the vocabulary, so it is no language model")
    require(hasattr(layer, "weight"), f"model: its output layer is a {type(layer).__name__} without a weight; take an nn.Linear")
    with quiet():
        return on_a_short_text(policy, of_small_copy(policy))


def inspect_beyond(policy: LanguagePolicy, length: int) -> Attention:
    """The way for texts of ``length`` tokens: a small copy with the configuration's windows is compared on texts as long.

    This sees what :data:`~upslope.language.reduced.SMALL` has no name for. Texts of more than :data:`MAX_LENGTH` tokens are not tried.
    """
    model, size = policy.model, min(length, policy.context, MAX_LENGTH)
    if not policy.attention.packed or size <= BRIEF:
        return policy.attention
    key = type(model), json.dumps([size, small_settings(model.config.to_dict(), shorter=False)], default=str, sort_keys=True)
    if key not in FOUND:
        with quiet(), torch.no_grad():
            copied = reduced(model, shorter=False)
            inputs = random_texts(copied, [size - 8, size // 3], [[8, 5], [size // 4, 1]])  # so that few tokens need be decoded
            when = f"on texts of {size} tokens"
            because = Truth.of(copied, inputs, gradients=False).fault_of(policy.around(copied), when, f"while decoding {when}")
            FOUND[key] = PACKED if because is None else Attention(because, cached=False)
    return FOUND[key]


def of_small_copy(policy: LanguagePolicy) -> Attention:
    """What a small copy shows beyond every window; remembered for models of the same class and settings."""
    model, kind = policy.model, type(policy.model)
    try:
        key = kind, json.dumps(small_settings(model.config.to_dict()), default=str, sort_keys=True)
        if key not in FOUND:
            FOUND[key] = compare_copy(policy, reduced(model), kind.__name__)
        return FOUND[key]
    except UsageError:
        raise
    except Exception as error:
        return Attention(f"no small copy can be made on which to compare it beyond its windows ({first_line(error, 160)})", cached=False)


def compare_copy(policy: LanguagePolicy, model: PreTrainedModel, kind: str) -> Attention:
    """The way of a small copy; raises :class:`UsageError` where it is not causal."""
    changes = changes_with_length(model) is not None  # rows of 8 to 34 tokens; to 22 where rotary frequencies change with the length
    inputs = random_texts(model, [3, 8], [[14, 5], [12, 1]]) if changes else random_texts(model, [3, 14], [[20, 5], [16, 1]])
    packed = policy.around(model)  # which makes padding a token like any other, also for the truth
    try:
        truth = Truth.of(model, inputs)
    except Exception as error:
        raise UsageError(f"model: {kind} cannot be used, its forward pass fails on one row ({first_line(error, 160)})") from error
    because = truth.fault_of(packed, "in training", "while decoding")
    if because is None:
        return PACKED
    check_causal(model, inputs, kind)
    found = Attention(because)
    return found if fault(lambda: truth.difference_of_samples(policy.around(model, found)), "") is None else replace(found, cached=False)


@torch.no_grad()
def on_a_short_text(policy: LanguagePolicy, attention: Attention) -> Attention:
    """Compare the model itself, with its weights, with its eager forward pass."""
    model = policy.model
    inputs = random_texts(model, [3], [[5, 4]], vocabulary=policy.vocabulary)
    try:
        truth = Truth.of(model, inputs, gradients=False)
    except Exception as error:
        raise UsageError(f"model: {type(model).__name__} cannot be used, its forward pass fails ({first_line(error, 160)})") from error
    if attention.packed:
        because = beside_weight(model.get_output_embeddings())
        because = because or fault(lambda: truth.difference_of_pass(policy.around(model)), "on a short text", tolerance_for(model))
        attention = PACKED if because is None else Attention(because, cached=False)
    if not attention.packed:
        check_causal(model, inputs, type(model).__name__)
    return attention


def beside_weight(layer: Any) -> str | None:
    """What an output layer has beside weight and bias, all that packed passes take of it, also if it adds nothing yet: adapters, hooks."""
    own = {layer.weight, getattr(layer, "bias", None)}
    more = any(p.requires_grad and p not in own for p in layer.parameters()) or layer._forward_hooks or layer._forward_pre_hooks
    return "its output layer is more than a weight and a bias" if more else None


def fault(compare: Callable[[], float], when: str, tolerance: float = TOLERANCE) -> str | None:
    """Why a comparison speaks against the shared attention; None where it does not."""
    try:
        difference = compare()
    except Exception as error:
        return f"its layers do not take part in shared attention ({first_line(error, 160)})"
    return None if difference < tolerance else f"shared attention changes log-probabilities {when} (by {difference:.2g})"


def tolerance_for(model: PreTrainedModel) -> float:
    """For weights in float32 the usual one; eight bits of mantissa round more, and the small copy has compared what they hide."""
    return TOLERANCE if next(model.parameters()).dtype in (torch.float32, torch.float64) else 0.3


def random_texts(
    model: PreTrainedModel, prompts: Sequence[int], completions: Sequence[Sequence[int]], vocabulary: int | None = None
) -> dict[str, Tensor]:
    """Random texts of these lengths, in the shapes of :meth:`LanguagePolicy.evaluate`."""
    layers: Any = model.get_output_embeddings(), model.get_input_embeddings()
    known = layers[0].weight.shape[0], getattr(layers[1], "num_embeddings", None)
    size, generator = vocabulary or min(n for n in known if n), torch.Generator().manual_seed(0)
    prompt_length, length = torch.tensor(prompts), torch.tensor(completions)
    shapes = (len(prompts), max(prompts)), (*length.shape, int(length.max()))
    ids = [torch.randint(size, shape, generator=generator) for shape in shapes]
    padding = getattr(cast(Any, model.config).get_text_config(), "pad_token_id", None)
    if padding is not None and shapes[0][1] > 2:  # some models count their positions by it
        ids[0][:, 1] = min(padding, size - 1)
    found = {"prompt_ids": ids[0], "prompt_length": prompt_length, "completion_ids": ids[1], "completion_length": length}
    return {name: x.to(model.device) for name, x in found.items()}


@dataclass(frozen=True)
class Truth:
    """What the unmodified model says of each row: log-probabilities and entropies ``[2, B, G, T]``, the gradient of ``weight · said``."""

    model: PreTrainedModel
    inputs: dict[str, Tensor]
    said: Tensor
    weight: Tensor
    gradient: list[Tensor] | None

    @classmethod
    def of(cls, model: PreTrainedModel, inputs: dict[str, Tensor], *, gradients: bool = True) -> Truth:
        with torch.set_grad_enabled(gradients):
            said = plain_log_probs(model, inputs)
        weight = torch.randn(said.shape, generator=torch.Generator().manual_seed(1)).to(said)
        return cls(model, inputs, said.detach(), weight, slopes(model, (weight * said).sum()) if gradients else None)

    def fault_of(self, policy: LanguagePolicy, training: str, decoding: str) -> str | None:
        """Why a policy's training pass, or what its engine samples, speaks against it; None where neither does."""
        found = fault(lambda: self.difference_of_pass(policy), training)
        return found or fault(lambda: self.difference_of_samples(policy), decoding)

    def difference_of_pass(self, policy: LanguagePolicy) -> float:
        found = policy.evaluate(**self.inputs)
        said = torch.stack([found.log_prob, found.entropy])
        difference = (said - self.said).abs().max().item()
        if self.gradient is None:
            return difference
        gradient = slopes(self.model, (self.weight * said).sum())
        largest = max(float(norm(g)) for g in self.gradient)
        away = [float(norm(a - b)) / max(float(norm(b)), largest / 100) for a, b in zip(gradient, self.gradient, strict=True)]
        return max(difference, *away) if all(x == x for x in away) else float("nan")

    def difference_of_samples(self, policy: LanguagePolicy) -> float:
        lengths = as_list(self.inputs["prompt_length"])
        prompts = [as_list(ids[:n]) for ids, n in zip(self.inputs["prompt_ids"], lengths, strict=True)]
        longest = int((self.inputs["prompt_length"][:, None] + self.inputs["completion_length"]).max())
        max_tokens = max(8, longest - max(lengths))
        made = EmbeddedEngine(policy, width=2).generate(prompts, group_size=2, max_tokens=max_tokens, seed=1)
        inputs = {**self.inputs, "completion_ids": made.completion_ids, "completion_length": made.length}
        with torch.no_grad():
            return (plain_log_probs(self.model, inputs)[0] - made.log_prob).abs().max().item()


def plain_log_probs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probabilities and entropies of one plain call for each row, ``[2, B, G, T]``, 0 behind the end."""
    lengths = inputs["completion_length"]
    found: list[Tensor] = []
    for ids, start in texts_of(**inputs):
        if len(ids) > start:
            log_p = scaled_log_probs(model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1], 1.0)
            found.append(torch.stack([log_p.gather(-1, ids[start:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)]))
    real = torch.arange(inputs["completion_ids"].shape[-1], device=lengths.device) < lengths[..., None]
    return torch.stack([x.new_zeros(real.shape).masked_scatter(real, x) for x in torch.cat(found, -1)])


def slopes(model: nn.Module, objective: Tensor) -> list[Tensor]:
    """Gradients of all parameters, zeros where the objective does not reach."""
    moved = [p for p in model.parameters() if p.requires_grad]
    return [slope.detach() for slope in torch.autograd.grad(objective, moved, allow_unused=True, materialize_grads=True)]


@torch.no_grad()
def check_causal(model: PreTrainedModel, inputs: dict[str, Tensor], kind: str) -> None:
    """A text's beginning must mean the same whatever follows it, or nothing sampled token by token can be scored as a whole."""
    for ids, start in texts_of(**inputs):
        whole = scaled_log_probs(model(input_ids=ids[None], use_cache=False).logits[0], 1.0)
        for end in sorted({max(1, start - 1), start + 1, (start + len(ids)) // 2, len(ids) - 1}):
            part = scaled_log_probs(model(input_ids=ids[None, :end], use_cache=False).logits[0], 1.0)
            difference = (part - whole[:end]).abs().max().item()
            if not difference < tolerance_for(model):
                change = f"change (by {difference:.2g}) with the tokens that follow it"
                raise UsageError(f"model: {kind} cannot be used, it is not causal: log-probabilities of a text of {end} tokens {change}")
