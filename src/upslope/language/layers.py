"""What models differ in: the way that texts take through them, how long these may be, what is done to logits, and which tokens end one."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Attention:
    """How texts pass through a model: packed, sharing each prompt among its group; or plain, one row at a time, ``because`` of this.

    ``cached``: in the plain way, decoding with the model's own cache gives the same as reading the text anew for each token.
    """

    because: str | None = None
    cached: bool = True

    @cached_property
    def packed(self) -> bool:
        return self.because is None

    def __str__(self) -> str:
        return "packed" if self.because is None else f"plain, one row at a time, because {self.because}"


PACKED = Attention()


def logit_scale(model: PreTrainedModel) -> float:
    """What a model multiplies its logits with (Cohere, Granite); 1 nearly everywhere."""
    config: Any = model.config.get_text_config()
    divided = float(getattr(config, "logits_scaling", None) or 1.0)
    return float(getattr(config, "logit_scale", None) or 1.0) / divided


def logit_cap(model: PreTrainedModel) -> float | None:
    """The bound that Gemma 2 bends its logits to."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def longest_text(model: PreTrainedModel) -> int:
    """The longest text that a model can see, and sees as it sees shorter ones, in tokens."""
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
    return min(longest, changes_with_length(model) or longest)


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


def generation_stops(model: PreTrainedModel) -> list[int]:
    config: Any = getattr(model, "generation_config", None)  # models that generate nothing have none
    found = getattr(config, "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)
