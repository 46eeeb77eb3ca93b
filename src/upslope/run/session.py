"""A run in progress: the loop with evaluation, records, progress and a clean end, whatever the end is."""

from __future__ import annotations

import contextlib
import math
import signal
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from upslope.errors import Diverged, RunFault, UsageError, require
from upslope.run.control_run import ALGORITHMS, ControlRun
from upslope.run.control_settings import Output
from upslope.run.evaluations import UNTIL_EVERY, Failures, Point, Schedule
from upslope.run.folder import FORMAT_VERSION, RunFolder, check_free, default_path, versions
from upslope.run.health import WATCHED, History, warnings_of
from upslope.run.load import Run
from upslope.run.loggers import Logger, check_loggers, loggers_for
from upslope.run.report import Progress, next_words, plan, progress_for, result_words, warning_words
from upslope.run.saving import SavePace, progress_of
from upslope.run.threads import one_thread

KEPT = ("total_steps", "evaluation_return", "evaluation_reward_per_step", *WATCHED)
"""What the learning curve and the last look at the run need; everything else of a row is in ``metrics.jsonl`` only."""
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, a scheduler, a terminal that was closed: each ends a run after its iteration, with everything saved."""


class Session:
    """Carries out one :class:`ControlRun` and writes its folder; what a world does differently is a method of its own."""

    def __init__(self, run: Any, output: Output) -> None:
        self.run_config = self._complete(run)
        self.output = output
        self.signal: int | None = None

    def _complete(self, run: ControlRun) -> Any:
        settings = run.settings
        if (settings.until_return is not None or settings.until_solved) and settings.eval_every is None:
            settings = replace(settings, eval_every=UNTIL_EVERY)
        return replace(run, settings=settings)

    # ------------------------------------------------------------------------------------------------- from start to end

    def run(self) -> Run:
        """Check everything, then make the folder, train, evaluate and write the summary."""
        self.started = time.perf_counter()
        if self.output.out is not None:
            check_free(self.output.out)
        check_loggers(self.output.loggers)
        prepared = self.run_config.prepare()
        self.run_config, self.prepared = prepared.run, prepared
        try:
            default = default_path(self.run_config.name, prepared.target, self.run_config.settings.seed)
            with RunFolder.create(self.output.out, default) as self.folder:
                summary = self._recorded()
            return Run(self.folder.path, {"format_version": FORMAT_VERSION, **self.config}, summary)
        finally:
            prepared.close()

    def _recorded(self) -> dict[str, Any]:
        """Everything that happens while the folder is open."""
        self._open()
        error: Exception | None = None
        result: Any = None
        try:
            try:
                with self._signals(), one_thread(self.prepared.policy):
                    self._train()
                    if self.signal is None:
                        self.training = False
                        result = self._final_result()
            except UsageError as mistake:
                if not self.rows:  # nothing was computed, so nothing is kept
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
            self._close_evaluator()
        if error is not None:
            raise error
        if not self.output.quiet:
            print(self._closing_words(summary), flush=True)
        return summary

    def _closing_words(self, summary: Mapping[str, Any]) -> str:
        from upslope.run.play import can_render

        folder, shipped = self.folder.path, summary["algorithm"] in ALGORITHMS
        further = next_words(summary, folder, renders=can_render(self.prepared.envs), shipped=shipped)
        return f"{result_words(summary, folder)}\n\n{further}{warning_words(summary)}"

    def _open(self) -> None:
        self.state_row: dict[str, Any] = {}
        self.evaluations: list[Point] = []
        self.evaluator: Any = None
        self.faults: list[str] = []
        self.failures = Failures(self.run_config.settings)
        self.rows: list[dict[str, Any]] = []
        self.solved = False
        self.training = True
        self.reached: Mapping[str, Any] = {}
        self.pace = SavePace()
        self._schedule()
        self.config = self._config()
        self.folder.write_json("config.json", {"format_version": FORMAT_VERSION, **self.config, "versions": versions()})
        self._save_first()
        output = self.output
        self.loggers: list[Logger] = loggers_for(output.loggers, self.folder.path, self.config)
        if not output.quiet:
            print(self._plan(), flush=True)
        self.progress = self._progress()

    def _config(self) -> dict[str, Any]:
        config = self.run_config.config()
        if ":" not in config["env_id"]:
            config["env_id"] = self.prepared.envs.env_id  # with its version, where it was asked for without
        return config

    def _schedule(self) -> None:
        self.schedule = Schedule(self.run_config.settings)

    def _save_first(self) -> None:
        self.folder.write_json("policy.json", {"format_version": FORMAT_VERSION, **self.prepared.policy.describe()})
        self._save(self.prepared.policy)

    def _save(self, policy: Any, name: str = "policy") -> None:
        self.folder.save_policy(policy, name, progress_of(self.reached, planned_steps=self.run_config.settings.total_steps))

    def _plan(self) -> str:
        return plan(self.run_config, self.prepared, self.folder.path)

    def _progress(self) -> Progress:
        return progress_for(self.run_config.settings, self.output.quiet)

    def _train(self) -> None:
        from upslope.run.train import train

        settings = self.run_config.settings
        train(
            self.run_config.algorithm,
            self.prepared.policy,
            self.prepared.collect,
            total_steps=settings.total_steps,
            seed=settings.seed,
            callbacks=(self._after_iteration,),
            fast=settings.fast,
            progress=False,
        )

    # ----------------------------------------------------------------------------------------------- after each iteration

    def _after_iteration(self, state: Any) -> bool:
        """Evaluate where it is time, then record; True ends the run."""
        before = self.reached.get("total_steps", 0)
        row = self.reached = dict(state.metrics)
        self.schedule.watch(row)
        if not self.failures.gave_up and (episodes := self.schedule.due(before, state.total_steps)):
            row |= self._evaluate(state.policy, episodes)
        return self._record(state, row, KEPT)

    def _record(self, state: Any, row: dict[str, Any], kept: Iterable[str]) -> bool:
        """Write an iteration down wherever it is wanted, and save the policy where it is time; True ends the run."""
        self.state_row = row
        self.rows.append({name: row[name] for name in kept if name in row})
        self.folder.append_metrics(row)
        for logger in self.loggers:
            logger(row)
        self.progress.update(row)
        if self.pace.due():
            with self.pace.saving():
                self._save(state.policy)
        return self.solved or self.signal is not None

    def _evaluate(self, policy: Any, episodes: int) -> dict[str, float]:
        """An evaluation on fresh episodes; keeps the best policy and sees whether the goal is reached."""
        try:
            result = self._fresh_episodes(policy, episodes)
        except (RunFault, UsageError) as fault:  # the training itself is well
            self._evaluation_failed(fault)
            return {}
        self.failures.in_a_row = 0
        self.schedule.played(result, self.evaluator)
        self._keep_best(policy, result)
        goal = self.prepared.stop_at
        last = self.evaluations[-2:]
        self.solved = goal is not None and len(last) == 2 and all(point.complete and point.mean >= goal for point in last)
        return evaluation_row(result)

    def _keep_best(self, policy: Any, result: Any) -> None:
        """Remember an evaluation, and the policy where none was better."""
        if not self.evaluations or result.return_mean > max(point.mean for point in self.evaluations):
            self._save(policy, "best_policy")
        complete = result.episodes_ended == result.episodes
        self.evaluations.append(Point(self.reached.get("total_steps", 0), result.return_mean, result.return_std, result.episodes, complete))

    def _evaluation_failed(self, fault: Exception) -> None:
        """The next one gets environments of its own."""
        self.progress.note(self.failures.failed(self.reached["total_steps"], fault))
        self._close_evaluator()

    def _close_evaluator(self) -> None:
        if self.evaluator is not None:
            self.evaluator.close()
            self.evaluator = None

    def _fresh_episodes(self, policy: Any, episodes: int | None = None) -> Any:
        if self.evaluator is None:
            self.evaluator = self.prepared.evaluator()
        self.evaluator.cut_after = self.schedule.cut_after
        if self.run_config.settings.fast:
            from upslope.fast import twins

            policy = twins.fast_policy(policy)
        return self.evaluator(policy, episodes)

    def _final_result(self) -> Any:
        """The final policy on fresh episodes; where other environments cannot be made or fail, on those of the training, which is over."""
        policy = self.prepared.policy
        try:
            result = self._fresh_episodes(policy)
        except (RunFault, UsageError) as fault:
            self._close_evaluator()
            try:
                require(not self.prepared.envs.clip_reward, "its training environments play lives, not games")
                self.evaluator = self.prepared.evaluator(own=True)
                result = self._fresh_episodes(policy)
            except (RunFault, UsageError) as again:
                self.faults.append(f"the final policy was not evaluated: {fault}; then: {again}")
                return None
            if not self.failures.faults:
                self.progress.note(f"no environments for an evaluation ({fault}): the final policy plays in those of the training")
        if self.evaluations or self.schedule.every:
            self._keep_best(policy, result)
        return result

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C (or another of the :data:`SIGNALS`) ends the run after the iteration, the second one at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            again, self.signal = self.signal is not None, number
            if again or not self.training:
                raise KeyboardInterrupt
            with contextlib.suppress(RuntimeError):  # it struck while something was being printed
                self.progress.note("stopping after this iteration; once more stops at once")

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

    def _finish(self, error: Exception | None, result: Any) -> dict[str, Any]:
        """Save the policy, draw the curve, write the summary."""
        if not isinstance(error, Diverged):  # the parameters may be what diverged; the last saved ones stay
            self._save(self.prepared.policy)
        summary = self._summary(error, result)
        self._draw(summary)
        summary["wall_seconds"] = time.perf_counter() - self.started
        self.folder.write_json("summary.json", summary)
        return summary

    def _summary(self, error: Exception | None, result: Any) -> dict[str, Any]:
        row, settings, goal = self.state_row, self.run_config.settings, self.prepared.solved_at
        seconds = row.get("train_seconds", 0.0)
        mean = None if result is None else result.return_mean
        whole = result is not None and result.episodes_ended == result.episodes
        solved = None if goal is None else whole and mean is not None and mean >= goal
        if self.prepared.stop_at is not None:
            solved = self.solved
        best = max(self.evaluations, key=lambda point: point.mean, default=None)
        return {
            "format_version": FORMAT_VERSION,
            "status": "failed" if error is not None else "interrupted" if self.signal is not None else "finished",
            "error": None if error is None else one_line(error),
            "algorithm": self.run_config.name,
            "env_id": self.config["env_id"],
            "seed": settings.seed,
            "iterations": int(row.get("iteration", 0)),
            "total_steps": int(row.get("total_steps", 0)),
            "train_seconds": seconds,
            "wall_seconds": 0.0,
            "steps_per_second": row["total_steps"] / seconds if seconds > 0 else 0.0,
            "return_mean": mean,
            "return_std": None if result is None else result.return_std,
            "return_interval": None if result is None else list(result.return_interval),
            "length_mean": None if result is None else result.length_mean,
            "reward_per_step": None if result is None else result.reward_per_step,
            "evaluated": "sampled" if self.run_config.settings.eval_sample else "greedy",
            "episodes": 0 if result is None else result.episodes,
            "episodes_ended": 0 if result is None else result.episodes_ended,
            "evaluations": len(self.evaluations),
            "best_return": None if best is None else best.mean,
            "best_total_steps": None if best is None else best.total_steps,
            "solved": solved,
            "solved_at": goal,
            "warnings": self._warnings(result, goal),
        }

    def _warnings(self, result: Any, goal: float | None) -> list[str]:
        """What did not go well; of a run that was ended before its last evaluation, what its metrics say."""
        final = self.evaluations[-1] if self.evaluations and result is not None else None
        if self.solved and final is not None:  # as the evaluations before it have said
            goal = final.mean
        space: Any = getattr(self.prepared.policy, "action_space", None)
        dims = math.prod(space.shape) if hasattr(space, "low") else 0
        return [
            *self.failures.warnings(),
            *self.faults,
            *warnings_of(History(self.rows, [*self._before_training(), *self.evaluations], final, goal, dims)),
        ]

    def _before_training(self) -> list[Point]:
        """The evaluation of the policy that training began with, where there was one."""
        return []

    def _draw(self, summary: Mapping[str, Any]) -> None:
        from upslope.run.curve import draw_curve

        title = f"{type(self.run_config.algorithm).__name__} on {summary['env_id']}, seed {summary['seed']}"
        end: list[dict[str, Any]] = []
        if summary["return_mean"] is not None:
            points = {"evaluation_return": summary["return_mean"], "evaluation_reward_per_step": summary["reward_per_step"]}
            end = [{"total_steps": summary["total_steps"], **points}]
        draw_curve(self.folder.path / "curve.png", [*self.rows, *end], title=title, solved_at=summary["solved_at"])

    @property
    def exit_code(self) -> int:
        """0, or 128 plus the signal that ended the run (130 after Ctrl-C)."""
        return 0 if self.signal is None else 128 + self.signal


def evaluation_row(result: Any) -> dict[str, float]:
    """What ``metrics.jsonl`` says of an evaluation; where episodes were cut off, how many were not."""
    row = {"evaluation_return": result.return_mean}
    if result.episodes_ended < result.episodes:
        row |= {"evaluation_episodes_ended": float(result.episodes_ended), "evaluation_reward_per_step": result.reward_per_step}
    return row


def one_line(error: BaseException) -> str:
    """The message of an exception in one line; one that is not ours is named and placed."""
    message = " ".join(str(error).split())
    if isinstance(error, UsageError | RunFault):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{where}"
