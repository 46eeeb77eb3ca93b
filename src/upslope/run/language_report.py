"""What a run in the language world says: the plan, samples of what is said, the result, what to try next."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.language import LanguagePolicy, Task
from upslope.language.models import dropout_of
from upslope.language.rendering import NOT_FOUND
from upslope.run.config import RunConfig
from upslope.run.curve import curve_lines
from upslope.run.drawing import Panel, draw, save
from upslope.run.language_evaluate import is_foreign
from upslope.run.language_settings import CompletionsSettings
from upslope.run.report import STOPPED, Field, climbing, plural

SHOWN = (
    *("reward", "evaluation_accuracy", "completion_length", "reference_kl", "approx_kl", "entropy", "clip_fraction", "dead_groups"),
    *("mismatch", "log_prob", "accuracy", "margin"),
)
OTHERWISE = {"evaluation_accuracy": "accuracy", "completion_length": "length", "reference_kl": "KL", "approx_kl": "approx KL"}
NAMES = {name: name.replace("_", " ") for name in SHOWN} | OTHERWISE | {"accuracy": "pairs right"}
FIELDS = (*(Field(name, f"{NAMES[name]} {{:.3g}}", stays=True) for name in SHOWN), Field("tokens_per_second", "{:,.0f} tokens/s"))
"""What progress shows; not every iteration evaluates, so numbers stay until there are newer ones."""

CURVES = {"reward": "reward of training completions", "accuracy": "share of pairs ranked right", "log_prob": "log-probability per token"}
"""What is drawn, the first that a run has."""


def plan(config: RunConfig, target: str, task: Task | None, policy: LanguagePolicy, collect: Any, num_long: int) -> list[str]:
    settings, collector = config.settings, config.collector
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    what = f"{total:,} parameters" if trained == total else f"{total:,} parameters, {trained:,} of them trained"
    if isinstance(collector, CompletionsSettings):
        completions = collector.num_prompts * collector.group_size
        gathered = f"{plural(collector.num_prompts, 'prompt')} × {plural(collector.group_size, 'completion')} = {completions:,} completions"
        gathered += f" of at most {plural(collect.max_tokens, 'token')} per iteration"
    else:
        gathered = f"{plural(collect.batch_size, 'recorded example')} per iteration"
    goal = settings.until_accuracy
    ends = "" if goal is None else f"; ends once {goal:.0%} of held-out problems are answered right"
    precision = str(policy.compute_dtype).removeprefix("torch.")
    lines = [
        f"{config.name} on {target}, seed {settings.seed}",
        f"{gathered}, {climbing(config.algorithm.update)}",
        f"{plural(settings.iterations, 'iteration')}{ends}",
        f"model {config.policy.model}, {what}, passes in {precision}, temperature {policy.temperature:g}",
        f"attention: {policy.attention}",
    ]
    if dropout := dropout_of(policy.model):
        named = ", ".join(f"{name} {value:g}" for name, value in dropout.items())
        lines.append(f"dropout: off, though the model's configuration says {named}: what samples and what scores must be one distribution")
    if said := unmarked_end(policy):
        lines.append(said)
    if settings.warm_start > 0:
        lines.append(f"warm start: imitates right answers until {settings.warm_start:.0%} of training problems are answered right")
    if task is not None:
        lines.append(f"{plural(len(task.train), 'problem')} to train on, {len(task.held_out):,} held out")
    if num_long:
        done = {"drop": "left out", "cut": "cut at the beginning"}[config.problem.long_prompts]
        lines.append(f"{plural(num_long, 'prompt')} too long for the model's context of {policy.context:,} tokens: {done}")
    return lines


def unmarked_end(policy: LanguagePolicy) -> str:
    """What a run says of a chat template that has no token for the end of a turn; '' for one that has, and for none."""
    tokenizer: Any = policy.tokenizer
    turn = policy.rendering.turn
    if not tokenizer.chat_template or turn.end_id is not None:
        return ""
    if not turn.found:
        return f"chat template: {NOT_FOUND} ({tokenizer.eos_token!r})"
    ends = f"ends a turn with {turn.closing!r:.40}, which is no single token" if turn.closing else "writes nothing behind a turn"
    return f"chat template: it {ends}; where prompts are messages, answers are recorded and sampled up to {tokenizer.eos_token!r} instead"


def sample_lines(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The best and the worst of the newest completions, a line each: ``  1.00  '12+34=' → '46'``."""
    scored = sorted((s for s in samples if s.get("score") is not None), key=lambda s: s["score"])
    lines: list[str] = []
    for sample in scored if len(scored) < 2 else (scored[-1], scored[0]):
        asked = sample["prompt"] if isinstance(sample["prompt"], str) else sample["prompt"][-1]["content"]
        lines.append(f"        {sample['score']:5.2f}  …{shortened(asked, 30, tail=True)} → {shortened(sample['completion'], 60)}")
    return lines


def shortened(text: str, width: int, *, tail: bool = False) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= width else flat[-width:] if tail else flat[: width - 1] + "…")


def outcome(summary: Mapping[str, Any]) -> list[str]:
    lines = [STOPPED if summary["status"] == "interrupted" else "finished"]
    if summary["solved"]:
        lines = [f"solved: accuracy reached {summary['solved_at']:g}"]
    if summary.get("accuracy") is not None:
        low, high = summary["accuracy_interval"]
        before = summary.get("accuracy_before")
        start = "" if before is None else f", {before:.1%} before training"
        of = plural(summary["episodes"], "held-out problem")
        lines.append(f"{summary['accuracy']:.1%} of {of} answered right (95 % interval {low:.1%} to {high:.1%}){start}")
    elif summary.get("reward_mean") is not None:
        lines.append(f"mean reward on {plural(summary['episodes'], 'held-out problem')}: {summary['reward_mean']:.3f}")
    if summary.get("preference_accuracy") is not None:
        lines.append(f"{summary['preference_accuracy']:.1%} of {plural(summary['held_out_pairs'], 'held-out pair')} ranked right")
    warm = f", {summary['warm_start_seconds']:.1f} s of warm start" if summary.get("warm_start_seconds") else ""
    seconds = f"{summary['train_seconds']:.1f} s of training{warm}, {summary['wall_seconds']:.1f} s with evaluation and files"
    return [*lines, f"{plural(summary['iterations'], 'iteration')} in {seconds}"]


def next_commands(summary: Mapping[str, Any], folder: Path, config: RunConfig) -> dict[str, str]:
    task = [] if config.problem.task is None else ["--task", config.problem.task]
    rows: dict[tuple[str, ...], str] = {}
    scores = config.needs.scores_texts
    if not scores:
        rows["chat", str(folder)] = "talk to it"
    if summary["episodes"]:
        # what a file names is not imported, so rewards that would be are named again
        reward = ["--reward", *config.problem.reward] if any(map(is_foreign, config.problem.reward)) else []
        rows["evaluate", str(folder), *task, *reward, "--json"] = "measure it again"
    elif summary.get("held_out_pairs") or (config.needs.learns_from == "pairs" and config.collector.pairs is not None):
        rows["evaluate", str(folder)] = "rank preference pairs with it"
    if scores and task:
        rows["train", "grpo", "--model", config.policy.model, *task, "--reward", str(folder)] = "train with it as the reward"
    rows["export", str(folder), "--out", f"{folder}-model"] = "an ordinary Transformers folder, for vLLM for one"
    return {shlex.join(["upslope", *argv]): why for argv, why in rows.items()}


def draw_curve(path: Path, rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Reward of training completions with their running mean, and the accuracy on held-out problems, over iterations."""
    by_iteration = [{**row, "total_steps": row["iteration"]} for row in rows]
    name, label = next(((n, w) for n, w in CURVES.items() if any(n in row for row in rows)), ("objective", "objective"))
    lines = curve_lines(by_iteration, name, label, "evaluation_accuracy", "accuracy on held-out problems")
    save(draw([Panel(title, "iteration", label, lines)]), path)
