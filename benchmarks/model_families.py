"""Every decoder family of Transformers that can be made small from a random configuration: packed, plain or refused, and by how much
log-probabilities, gradients and samples differ from one eager call of the unmodified model for each row.

    python benchmarks/model_families.py [NAME …]

Texts of 1 to 42 tokens (of at most 24 where rotary frequencies change with the length), beyond windows, chunks and switches, which the
small copies have at 5 to 24 tokens; other lengths and seeds than those that ``upslope`` itself compares on. A family is WRONG where it is
accepted and differs; none may be. Results: ``results/model_families.json``.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from upslope.errors import UsageError
from upslope.language import EmbeddedEngine, LanguagePolicy
from upslope.language.models import quiet
from upslope.language.reduced import reduced
from upslope.language.tiny import character_tokenizer

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48, "original_max_position_embeddings": 4096}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 2048, "rope_theta": 1e4} | {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
MORE: dict[str, dict[str, Any]] = {
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "llama, dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    "llama, yarn": {"rope_parameters": YARN},
    "llama, llama3": {"rope_parameters": LLAMA3},
    "phi3, longrope": {"rope_parameters": LONGROPE},
    "phi3, window": {"sliding_window": 2048},
    "mistral, window": {"sliding_window": 4096},
    "mixtral, window": {"sliding_window": 4096},
    "qwen2, windows": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3, windows": {"use_sliding_window": True, "max_window_layers": 1},
    "falcon, alibi": {"alibi": True, "new_decoder_architecture": False},
    "falcon, new": {"new_decoder_architecture": True, "num_kv_heads": 8, "num_attention_heads": 64, "hidden_size": 4096},
    "lfm2, conv": {"layer_types": ["conv", "full_attention"] * 8, "num_hidden_layers": 16},
    "jamba, no attention": {"attn_layer_offset": 7, "attn_layer_period": 8},
    "bert, decoder": {"is_decoder": True},
    "roberta, decoder": {"is_decoder": True},
    "electra, decoder": {"is_decoder": True},
    "xlm, causal": {"causal": True},
}
NEEDED: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "deepseek_v2": {"num_experts_per_tok": 6, "topk_method": "greedy", "n_routed_experts": 8},
    "reformer": {"is_decoder": True},
    "qwen4_exp_text": {"indexer_head_dim": 64, "indexer_n_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
}
"""What the default configuration of a family lacks."""


def main(names: list[str]) -> None:
    """Compare, print a line each, write the results; those of families that are not named stay."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    target = Path(__file__).parent / "results" / "model_families.json"
    known = json.loads(target.read_text())["families"] if names and target.exists() else []
    rows: dict[str, dict[str, Any]] = {row["family"]: row for row in known}
    for name in names or [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MORE]:
        started = time.perf_counter()
        with quiet():
            row = compared(name)
        rows[name] = {"family": name, **row, "seconds": round(time.perf_counter() - started, 2)}
        print(json.dumps(rows[name]), flush=True)
        write(target, list(rows.values()))


def write(target: Path, rows: list[dict[str, Any]]) -> None:
    """The results with their counts."""
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("packed", "plain", "refused", "not made", "WRONG")}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    target.write_text(f'{{\n  "versions": {json.dumps(versions)},\n  "counts": {json.dumps(counts)},\n  "families": [\n{lines}\n  ]\n}}\n')


def compared(name: str) -> dict[str, Any]:
    """One family's verdict and differences."""
    try:
        config = AutoConfig.for_model(name.split(",")[0], **NEEDED.get(name, {}), **MORE.get(name, {}))
        with torch.device("meta"):
            large = AutoModelForCausalLM.from_config(config)
        model = reduced(large)
    except Exception as error:
        return {"verdict": "not made", "because": one_line(error)}
    try:
        policy = LanguagePolicy(model, character_tokenizer(), compute_dtype=torch.float32)
    except UsageError as error:
        return {"class": type(model).__name__, "verdict": "refused", "because": str(error)}
    how = policy.attention
    found = {"class": type(model).__name__, "verdict": "packed" if how.packed else "plain"}
    found |= {} if how.packed else {"because": how.because, "cached": how.cached}
    try:
        differences = differ(policy, 24 if policy.context < 64 else 42)
    except Exception as error:
        return {**found, "verdict": "WRONG", "error": one_line(error)}
    right = all(value < bound for value, bound in zip(differences.values(), (5e-4, 2e-3, 5e-4), strict=True))
    return {**found, **differences} if right else {**found, "verdict": "WRONG", "way": found["verdict"], **differences}


def differ(policy: LanguagePolicy, limit: int) -> dict[str, float]:
    """Largest differences of log-probabilities, of a parameter's gradient (relative to its norm), and of what the engine says."""
    prompts, completions = ([1, 6, 17], [[25, 3], [0, 7], [19, 12]]) if limit > 40 else ([1, 6, 9], [[12, 3], [0, 7], [15, 8]])
    generator = torch.Generator().manual_seed(3)
    length = torch.tensor(completions)
    prompt_ids = torch.randint(83, (len(prompts), max(prompts)), generator=generator)
    ids = torch.randint(83, (*length.shape, int(length.max())), generator=generator)
    inputs = {"prompt_ids": prompt_ids, "prompt_length": torch.tensor(prompts), "completion_ids": ids, "completion_length": length}
    found, expected = policy.evaluate(**inputs).log_prob, plain(policy.model, inputs)
    weight = torch.randn(found.shape, generator=generator)
    own, theirs = (slopes(policy.model, (weight * x).sum()) for x in (found, expected))
    largest = max(float(g.norm()) for g in theirs)
    gradient = max(float((a - b).norm()) / max(float(b.norm()), largest / 100) for a, b in zip(own, theirs, strict=True))
    policy.stop_ids = frozenset({3})
    texts = [row[:n].tolist() for row, n in zip(prompt_ids, prompts, strict=True)]
    with torch.no_grad():
        started = time.perf_counter()
        policy.model(input_ids=ids[0, :1], use_cache=False)
        slow = time.perf_counter() - started > 0.2  # layers without a kernel for this processor: fewer tokens
        made = EmbeddedEngine(policy, width=4).generate(texts, group_size=2, max_tokens=8 if slow else limit - max(prompts), seed=5)
        said = plain(policy.model, {**inputs, "completion_ids": made.completion_ids, "completion_length": made.length})
    by = {"log_prob": (found - expected).abs().max(), "gradient": torch.tensor(gradient), "sampled": (made.log_prob - said).abs().max()}
    return {key: float(f"{float(value):.2g}") for key, value in by.items()}


def plain(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """One call for each row."""
    found = torch.zeros(inputs["completion_ids"].shape)
    for b, start in enumerate(inputs["prompt_length"].tolist()):
        for g, n in enumerate(inputs["completion_length"][b].tolist()):
            if n:
                ids = torch.cat([inputs["prompt_ids"][b, :start], inputs["completion_ids"][b, g, :n]])
                log_p = model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
                found[b, g, :n] = log_p.gather(-1, ids[start:, None]).squeeze(-1)
    return found


def slopes(model: Any, objective: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of all parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(objective, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def one_line(error: Exception) -> str:
    """Its message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1:])
