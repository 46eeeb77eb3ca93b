"""What models differ in, and what a policy makes of the one it is given: float32 masters, and no setting without an effect.

They differ in the way that texts take through them, how long these may be, what is done to logits, and which tokens end one; a model may
stand inside a peft wrapper, whose adapters are then what is trained.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from upslope.errors import UsageError, is_kind, require


@dataclass(frozen=True)
class Attention:
    """How texts pass through a model: packed, sharing each prompt among its group; or plain, one row at a time, ``because`` of this.

    ``cached``: in the plain way, decoding with the model's cache gives the same as reading the text anew for each token.
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
    config = cast(Any, model.config).get_text_config()
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def logit_cap(model: PreTrainedModel) -> float | None:
    """The bound that Gemma 2 bends its logits to."""
    return getattr(cast(Any, model.config).get_text_config(), "final_logit_softcapping", None)


def longest_text(model: PreTrainedModel) -> int:
    """The longest text that a model can see, and sees as it sees shorter ones, in tokens."""
    longest = int(getattr(cast(Any, model.config).get_text_config(), "max_position_embeddings", None) or 1 << 30)
    return min(longest, changes_with_length(model) or longest)


def changes_with_length(model: PreTrainedModel) -> int | None:
    """The longest text whose rotary frequencies are those of shorter ones; None where they never change.

    Dynamic NTK scaling and LongRoPE turn *all* of a text's positions differently once it is longer than this, so that a token's
    probability depends on what follows it.
    """
    config = cast(Any, model.config).get_text_config()
    found: Any = getattr(config, "rope_parameters", None) or {}
    kinds = [found] if "rope_type" in found else [part for part in found.values() if is_kind(part, dict)]
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


HALF = (torch.float16, torch.bfloat16)


def unwrapped(model: Any) -> tuple[PreTrainedModel, Any]:
    """The Transformers model, and the peft wrapper around it where there is one: its adapters are then what is trained.

    Raises UsageError for adapters that are not inside the model (prompts, prefixes), or are frozen; no model at all.
    """
    if not isinstance(model, nn.Module):
        message = f"model: expected a Transformers model, found {type(model).__name__}; load one with LanguagePolicy.from_pretrained"
        raise UsageError(message)
    if not hasattr(model, "peft_config"):
        return model, None  # pyright: ignore[reportReturnType]
    wrapper: Any = model
    if not hasattr(wrapper, "get_base_model"):  # adapters that Transformers put into the model itself
        message = "model: it holds adapters without their peft wrapper; wrap it with peft.get_peft_model or PeftModel.from_pretrained"
        raise UsageError(message)
    kinds = [str(getattr(config, "peft_type", "")).rpartition(".")[2] for config in wrapper.peft_config.values()]
    for config, kind in zip(wrapper.peft_config.values(), kinds, strict=True):
        if config.is_prompt_learning:
            message = f"model: its peft wrapper is of kind {kind}, which lies outside the model; take adapters inside it, LoRA for one"
            raise UsageError(message)
        if (dropout := getattr(config, "lora_dropout", 0.0)) > 0:
            why = "what samples and what scores must be one distribution"
            raise UsageError(f"model: its adapters have lora_dropout {dropout:g}, but {why}; set it to 0")
    message = "model: every weight of its peft wrapper is frozen; load the adapters with is_trainable=True"
    require(any(p.requires_grad for p in wrapper.parameters()), message)
    return wrapper.get_base_model(), wrapper


def check_settings(model: PreTrainedModel) -> None:
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        how = "model.gradient_checkpointing_disable(), and save memory with Ascent(micro_batch_size=1)"
        raise UsageError(f"model: gradient checkpointing is on, which a policy's passes do not follow; switch it off with {how}")


def dropout_of(model: PreTrainedModel) -> dict[str, float]:
    """Dropout that a model's configuration names; a policy has it off."""
    settings: dict[str, Any] = cast(Any, model.config).get_text_config().to_dict()
    found = {name: value for name, value in settings.items() if re.search("drop(out)?(_|$)", name) or name.endswith("pdrop")}
    return {name: float(value) for name, value in found.items() if isinstance(value, float | int) and value > 0}


def masters(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Bring parameters to the precision in which the update moves them, in place; None is float32, and float64 where they are that.

    Raises UsageError for a precision that the update cannot move: neither float32, float64 nor bfloat16.
    """
    message = f"dtype: expected torch.float32, torch.float64, torch.bfloat16 (rounded stochastically) or None, found {dtype}"
    require(dtype in (None, torch.float32, torch.float64, torch.bfloat16), message)
    for p in model.parameters():
        if p.is_floating_point() and p.dtype != (dtype or torch.float32) and (dtype is not None or p.dtype in HALF):
            p.data = p.data.to(dtype or torch.float32)
    for buffer in model.buffers():
        if buffer.dtype in HALF and dtype != torch.bfloat16:
            buffer.data = buffer.data.float()


@contextlib.contextmanager
def quiet() -> Generator[None]:
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    theirs.set_verbosity(logging.CRITICAL)
    hub.setLevel(logging.CRITICAL)
    theirs.disable_progress_bar()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        hub.setLevel(hub_level)
        theirs.enable_progress_bar()
        if bars is None:
            del os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]
