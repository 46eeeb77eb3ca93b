"""Post-training a language model on one core: GRPO and DPO steps against TRL, generation against vLLM.

upslope model smollm2 --out DIR                                # once: the model, as a Transformers folder
python benchmarks/language_speed.py --model DIR                # about 40 minutes where bf16 is fast, 3 hours where it is not; 3 rounds
python benchmarks/language_speed.py --works tiny --rounds 5    # needs no model
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from harness import OURS, PEERS, Record, alternate, load_average, median, ours_is_ready, peer_python, ratio, run, run_peer, summarize, write

WORKS = ("grpo", "one-pass", "long", "dpo", "tiny", "generate", "default")
SHAPED = {"long": ("--prompt-tokens", "300", "--completion-tokens", "16"), "one-pass": ("--micro-batch", "32")}
"""Works that are grpo with other sizes."""
ROWS = ("32", "64")
TARGETS = {"grpo": 2.5, "default": 5.0, "long": 4.0, "dpo": 2.5, "tiny": 1.2}
MEMORY_TARGET = 0.7
KEYS = (
    "step_seconds", "cpu_step_seconds", "generate_seconds", "train_seconds", "generated_tokens_per_second",
    *(f"{prefix}tokens_per_second_{rows}" for rows in ROWS for prefix in ("", "cpu_")), "peak_rss_gb", "process_seconds",
)  # fmt: skip
PRECISION = {
    True: "bf16 on every side: upslope's passes (its weights are float32), trl's weights, trl-default's autocast, vllm's weights",
    False: "float32 on every side: this processor is no faster in bf16",
}
PROTOCOL = (
    "Fresh processes, pinned to one core, one thread, in turns: the systems of one work alternate before the next work begins. One "
    "optimizer step is unmeasured in each process, then `steps` are measured; a process counts with their median, a system with the "
    "median of its processes. grpo: 4 prompts of about 47 tokens x 8 completions of exactly 48, one AdamW step, no KL, "
    "as each side is set up: upslope a group in a pass, its setting for pretrained models, trl 8 rows, where it was fastest. one-pass: "
    "the same with all 32 rows in a pass on both sides. long: prompts of 300 tokens, completions of 16. dpo: 16 pairs, 4 in a pass, the "
    "reference's pass in every step. tiny: a random Llama 4 x 256, 32 x 8 x 16. "
    "generate: 32 and 64 completions of 48 tokens; the engine's start and one call are unmeasured. trl: tuned (see trl_language.py); "
    "default: TRL's defaults. Ratios are of wall-clock seconds; cpu_value is the same ratio of the process's own seconds, which leave out "
    "what others took of the core. peak_rss_gb: the largest resident set of the process. Where this processor is no faster in bf16, "
    "every system computes in float32."
)


def flat(record: Record) -> Record:
    """Puts the rates of a generating process, by number of rows, beside its other numbers."""
    for rows, found in record.get("rows", {}).items() if isinstance(record.get("rows"), dict) else ():
        record |= {f"{prefix}tokens_per_second_{rows}": found[f"{prefix}tokens_per_second"] for prefix in ("", "cpu_")}
    return record


def run_upslope(arguments: list[str], core: int) -> Record:
    """Runs our side of the work, in the environment of upslope."""
    seconds, output = run([OURS / "python", PEERS / "upslope_language.py", *arguments], core)
    return json.loads(output.strip().splitlines()[-1]) | {"process_seconds": round(seconds, 4)}


def fast_bf16(core: int) -> bool:
    """Whether this processor multiplies matrices of bf16 in hardware, by which upslope chooses."""
    _, output = run([OURS / "python", "-c", "from upslope.language.machine import preferred; print(preferred('cpu'))"], core)
    return output.strip().endswith("bfloat16")


def make_systems(
    work: str, model: Path | None, core: int, steps: int, fast: bool, default: bool, micro_batch: int | None
) -> dict[str, Callable[[int], Record]]:
    """The systems of one work, each a function of the seed; `default` adds TRL with its own defaults."""
    at = ["--model", str(model)] if model and work != "tiny" else []
    task = "grpo" if work in SHAPED else work
    more = [*at, *SHAPED.get(work, ())]

    def ours(seed: int) -> Record:
        arguments = [task, *more, "--dtype", "bf16" if fast else "fp32", "--seed", str(seed)]
        if work != "generate":
            arguments += ["--steps", str(steps)]
        if micro_batch is not None and work in ("grpo", "long", "dpo"):
            arguments += ["--micro-batch", str(micro_batch)]
        return flat(run_upslope(arguments, core))

    def vllm(seed: int) -> Record:
        arguments = [*more, "--dtype", "bfloat16" if fast else "float32", "--seed", str(seed)]
        return flat(run_peer("vllm", "vllm_generate.py", arguments, core))

    def trl(settings: str, dtype: str) -> Callable[[int], Record]:
        arguments = [task, *more, "--settings", settings, "--dtype", dtype if fast else "fp32", "--steps", str(steps)]
        return lambda seed: run_peer("trl", "trl_language.py", [*arguments, "--seed", str(seed)], core)

    if work == "generate":
        return {"generate/upslope": ours, "generate/vllm": vllm}
    systems = {f"{work}/upslope": ours, f"{work}/trl": trl("tuned", "bf16-weights")}
    return systems | ({f"{work}/trl-default": trl("default", "bf16-autocast")} if default else {})


def same_work(records: list[Record], systems: tuple[str, ...]) -> bool:
    """Whether all runs of these systems wrote completions of the same length, and trained on every group of them.

    upslope leaves out groups whose rewards are all equal; TRL trains on them for nothing.
    """
    runs = [record for record in records if record["system"] in systems]
    lengths = {tuple(record.get("completion_lengths", ())) for record in runs}
    trained = all(record.get("groups_with_spread", record["prompts"]) == record["prompts"] for record in runs)
    tokens = [record["completion_tokens_per_row"] for record in runs if "completion_tokens_per_row" in record]
    return len(lengths) <= 1 and trained and (not tokens or max(tokens) - min(tokens) < 1)


def against(records: list[Record], work: str, ours: str, peer: str) -> Record:
    """How many times as long a step of the peer takes, and whether that is enough; None where one was left out."""
    value, cpu = (ratio(median(records, peer, key), median(records, ours, key)) for key in ("step_seconds", "cpu_step_seconds"))
    same = None if value is None else same_work(records, (ours, peer))
    met = None if value is None else bool(same) and value >= TARGETS[work]
    return {"value": value, "cpu_value": cpu, "target": f">= {TARGETS[work]:g}", "met": met, "same_work": same}


def measure(records: list[Record]) -> Record:
    """The numbers that the measure asks for, and whether each is met; None where a system was left out."""
    found: Record = {}
    for work in TARGETS:
        base, peer = ("grpo", "trl-default") if work == "default" else (work, "trl")
        name = f"{work}_step_trl_over_upslope" if work != "default" else "grpo_step_trl_default_over_upslope"
        found[name] = against(records, work, f"{base}/upslope", f"{base}/{peer}")
    memory = {
        work: ratio(median(records, f"{work}/upslope", "peak_rss_gb"), median(records, f"{work}/trl", "peak_rss_gb"))
        for work in ("grpo", "one-pass", "long", "dpo", "tiny")
    }
    for work in ("grpo", "one-pass"):
        value = memory[work]
        met = None if value is None else value <= MEMORY_TARGET
        found[f"{work}_peak_memory_upslope_over_trl"] = {"value": value, "target": f"<= {MEMORY_TARGET:g}", "met": met}
    found["other_peak_memory_upslope_over_trl"] = {work: memory[work] for work in ("long", "dpo", "tiny")}
    for rows in ROWS:
        value, cpu = (
            ratio(median(records, "generate/upslope", key), median(records, "generate/vllm", key))
            for key in (f"tokens_per_second_{rows}", f"cpu_tokens_per_second_{rows}")
        )
        met = None if value is None else value >= 1
        found[f"generate_{rows}_tokens_per_second_upslope_over_vllm"] = {"value": value, "cpu_value": cpu, "target": ">= 1", "met": met}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured optimizer steps in each process")
    parser.add_argument(
        "--micro-batch", type=int, help="of upslope in grpo, long and dpo: sequences (dpo: pairs) in a pass; default: a group (4 pairs)"
    )
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--works", default=",".join(WORKS), help=f"a comma-separated choice of {', '.join(WORKS)}")
    parser.add_argument("--model", type=Path, help="a Transformers folder; every work but tiny needs it")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = args.works.split(",")
    if unknown := sorted(set(chosen) - set(WORKS)):
        parser.error(f"--works: no such work: {', '.join(unknown)}; choose from {', '.join(WORKS)}")
    if set(chosen) != {"tiny"} and (args.model is None or not (args.model / "config.json").exists()):
        parser.error("--model: expected the folder of a Transformers model (upslope model smollm2 --out DIR makes one)")
    model = args.model.resolve() if args.model else None
    ours_is_ready()
    peers = [peer for peer, needed in (("trl", set(chosen) != {"generate"}), ("vllm", "generate" in chosen)) if needed]
    for peer in peers:
        peer_python(peer)
    load = load_average()
    fast = fast_bf16(args.core)
    records: list[Record] = []
    for work in WORKS[:-1]:
        default = work == "grpo" and "default" in chosen
        if work in chosen or default:
            systems = make_systems(work, model, args.core, args.steps, fast, default, args.micro_batch)
            if work not in chosen:
                del systems["grpo/trl"]
            records += alternate(systems, args.rounds)
    write(
        "language_speed",
        peers,
        records,
        args.out,
        protocol=PROTOCOL,
        load_average_before=load,
        fast_bf16=fast,
        precision=PRECISION[fast],
        works=chosen,
        steps=args.steps,
        summary=summarize(records, KEYS),
        measures=measure(records),
    )


if __name__ == "__main__":
    main()
