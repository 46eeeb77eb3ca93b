"""A sweep in progress: trials are begun, followed, ended, told to Optuna and written down; workers carry out their runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.errors import RunFault, UsageError
from upslope.run.config import RunConfig
from upslope.run.folder import Output, RunFolder, finite_or_none
from upslope.run.process import handled
from upslope.run.settings import flat_config, settings_of
from upslope.studies import sweep_report as report
from upslope.studies.sweep_optuna import begun_states, handle_of, sampler_for, study_in, tell
from upslope.studies.sweep_runs import DIVERGED, FINISHED, STOP, STOPPED, Result, Worker, points_in
from upslope.studies.sweep_trials import Part, Trial

if TYPE_CHECKING:
    from upslope.studies.sweep import Sweep

JOURNAL, TABLE, BEST = "journal.jsonl", "trials.jsonl", "best.json"
FAILURES = 5  # trials that fail, without one that did not, before a sweep gives up
SECONDS_TO_STOP = 10.0  # that runs have for their iteration and its checkpoint once the sweep is stopped
FINALISTS = 5  # of the best trials, which are run on further seeds
TURN = 0.2  # seconds after which a signal is seen at the latest


@dataclass(frozen=True)
class Swept:
    """What a sweep has found so far: the table's rows, the best of them, and the signal that ended the sweep, if one did."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    best: dict[str, Any] | None
    signal: int | None = None


class Search:
    """A sweep in progress, in its locked folder. Optuna is asked and told here only, so its journal has one writer."""

    def __init__(self, sweep: Sweep, folder: RunFolder, output: Output, goal: float | None) -> None:
        self.sweep, self.folder, self.output = sweep, folder, output
        self.measure = sweep.measure(goal)
        self.study = study_in(folder.path / JOURNAL, self.measure.direction)
        if sweep.baseline and not self.study.get_trials(deepcopy=False):
            known = {name: setting.value for name, setting in settings_of(*sweep.config.parts()).items()}
            self.study.enqueue_trial({name: each.recorded(known[name]) for name, each in sweep.space.items() if each.holds(known[name])})
        self.workers: list[Worker] = []
        self.signal: int | None = None
        self.at_once = False
        began = self.study.get_trials(deepcopy=False)
        self.trials = [self.trial(handle_of(self.study, each)) for each in began if each.state.name == "RUNNING"]
        self.resumed = sum(each.state.is_finished() for each in began), len(self.trials)

    def say(self, text: str) -> None:
        if not self.output.quiet:
            print(text, flush=True)

    def carry_out(self) -> Swept:
        """Until all trials have ended or a signal comes; the pictures are drawn either way."""
        self.say(report.plan(self.sweep, self.measure, self.folder.shown, self.resumed))
        with handled(self.stop):
            try:
                self.follow()
                if self.signal is None:
                    self.trials += self.finalists()
                    self.follow()
                if self.signal is not None:
                    self.stop_runs()
            finally:
                for worker in self.workers:
                    worker.end()
            found = self.write()
            report.draw(self.study, self.sweep, self.measure, self.folder.path)
        self.say(report.closing(self.sweep, self.measure, found))
        return found

    def follow(self) -> None:
        """Until no trial is under way and none is left to begin."""
        while self.signal is None and (self.begin() or self.trials):
            self.turn()

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.at_once, self.signal = self.signal is not None, number
        if not self.at_once:
            with contextlib.suppress(RuntimeError):  # it struck while something was being printed
                self.say("stopping: each run ends its iteration; once more stops at once")

    # --------------------------------------------------------------------------------------------------------- trials

    def trial(self, handle: Any) -> Trial:
        """A trial of Optuna's with its runs, of which those count that have finished before."""
        values = {name: each.suggest(handle, name) for name, each in self.sweep.space.items()}
        known: Mapping[int, float] = self.study.trials[handle.number].intermediate_values
        trial = Trial(handle, values, [], reported=max(known, default=0))
        try:
            trial.parts += self.parts(handle.number, values, 0, self.sweep.seeds)
        except UsageError as error:  # settings that are allowed by themselves
            trial.faults.append(str(error))
        return trial

    def parts(self, number: int, values: Mapping[str, Any], first: int, count: int) -> list[Part]:
        """The runs of a trial from its ``first`` seed on; UsageError where the settings do not go together."""
        config, parts = self.sweep.config.replaced(values), list[Part]()
        for seed in range(config.settings.seed + first, config.settings.seed + first + count):
            part = Part(seed, config.replaced({"seed": seed}), self.folder.path / f"trial-{number:04d}" / f"seed-{seed}")
            parts.append(part)
            try:
                part.points = points_in(part.folder)
                part.result = Result.of(part.folder) if part.points or (part.folder / "summary.json").exists() else None
            except UsageError:  # its files are damaged: it is carried out again
                shutil.rmtree(part.folder, ignore_errors=True)
        return parts

    def finalists(self) -> list[Trial]:
        """The best trials, and the baseline, with runs on further seeds, but for those that have had them."""
        rows = report.rows_of(self.study, self.sweep)
        found = report.best_first(self.sweep, rows)
        chosen = [row for place, row in enumerate(found) if place < FINALISTS or (self.sweep.baseline and row["trial"] == 0)]
        trials: list[Trial] = []
        for row in chosen if self.sweep.confirm else ():
            if len(row["confirmed"]) < self.sweep.confirm:
                values = report.settings_in(self.sweep, row)
                parts = self.parts(row["trial"], values, self.sweep.seeds, self.sweep.confirm)
                trials.append(Trial(self.study.trials[row["trial"]], values, parts, final=True))
        return trials

    def begin(self) -> bool:
        """Give each idle worker a run: of a trial that has begun, else of a new one. False once no trial is left to begin."""
        while True:
            busy = sum(worker.run is not None for worker in self.workers)
            if busy >= self.sweep.jobs:
                return True
            found = next(((trial, part) for trial in self.trials for part in trial.waiting), None)
            if found is None:
                for trial in [trial for trial in self.trials if trial.ended]:  # nothing was left to do, or it cannot be
                    self.end(trial)
                number = len(self.study.get_trials(deepcopy=False, states=begun_states()))
                if number >= self.sweep.trials:
                    return False
                self.study.sampler = sampler_for(self.sweep.config.settings.seed, number, several=self.sweep.jobs > 1)
                self.trials.append(self.trial(self.study.ask()))
                continue
            self.start(*found)

    def start(self, trial: Trial, part: Part) -> None:
        worker = next((each for each in self.workers if each.run is None), None)
        if worker is None:
            worker = Worker()
            self.workers.append(worker)
        part.running = True
        worker.begin((trial, part), part.config, replace(self.output, out=part.folder, quiet=True))

    def turn(self, seconds: float = TURN) -> None:
        """Wait for what the workers say, and follow it."""
        wait([worker.line for worker in self.workers], seconds)
        for worker in list(self.workers):
            for kind, *said in worker.received():
                if kind == "evaluation" and worker.run is not None:
                    self.evaluated(*worker.run, *said)
                elif kind not in ("evaluation", "ready"):
                    self.ended(worker, kind, *said)

    def evaluated(self, trial: Trial, part: Part, share: float, mean: float) -> None:
        part.points[share] = mean
        if trial.final:
            return
        self.report(trial)
        if self.sweep.prune and not trial.over and trial.handle.should_prune():
            trial.pruned = True
            self.stop_trial(trial)

    def report(self, trial: Trial) -> None:
        for index, mean in trial.curve(self.measure).items():
            trial.handle.report(mean, index)
            trial.reported = index

    def stop_trial(self, trial: Trial) -> None:
        for worker in self.workers:
            if worker.run is not None and worker.run[0] is trial:
                worker.send(STOP)

    def ended(self, worker: Worker, kind: str, why: Any = "") -> None:
        """A run has come to its end, or its process has."""
        run, worker.run = worker.run, None
        if kind == "died":
            self.workers.remove(worker)
            worker.end()
        if run is None:
            return
        trial, part = run
        part.running = False
        part.result = Result.of(part.folder) if kind == FINISHED else None
        if kind not in (FINISHED, STOPPED) and self.signal is None:
            trial.faults.append(f"its process ended with exit code {why}" if kind == "died" else str(why))
            trial.diverged = trial.diverged or kind == DIVERGED
            self.stop_trial(trial)
        if trial.ended and self.signal is None:
            self.end(trial)

    def confirmed(self, trial: Trial) -> None:
        """Write down what a finalist is worth on further seeds; one whose run failed there is no finalist."""
        self.trials.remove(trial)
        if trial.finished and not trial.faults:
            values = [self.measure.value(part.result) for part in trial.parts if part.result is not None]
            known: dict[str, list[float]] = self.study.user_attrs.get(report.CONFIRMED, {})
            self.study.set_user_attr(report.CONFIRMED, {**known, str(trial.number): values})
        self.say(report.confirmed_line(self.sweep, self.measure, trial, report.rows_of(self.study, self.sweep)))
        self.write()

    def end(self, trial: Trial) -> None:
        """Tell Optuna how a trial has ended: complete, pruned (where it diverged too), or failed. From then on it counts."""
        if trial.final:
            self.confirmed(trial)
            return
        self.report(trial)
        values = [self.measure.value(part.result) for part in trial.parts if part.result is not None]
        if trial.finished and not trial.faults and not np.isfinite(values).all():
            trial.faults.append("nothing was evaluated, neither on the way nor at the end, so settings cannot be compared")
        state = "pruned" if trial.pruned or trial.diverged else "failed" if trial.faults else "complete"
        trial.handle.set_user_attr("values", finite_or_none(values))
        trial.handle.set_user_attr("why", trial.faults[0] if trial.faults else "")
        tell(self.study, trial.number, state, sum(values) / len(values) if state == "complete" else None)
        self.trials.remove(trial)
        found = self.write()
        row = next(row for row in found.rows if row["trial"] == trial.number)
        self.say(report.trial_line(self.sweep, self.measure, row, found.best))
        ends = [row["state"] for row in found.rows]
        if len(ends) >= FAILURES and set(ends) == {"failed"}:
            raise RunFault(f"sweep: the first {len(ends)} trials all failed, the last one because {trial.faults[0]}")

    def write(self) -> Swept:
        """``trials.jsonl`` and ``best.json`` from the journal; nothing of what they say is kept elsewhere."""
        rows = report.rows_of(self.study, self.sweep)
        best = report.best_of(self.sweep, rows)
        self.folder.write_bytes(TABLE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        if best is not None:
            self.folder.write_json(BEST, preset_of(self.sweep.config.replaced(report.settings_in(self.sweep, best))))
        return Swept(self.folder.shown, tuple(rows), best, self.signal)

    def stop_runs(self) -> None:
        """Let every run end its iteration and write its checkpoint, but not for long."""
        for trial in self.trials:
            self.stop_trial(trial)
        turns = int(SECONDS_TO_STOP / TURN)
        while turns and not self.at_once and any(worker.run is not None and worker.ready for worker in self.workers):
            self.turn()
            turns -= 1


UNLEARNED = (
    *("seed", "init", "device", "fast", "eval_every", "eval_episodes", "eval_sample"),
    *("until_solved", "until_return", "until_accuracy"),
)
"""Settings of a run that are no part of a preset: by what it is watched and when it ends."""


def preset_of(config: RunConfig) -> dict[str, Any]:
    """The settings of a run as a file for ``--config``: all that decides what is learned, but the seed and what names a module."""
    flat = {name: value for name, value in flat_config(config.config()).items() if name not in UNLEARNED}
    return {name: value for name, value in flat.items() if not report.names_module(name, value, config)}
