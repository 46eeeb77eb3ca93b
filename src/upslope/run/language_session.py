"""A run in the language world: the session of every run, with a warm start, completions kept, and folders that Transformers reads."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from upslope.errors import RunFault, UsageError
from upslope.files import whole_folder
from upslope.run import language_report as report
from upslope.run.evaluations import Point
from upslope.run.folder import FORMAT_VERSION
from upslope.run.health import WATCHED
from upslope.run.language_evaluate import HELD_OUT_PAIRS, held_out_file
from upslope.run.language_run import FrozenAtStart, examples_of
from upslope.run.load import PROGRESS
from upslope.run.report import Progress, warning_words
from upslope.run.saving import progress_of
from upslope.run.session import Session, one_line

EVALUATE_EVERY = 10
"""Iterations between evaluations unless told otherwise."""
KEPT = ("iteration", "total_steps", "evaluation_accuracy", "objective", *report.CURVES, *WATCHED)
"""What the learning curve and the last look at the run need."""
GOOD = 0.95
"""Accuracy from which on nobody minds that a policy has become certain."""
PAIRS_IN_A_PASS = 16
"""Pairs that are measured at once."""


class LanguageSession(Session):
    """Carries out one :class:`~upslope.run.language_run.LanguageRun` and writes its folder."""

    def _complete(self, run: Any) -> Any:
        return run if run.settings.eval_every is not None else replace(run, settings=replace(run.settings, eval_every=EVALUATE_EVERY))

    def _config(self) -> dict[str, Any]:
        config = self.run_config.config()
        used = str(self.prepared.policy.compute_dtype).removeprefix("torch.")
        return {**config, "policy": {**config["policy"], "compute_dtype": used}}  # auto is another one on another processor

    def _schedule(self) -> None:
        """Evaluations come every so many iterations."""

    def _save_first(self) -> None:
        self.warm_start_seconds, self.before, self.last_result = 0.0, None, None
        self.warmed: dict[str, int] = {}
        self._save(self.prepared.policy)

    def _save(self, policy: Any, name: str = "policy") -> None:
        progress = progress_of(self.reached, planned_iterations=self.run_config.settings.iterations, **self.warmed)
        with whole_folder(self.folder.path / name) as folder:
            policy.save_pretrained(folder)
            (folder / PROGRESS).write_text(json.dumps({"format_version": FORMAT_VERSION, **progress}) + "\n", encoding="utf-8")

    def _plan(self) -> str:
        return report.plan(self.run_config, self.prepared, self.folder.path)

    def _progress(self) -> Progress:
        return report.progress_for(self.run_config.settings.iterations, self.output.quiet)

    def _train(self) -> None:
        from upslope.run.train import train

        settings, prepared = self.run_config.settings, self.prepared
        if settings.warm_start > 0:
            self._warm_start()
        if isinstance(getattr(prepared.collect, "reference", None), FrozenAtStart):
            prepared.collect.reference = prepared.policy.frozen()
        if self._can_evaluate and settings.eval_every and self.signal is None:
            self.before = self._fresh_episodes(prepared.policy).accuracy
        if self.signal is None:
            train(
                self.run_config.algorithm,
                prepared.policy,
                prepared.collect,
                iterations=settings.iterations,
                seed=settings.seed,
                callbacks=(self._after_iteration,),
                fast=True,
                progress=False,
            )

    @property
    def _can_evaluate(self) -> bool:
        task = self.prepared.task
        return task is not None and bool(task.held_out) and self.run_config.name != "reward-model"

    def _warm_start(self) -> None:
        """Imitate right answers until enough training problems are answered right; held-out problems are not looked at.

        Not a step is made where they are already, by a model that was trained before.
        """
        from upslope import SFT, Ascent
        from upslope.language import demonstrations, evaluate
        from upslope.run.train import train

        settings, task, policy = self.run_config.settings, self.prepared.task, self.prepared.policy
        data = demonstrations(policy, examples_of(task), batch_size=settings.warm_start_batch, seed=settings.seed)
        watched = task.train[: settings.eval_episodes]
        started = time.perf_counter()
        found = {"accuracy": 0.0}

        def reached() -> bool:
            found["accuracy"] = evaluate(policy, task, problems=watched, episodes=None).accuracy or 0.0
            return found["accuracy"] >= settings.warm_start

        def enough(state: Any) -> bool:
            self.warmed = {"warm_start_iterations": state.iteration}
            if self.pace.due():
                with self.pace.saving():
                    self._save(policy)
            return self.signal is not None or (state.iteration % 10 == 0 and reached())

        rise = settings.warm_start_iterations / 20  # the learning rate reaches its full size in twenty steps
        update = Ascent(learning_rate=settings.warm_start_rate, max_grad_norm=1.0, schedule=lambda done: min(1.0, 0.05 + done * rise))
        algorithm = SFT(update=update)
        fresh = self.run_config.model.model == "tiny"  # whose answers nobody need look at
        if not fresh and reached():
            self.progress.note(f"warm start: not needed, {found['accuracy']:.0%} of training problems are answered right already")
            return
        train(algorithm, policy, data, iterations=settings.warm_start_iterations, seed=settings.seed, callbacks=enough, progress=False)
        self.warm_start_seconds = time.perf_counter() - started
        words = f"warm start: {found['accuracy']:.0%} of training problems right after {self.warm_start_seconds:.1f} s"
        short = found["accuracy"] < settings.warm_start and self.signal is None
        missed = f"; it ended after {settings.warm_start_iterations:,} steps, short of {settings.warm_start:.0%}"
        self.progress.note(words + (missed if short else ""))

    # ----------------------------------------------------------------------------------------------- after each iteration

    def _after_iteration(self, state: Any) -> bool:
        """Evaluate where it is time, keep what was said, record; True ends the run."""
        row = self.reached = dict(state.metrics)
        every = self.run_config.settings.eval_every
        due = every and state.iteration % every == 0 and state.iteration < self.run_config.settings.iterations
        if due and self._can_evaluate and not self.failures.gave_up:
            row |= self._evaluate(state.policy)
        if "weights_moved" in row and not any("weights_moved" in earlier for earlier in self.rows):
            rate = self.run_config.algorithm.update.learning_rate
            self.progress.note(
                f"warning: this update moved {row['weights_moved']:.1%} of the weights: its steps are smaller than the distance between "
                f"neighboring numbers; raise the learning rate ({rate:g})"
            )
        samples = getattr(state.collect, "samples", [])
        self.folder.append("completions.jsonl", samples)
        self.progress.samples = samples  # pyright: ignore[reportAttributeAccessIssue]
        return self._record(state, row, KEPT)

    def _evaluate(self, policy: Any, episodes: int | None = None) -> dict[str, float]:
        try:
            result = self._fresh_episodes(policy)
        except (RunFault, UsageError) as fault:  # the training itself is well
            self._evaluation_failed(fault)
            return {}
        self.failures.in_a_row = 0
        self._keep_best(policy, result)
        goal = self.run_config.settings.until_accuracy
        self.solved = goal is not None and result.accuracy is not None and result.accuracy >= goal
        found = {"evaluation_reward": result.reward_mean, "evaluation_accuracy": result.accuracy}
        return {name: value for name, value in found.items() if value is not None}

    def _keep_best(self, policy: Any, result: Any) -> None:
        """By accuracy, where there is one, else by reward."""
        mean = result.accuracy if result.accuracy is not None else result.reward_mean
        if mean is None:
            return
        if not self.evaluations or mean > max(point.mean for point in self.evaluations):
            self._save(policy, "best_policy")
        std = 0.0 if result.accuracy is None else math.sqrt(mean * (1 - mean))
        self.evaluations.append(Point(self.reached.get("total_steps", 0), mean, std, result.episodes))

    def _final_result(self) -> Any:
        """The final policy on held-out problems; keeps it as the best where it is."""
        try:
            result = self._fresh_episodes(self.prepared.policy)
        except (RunFault, UsageError) as fault:
            self.faults.append(f"the final policy was not evaluated: {fault}")
            return None
        if result is not None and self.evaluations:
            self._keep_best(self.prepared.policy, result)
        return result

    def _fresh_episodes(self, policy: Any, episodes: int | None = None) -> Any:
        from upslope.language import evaluate

        if not self._can_evaluate:
            return None
        settings, collect = self.run_config.settings, self.prepared.collect
        options: dict[str, Any] = {
            "max_tokens": getattr(collect, "max_tokens", None),
            "trainer_state": getattr(collect, "trainer_state", None),
        }
        return evaluate(policy, self.prepared.task, episodes=settings.eval_episodes, **options)

    # ------------------------------------------------------------------------------------------------------------ the end

    def _summary(self, error: Exception | None, result: Any) -> dict[str, Any]:
        row, settings = self.state_row, self.run_config.settings
        seconds = row.get("train_seconds", 0.0)
        accuracy = None if result is None else result.accuracy
        goal = settings.until_accuracy
        return {
            "format_version": FORMAT_VERSION,
            "status": "failed" if error is not None else "interrupted" if self.signal is not None else "finished",
            "error": None if error is None else one_line(error),
            "algorithm": self.run_config.name,
            "model": self.run_config.model.model,
            "task": self.run_config.task.task,
            "seed": settings.seed,
            "iterations": int(row.get("iteration", 0)),
            "total_steps": int(row.get("total_steps", 0)),
            "train_seconds": seconds,
            "warm_start_seconds": self.warm_start_seconds,
            "wall_seconds": 0.0,
            "steps_per_second": row["total_steps"] / seconds if seconds > 0 else 0.0,
            "accuracy_before": self.before,
            "accuracy": accuracy,
            "accuracy_interval": None if result is None or accuracy is None else list(result.accuracy_interval),
            "reward_mean": None if result is None else result.reward_mean,
            "format_rate": None if result is None else result.format_rate,
            "length_mean": None if result is None else result.length_mean,
            "episodes": 0 if result is None else result.episodes,
            "best_accuracy": max((point.mean for point in self.evaluations), default=None),
            "solved": None if goal is None else accuracy is not None and accuracy >= goal,
            "solved_at": goal,
            "warnings": self._warnings(result, GOOD if goal is None else goal),
            **(self._on_held_out_pairs() if error is None else {}),
        }

    def _on_held_out_pairs(self) -> dict[str, Any]:
        """For what is trained on pairs: how many others it ranks right, by the method's own measure (DPO's is against the reference)."""
        pairs = self.held_out_pairs()
        if not pairs:
            return {}
        from upslope.language import preference_pairs

        prepared, algorithm, right = self.prepared, self.run_config.algorithm, 0.0
        reference = getattr(prepared.collect, "reference", None)
        if isinstance(reference, FrozenAtStart):  # the run was stopped before it began
            return {}
        collect = preference_pairs(prepared.policy, pairs, reference=reference)
        with torch.no_grad():
            for start in range(0, len(pairs), PAIRS_IN_A_PASS):
                indices = list(range(start, min(start + PAIRS_IN_A_PASS, len(pairs))))
                batch = algorithm.estimate(prepared.policy, collect.rollout(prepared.policy, indices))
                right += float(algorithm.objective(prepared.policy, batch)[1]["accuracy"]) * len(indices)
        return {"preference_accuracy": right / len(pairs), "held_out_pairs": len(pairs)}

    def held_out_pairs(self) -> list[Any]:
        """Pairs that were not trained on: of the file beside that of the pairs, else made of the task's held-out problems."""
        from upslope.language import pairs_from, read_pairs

        run, task = self.run_config, self.prepared.task
        if run.name not in ("dpo", "reward-model"):
            return []
        beside = held_out_file(run.collector.pairs) if run.collector.pairs is not None else None
        if beside is not None:
            return read_pairs(beside)
        try:
            return [] if task is None else pairs_from(task, count=HELD_OUT_PAIRS, held_out=True)
        except UsageError:  # too few problems to make a wrong answer of another one's
            return []

    def _before_training(self) -> list[Point]:
        if self.before is None:
            return []
        return [Point(0, self.before, math.sqrt(self.before * (1 - self.before)), self.run_config.settings.eval_episodes)]

    def _draw(self, summary: Mapping[str, Any]) -> None:
        title = f"{self.run_config.name} on {self.run_config.target}, seed {summary['seed']}"
        start = [] if self.before is None else [{"iteration": 0, "total_steps": 0, "evaluation_accuracy": self.before}]
        end = [] if summary["accuracy"] is None else [{"iteration": summary["iterations"], "evaluation_accuracy": summary["accuracy"]}]
        if self.rows:
            report.draw_curve(self.folder.path / "curve.png", [*start, *self.rows, *end], title=title)

    def _closing_words(self, summary: Mapping[str, Any]) -> str:
        return report.result_words(summary, self.folder.path, self.run_config) + warning_words(summary)
