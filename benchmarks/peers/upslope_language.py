"""upslope on the work of the language benchmarks, one process one measurement; prints one JSON object.

python upslope_language.py grpo --model DIR                 # 4 prompts of about 47 tokens x 8 completions of exactly 48, one Adam step
python upslope_language.py grpo --model DIR --prompt-tokens 300 --completion-tokens 16
python upslope_language.py dpo  --model DIR                 # 16 pairs, one step
python upslope_language.py tiny                             # a random Llama 4 x 256, 32 prompts x 8 completions of 16
python upslope_language.py generate --model DIR             # 32 and 64 completions of exactly 48 tokens, no training

The counterpart of trl_language.py and vllm_generate.py: the same texts, the same fields, glibc told to keep its memory as for TRL. It
needs upslope's own environment, with the `language` extra. Every setting that is not given is the library's default.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import language_work as work

SHAPES: dict[str, dict[str, int]] = {
    "grpo": {"prompts": 4, "group": 8, "prompt_tokens": 47, "completion_tokens": 48},
    "dpo": {"prompts": 16, "group": 1, "prompt_tokens": 47, "completion_tokens": 48},
    "tiny": {"prompts": 32, "group": 8, "prompt_tokens": 12, "completion_tokens": 16},
    "generate": {"prompts": 8, "group": 8, "prompt_tokens": 47, "completion_tokens": 48},
}
MICRO_BATCH = {"grpo": 8, "dpo": 4}
"""As `upslope train` passes pretrained models through: one group, or four pairs; a tiny model takes all at once."""
PACKAGES = ("upslope", "transformers", "torch", "numpy")
NEVER = frozenset({-1})
"""No token has this id: a policy that stops there writes exactly `max_tokens` tokens. The end token is drawn like any other one."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(SHAPES))
    parser.add_argument("--model", type=Path, help="a Transformers folder; tiny makes its own")
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto", help="of the passes; the weights are fp32")
    parser.add_argument(
        "--micro-batch", type=int, help="sequences (dpo: pairs) in one training pass, whole groups; default: a group, 4 pairs, tiny all"
    )
    parser.add_argument("--precompute-reference", action="store_true", help="dpo: the reference's log-probs before the timed steps")
    for name in ("prompts", "group", "prompt_tokens", "completion_tokens"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64], help="generate: completions at a time, a multiple of --group")
    parser.add_argument("--repeats", type=int, default=5, help="generate: measured calls for each number of rows")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, value in SHAPES[args.task].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.model is None and args.task != "tiny":
        parser.error("--model DIR is needed")
    if args.steps < 1 or args.warmup < 0 or args.repeats < 1:
        parser.error("--steps and --repeats have to be at least 1, --warmup at least 0")
    if args.micro_batch is None:
        args.micro_batch = MICRO_BATCH.get(args.task)
    if args.micro_batch is not None and (args.micro_batch < 1 or args.micro_batch % args.group):
        parser.error(f"--micro-batch has to be a multiple of --group ({args.group})")
    if any(rows < 1 or rows % args.group for rows in args.rows):
        parser.error(f"--rows have to be multiples of --group ({args.group})")
    return args


def update(args: argparse.Namespace) -> Any:
    """TRL's optimizer settings: a learning rate of 1e-6, gradients clipped to a norm of 1, Adam's eps 1e-8."""
    from upslope import Ascent

    units = args.micro_batch and args.micro_batch // args.group
    return Ascent(learning_rate=1e-6, max_grad_norm=1.0, eps=1e-8, micro_batch_size=units)


def texts_of(args: argparse.Namespace, policy: Any, number: int) -> list[str]:
    """The prompts."""
    if args.task == "tiny":
        return work.tiny_prompts(number, args.prompt_tokens)
    return work.prompts(lambda text: len(policy.encode(text)), number, args.prompt_tokens)


def grpo(args: argparse.Namespace, policy: Any, watch: work.Stopwatch) -> dict[str, Any]:
    """One GRPO step after another; what was seen: spread of the rewards, lengths."""
    from upslope import GRPO, train
    from upslope.language import Completions, EmbeddedEngine

    class Timed(EmbeddedEngine):
        def sync(self, *args: Any, **kwargs: Any) -> None:  # casting the weights counts as generation
            watch.timed(super().sync, *args, **kwargs)

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return watch.timed(super().generate, *args, **kwargs)

    def distinct(*, completions: list[str]) -> list[float]:
        return [work.reward(completion) for completion in completions]

    texts = texts_of(args, policy, args.prompts)
    collect = Completions(
        texts, distinct, group_size=args.group, max_tokens=args.completion_tokens, num_prompts=args.prompts,
        engine=Timed(policy), seed=args.seed,
    )  # fmt: skip
    spread: list[int] = []
    lengths: set[int] = set()

    def after_step(state: Any) -> None:
        watch.step()
        spread.append(round(state.metrics["groups_with_spread"] * args.prompts))
        lengths.update(state.rollout.inputs["completion_length"].flatten().tolist())
        watch.start()

    loaded = work.peak_gb()
    algorithm = GRPO(update=update(args))
    watch.start()
    train(algorithm, policy, collect, iterations=args.warmup + args.steps, seed=args.seed, callbacks=after_step)
    # Groups without spread are left out of the training pass, so a smaller number than `prompts` is less work than TRL's.
    return {
        "prompt_lengths": sorted({len(policy.encode(text)) for text in texts}), "groups_with_spread": min(spread[args.warmup :]),
        "groups_with_spread_by_step": spread, "completion_lengths": sorted(lengths), "rss_before_training_gb": loaded,
    }  # fmt: skip


def dpo(args: argparse.Namespace, policy: Any, watch: work.Stopwatch) -> dict[str, Any]:
    """One DPO step after another."""
    from upslope import DPO, train
    from upslope.language import Pair, preference_pairs

    found = work.pairs(lambda text: len(policy.encode(text)), args.prompts, args.prompt_tokens, args.completion_tokens)
    pairs = [Pair(**pair) for pair in found]
    collect = preference_pairs(policy, pairs, batch_size=len(pairs), reference=policy.frozen(), seed=args.seed)
    seen: dict[str, Any] = {}

    def after_step(state: Any) -> None:
        watch.step()
        lengths = state.rollout.inputs["completion_length"]
        seen["rows"], seen["completion_tokens_per_row"] = lengths.numel(), round(float(lengths.float().mean()), 2)
        if not args.precompute_reference:  # every step computes its own, as for pairs that are seen for the first time
            collect.remembered.clear()
        watch.start()

    seen["rss_before_training_gb"] = work.peak_gb()
    if args.precompute_reference:
        collect(policy)
    algorithm = DPO(update=update(args))
    watch.start()
    train(algorithm, policy, collect, iterations=args.warmup + args.steps, seed=args.seed, callbacks=after_step)
    return seen


def generate(args: argparse.Namespace, policy: Any) -> dict[str, Any]:
    """Completions of `rows / group` prompts at a time."""
    from upslope.language import EmbeddedEngine

    engine = EmbeddedEngine(policy)
    ids = [policy.encode(text) for text in texts_of(args, policy, max(args.rows) // args.group)]
    found: dict[str, Any] = {}
    for rows in args.rows:
        seconds: list[float] = []
        cpu: list[float] = []
        for repeat in range(args.repeats + 1):  # the first is unmeasured
            before, cpu_before = time.perf_counter(), time.process_time()
            generated = engine.generate(
                ids[: rows // args.group], group_size=args.group, max_tokens=args.completion_tokens, seed=args.seed * 1_000 + repeat
            )
            seconds.append(round(time.perf_counter() - before, 4))
            cpu.append(round(time.process_time() - cpu_before, 4))
            assert set(generated.length.flatten().tolist()) == {args.completion_tokens} and generated.length.numel() == rows
        found[str(rows)] = {
            prefix + key: value
            for prefix, timed in (("", seconds[1:]), ("cpu_", cpu[1:]))
            for key, value in (
                ("generate_seconds", work.median(timed)),
                ("tokens_per_second", round(rows * args.completion_tokens / statistics.median(timed), 1)),
                ("repeats", timed),
            )
        }
    return {"prompt_lengths": sorted(set(map(len, ids))), "rows": found, "width": engine.width}


def main() -> None:
    started = time.perf_counter()
    args = parse()
    malloc = work.tune_malloc()  # as for TRL, before anything is loaded; upslope does the same when it makes a policy
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.simplefilter("ignore")
    import torch

    from upslope.language import LanguagePolicy
    from upslope.language.machine import preferred

    torch.set_num_threads(args.threads)
    chosen = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    with tempfile.TemporaryDirectory() as folder:
        policy = LanguagePolicy.from_pretrained(args.model or work.write_tiny(Path(folder) / "tiny"), compute_dtype=chosen)
    policy.stop_ids = NEVER
    watch = work.Stopwatch()
    weight = next(parameter for parameter in policy.model.parameters() if parameter.dim() == 2)
    before = weight.detach().clone()
    timed: dict[str, Any]
    if args.task == "generate":
        start_seconds = round(time.perf_counter() - started, 2)
        timed = {"start_seconds": start_seconds, **generate(args, policy)}
    else:
        seen = (dpo if args.task == "dpo" else grpo)(args, policy, watch)
        new_tokens = 0 if args.task == "dpo" else args.prompts * args.group * args.completion_tokens
        changed = round(float((weight.detach() != before).float().mean()), 4)
        timed = {
            "prompts": args.prompts, "micro_batch": args.micro_batch or args.prompts * args.group,
            **watch.report(args.warmup, new_tokens), **seen, "changed_weights": changed,
        }  # fmt: skip
    record = {
        "system": "upslope", "task": args.task, "dtype": "bf16-compute" if policy.compute_dtype == torch.bfloat16 else "fp32",
        "fast_bf16": preferred("cpu") == torch.bfloat16, "malloc": malloc, "threads": args.threads, "group": args.group,
        "prompt_tokens": args.prompt_tokens, "completion_tokens": args.completion_tokens, **timed, "peak_rss_gb": work.peak_gb(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
