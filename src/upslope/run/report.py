"""What a run says: the plan before it starts, progress while it runs, the result in plain words.

On a terminal progress is one live line (rich); elsewhere, in a log file for one, a plain line every two seconds.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from upslope.run.evaluations import POINTS
from upslope.terminal import drawn_on, printable

Row = Mapping[str, Any]
SECONDS_BETWEEN_LINES = 2.0
RECENT = 10
"""Iterations over which the shown return is averaged."""

COLUMNS = {
    "kl": "KL",
    "improvement": "improvement",
    "line_search_steps": "line search steps",
    "accepted": "accepted",
    "approx_kl": "approx KL",
    "clip_fraction": "clip fraction",
    "explained_variance": "explained variance",
}
SHORT_COLUMNS = {
    "kl": "KL",
    "improvement": "gain",
    "line_search_steps": "tries",
    "accepted": "accepted",
    "approx_kl": "approx KL",
    "clip_fraction": "clip",
    "explained_variance": "expl. var.",
}
WIDE = 120
"""Terminal columns from which the live line has a bar and full names."""


# ------------------------------------------------------------------------------------------------------------ the plan


def plural(count: int, noun: str) -> str:
    """``1 epoch``, ``1,024 steps``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def plan(run: Any, prepared: Any, folder: Any) -> str:
    """The whole run in words, before it starts."""
    settings = run.settings
    lines = [f"{type(run.algorithm).__name__} on {prepared.envs.env_id}, seed {settings.seed}", "  " + collecting(run)]
    lines.append("  " + stopping(settings, prepared.stop_at))
    lines += [f"  {line}" for line in observing(prepared.envs, prepared.policy)]
    lines.append("  " + policy_words(prepared.policy, run.policy, settings))
    lines.append("  update: " + update_words(run.algorithm, prepared, settings.fast))
    lines.append(f"  writing to {folder}")
    return "\n".join(lines)


def update_words(algorithm: Any, prepared: Any, fast: bool) -> str:
    """What of an update is compiled, and why not the rest."""
    if not fast:
        return "in PyTorch, as --no-fast says"
    from upslope.fast.twins import explain  # with the kernels, which nothing before the plan needs

    return explain(algorithm, prepared.policy, "group" if hasattr(prepared.collect, "group_size") else "step")


LARGE = 100.0
"""A number of the observation beyond this saturates a network's first layer."""
LARGE_PIXEL = 10.0


def observing(envs: Any, policy: Any) -> list[str]:
    """What observations are taken for where that is a choice, how large they are where that matters, where action masks come from."""
    lines: list[str] = []
    encoder = policy.encoder
    if (words := encoder.words()) is not None:
        others = " or ".join(choice for choice in ("auto", "yes", "no") if choice != policy.options["image"])
        lines.append(f"observation: {words}; --image {others} takes it otherwise")
    numbers, images = encoder.largest(envs.observation)
    if numbers > LARGE and policy.observation_normalizer is None:
        lines.append(f"the observation holds numbers up to {numbers:,.6g}, and nothing scales them: --normalize-observation does")
    if images > LARGE_PIXEL:
        lines.append(
            f"an image holds numbers up to {images:,.6g} where its space promises at most 1 or nothing: let the environment scale it"
        )
    if envs.action_mask is not None:
        source = envs.mask_source or 'info["action_mask"]'
        lines.append(f"only legal actions are taken, by the environment's {source}")
    return lines


def collecting(run: Any) -> str:
    """``8 environments × 32 steps = 256 transitions per iteration, 10 epochs of 4 minibatches of 64 …``."""
    collector, update = run.collector, getattr(run.algorithm, "update", None)
    if update is None:
        critic = getattr(run.algorithm, "value_learning_rate", None)
        rates = f"learning rate {run.algorithm.learning_rate:g}" + ("" if critic is None else f" (critic {critic:g})")
        return f"1 environment, an update at every step, recorded every {plural(collector.num_steps, 'step')}, {rates}"
    environments = plural(collector.num_envs, "environment")
    if getattr(collector, "data", None) is not None:
        transitions = None
        words = f"{'all' if collector.num_rows is None else collector.num_rows} rows of {collector.data} per iteration"
    elif hasattr(collector, "num_steps"):
        transitions = collector.num_envs * collector.num_steps
        words = f"{environments} × {plural(collector.num_steps, 'step')} = {plural(transitions, 'transition')} per iteration"
    elif hasattr(collector, "group_size"):
        transitions = None
        words = f"{plural(collector.num_groups, 'group')} of {collector.group_size} whole episodes, each from one start, per iteration"
    else:
        transitions = None
        episodes = collector.num_episodes or collector.num_envs
        words = f"{environments}, {plural(episodes, 'whole episode')} per iteration"
    return f"{words}, {(natural if hasattr(update, 'num_value_epochs') else climbing)(update, transitions)}"


def climbing(update: Any, transitions: int | None) -> str:
    """``10 epochs of 4 minibatches of 64, learning rate 0.003 (linear schedule)``."""
    words = passes(getattr(update, "num_epochs", 1), getattr(update, "num_minibatches", 1), transitions)
    rate = f", learning rate {update.learning_rate:g}" if hasattr(update, "learning_rate") else ""
    schedule = getattr(getattr(update, "schedule", None), "__name__", "constant")
    return f"{words}{rate}{'' if schedule == 'constant' else f' ({schedule} schedule)'}"


def natural(update: Any, transitions: int | None) -> str:
    """``one natural-gradient step to a mean KL of at most 0.01 (…); critic: 10 epochs of 4 minibatches of 256, learning rate 0.001``."""
    fixed = getattr(update, "learning_rate", None)
    if fixed is not None:
        length = f"with step size {fixed:g}"
    else:
        searched = hasattr(update, "num_backtracks")
        length = f"to a mean KL of {'at most' if searched else 'about'} {update.max_kl:g}{' by line search' if searched else ''}"
    step = f"one natural-gradient step {length} ({plural(update.num_cg_steps, 'conjugate-gradient iteration')}, damping {update.damping:g})"
    critic = passes(update.num_value_epochs, update.num_value_minibatches, transitions)
    return f"{step}; critic: {critic}, learning rate {update.value_learning_rate:g}"


def passes(epochs: int, minibatches: int, transitions: int | None) -> str:
    """``10 epochs of 4 minibatches of 64``; the size only where it is known."""
    parts = "1 minibatch" if minibatches == 1 else f"{minibatches:,} minibatches"
    return f"{plural(epochs, 'epoch')} of {parts}{'' if transitions is None else f' of {transitions // minibatches:,}'}"


def stopping(settings: Any, stop_at: float | None) -> str:
    """When the run ends, and what is watched on the way."""
    words = f"at most {plural(settings.total_steps, 'step')}, rounded up to whole iterations"
    every, how, episodes = settings.eval_every, "sampled" if settings.eval_sample else "greedy", settings.eval_episodes
    if stop_at is not None:
        goal = f"returns {stop_at:g} or more over {plural(episodes, 'fresh episode')}, twice in a row"
        return f"{words}; ends once the {how} policy {goal} (checked every {plural(every, 'step')})"
    if every == 0:
        return f"{words}; no evaluation before the end"
    when = f"every {plural(every, 'step')}" if every else f"at about {POINTS} points"
    most = plural(episodes, "fresh episode") if every else f"up to {plural(episodes, 'fresh episode')}"
    return f"{words}; {how} evaluation on {most} {when}, the best policy is kept"


def policy_words(policy: Any, chosen: Any, settings: Any) -> str:
    """What the policy is, where it starts from and where it lives."""
    size = sum(p.numel() for p in policy.parameters())
    options = policy.describe()
    if options["class"] == "LinearPolicy":
        tiles, basis = f"{chosen.num_tilings} tilings of {chosen.num_tiles} tiles", f"a Fourier basis of order {chosen.fourier_order}"
        kind = {"tiles": tiles, "fourier": basis}.get(chosen.features, "the observation")
        words = f"policy linear in {kind}, {policy.features.size:,} features"
        return words if settings.init is None else f"{words}, continued from {settings.init}"
    layers = " × ".join(map(str, options.get("hidden_sizes", ()))) or "linear"
    kind = "convolutional policy" if "CNN" in options["class"] else f"{chosen.activation} policy"
    words = f"{kind} with hidden layers {layers}, {size:,} parameters"
    if settings.init is not None:
        words += f", continued from {settings.init}"
    normalized = [w for w, on in (("observations", chosen.normalize_observation), ("rewards", chosen.normalize_reward)) if on]
    words += f", normalized {' and '.join(normalized)}" if normalized else ""
    return words if settings.device == "cpu" else f"{words}, on {settings.device}"


# ------------------------------------------------------------------------------------------------------------ progress


class Progress(Protocol):
    """Shows how far a run is."""

    def update(self, row: Row) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def progress_for(settings: Any, quiet: bool, stream: TextIO | None = None) -> Progress:
    """A live line on a terminal, plain lines elsewhere, nothing where quiet is asked for."""
    target: TextIO = sys.stdout if stream is None else stream
    if quiet:
        return Silent()
    return Live(settings, drawn_on(target)) if target.isatty() else Plain(settings, target)


class Silent:
    """Says nothing."""

    def update(self, row: Row) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Meter:
    """Recent return and speed, from the rows of the iterations."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.returns: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self.started: float | None = None
        self.done_then = 0.0
        self.row: Row = {}

    def update(self, row: Row) -> None:
        self.row = row
        if self.started is None:  # the first iteration also compiled, and is no measure of the others
            self.started, self.done_then = time.perf_counter(), self.fraction
        if "episode_return" in row:
            self.returns.append((row["episode_return"], row.get("num_episodes", 1.0)))

    @property
    def fraction(self) -> float:
        return min(1.0, self.row.get("total_steps", 0) / self.total_steps)

    def words(self, columns: Mapping[str, str] = COLUMNS, width: int = 1000) -> str:
        """``return 212.3 · 61,000 steps/s · approx KL 0.008 · …``; what an iteration did not report, or does not fit, is left out."""
        row, parts = self.row, []
        episodes = sum(count for _, count in self.returns)
        if episodes:
            parts.append(f"return {sum(mean * count for mean, count in self.returns) / episodes:.1f}")
        elif "reward_per_step" in row:
            parts.append(f"reward per step {row['reward_per_step']:.3f}")
        if "train_seconds" in row:
            parts.append(f"{row['total_steps'] / max(row['train_seconds'], 1e-9):,.0f} steps/s")
        parts += [f"{label} {row[name]:.3f}" for name, label in columns.items() if name in row]
        while parts and len(" · ".join(parts)) > width:
            parts.pop()
        return " · ".join(parts)

    def left(self) -> str:
        """Time to the end at the pace so far, evaluation included; nothing before a second has shown a pace, and after the last step."""
        if self.started is None or not self.done_then < self.fraction < 1:
            return ""
        passed = time.perf_counter() - self.started
        if passed < 1.0:
            return ""
        seconds = passed * (1 - self.fraction) / (self.fraction - self.done_then)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


class Plain:
    """A line every two seconds, and one at the end."""

    def __init__(self, settings: Any, stream: TextIO) -> None:
        self.meter, self.stream = Meter(settings.total_steps), stream
        self.last, self.shown = time.perf_counter(), -1

    def update(self, row: Row) -> None:
        self.meter.update(row)
        if time.perf_counter() - self.last >= SECONDS_BETWEEN_LINES:
            self._print()

    def _print(self) -> None:
        row = self.meter.row
        if row.get("iteration", -1) == self.shown:
            return
        self.shown, self.last = row["iteration"], time.perf_counter()
        parts = (f"{row['total_steps']:>10,} steps ({self.meter.fraction:.0%})", self.meter.words(), self.meter.left())
        self.note(" · ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """The last line, where it was not shown yet."""
        if self.meter.row:
            self._print()


class Live:
    """rich's progress bar with the same numbers."""

    def __init__(self, settings: Any, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.meter = Meter(settings.total_steps)
        console = Console(file=stream)
        self.width = console.width
        bar = [BarColumn(bar_width=14)] if self.width >= WIDE else []
        steps, words = TextColumn("{task.completed:>9,.0f} steps"), TextColumn("{task.fields[words]}")
        self.bar = Progress(steps, *bar, words, console=console, refresh_per_second=8, transient=True)
        self.task = self.bar.add_task("", total=settings.total_steps, words="starting")
        self.next = 0.0
        self.bar.start()

    def update(self, row: Row) -> None:
        self.meter.update(row)
        now = time.perf_counter()
        if now >= self.next:  # the text costs more than a small iteration
            self.next = now + 0.1
            self._show()

    def _show(self) -> None:
        wide = self.width >= WIDE
        left = self.meter.left()
        words = self.meter.words(COLUMNS if wide else SHORT_COLUMNS, self.width - 16 - 15 * wide - len(left) - 4)
        self.bar.update(self.task, completed=self.meter.row["total_steps"], words=f"{left} · {words}" if left else words)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(printable(text), highlight=False, markup=False)

    def close(self) -> None:
        """Replace the bar by its last words."""
        if self.meter.row:
            row = self.meter.row
            self.bar.stop()
            self.note(f"{row['total_steps']:,} steps ({self.meter.fraction:.0%}) · {self.meter.words()}")
        else:
            self.bar.stop()


# ---------------------------------------------------------------------------------------------------------- the result


def result_words(summary: Mapping[str, Any], folder: Any) -> str:
    """What happened, in plain words, and what to try next."""
    lines = [verdict(summary)]
    if summary.get("return_mean") is not None:
        lines.append(f"the {summary['evaluated']} policy {returned(summary)}")
    lines.append(
        f"{plural(summary['total_steps'], 'step')} in {summary['train_seconds']:.2f} s of training "
        f"({summary['steps_per_second']:,.0f} steps/s), {summary['wall_seconds']:.2f} s with evaluation and files"
    )
    lines.append(f"learning curve: {folder / 'curve.png'}")
    return "\n".join(lines)


def returned(result: Mapping[str, Any]) -> str:
    """``returns 500.0 on average over 20 fresh episodes (95 % interval …)``; where no episode ended, what a step paid."""
    low, high = result["return_interval"]
    count, ended = result["episodes"], result["episodes_ended"]
    if not ended:
        length = f"{result['length_mean']:,.0f} steps"
        return f"is paid {result['reward_per_step']:.3f} a step: none of {plural(count, 'fresh episode')} ended within {length}"
    words = f"returns {result['return_mean']:.1f} on average over {plural(count, 'fresh episode')} (95 % interval {low:.1f} to {high:.1f})"
    return words if ended == count else f"{words}; {ended} of {count} episodes ended, the others were cut off and count with what they had"


def verdict(summary: Mapping[str, Any]) -> str:
    """``solved: …``, ``not solved: …``, ``stopped: …`` or ``finished``."""
    goal = summary.get("solved_at")
    if summary["status"] == "interrupted":
        return "stopped on request: everything up to the last iteration is saved"
    if summary["solved"]:
        return f"solved: the return reached {goal:g}"
    if goal is not None:
        return f"finished without reaching {goal:g}; a longer run (--total-steps) or another --seed may"
    return "finished"


def warning_words(summary: Mapping[str, Any]) -> str:
    """What did not go well, at the very end, where it is seen; empty where nothing is to be said."""
    return "".join(f"\n\nwarning: {words}" for words in summary["warnings"])


def next_words(summary: Mapping[str, Any], folder: Any, *, renders: bool, shipped: bool) -> str:
    """Commands to try next; watching only where there is something to see, the help page of a ``shipped`` algorithm only."""
    run, name = shlex.quote(str(folder)), shlex.quote(summary["env_id"])
    env = f" --env {name}" if ":" in summary["env_id"] else ""  # a module is never imported because a file says so
    rows = {f"upslope play {run}{env} --out policy.gif": "watch the policy"} if renders else {}
    rows |= {f"upslope evaluate {run}{env} --episodes 100": "measure it again, on other episodes"}
    rows |= {f"upslope train {summary['algorithm']} {name} --help": "every setting, with its default"} if shipped else {}
    width = max(map(len, rows)) + 4
    return "\n".join(["try next:", *(f"  {command:<{width}}{why}" for command, why in rows.items())])
