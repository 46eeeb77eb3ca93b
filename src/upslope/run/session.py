"""A run in progress, whatever its world: the loop with evaluation, records, progress and a clean end, whatever the end is."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from upslope.errors import Diverged, RunFault, UsageError, describe_error
from upslope.run.capsule import keep_capsule
from upslope.run.checkpoints import tidy, write_checkpoint
from upslope.run.evaluations import Failures, Point, Points
from upslope.run.folder import FORMAT_VERSION, Output, RunFolder, check_free, default_path, finite_or_none, is_kept, versions
from upslope.run.health import WATCHED, findings, restarts_of
from upslope.run.history import History
from upslope.run.load import Run
from upslope.run.loggers import GivenLogger, check_loggers, opened
from upslope.run.process import handled, in_time, one_thread, seeded
from upslope.run.report import Meter, Progress, closing_text, progress_for
from upslope.run.resume import NOT_RESUMABLE, Stopped, attach, cut_files, locked, remembering, rows_until, sizes, states_of, surroundings
from upslope.run.saving import CHECKPOINT_SHARE, SavePace
from upslope.run.settings import flat_config
from upslope.run.train import Callback, RunState, compiled_text, train
from upslope.run.watch import Watch
from upslope.run.world import Evaluated, World

if TYPE_CHECKING:
    from upslope.run.config import RunConfig


class Session:
    """Carries out one :class:`~upslope.run.config.RunConfig` and writes its folder.

    Folder, loop, signals, loggers, callbacks and progress are here; what differs between worlds, the world is asked for
    (:class:`~upslope.run.world.World`).
    """

    def __init__(
        self,
        config: RunConfig,
        output: Output,
        callbacks: Callback | Iterable[Callback] = (),
        loggers: Iterable[GivenLogger] = (),
        resumed: str | Path | None = None,
    ) -> None:
        self.config, self.output = config, output
        self.resumed = None if resumed is None else Stopped.of(Run.load(resumed), config)
        self.callbacks, self.given_loggers = (callbacks,) if callable(callbacks) else tuple(callbacks), tuple(loggers)
        self.signal: int | None = None
        self.world: World[Any]
        self.folder: RunFolder
        self.progress: Progress
        self.failures = Failures(config.settings)
        self.pace, self.at_once, self.writing_end = SavePace(), False, False  # whether a first signal ends what goes on, or nothing does
        self.checkpoints = SavePace(CHECKPOINT_SHARE if output.checkpoint_every else math.inf, output.checkpoint_every)
        self.state: RunState | None = None
        self.updates: int | None = None
        self.writes = resumed is None  # a stopped run's folder stays what it was until there is something new to write
        self.not_resumable = ""  # why this run can not be resumed, once that is known
        self.resumed_at: list[int] = []  # the iterations from which it was resumed
        self.seconds_before = 0.0  # and what it took before
        self.rows: list[dict[str, Any]] = []  # of each iteration what the learning curve and the last look at the run need
        self.row: dict[str, Any] = {}  # the last one, whole
        self.trained: Mapping[str, Any] = {}  # what the policy has been through, where its iteration is not written down yet
        self.points = Points()
        self.faults: list[str] = []  # what failed and did not end the run
        self.reached = False  # whether the goal that ends the run is reached

    # ------------------------------------------------------------------------------------------------- from start to end

    def run(self) -> Run:
        """Check everything, then make the folder, train, evaluate and write the summary."""
        self.started, self.base = time.perf_counter(), Path.cwd()  # an environment may change the current folder when it is made
        if self.output.out is not None and self.resumed is None:
            check_free(self.output.out)
        check_loggers(self.output.loggers)
        with seeded(self.config.settings.seed):
            return self._prepared()

    def _prepared(self) -> Run:
        """Make what the run needs, carry it out, release it."""
        self.world = self.config.prepare(None if self.resumed is None else self.resumed.path)
        self.config = self.world.config
        with one_thread(self.world.policy):
            self.surroundings = surroundings(self.world.recorded())
        try:
            default = default_path(self.config.name, self.world.target, self.config.settings.seed)
            taken_up = None if self.resumed is None else RunFolder(self.resumed.path, base=self.base)
            self.folder = taken_up or RunFolder.create(self.output.out, default, self.base)
            with self.folder, locked(self.folder.path):
                if self.resumed is not None:
                    self.resumed = self.resumed.latest(self.folder.path, self.config)
                else:
                    tidy(self.folder.path, 0)  # halves that a kill has left
                summary = self._recorded()
            return Run(self.folder.shown, {"format_version": FORMAT_VERSION, **self.recorded_config}, summary)
        finally:
            in_time(self.world.close)

    def _recorded(self) -> dict[str, Any]:
        """Everything that happens while the folder is open."""
        self._open()
        error: Exception | None = None
        result: Evaluated | None = None
        with contextlib.ExitStack() as around:
            for logger in self.loggers:
                around.callback(getattr(logger, "close", lambda: None))
            around.enter_context(handled(self._stop))
            try:
                with one_thread(self.world.policy):
                    self._train()
                    if self.signal is None:
                        self._begin_writing()
                    if self.writes:
                        self._checkpoint()
                    if self.signal is None:
                        self.at_once = True
                        result = self._last_evaluation()
            except UsageError as mistake:
                if not self.writes:  # the stopped run is what it was
                    raise
                if not self.rows and self.resumed is None:  # nothing was computed, so nothing is kept
                    self.folder.discard()
                    raise
                error = RunFault(str(mistake))
            except KeyboardInterrupt:  # the second Ctrl-C, or one that no handler caught
                self.signal = self.signal or signal.SIGINT
            except SystemExit as end:
                error = RunFault(f"code that was called ended Python: sys.exit({end.code!r})")
            except Exception as fault:
                error = fault
            self.at_once, self.writing_end = False, True
            if isinstance(error, Diverged):
                self._capsule(error)
            self.progress.close()
            summary = self._finish(error, result) if self.writes else dict(Run.load(self.folder.path).summary or {})
        if error is not None:
            raise error
        if not self.output.quiet and self.writes:
            outcome, commands = self.world.outcome(summary), self.world.next_commands(summary, self.folder.shown)
            print(closing_text(outcome, summary["warnings"], commands, self.folder.shown), flush=True)
        return summary

    def _open(self) -> None:
        self.recorded_config = {**self.world.recorded(), "goal": self.world.good}
        if self.resumed is not None and self.resumed.earlier:
            self.recorded_config["earlier_budgets"] = self.resumed.earlier
        self.watch = Watch(self.world.policy)
        if self.resumed is None:
            self._write_config()
            self._save()
        else:
            self._take_up(self.resumed)
        before = len(self.faults)
        try:
            wanted = (*self.output.loggers, *self.given_loggers)
            self.loggers = [opened(each, self.folder.path, self.recorded_config) for each in wanted]
            if self.resumed is not None:
                self.faults += attach(remembering((*self.callbacks, *self.loggers)), self.resumed.state["session"].get("attached", {}))
        except UsageError:
            if self.resumed is None:
                self.folder.discard()
            raise
        if not self.output.quiet:
            resumed = [*self.resumed.lines(self.surroundings), *self.faults[before:]] if self.resumed else []
            update = compiled_text(self.config.algorithm, self.world.policy, self.world.collect, fast=self.config.settings.fast)
            title, *lines = [*self.world.plan(), f"update: {update}", *resumed]
            print("\n".join([title, *(f"  {line}" for line in [*lines, f"writing to {self.folder.shown}"])]), flush=True)
        self.progress = progress_for(Meter(self.world.budget, self.world.fields), self.output.quiet, samples=self.world.samples)

    def _train(self) -> None:
        settings = self.config.settings
        if self.resumed is None:
            self.points.first = self.world.begin(self)
        if self.signal is not None or (self.reached and self.resumed is None):
            return
        start = None if self.resumed is None else self.resumed.state["run"]
        budget = self.resumed.spent(self.world.budget) if self.resumed is not None and self.reached else self.world.budget
        options: dict[str, Any] = {**budget, "seed": settings.seed, "start": start, "fast": settings.fast, "progress": False}
        callbacks = (self._after_iteration, *self.callbacks, self._saved)
        train(self.config.algorithm, self.world.policy, self.world.collect, callbacks=callbacks, **options)

    # ----------------------------------------------------------------------------------------------- after each iteration

    def _after_iteration(self, state: RunState) -> bool:
        """Evaluate where it is time, write the iteration down wherever it is wanted; True ends the run."""
        self._begin_writing()
        before, self.state, self.updates = self.trained.get("total_steps", 0), state, state.num_updates
        self.trained = row = dict(state.metrics)
        episodes = self.world.due(before, state)
        if episodes and not self.failures.gave_up:
            row |= self._evaluate(episodes)
        row |= self.world.follow(state, self)
        self.row = row
        if episodes or is_kept(state.iteration) or not row.keys().isdisjoint(("skipped_steps", "environment_restarts")):
            self._remember_row(row)
            self.folder.append("metrics.jsonl", [row])
        if episodes:
            history = self._history(self.points.last)
            with contextlib.suppress(ArithmeticError, LookupError, TypeError, ValueError):  # said at the end
                for message in self.watch.look(history, state.fraction):
                    self.note(message)
        for logger in self.loggers:
            logger(row)
        self.progress.update(row)
        return self.reached or self.stopped

    def _saved(self, state: RunState) -> None:
        """Save in time; after the user's callbacks, whose iteration is over then, too."""
        every = self.output.checkpoint_iterations
        if self.checkpoints.due() or (every is not None and state.iteration % every == 0):
            with self.checkpoints.saving():
                self._checkpoint()
        self.save_in_time()

    def _remember_row(self, row: Mapping[str, Any]) -> None:
        self.rows.append(finite_or_none({name: row[name] for name in (*self.world.kept, *WATCHED) if name in row}))

    def _evaluate(self, episodes: int) -> Mapping[str, float]:
        """An evaluation on fresh episodes; keeps the best policy and sees whether the goal is reached."""
        try:
            result = self.world.evaluate(episodes)
        except (RunFault, UsageError) as fault:  # the training itself is well
            self.note(self.failures.failed(self.trained["total_steps"], fault))
            return {}
        self.failures.in_a_row = 0
        if result is None:
            return {}
        self._keep_best(result)
        self.reached = self.world.reached(self.points.later)
        spread = {"evaluation_std": result.std, "evaluation_episodes": float(result.episodes)}
        return {**result.row, **spread, "weight_change": self.watch.weight_change()}

    def _keep_best(self, result: Evaluated) -> None:
        """Remember an evaluation, and the policy where none was better."""
        point = result.point(self.trained.get("total_steps", 0))
        if point is None or not math.isfinite(point.mean):
            return
        if self.points.is_best(point):
            self._save("best_policy", {"evaluation": asdict(point)})
        self.points.later.append(point)

    def _last_evaluation(self) -> Evaluated | None:
        """The final policy on fresh episodes; kept as the best where it is."""
        try:
            result = self.world.evaluate_last(self)
        except (RunFault, UsageError) as fault:
            self.faults.append(f"the final policy was not evaluated: {fault}")
            return None
        if result is not None and (self.points.last or self.world.may_be_best):
            self._keep_best(result)
        return result

    # ------------------------------------------------------------------------------------------- what worlds may ask for

    @property
    def stopped(self) -> bool:
        return self.signal is not None

    def note(self, text: str) -> None:
        self.progress.note(text)

    def save_in_time(self) -> None:
        if self.pace.due():
            with self.pace.saving():
                self._save()

    def _save(self, name: str = "policy", more: Mapping[str, Any] | None = None) -> None:
        progress = {counted: int(self.trained.get(counted, 0)) for counted in ("iteration", "total_steps")}
        planned = {f"planned_{counted.removeprefix('total_')}": count for counted, count in self.world.budget.items()}
        self.world.save(self.folder, name, {**progress, **planned, **(more or {})})

    # ------------------------------------------------------------------------------------------------------- going on

    def _checkpoint(self) -> None:
        """Write down everything that the next iteration depends on; where that is not possible, say so once.

        The policy is saved before, so that no checkpoint knows a newer one.
        """
        if self.state is None or self.not_resumable:
            return
        with self.pace.saving():
            self._save()
        try:
            session: dict[str, Any] = {name: getattr(self, name) for name in ("faults", "reached", "trained", "resumed_at")}
            session["attached"] = states_of(remembering((*self.callbacks, *self.loggers)))
            session |= {**self.points.state_dict(), "failures": self.failures.state_dict(), "watch": self.watch.state_dict()}
            state: dict[str, Any] = {"run": self.state.state_dict(), "session": session, "world": self.world.state_dict()}
            state["seconds"] = self.seconds_before + time.perf_counter() - self.started
            state |= {"files": sizes(self.folder.path), "checksums": dict(self.folder.checksums), "surroundings": self.surroundings}
            write_checkpoint(self.folder.path, self.state.iteration, state)
        except RunFault:  # it cannot be written
            raise
        except RuntimeError as why:  # an environment's process has died since its last step: that step will see it
            self._warn(f"no checkpoint after iteration {self.state.iteration:,}: {why}")
        except (UsageError, TypeError) as why:
            self.not_resumable = f"{NOT_RESUMABLE}: {why}"
            self._warn(self.not_resumable)

    def _capsule(self, fault: Diverged) -> None:
        """Keep what the iteration that diverged can be played again from."""
        iteration = 1 + (self.state.iteration if self.state is not None else 0 if self.resumed is None else self.resumed.iteration)
        self._warn(keep_capsule(self.folder.path, self.folder.shown, iteration, fault))

    def _warn(self, message: str) -> None:
        """Keep a sentence for the warnings of the summary, and say it at once."""
        self.faults.append(message)
        self.note(message)

    def _take_up(self, stopped: Stopped) -> None:
        """Make this session what it was at the checkpoint, without a change to the folder.

        Raises:
            UsageError: the checkpoint does not hold what this run needs.
        """
        state = stopped.state
        try:
            around = state["session"]
            self.failures.load_state_dict(around["failures"])
            self.watch.load_state_dict(around["watch"])
            self.points.load_state_dict(around)
            self.reached, self.trained = around["reached"], around["trained"]
            self.faults = around["faults"] + self.points.keep(Run.load(self.folder.path))
            self.resumed_at = [*around["resumed_at"], state["run"]["iteration"]]
            self.seconds_before = state["seconds"]
            self.row = dict(self.trained)
            for row in rows_until(self.folder.path, state):
                self._remember_row(row)
            self.folder.checksums = dict(state["checksums"])
            self.world.load_state_dict(state["world"], self.folder)
        except (RunFault, UsageError):
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError) as error:
            raise UsageError(f"{stopped.path}: its checkpoint is not one of such a run ({describe_error(error)})") from error

    def _begin_writing(self) -> None:
        """Before the first change to a stopped run's folder: rows behind its checkpoint are cut off, its summary is gone."""
        if self.writes or self.resumed is None:
            return
        self.writes = True
        cut_files(self.folder.path, self.resumed.state["files"])
        tidy(self.folder.path, self.resumed.iteration)
        (self.folder.path / "summary.json").unlink(missing_ok=True)
        self._write_config()
        self.faults += [changed] if (changed := self.resumed.changed(self.surroundings)) else []
        if self.world.lost:
            self._warn(self.world.lost)

    def _write_config(self) -> None:
        self.folder.write_json("config.json", {"format_version": FORMAT_VERSION, **self.recorded_config, "versions": versions()})

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends the run after the iteration, while the end is written nothing; the second one ends it at once."""
        if self.writing_end and not self.at_once:
            self.at_once = True
            return
        again, self.signal = self.signal is not None, number
        if again or self.at_once:
            raise KeyboardInterrupt
        with contextlib.suppress(RuntimeError):  # it struck while something was being printed
            self.note("stopping after this iteration; once more stops at once")

    # ------------------------------------------------------------------------------------------------------------ the end

    def _finish(self, error: Exception | None, result: Evaluated | None) -> dict[str, Any]:
        # the parameters may be what diverged, or an update was cut short: then the last saved ones stay
        if not isinstance(error, Diverged) and (self.state is None or self.updates == self.state.num_updates):
            self._save()
        summary = self._summary(error, result)
        self.world.draw(self.folder.path / "curve.png", self.rows, summary)
        summary["wall_seconds"] = self.seconds_before + time.perf_counter() - self.started
        self.folder.write_json("summary.json", summary)
        return summary

    def _summary(self, error: Exception | None, result: Evaluated | None) -> dict[str, Any]:
        row, seconds = self.row, self.row.get("train_seconds", 0.0)
        status = "failed" if error is not None else "interrupted" if self.stopped else "finished"
        message = None if error is None else describe_error(error)
        summary: dict[str, Any] = {"format_version": FORMAT_VERSION, "status": status, "error": message, "algorithm": self.config.name}
        summary |= {"seed": self.config.settings.seed, "iterations": int(row.get("iteration", 0))}
        summary |= {"total_steps": int(row.get("total_steps", 0)), "train_seconds": seconds, "wall_seconds": 0.0}
        summary["steps_per_second"] = row["total_steps"] / seconds if seconds > 0 else 0.0
        summary |= self.world.headline(result, self.points.known, reached=self.reached, failed=error is not None)
        summary |= {"evaluations": len(self.points.later), **({"resumed_at": self.resumed_at} if self.resumed_at else {})}
        return summary | {"warnings": self._warnings(result)}

    def _warnings(self, result: Evaluated | None) -> list[str]:
        """What did not go well; of a run that was ended before its last evaluation, what its metrics say."""
        final = None if result is None else result.point(self.trained.get("total_steps", 0))
        said = [*self.failures.warnings(), *self.faults, *restarts_of(self.rows)]
        try:
            return [*said, *map(str, findings(self._history(final or self.points.last)))]
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # metrics of anyone's
            return [*said, f"its metrics cannot be judged: {describe_error(error)}"]

    def _history(self, final: Point | None) -> History:
        goal = final.mean if self.reached and final is not None else self.world.good  # as the evaluations before it have said
        return History(self.rows, self.points.until(final), final, goal, self.world.action_dims, flat_config(self.recorded_config))

    @property
    def exit_code(self) -> int:
        """0, or 128 plus the signal that ended the run (130 after Ctrl-C)."""
        return 0 if self.signal is None else 128 + self.signal
