"""What models differ in, and what a policy around one offers to the passes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from upslope.records import Policy


@dataclass(frozen=True)
class Attention:
    """How texts pass through a model: packed, sharing each prompt among its group; or plain, one row at a time, ``because`` of this.

    ``cached``: in the plain way, decoding with the model's own cache gives the same as reading the text anew for each token.
    """

    because: str | None = None
    cached: bool = True

    @property
    def packed(self) -> bool:
        """Whether the shared attention serves it."""
        return self.because is None

    def __str__(self) -> str:
        return "packed" if self.because is None else f"plain, one row at a time, because {self.because}"


PACKED = Attention()


class TextPolicy(Policy, Protocol):
    """A policy around a Transformers model (:class:`~upslope.language.policy.LanguagePolicy`), as sampling and comparisons use it."""

    attention: Attention
    temperature: float
    body: Any
    stop_ids: Any
    tokenizer: Any
    adapter: Any

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def context(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def has_value(self) -> bool: ...

    @classmethod
    def around(cls, model: PreTrainedModel, *, attention: Attention, compute_dtype: torch.dtype) -> Self: ...

    def look_up_to(self, length: int) -> None: ...

    def weights(self) -> dict[str, Tensor] | None: ...

    def hidden(self, *inputs: Any, **options: Any) -> Any: ...

    def read(self, row: Any, weights: dict[str, Tensor] | None) -> tuple[Tensor, Tensor | None]: ...

    def values(self, hidden: Tensor) -> Tensor: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def cast_parameter(weights: dict[str, Tensor] | None, body: nn.Module, parameter: Tensor) -> Tensor:
    """A parameter, or what stands for it in this pass."""
    if weights is None:
        return parameter
    return next((weights[name] for name, p in body.named_parameters() if p is parameter), parameter)


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that makes logits."""
    return cast(nn.Linear, model.get_output_embeddings())


def logit_scale(model: PreTrainedModel) -> float:
    """What a model multiplies its logits with (Cohere, Granite); 1 nearly everywhere."""
    config: Any = model.config.get_text_config()
    divided = float(getattr(config, "logits_scaling", None) or 1.0)
    return float(getattr(config, "logit_scale", None) or 1.0) / divided


def logit_cap(model: PreTrainedModel) -> float | None:
    """The bound that Gemma 2 bends its logits to."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def changes_with_length(model: PreTrainedModel) -> int | None:
    """The longest text whose rotary frequencies are those of shorter ones; None where they never change.

    Dynamic NTK scaling and LongRoPE turn *all* of a text's positions differently once it is longer than this, so that a token's
    probability depends on what follows it.
    """
    config: Any = model.config.get_text_config()
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found] if "rope_type" in found else [part for part in found.values() if isinstance(part, dict)]
    limits: list[int] = []
    for part in kinds:
        rope = str(part.get("rope_type"))
        if rope == "longrope" or "dynamic" in rope:
            limit = part.get("original_max_position_embeddings") if rope == "longrope" else None
            limits.append(int(limit or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings))
    return min(limits, default=None)
