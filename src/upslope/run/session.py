"""A run in progress, whatever its world: the loop with evaluation, records, progress and a clean end, whatever the end is."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from upslope.errors import Diverged, RunFault, UsageError, describe_error
from upslope.run.device import one_thread
from upslope.run.evaluations import Failures, Point
from upslope.run.folder import FORMAT_VERSION, Output, RunFolder, check_free, default_path, versions
from upslope.run.health import WATCHED, History, warnings_of
from upslope.run.load import Run
from upslope.run.loggers import GivenLogger, check_loggers, opened_loggers
from upslope.run.report import Meter, progress_for, warning_words
from upslope.run.saving import SavePace, progress_of
from upslope.run.train import Callback, RunState, train
from upslope.run.world import Config, Evaluated

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, a scheduler, a terminal that was closed: each ends a run after its iteration, with everything saved."""


@dataclass
class Record:
    """What a run remembers of itself besides its :class:`~upslope.run.train.RunState`."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """of each iteration what the learning curve and the last look at the run need"""
    row: dict[str, Any] = field(default_factory=dict[str, Any])
    """the last one, whole"""
    trained: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """what the policy has been through, where its iteration is not written down yet"""
    start: list[Point] = field(default_factory=list[Point])
    """the evaluation of the policy that training began with, where there was one"""
    points: list[Point] = field(default_factory=list[Point])
    """the evaluations"""
    faults: list[str] = field(default_factory=list[str])
    """what failed and did not end the run"""
    reached: bool = False
    """the goal that ends the run"""


class Session:
    """Carries out one :class:`~upslope.run.config.RunConfig` and writes its folder.

    Folder, loop, signals, loggers, callbacks and progress are here; what a world does its own way, it is asked for
    (:class:`~upslope.run.world.World`).
    """

    def __init__(self, config: Config, output: Output, *, callbacks: Iterable[Callback] = (), loggers: Iterable[GivenLogger] = ()) -> None:
        self.config, self.output = config, output
        self.callbacks, self.given_loggers = tuple(callbacks), tuple(loggers)
        self.signal: int | None = None

    # ------------------------------------------------------------------------------------------------- from start to end

    def run(self) -> Run:
        """Check everything, then make the folder, train, evaluate and write the summary."""
        self.started = time.perf_counter()
        if self.output.out is not None:
            check_free(self.output.out)
        check_loggers(self.output.loggers)
        self.world = self.config.prepare()
        self.config = self.world.config
        try:
            default = default_path(self.config.name, self.world.target, self.config.settings.seed)
            with RunFolder.create(self.output.out, default) as self.folder:
                summary = self._recorded()
            return Run(self.folder.path, {"format_version": FORMAT_VERSION, **self.recorded_config}, summary)
        finally:
            self.world.close()

    def _recorded(self) -> dict[str, Any]:
        """Everything that happens while the folder is open."""
        self._open()
        error: Exception | None = None
        result: Evaluated | None = None
        try:
            try:
                with self._signals(), one_thread(self.world.policy):
                    self._train()
                    if self.signal is None:
                        self.training = False
                        result = self._last_evaluation()
            except UsageError as mistake:
                if not self.record.rows:  # nothing was computed, so nothing is kept
                    self.folder.discard()
                    raise
                error = RunFault(str(mistake))
            except KeyboardInterrupt:  # the second Ctrl-C, or one that no handler caught
                self.signal = self.signal or signal.SIGINT
            except SystemExit as end:
                error = RunFault(f"code that was called ended Python: sys.exit({end.code!r})")
            except Exception as fault:
                error = fault
            self.progress.close()
            summary = self._finish(error, result)
        finally:
            for logger in self.loggers:
                logger.close()
        if error is not None:
            raise error
        if not self.output.quiet:
            print(self.world.closing(summary, self.folder.path) + warning_words(summary), flush=True)
        return summary

    def _open(self) -> None:
        self.record, self.pace, self.training = Record(), SavePace(), True
        self.failures = Failures(self.config.settings)
        self.recorded_config = self.world.recorded()
        self.folder.write_json("config.json", {"format_version": FORMAT_VERSION, **self.recorded_config, "versions": versions()})
        self._save()
        try:
            self.loggers = opened_loggers([*self.output.loggers, *self.given_loggers], self.folder.path, self.recorded_config)
        except UsageError:
            self.folder.discard()
            raise
        if not self.output.quiet:
            title, *lines = self.world.plan()
            print("\n".join([title, *(f"  {line}" for line in [*lines, f"writing to {self.folder.path}"])]), flush=True)
        meter = Meter(self.world.budget, self.world.fields)
        self.progress = progress_for(meter, self.output.quiet, samples=self.world.samples)

    def _train(self) -> None:
        settings = self.config.settings
        self.record.start = self.world.begin(self)
        if self.signal is not None:
            return
        train(
            self.config.algorithm,
            self.world.policy,
            self.world.collect,
            **self.world.budget,
            seed=settings.seed,
            callbacks=(self._after_iteration, *self.callbacks),
            fast=settings.fast,
            progress=False,
        )

    # ----------------------------------------------------------------------------------------------- after each iteration

    def _after_iteration(self, state: RunState) -> bool:
        """Evaluate where it is time, write the iteration down wherever it is wanted, save in time; True ends the run."""
        record, before = self.record, self.record.trained.get("total_steps", 0)
        record.trained = row = dict(state.metrics)
        episodes = self.world.due(before, state)
        if episodes and not self.failures.gave_up:
            row |= self._evaluate(episodes)
        self.world.follow(state, self.folder, self)
        record.row = row
        record.rows.append({name: row[name] for name in (*self.world.kept, *WATCHED) if name in row})
        self.folder.append_metrics(row)
        for logger in self.loggers:
            logger(row)
        self.progress.update(row)
        self.save_in_time()
        return record.reached or self.stopped

    def _evaluate(self, episodes: int) -> Mapping[str, float]:
        """An evaluation on fresh episodes; keeps the best policy and sees whether the goal is reached."""
        record = self.record
        try:
            result = self.world.evaluate(episodes)
        except (RunFault, UsageError) as fault:  # the training itself is well
            self.note(self.failures.failed(record.trained["total_steps"], fault))
            return {}
        self.failures.in_a_row = 0
        if result is None:
            return {}
        self._keep_best(result)
        record.reached = self.world.reached(record.points)
        return result.row

    def _keep_best(self, result: Evaluated) -> None:
        """Remember an evaluation, and the policy where none was better."""
        point, points = result.point(self.record.trained.get("total_steps", 0)), self.record.points
        if point is None:
            return
        if not points or point.mean > max(earlier.mean for earlier in points):
            self._save("best_policy")
        points.append(point)

    def _last_evaluation(self) -> Evaluated | None:
        """The final policy on fresh episodes; kept as the best where it is."""
        try:
            result = self.world.evaluate_last()
        except (RunFault, UsageError) as fault:
            self.record.faults.append(f"the final policy was not evaluated: {fault}")
            return None
        if result is None:
            return None
        if result.note and not self.failures.faults:
            self.note(result.note)
        if self.record.points or result.may_be_best:
            self._keep_best(result)
        return result

    # ------------------------------------------------------------------------------------------- what worlds may ask for

    @property
    def stopped(self) -> bool:
        """Whether a signal has asked for the end."""
        return self.signal is not None

    def note(self, text: str) -> None:
        """Say something beside the progress."""
        self.progress.note(text)

    def save_in_time(self) -> None:
        """Save the policy if it is time to."""
        if self.pace.due():
            with self.pace.saving():
                self._save()

    def _save(self, name: str = "policy") -> None:
        planned = {f"planned_{counted.removeprefix('total_')}": count for counted, count in self.world.budget.items()}
        self.world.save(self.folder, name, progress_of(self.record.trained, **planned))

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        """The first Ctrl-C (or another of the :data:`SIGNALS`) ends the run after the iteration, the second one at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            again, self.signal = self.signal is not None, number
            if again or not self.training:
                raise KeyboardInterrupt
            with contextlib.suppress(RuntimeError):  # it struck while something was being printed
                self.note("stopping after this iteration; once more stops at once")

        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN:  # nohup: the run goes on
            numbers.remove(hangup)
        try:
            before = {number: signal.signal(number, stop) for number in numbers}
        except ValueError:  # not the main thread: the program around us handles its signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------------------------------------------------------ the end

    def _finish(self, error: Exception | None, result: Evaluated | None) -> dict[str, Any]:
        """Save the policy, draw the curve, write the summary."""
        if not isinstance(error, Diverged):  # the parameters may be what diverged; the last saved ones stay
            self._save()
        summary = self._summary(error, result)
        self.world.draw(self.folder.path / "curve.png", self.record.rows, summary)
        summary["wall_seconds"] = time.perf_counter() - self.started
        self.folder.write_json("summary.json", summary)
        return summary

    def _summary(self, error: Exception | None, result: Evaluated | None) -> dict[str, Any]:
        record = self.record
        row, seconds = record.row, record.row.get("train_seconds", 0.0)
        return {
            "format_version": FORMAT_VERSION,
            "status": "failed" if error is not None else "interrupted" if self.stopped else "finished",
            "error": None if error is None else describe_error(error),
            "algorithm": self.config.name,
            "seed": self.config.settings.seed,
            "iterations": int(row.get("iteration", 0)),
            "total_steps": int(row.get("total_steps", 0)),
            "train_seconds": seconds,
            "wall_seconds": 0.0,
            "steps_per_second": row["total_steps"] / seconds if seconds > 0 else 0.0,
            **self.world.headline(result, record.points, reached=record.reached, failed=error is not None),
            "warnings": self._warnings(result),
        }

    def _warnings(self, result: Evaluated | None) -> list[str]:
        """What did not go well; of a run that was ended before its last evaluation, what its metrics say."""
        record, goal = self.record, self.world.good
        final = record.points[-1] if record.points and result is not None else None
        if record.reached and final is not None:  # as the evaluations before it have said
            goal = final.mean
        history = History(record.rows, [*record.start, *record.points], final, goal, self.world.action_dims)
        return [*self.failures.warnings(), *record.faults, *warnings_of(history)]

    @property
    def exit_code(self) -> int:
        """0, or 128 plus the signal that ended the run (130 after Ctrl-C)."""
        return 0 if self.signal is None else 128 + self.signal
