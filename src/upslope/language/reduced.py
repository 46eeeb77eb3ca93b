"""A small copy of a model: the same configuration with fewer and narrower layers, shorter windows and switches, and random weights.

What makes an architecture hard to score (windows, chunks, rotary scaling that changes with the length, layers of several kinds,
shared keys) is in its configuration, not in its size: a small copy shows it on some dozen tokens, whatever the model weighs.
"""

import copy
import re
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from upslope.errors import is_kind
from upslope.typed import fork_rng, manual_seed

VOCABULARY, WINDOW, SWITCH, CONTEXT, LAYERS = 96, 5, 24, 64, 6

HEADS = "num_attention_heads|n_heads?|num_heads|(encoder|decoder)_attention_heads|attention_heads|swa_num_attention_heads|decoder_num_heads"
KEY_HEADS = "num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|(swa|global)_num_key_value_heads"
WIDTHS = "hidden_size|n_embd|d_model|dim|emb_dim|embedding_dim"
DEPTHS = "num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(encoder|decoder)_layers|num_blocks"
INNER = ".*(intermediate_size|ffn_dim|ffn_hidden_size|n_inner|d_ff|dff|mlp_dim|mlp_hidden_size|inner_size).*"
EXPERTS = "num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts|n_experts"
CHOSEN = ".*(experts_per_tok(en)?|moe_k|moe_top_k|num_selected_experts|top_k_experts|topk|top_k)"
GROUPS = "n_group|topk_group|num_expert_group"
SMALL = {
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "local_attention", "attention_window_size"), WINDOW),
    **dict.fromkeys(("original_max_position_embeddings", "floor_scale", "llama_4_scaling_beta_length", "max_window_layers_length"), SWITCH),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"), CONTEXT),
    **dict.fromkeys(("context_length", "max_seq_length"), CONTEXT),
}
"""Lengths at which something changes, by name: made so short that a text of some dozen tokens is beyond all of them."""


def small_settings(settings: dict[str, Any], *, shorter: bool = True) -> dict[str, Any]:
    """A configuration's settings made small: heads keep their width, layers their kinds, everything else its proportion.

    ``shorter``: the lengths at which something changes too.
    """
    found = copy.deepcopy(settings)
    for name, value in settings.items():
        if is_kind(value, dict) and all(isinstance(key, str) for key in value):
            found[name] = small_settings(value, shorter=shorter)
    whole = {name: v for name, v in settings.items() if isinstance(v, int) and not isinstance(v, bool)}
    heads, key_heads, width, depth = (first(whole, names) for names in (HEADS, KEY_HEADS, WIDTHS, DEPTHS))
    few = 4 if heads is None else min(heads, 4)
    size = None if width is None else few * (width // heads) if heads and width % heads == 0 else 64
    for name, value in settings.items():
        if is_kind(value, list) and re.fullmatch(INNER, str(name)) and all(isinstance(v, int) for v in value):
            found[name] = [min(v, 96) for v in value]
    for name, value in whole.items():
        small = small_number(name, value, few=few, grouped=heads is not None and key_heads not in (None, heads))
        if name in SMALL:
            found[name] = min(value, SMALL[name]) if shorter else value
        elif small is not None:
            found[name] = small
        elif width and size and value >= width and value % width == 0:
            found[name] = value // width * size
    if size is not None and width is not None:
        fit_state_heads(found, whole, width, size)
    return found if depth is None else with_layers(found, depth)


def first(numbers: dict[str, int], names: str) -> int | None:
    return next((value for name, value in numbers.items() if re.fullmatch(names, name)), None)


def small_number(name: str, value: int, *, few: int, grouped: bool) -> int | None:
    """A smaller number for the settings whose meaning their name says; None for others."""
    if "vocab" in name:
        return min(value, VOCABULARY)
    if re.fullmatch(".*_(token|tok)_(id|index)s?|(bos|eos|pad|sep|cls|unk|mask)_(index|id)", name):
        return min(value, VOCABULARY - 1)
    if re.fullmatch(HEADS, name):
        return few
    if re.fullmatch(KEY_HEADS, name):
        return min(value, 2 if grouped else few)
    for names, most in ((EXPERTS, 4), (CHOSEN, 2), (GROUPS, 1), (INNER, 96)):
        if re.fullmatch(names, name):
            return min(value, most)
    return None


def fit_state_heads(found: dict[str, Any], whole: dict[str, int], width: int, size: int) -> None:
    """Heads of a state-space layer, whose number times width is a multiple of the model's width."""
    pairs = (("mamba_n_heads", "mamba_d_head"), ("n_mamba_heads", "mamba_headdim"), ("num_heads", "head_dim"))
    for number, wide in pairs:
        if number in whole and wide in whole and ("expand" in whole or "mamba_expand" in whole):
            inner = whole.get("expand", whole.get("mamba_expand", 2)) * size
            found[number] = max(1, inner // whole[wide])
            for groups in ("n_groups", "mamba_n_groups", "mamba_ngroups"):
                if groups in whole:
                    found[groups] = 1
    if "expand" in whole and "intermediate_size" in whole:
        found["intermediate_size"] = whole["intermediate_size"] * size // width


def with_layers(settings: dict[str, Any], depth: int) -> dict[str, Any]:
    """The first and the last layer of each kind, :data:`LAYERS` at most."""
    lists = {n: v for n, v in settings.items() if is_kind(v, list, tuple) and len(v) == depth > 1}
    kinds = [tuple(repr(v[i]) for n, v in sorted(lists.items()) if "type" in n or "pattern" in n) for i in range(depth)]
    kept = sorted({*(kinds.index(kind) for kind in set(kinds)), *(depth - 1 - kinds[::-1].index(kind) for kind in set(kinds))})
    kept = sorted({*kept[: LAYERS - 1], *kept[-1:]}) if len(kept) > 1 or lists else list(range(min(depth, 4)))
    for name, value in lists.items():
        settings[name] = [value[i] for i in kept]
    for name, value in settings.items():
        if re.fullmatch(DEPTHS, str(name)) and value == depth:
            settings[name] = len(kept)
        elif name == "num_kv_shared_layers" and isinstance(value, int):
            settings[name] = sum(i >= depth - value for i in kept)
        elif name == "per_layer_config" and is_kind(value, dict):
            layers = {int(key): options for key, options in value.items()}
            settings[name] = {str(new): layers[old] for new, old in enumerate(kept) if old in layers}
        elif re.fullmatch(".*layer_(ids|indices|idx)", str(name)) and is_kind(value, list):
            settings[name] = [kept.index(i) for i in value if i in kept]
    return settings


def reduced(model: PreTrainedModel, *, shorter: bool = True, seed: int = 0) -> PreTrainedModel:
    """A small copy of ``model`` in float32, with noise on every weight, so that biases, norms and gates are not zeros and ones.

    It calls its attention as Transformers spells it out (eager). The process's random state stays as it was.
    """
    settings = small_settings(model.config.to_dict(), shorter=shorter)
    config: Any = type(model.config)(**{name: value for name, value in settings.items() if name != "model_type"})
    config._attn_implementation = "eager"
    with fork_rng([]), torch.no_grad():
        manual_seed(seed)
        copied: PreTrainedModel = cast(Any, type(model))(config).float().eval()
        for p in copied.parameters():
            p += 0.05 * torch.randn(p.shape)
    return copied
