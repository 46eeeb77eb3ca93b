"""What a run in the language world says: the plan, progress with samples of what is said, the result in plain words."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from upslope.run.chart import PALETTE, Line, Panel, draw, save
from upslope.run.curve import series, smoothed
from upslope.run.language_evaluate import is_foreign
from upslope.run.language_settings import CompletionsSettings
from upslope.run.report import Live, Meter, Plain, Progress, Silent, plural
from upslope.terminal import drawn_on

COLUMNS = {
    "reward": "reward",
    "evaluation_accuracy": "accuracy",
    "completion_length": "length",
    "reference_kl": "KL",
    "approx_kl": "approx KL",
    "entropy": "entropy",
    "clip_fraction": "clip fraction",
    "dead_groups": "dead groups",
    "mismatch": "mismatch",
    "log_prob": "log prob",
    "accuracy": "pairs right",
    "margin": "margin",
}
SHOWN_SAMPLES = 2
"""Completions that are printed with each line of progress."""


def plan(run: Any, prepared: Any, folder: Any) -> str:
    """The whole run in words, before it starts."""
    from upslope.language.masters import dropout_of

    settings, collector, update = run.settings, run.collector, run.algorithm.update
    policy = prepared.policy
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    what = f"{total:,} parameters" if trained == total else f"{total:,} parameters, {trained:,} of them trained"
    count = getattr(update, "num_minibatches", 1)
    steps = f"{plural(update.num_epochs, 'epoch')} of {plural(count, 'minibatch')}".replace("minibatchs", "minibatches")
    if isinstance(collector, CompletionsSettings):
        completions = collector.num_prompts * collector.group_size
        gathered = f"{plural(collector.num_prompts, 'prompt')} × {plural(collector.group_size, 'completion')} = {completions:,} completions"
        gathered += f" of at most {plural(prepared.collect.max_tokens, 'token')} per iteration"
    else:
        gathered = f"{plural(prepared.collect.batch_size, 'recorded example')} per iteration"
    precision = str(policy.compute_dtype).removeprefix("torch.")
    lines = [
        f"{run.name} on {run.target}, seed {settings.seed}",
        f"  {gathered}, {steps}, learning rate {update.learning_rate:g}",
        f"  {plural(settings.iterations, 'iteration')}"
        + ("" if settings.until_accuracy is None else f"; ends once {settings.until_accuracy:.0%} of held-out problems are answered right"),
        f"  model {run.model.model}, {what}, passes in {precision}, temperature {policy.temperature:g}",
        f"  attention: {policy.attention}",
    ]
    if dropout := dropout_of(policy.model):
        named = ", ".join(f"{name} {value:g}" for name, value in dropout.items())
        lines.append(
            f"  dropout: off, though the model's configuration says {named}: what samples and what scores must be one distribution"
        )
    if settings.warm_start > 0:
        lines.append(f"  warm start: imitates right answers until {settings.warm_start:.0%} of training problems are answered right")
    if prepared.task is not None:
        held_out, train = len(prepared.task.held_out), len(prepared.task.train)
        lines.append(f"  {plural(train, 'problem')} to train on, {held_out:,} held out")
    if prepared.num_long:
        done = {"drop": "left out", "cut": "cut at the beginning"}[run.task.long_prompts]
        lines.append(f"  {plural(prepared.num_long, 'prompt')} too long for the model's context of {policy.context:,} tokens: {done}")
    return "\n".join([*lines, f"  writing to {folder}"])


class LanguageMeter(Meter):
    """Iterations done, and the newest numbers."""

    def __init__(self, iterations: int) -> None:
        super().__init__(iterations)
        self.latest: dict[str, Any] = {}

    def update(self, row: Mapping[str, Any]) -> None:
        super().update(row)  # the pace counts from the first iteration: a warm start before it says nothing of it
        self.latest |= {name: row[name] for name in COLUMNS if row.get(name) is not None}

    @property
    def fraction(self) -> float:
        return min(1.0, self.row.get("iteration", 0) / self.total_steps)

    def words(self, columns: Mapping[str, str] = COLUMNS, width: int = 1000) -> str:
        parts = [f"{label} {self.latest[name]:.3g}" for name, label in COLUMNS.items() if name in self.latest]
        speed = self.row.get("tokens_per_second")
        parts += [] if speed is None else [f"{speed:,.0f} tokens/s"]
        while parts and len(" · ".join(parts)) > width:
            parts.pop()
        return " · ".join(parts)


class _Iterations:
    """What the progress displays ask settings for."""

    def __init__(self, iterations: int) -> None:
        self.total_steps = iterations


class PlainIterations(Plain):
    """A line every two seconds, with two of the newest completions."""

    def __init__(self, iterations: int, stream: TextIO) -> None:
        super().__init__(_Iterations(iterations), stream)
        self.meter = LanguageMeter(iterations)
        self.samples: Sequence[Mapping[str, Any]] = ()

    def _print(self) -> None:
        row = self.meter.row
        if row.get("iteration", -1) == self.shown:
            return
        self.shown, self.last = row["iteration"], time.perf_counter()
        parts = (f"{row['iteration']:>6,} of {self.meter.total_steps:,}", self.meter.words(), self.meter.left())
        self.note("\n".join([" · ".join(part for part in parts if part), *map(sample_words, some(self.samples))]))


class LiveIterations(Live):
    """rich's progress bar with the same numbers; completions scroll by above it."""

    def __init__(self, iterations: int, stream: TextIO) -> None:
        super().__init__(_Iterations(iterations), stream)
        self.meter = LanguageMeter(iterations)
        self.samples: Sequence[Mapping[str, Any]] = ()
        self.next_samples = 0.0

    def _show(self) -> None:
        left = self.meter.left()
        words = self.meter.words(COLUMNS, self.width - 34 - len(left))
        self.bar.update(self.task, completed=self.meter.row["iteration"], words=f"{left} · {words}" if left else words)
        if self.samples and self.next > self.next_samples:
            self.next_samples = self.next + 2.0
            self.note("\n".join(map(sample_words, some(self.samples))))

    def close(self) -> None:
        """Replace the bar by its last words."""
        self.bar.stop()
        if self.meter.row:
            self.note(f"{self.meter.row['iteration']:,} of {self.meter.total_steps:,} iterations · {self.meter.words()}")


def progress_for(iterations: int, quiet: bool, stream: TextIO | None = None) -> Progress:
    """A live line on a terminal, plain lines elsewhere, nothing where quiet is asked for."""
    target: TextIO = sys.stdout if stream is None else stream
    if quiet:
        return Silent()
    return LiveIterations(iterations, drawn_on(target)) if target.isatty() else PlainIterations(iterations, target)


def some(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best and the worst of the newest completions."""
    scored = sorted((s for s in samples if s.get("score") is not None), key=lambda s: s["score"])
    return [] if not scored else scored[-1:] if len(scored) == 1 else [scored[-1], scored[0]]


def sample_words(sample: Mapping[str, Any]) -> str:
    """``  1.00  '12+34=' → '46'`` on one line."""
    prompt = sample["prompt"]
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return f"        {sample['score']:5.2f}  …{shortened(asked, 30, tail=True)} → {shortened(sample['completion'], 60)}"


def shortened(text: str, width: int, *, tail: bool = False) -> str:
    """A text on one line, cut to a width."""
    flat = " ".join(text.split())
    if len(flat) <= width:
        return repr(flat)
    return repr(flat[-width:] if tail else flat[: width - 1] + "…")


def result_words(summary: Mapping[str, Any], folder: Path, run: Any) -> str:
    """What happened, and what to try next."""
    status = "stopped on request: everything up to the last iteration is saved" if summary["status"] == "interrupted" else "finished"
    if summary["solved"]:
        status = f"solved: accuracy reached {summary['solved_at']:g}"
    lines = [status]
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
    lines.append(
        f"{plural(summary['iterations'], 'iteration')} in {summary['train_seconds']:.1f} s of training{warm}, "
        f"{summary['wall_seconds']:.1f} s with evaluation and files"
    )
    lines.append(f"learning curve: {folder / 'curve.png'}")
    rows = next_commands(summary, folder, run)
    width = max(map(len, rows)) + 4
    return "\n".join([*lines, "", "try next:", *(f"  {command:<{width}}{why}" for command, why in rows.items())])


def next_commands(summary: Mapping[str, Any], folder: Path, run: Any) -> dict[str, str]:
    """Commands that make sense after this run, and work as they stand, with what each is for."""
    task = [] if run.task.task is None else ["--task", run.task.task]
    rows: dict[tuple[str, ...], str] = {}
    scores = run.name == "reward-model"
    if not scores:
        rows["chat", str(folder)] = "talk to it"
    if summary["episodes"]:
        # what a file names is not imported, so rewards that would be are named again
        reward = ["--reward", *run.task.reward] if any(map(is_foreign, run.task.reward)) else []
        rows["evaluate", str(folder), *task, *reward, "--json"] = "measure it again"
    elif summary.get("held_out_pairs") or (run.name in ("dpo", "reward-model") and run.collector.pairs is not None):
        rows["evaluate", str(folder)] = "rank preference pairs with it"
    if scores and task:
        rows["train", "grpo", "--model", run.model.model, *task, "--reward", str(folder)] = "train with it as the reward"
    rows["export", str(folder), "--out", f"{folder}-model"] = "an ordinary Transformers folder, for vLLM for one"
    return {shlex.join(["upslope", *words]): why for words, why in rows.items()}


def draw_curve(path: Path, rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Reward of training completions with their running mean, and the accuracy on held-out problems, over iterations."""
    by_iteration = [{**row, "total_steps": row["iteration"]} for row in rows]
    name, label = next(((n, w) for n, w in CURVES.items() if any(n in row for row in rows)), ("objective", "objective"))
    x, y = series(by_iteration, name)
    lines = [Line(x, y, PALETTE[0], label, width=1.2, faint=True), Line(x, smoothed(y), PALETTE[0], "running mean", width=2.4)]
    points = series(by_iteration, "evaluation_accuracy")
    if len(points[0]):
        lines.append(Line(*points, PALETTE[1], "accuracy on held-out problems", width=1.4, marks=True))
    save(draw([Panel(title, "iteration", label, lines)]), path)


CURVES = {"reward": "reward of training completions", "accuracy": "share of pairs ranked right", "log_prob": "log-probability per token"}
"""What is drawn, the first that a run has."""
