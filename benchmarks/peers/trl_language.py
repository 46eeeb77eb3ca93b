"""TRL on the work of the language benchmarks, one process one measurement; prints one JSON object.

python trl_language.py grpo --model DIR                     # 4 prompts of about 47 tokens x 8 completions of exactly 48, one AdamW step
python trl_language.py grpo --model DIR --settings default  # TRL's own defaults: bf16 autocast, gradient checkpointing
python trl_language.py grpo --model DIR --prompt-tokens 300 --completion-tokens 16
python trl_language.py dpo  --model DIR                     # 16 pairs, one step
python trl_language.py tiny                                 # a random Llama 4 x 256, 32 prompts x 8 completions of 16

`tuned` is what we found fastest of TRL's own settings: whole weights in bf16 where the processor multiplies them fast (else fp32), no
gradient checkpointing, no logging, and glibc told to keep its memory. Every single setting can be given: try them on another processor.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import language_work as work

SHAPES: dict[str, dict[str, int]] = {
    "grpo": {"prompts": 4, "group": 8, "prompt_tokens": 47, "completion_tokens": 48},
    "dpo": {"prompts": 16, "group": 1, "prompt_tokens": 47, "completion_tokens": 48},
    "tiny": {"prompts": 32, "group": 8, "prompt_tokens": 12, "completion_tokens": 16},
}
MICRO_BATCH = {"grpo": 8, "dpo": 4}
"""Eight rows in one forward pass, which took less time and a third of the memory of 32 at once; tiny takes all rows at once."""
PACKAGES = ("trl", "transformers", "torch", "accelerate", "numpy")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(SHAPES))
    parser.add_argument("--model", type=Path, help="a Transformers folder; tiny makes its own")
    parser.add_argument("--settings", choices=["tuned", "default"], default="tuned")
    parser.add_argument("--dtype", choices=["auto", "bf16-weights", "bf16-autocast", "fp32"], help="default: auto, or bf16-autocast")
    parser.add_argument("--malloc", action=argparse.BooleanOptionalAction, help="glibc keeps its memory; default: as tuned")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="gradient checkpointing; default: as default")
    parser.add_argument("--attention", choices=["sdpa", "eager"])
    parser.add_argument("--cache", choices=["dynamic", "static"], help="generation's key-value cache")
    parser.add_argument("--micro-batch", type=int, help="sequences (dpo: pairs) in one forward pass; default: 8, dpo 4, tiny all")
    parser.add_argument("--optimizer", default="adamw_torch_fused")
    parser.add_argument("--precompute-reference", action="store_true", help="dpo: the reference's log-probs before the timed steps")
    for name in ("prompts", "group", "prompt_tokens", "completion_tokens"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tuned = args.settings == "tuned"
    for name, value in SHAPES[args.task].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.dtype = args.dtype or ("auto" if tuned else "bf16-autocast")
    args.malloc = tuned if args.malloc is None else args.malloc
    args.checkpointing = not tuned if args.checkpointing is None else args.checkpointing
    if args.model is None and args.task != "tiny":
        parser.error("--model DIR is needed")
    if args.steps < 1 or args.warmup < 0:
        parser.error("--steps has to be at least 1 and --warmup at least 0")
    return args


def common(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What GRPOConfig and DPOConfig share."""
    # GRPO's batch counts completions, DPO's counts pairs.
    batch = args.prompts * args.group
    micro = args.micro_batch or min(MICRO_BATCH.get(args.task, batch), batch)
    if batch % micro:
        raise SystemExit(f"--micro-batch: {micro} does not divide {batch}")
    loading = {"dtype": "bfloat16" if args.dtype == "bf16-weights" else "float32"}
    if args.attention:
        loading["attn_implementation"] = args.attention
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": args.warmup + args.steps, "seed": args.seed, "model_init_kwargs": loading,
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": batch // micro, "bf16": args.dtype == "bf16-autocast",
        "gradient_checkpointing": args.checkpointing, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "optim": args.optimizer, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    if args.settings == "tuned":
        settings |= {"logging_strategy": "no", "disable_dropout": True}
    return settings


def grpo(args: argparse.Namespace, watch: work.Stopwatch, folder: str) -> tuple[Any, dict[str, Any]]:
    """The trainer of one GRPO step after another, and what it saw: spread of the rewards, lengths."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left", truncation_side="left")
    if args.task == "tiny":
        texts = work.tiny_prompts(args.prompts, args.prompt_tokens)
    else:
        texts = work.prompts(lambda text: len(tokenizer(text)["input_ids"]), args.prompts, args.prompt_tokens)
    seen: dict[str, Any] = {"prompt_lengths": sorted({len(tokenizer(text)["input_ids"]) for text in texts})}

    def distinct(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rewards = [work.reward(completion) for completion in completions]
        groups = [rewards[index : index + args.group] for index in range(0, len(rewards), args.group)]
        seen["groups_with_spread"] = sum(len(set(group)) > 1 for group in groups)
        seen["completion_lengths"] = sorted({len(ids) for ids in completion_ids} | set(seen.get("completion_lengths", ())))
        return rewards

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            return watch.timed(super()._generate_single_turn, *args, **kwargs)

    generation: dict[str, Any] = {"min_new_tokens": args.completion_tokens}
    more = {"cache_implementation": args.cache} if args.cache else {}
    config = GRPOConfig(
        **common(args, folder), **more, num_generations=args.group, max_completion_length=args.completion_tokens, beta=0.0,
        generation_kwargs=generation,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": text} for text in texts])
    return Timed(model=str(args.model), reward_funcs=distinct, args=config, train_dataset=data, processing_class=tokenizer), seen


def dpo(args: argparse.Namespace, watch: work.Stopwatch, folder: str) -> tuple[Any, dict[str, Any]]:
    """The trainer of one DPO step after another."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    found = work.pairs(lambda text: len(tokenizer(text)["input_ids"]), args.prompts, args.prompt_tokens, args.completion_tokens)
    seen: dict[str, Any] = {}

    class Timed(DPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            seen["rows"], seen["row_tokens"] = inputs["input_ids"].shape
            seen["completion_tokens_per_row"] = round(float(inputs["completion_mask"].sum(1).float().mean()), 2)
            return super()._compute_loss(model, inputs, *args, **kwargs)

    config = DPOConfig(**common(args, folder), precompute_ref_log_probs=args.precompute_reference)
    return Timed(model=str(args.model), args=config, train_dataset=Dataset.from_list(found), processing_class=tokenizer), seen


def main() -> None:
    args = parse()
    malloc = work.tune_malloc() if args.malloc else False
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.simplefilter("ignore")
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(args.threads)
    fast_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if args.dtype == "auto":
        args.dtype = "bf16-weights" if fast_bf16 else "fp32"
    watch = work.Stopwatch()

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            args.model = work.write_tiny(Path(folder) / "tiny")
        stdout, sys.stdout = sys.stdout, sys.stderr  # the trainers print
        trainer, seen = (dpo if args.task == "dpo" else grpo)(args, watch, folder)
        loaded_gb = work.peak_gb()
        weight = next(parameter for parameter in trainer.model.parameters() if parameter.dim() == 2)
        before = weight.detach().clone()
        trainer.add_callback(Clock())
        trainer.train()
        sys.stdout = stdout
    new_tokens = 0 if args.task == "dpo" else args.prompts * args.group * args.completion_tokens
    record = {
        "system": "trl", "task": args.task, "settings": args.settings, "dtype": args.dtype, "fast_bf16": fast_bf16, "malloc": malloc,
        "gradient_checkpointing": args.checkpointing, "micro_batch": trainer.args.per_device_train_batch_size,
        "attention": trainer.model.config._attn_implementation, "cache": args.cache or "dynamic", "optimizer": args.optimizer,
        "threads": args.threads, "prompts": args.prompts, "group": args.group, "prompt_tokens": args.prompt_tokens,
        "completion_tokens": args.completion_tokens,
        **watch.report(args.warmup, new_tokens), **seen, "changed_weights": round(float((weight.detach() != before).float().mean()), 4),
        "peak_rss_gb": work.peak_gb(), "rss_before_training_gb": loaded_gb,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
