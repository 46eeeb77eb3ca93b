"""The language world of a run: a model, a task or recorded texts, a warm start, and what is said and written of them."""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load, save

from upslope import files
from upslope.algorithms import SFT
from upslope.errors import UsageError
from upslope.files import whole_folder
from upslope.language import LanguagePolicy, LanguageResult, Pair, Task, demonstrations, evaluate, pairs_from, preference_pairs, read_pairs
from upslope.language.checks import BUILTIN
from upslope.language.machine import preferred
from upslope.language.models import Attention
from upslope.language.presets import preset_for
from upslope.records import State
from upslope.run import language_report as report
from upslope.run.checkpoints import FOLDER
from upslope.run.config import RunConfig
from upslope.run.evaluations import Point
from upslope.run.folder import FORMAT_VERSION, RunFolder, is_kept
from upslope.run.language_evaluate import HELD_OUT_PAIRS, held_out_file
from upslope.run.language_make import FrozenAtStart, examples_of, fitted, make_collector, make_policy, make_reference, make_task
from upslope.run.language_settings import LanguageRunSettings
from upslope.run.load import PROGRESS, check_inside
from upslope.run.process import check_device
from upslope.run.session import Session
from upslope.run.settings import settings_of
from upslope.run.train import RunState, load_policy_state, policy_state, train
from upslope.run.world import Evaluated, World, rates
from upslope.updates import Ascent

EVALUATE_EVERY = 10  # iterations between evaluations unless given
GOOD = 0.95  # accuracy from which on nobody minds that a policy has become certain
PAIRS_IN_A_PASS = 16  # pairs that are measured at once


@dataclass(kw_only=True)
class Language(World[LanguagePolicy]):
    """A task, a model and a collector, as the :class:`~upslope.run.world.World` of a session."""

    config: RunConfig
    task: Task | None
    policy: LanguagePolicy
    collect: Any
    num_long: int = 0  # prompts that were left out or cut
    before: float | None = None  # accuracy before training
    warm_start_seconds: float = 0.0
    warm_start_iterations: int | None = None
    said_that_weights_stand_still: bool = False
    reference: str | None = None  # SHA-256 of the model that the reference is frozen from

    fields = report.FIELDS
    kept = ("iteration", "total_steps", "evaluation_accuracy", "objective", *report.CURVES)

    def __post_init__(self) -> None:
        self.settings: LanguageRunSettings = self.config.settings
        pairs, task = getattr(self.config.collector, "pairs", None), self.config.problem.task or "nothing"
        self.target = pairs.stem if pairs is not None else Path(task).stem if task.endswith(".jsonl") else task
        self.budget = {"iterations": self.settings.iterations}
        measured = self.task is not None and self.task.correct is not None
        self.good = (GOOD if measured else None) if self.settings.until_accuracy is None else self.settings.until_accuracy

    @classmethod
    def preset(cls, config: RunConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        known = set(settings_of(*config.parts()))
        model, recorded = str(settings.get("model", "tiny")), settings.get("pairs") is not None
        return preset_for(config.family, model, settings.get("task"), known, recorded=recorded)

    @classmethod
    def imports(cls, name: str, text: str) -> bool:
        """Whether a text names something to import: a built-in reward may have an argument, ``contains:word``."""
        return name != "reward" or text.partition(":")[0] not in BUILTIN

    @classmethod
    def settled(cls, config: RunConfig) -> RunConfig:
        """What is held out is looked at every :data:`EVALUATE_EVERY` iterations."""
        return config.replaced({"eval_every": EVALUATE_EVERY}) if config.settings.eval_every is None else config

    @classmethod
    def prepare(cls, config: RunConfig, stopped: Path | None = None) -> Self:
        settings: LanguageRunSettings = config.settings
        device = check_device(settings.device)
        task = make_task(config)
        if settings.until_accuracy is not None and (task is None or not task.held_out):
            raise UsageError("until_accuracy: nothing is held out, so accuracy is never measured; leave it out, or give a FILE.test.jsonl")
        if settings.warm_start > 0 and (task is None or task.solution is None or task.correct is None):
            raise UsageError("warm_start: the task has no answers to imitate; set --warm-start 0, or give the file a column answer")
        policy = make_policy(config.policy, task, value_head=config.needs.needs_critic, seed=settings.seed).to(device)
        if config.policy.compute_dtype == "auto" and config.policy.model != "tiny" and device.type != "cpu":
            policy.compute_dtype = preferred(device)
        if not settings.fast:
            policy.attention = Attention("--no-fast says so")
        reference = make_reference(config, policy)
        task, num_long = fitted(config, policy, task)
        collect, others = make_collector(config, policy, task, reference)
        config = cls.settled(config)
        return cls(config=config, task=task, policy=policy, collect=collect, num_long=num_long + others)

    # ----------------------------------------------------------------------------------------------------------- the folder

    def recorded(self) -> dict[str, Any]:
        """``config.json``; with the precision that ``auto`` stands for here, which is another one on another processor."""
        config = super().recorded()
        return config | {"policy": config["policy"] | {"compute_dtype": str(self.policy.compute_dtype).removeprefix("torch.")}}

    def save(self, folder: RunFolder, name: str, progress: Mapping[str, Any]) -> None:
        """A folder that Transformers reads, and in it how far the model is."""
        warm = {} if self.warm_start_iterations is None else {"warm_start_iterations": self.warm_start_iterations}
        with whole_folder(folder.path / name) as inside:
            self.policy.save_pretrained(inside)
            (inside / PROGRESS).write_text(json.dumps({"format_version": FORMAT_VERSION, **progress, **warm}) + "\n", encoding="utf-8")

    def plan(self) -> list[str]:
        return report.plan(self.config, self.target, self.task, self.policy, self.collect, self.num_long)

    def samples(self) -> list[str]:
        return report.sample_lines(getattr(self.collect, "samples", ()))

    # --------------------------------------------------------------------------------------------------------- the training

    def begin(self, session: Session) -> list[Point]:
        """The warm start; then the reference is the model as it is, and its accuracy the one before training."""
        if self.settings.warm_start > 0:
            self._warm_start(session)
        if isinstance(getattr(self.collect, "reference", None), FrozenAtStart):
            self.collect.reference = self.policy.frozen()
            content = safetensors_of(self.policy)
            self.reference = hashlib.sha256(content).hexdigest()
            if self.warm_start_iterations is not None:  # else it is the model that the run is made with
                file = reference_file(session.folder.path)
                file.parent.mkdir(exist_ok=True)
                files.write_bytes(file, content)
        if self.settings.eval_every and not session.stopped and (result := self._answers()) is not None:
            self.before = result.accuracy
        if self.before is None:
            return []
        return [Point(0, self.before, math.sqrt(self.before * (1 - self.before)), self.settings.eval_episodes)]

    def _warm_start(self, session: Session) -> None:
        """Imitate right answers until enough training problems are answered right; held-out problems are not looked at.

        Not a step is made where they are already, by a model that was trained before.
        """
        settings, task, policy = self.settings, self.task, self.policy
        if task is None:
            return
        watched, found, started = task.train[: settings.eval_episodes], {"accuracy": 0.0}, time.perf_counter()

        def reached() -> bool:
            found["accuracy"] = evaluate(policy, task, problems=watched, episodes=None).accuracy or 0.0
            return found["accuracy"] >= settings.warm_start

        def enough(state: RunState) -> bool:
            self.warm_start_iterations = state.iteration
            session.save_in_time()
            return session.stopped or (state.iteration % 10 == 0 and reached())

        if self.config.policy.model != "tiny" and reached():  # a tiny one is made at random and cannot answer yet
            session.note(f"warm start: not needed, {found['accuracy']:.0%} of training problems are answered right already")
            return
        rise = settings.warm_start_iterations / 20  # the learning rate reaches its full size in twenty steps
        update = Ascent(learning_rate=settings.warm_start_rate, max_grad_norm=1.0, schedule=lambda done: min(1.0, 0.05 + done * rise))
        data = demonstrations(policy, examples_of(task), batch_size=settings.warm_start_batch, seed=settings.seed)
        options: dict[str, Any] = {"iterations": settings.warm_start_iterations, "seed": settings.seed, "fast": settings.fast}
        train(SFT(update=update), policy, data, callbacks=enough, progress=False, **options)
        self.warm_start_seconds = time.perf_counter() - started
        line = f"warm start: {found['accuracy']:.0%} of training problems right after {self.warm_start_seconds:.1f} s"
        short = found["accuracy"] < settings.warm_start and not session.stopped
        missed = f"; it ended after {settings.warm_start_iterations:,} steps, short of {settings.warm_start:.0%}"
        session.note(line + (missed if short else ""))

    def state_dict(self) -> State:
        """What came before the first iteration; the reference by its SHA-256."""
        return {name: getattr(self, name) for name in BEFORE}

    def load_state_dict(self, state: State, folder: RunFolder) -> None:
        """Go on: the reference is what it was when the run began, or UsageError says that it cannot be had again."""
        for name in BEFORE:
            setattr(self, name, state[name])
        if not isinstance(getattr(self.collect, "reference", None), FrozenAtStart):
            return
        self.collect.reference = reference = self.policy.frozen()
        file, content = reference_file(folder.path), safetensors_of(self.policy)
        if self.warm_start_iterations is not None:
            check_inside(file)
            content = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self.reference:
            what = f"{self.config.policy.model} is no longer what it was" if self.warm_start_iterations is None else f"{file} is damaged"
            raise UsageError(f"{what}, so the reference that this run began with is lost; train anew")
        if self.warm_start_iterations is not None:
            load_policy_state(reference, load(content))

    def follow(self, state: RunState, session: Session) -> Mapping[str, float]:
        """Keep what was said; warn once where steps are too small for the weights."""
        moved = state.metrics.get("weights_moved")
        if moved is not None and not self.said_that_weights_stand_still:
            self.said_that_weights_stand_still = True
            why = "its steps are smaller than the distance between neighboring numbers"
            rate = f"raise the learning rate ({self.config.algorithm.update.learning_rate:g})"
            session.note(f"warning: this update moved {moved:.1%} of the weights: {why}; {rate}")
        if is_kept(state.iteration):
            session.folder.append("completions.jsonl", getattr(self.collect, "samples", []))
        return rates(state)

    # ---------------------------------------------------------------------------------------------------------- evaluations

    def due(self, before: int, state: RunState) -> int:
        """Every so many iterations, where any are wanted; the last one is evaluated anyway."""
        every, now = self.settings.eval_every, state.iteration
        return self.settings.eval_episodes if every and now % every == 0 and now < self.settings.iterations else 0

    def evaluate(self, episodes: int | None = None) -> Evaluated | None:
        result = self._answers()
        return None if result is None else evaluated(result)

    def _answers(self) -> LanguageResult | None:
        if self.task is None or not self.task.held_out or self.config.needs.scores_texts:
            return None
        options: dict[str, Any] = {name: getattr(self.collect, name, None) for name in ("max_tokens", "trainer_state")}
        return evaluate(self.policy, self.task, episodes=self.settings.eval_episodes, **options)

    def reached(self, points: Sequence[Point]) -> bool:
        """Once; where answers are not right or wrong, never."""
        goal, measured = self.settings.until_accuracy, self.task is not None and self.task.correct is not None
        return goal is not None and measured and bool(points) and points[-1].mean >= goal

    # -------------------------------------------------------------------------------------------------------------- the end

    def headline(self, result: Evaluated | None, points: Sequence[Point], *, reached: bool, failed: bool) -> dict[str, Any]:
        goal = self.settings.until_accuracy
        found: Mapping[str, Any] = {} if result is None else result.headline
        accuracy = found.get("accuracy")
        headline: dict[str, Any] = {"model": self.config.policy.model, "task": self.config.problem.task}
        headline |= {"warm_start_seconds": self.warm_start_seconds, "accuracy_before": self.before}
        headline |= {**dict.fromkeys(NOTHING_ANSWERED), "episodes": 0, **found}
        headline["best_accuracy"] = max((point.mean for point in points), default=None)
        headline |= {"solved": None if goal is None else accuracy is not None and accuracy >= goal, "solved_at": goal}
        return headline | ({} if failed else self._on_held_out_pairs())

    def _on_held_out_pairs(self) -> dict[str, Any]:
        """For what is trained on pairs: how many others it ranks right, by the method's measure (DPO's is against the reference)."""
        pairs = self.held_out_pairs()
        reference = getattr(self.collect, "reference", None)
        if not pairs or isinstance(reference, FrozenAtStart):  # the run was stopped before it began
            return {}
        algorithm, right = self.config.algorithm, 0.0
        collect = preference_pairs(self.policy, pairs, reference=reference)
        with torch.no_grad():
            for start in range(0, len(pairs), PAIRS_IN_A_PASS):
                indices = list(range(start, min(start + PAIRS_IN_A_PASS, len(pairs))))
                batch = algorithm.estimate(self.policy, collect.rollout(self.policy, indices))
                right += float(algorithm.objective(self.policy, batch)[1]["accuracy"]) * len(indices)
        return {"preference_accuracy": right / len(pairs), "held_out_pairs": len(pairs)}

    def held_out_pairs(self) -> list[Pair]:
        """Pairs that were not trained on: of the file beside that of the pairs, else made of the task's held-out problems."""
        if self.config.needs.learns_from != "pairs":
            return []
        trained_on = self.config.collector.pairs
        beside = held_out_file(trained_on) if trained_on is not None else None
        if beside is not None:
            return read_pairs(beside)
        try:
            return [] if self.task is None else pairs_from(self.task, count=HELD_OUT_PAIRS, held_out=True)
        except UsageError:  # too few problems to make a wrong answer of another one's
            return []

    def draw(self, path: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        start = [] if self.before is None else [{"iteration": 0, "total_steps": 0, "evaluation_accuracy": self.before}]
        end = [] if summary["accuracy"] is None else [{"iteration": summary["iterations"], "evaluation_accuracy": summary["accuracy"]}]
        if rows:
            report.draw_curve(path, [*start, *rows, *end], title=f"{self.config.name} on {self.target}, seed {summary['seed']}")

    outcome = staticmethod(report.outcome)

    def next_commands(self, summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
        return report.next_commands(summary, folder, self.config)


BEFORE = ("before", "warm_start_seconds", "warm_start_iterations", "said_that_weights_stand_still", "reference")
"""What a run remembers of its beginning."""


def reference_file(run: Path) -> Path:
    """Where the model is kept that a warm start has made and that the KL of the run is measured to."""
    return run / FOLDER / "reference.safetensors"


def safetensors_of(policy: LanguagePolicy) -> bytes:
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in policy_state(policy).items()})


NOTHING_ANSWERED = ("accuracy", "accuracy_interval", "reward_mean", "format_rate", "length_mean")
"""What is None in a summary without a final evaluation."""


def evaluated(result: LanguageResult) -> Evaluated:
    """Answers as an evaluation: compared by accuracy where there is one, else by reward."""
    accuracy, interval = result.accuracy, result.accuracy_interval
    row = {"evaluation_reward": result.reward_mean, "evaluation_accuracy": accuracy}
    return Evaluated(
        mean=result.reward_mean if accuracy is None else accuracy,
        std=math.inf if accuracy is None else math.sqrt(accuracy * (1 - accuracy)),  # of rewards it is not known
        episodes=result.episodes,
        row={name: value for name, value in row.items() if value is not None},
        headline={name: getattr(result, name) for name in (*NOTHING_ANSWERED, "episodes")}
        | {"accuracy_interval": None if interval is None else list(interval)},
    )
