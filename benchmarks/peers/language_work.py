"""The work that every language driver does: the same prompts, pairs and tiny model, and a report of one process.

python language_work.py tiny DIR          # a random Llama, 4 layers x 256, with a character tokenizer, as a Transformers folder

Standard library only (but for writing the tiny model): `upslope`'s side of a benchmark imports it too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were her all "
    "she there would their we him been has when who will more no if out so said what up its about into than them can only other new some "
    "could time these two may then do first any my now such like our over man me even most made after also did many before must through "
    "back years where much your way well down should because each just those people how too little state good very make world still own "
    "see men work long get here between both life being under never day same another know while last might us great old year off come"
)
WORDS = _TEXT.split()
TINY_CHARACTERS = "0123456789+-*/=() abcdefghijklmnopqrstuvwxyz.,?!"
SPREAD = (-3, -1, 1, 3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def tune_malloc() -> bool:
    """Tells glibc to keep what it has: no mmap for large blocks, no trimming. False where the C library has no mallopt."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, 64 << 20)])


def text(count: Callable[[str], int], tokens: int, seed: int, start: str = "") -> str:
    """Random common words, `tokens` long by `count`, a little less where no word fits any more; `start` goes before and does not count."""
    draw = random.Random(seed)
    found = start
    length = count(found) if found else 0
    goal, misses = length + tokens, 0
    while length < goal and misses < 100:
        longer = f"{found} {draw.choice(WORDS)}" if found else draw.choice(WORDS).capitalize()
        now = count(longer)
        if now <= goal:
            found, length, misses = longer, now, 0
        else:
            misses += 1
    return found


def prompts(count: Callable[[str], int], number: int, tokens: int) -> list[str]:
    """`number` different prompts of about `tokens` tokens: lengths differ by up to 3 from it, the mean of four does not."""
    return [text(count, tokens + SPREAD[index % 4], seed=index) for index in range(number)]


def pairs(count: Callable[[str], int], number: int, prompt_tokens: int, completion_tokens: int) -> list[dict[str, str]]:
    """Preference pairs: a prompt, and two continuations of it of `completion_tokens` tokens, one of which is left for the end token."""
    found: list[dict[str, str]] = []
    for index, prompt in enumerate(prompts(count, number, prompt_tokens)):
        sides = (text(count, completion_tokens - 1, seed=1_000 + 2 * index + side, start=prompt)[len(prompt) :] for side in (0, 1))
        found.append({"prompt": prompt, **dict(zip(("chosen", "rejected"), sides, strict=True))})
    return found


def tiny_prompts(number: int, tokens: int) -> list[str]:
    """Sums of two numbers in `tokens` characters, one token each."""
    draw, left = random.Random(0), (tokens - 2) // 2
    right = tokens - 2 - left
    return [f"{draw.randrange(10**left):0{left}d}+{draw.randrange(10**right):0{right}d}=" for _ in range(number)]


def reward(completion: str) -> float:
    """Different characters of a completion: cheap, and it differs within every group."""
    return float(len(set(completion)))


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """A random Llama (4 layers, width 256, 4 heads, about 3 million parameters) with one token for each character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {piece: index for index, piece in enumerate([*special, *TINY_CHARACTERS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def peak_gb() -> float:
    """The largest resident set of this process so far, in gigabytes (10^9 bytes)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def median(seconds: Sequence[float]) -> float | None:
    """Their median, rounded; None of nothing."""
    return round(statistics.median(seconds), 4) if seconds else None


class Stopwatch:
    """Marks the ends of optimizer steps and adds up what is timed inside each of them, by the wall clock and by the process's own.

    The second, `cpu_seconds`, leaves out what other processes took of the core: with one thread it is the step on an idle machine.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.cpu_steps: list[float] = []
        self.generate: list[float] = []
        self.cpu_generate: list[float] = []
        self.start()

    def start(self) -> None:
        """Call right before the first step."""
        self._last, self._cpu = time.perf_counter(), time.process_time()
        self._inside = self._cpu_inside = 0.0

    def timed(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls, and counts the time as generation."""
        started, cpu = time.perf_counter(), time.process_time()
        result = call(*args, **kwargs)
        self._inside += time.perf_counter() - started
        self._cpu_inside += time.process_time() - cpu
        return result

    def step(self) -> None:
        """Call at the end of every optimizer step."""
        self.steps.append(round(time.perf_counter() - self._last, 4))
        self.cpu_steps.append(round(time.process_time() - self._cpu, 4))
        self.generate.append(round(self._inside, 4))
        self.cpu_generate.append(round(self._cpu_inside, 4))
        self.start()

    def report(self, warmup: int, new_tokens: int) -> dict[str, Any]:
        """Medians over the steps after the first `warmup`; `new_tokens` are those that one step generates."""
        found: dict[str, Any] = {"warmup_steps": warmup}
        for prefix, steps, generate in (("", self.steps, self.generate), ("cpu_", self.cpu_steps, self.cpu_generate)):
            found |= {f"{prefix}step_seconds": median(steps[warmup:]), f"{prefix}steps": steps}
            if new_tokens:
                parts = list(zip(steps[warmup:], generate[warmup:], strict=True))
                found |= {
                    f"{prefix}generate_seconds": median(generate[warmup:]),
                    f"{prefix}train_seconds": median([whole - part for whole, part in parts]),
                    f"{prefix}generated_tokens_per_second": round(new_tokens / statistics.median(generate[warmup:]), 1),
                }
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the tiny model of the language benchmarks.")
    parser.add_argument("what", choices=["tiny"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(json.dumps({"folder": str(write_tiny(args.folder))}))


if __name__ == "__main__":
    main()
