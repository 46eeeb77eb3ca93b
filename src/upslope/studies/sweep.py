"""``upslope sweep``: hyperparameters searched with Optuna, each trial being ordinary runs that end early where others do better.

>>> config = RunConfig.of("ppo", "CartPole-v1", total_steps=50_000)                                    # doctest: +SKIP
>>> found = Sweep(config, {"learning_rate": Range(1e-4, 1e-2, log=True)}, trials=20, jobs=2).run()     # doctest: +SKIP
>>> found.best, found.folder                                                                           # doctest: +SKIP

Everything that a sweep knows is in its folder, so one that was stopped or killed goes on with what it had:

=====================  ================================================================================
``sweep.json``         what is searched, and how it is judged
``journal.jsonl``      Optuna's journal, a line for each thing that happened; flushed to the disk line by line
``trial-0007/seed-0``  a run folder for each run of a trial
``trials.jsonl``       the table: a line for each trial that has ended
``best.json``          the settings of the best one, for ``upslope train … --config``
``history.png``        what each trial was worth, and ``importance.png``: which setting mattered
=====================  ================================================================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from upslope.errors import UsageError, require, require_counts, require_packages
from upslope.run.config import RunConfig
from upslope.run.control_settings import check_seed
from upslope.run.evaluations import POINTS, UNTIL_EVERY
from upslope.run.folder import FORMAT_VERSION, Output, RunFolder, check_free, default_path, finite_or_none, versions
from upslope.run.load import read_json
from upslope.run.resume import locked
from upslope.run.settings import flattened, settings_of
from upslope.studies.sweep_optuna import quiet_optuna
from upslope.studies.sweep_runs import unit_of
from upslope.studies.sweep_search import Search, Swept
from upslope.studies.sweep_space import Choices, Range, Space, check_space, default_space
from upslope.studies.sweep_trials import Measure, Objective

SWEEP = "sweep.json"

__all__ = ["Choices", "Range", "Sweep", "SweepOptions", "Swept"]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How long a sweep is, how it judges, and what it ends early; these are flags of the command."""

    trials: int = 50
    """trials in all, those of a sweep that goes on among them"""
    jobs: int = 1
    """runs side by side, each a process with one thread"""
    seeds: int = 2
    """runs of each trial, with the seeds --seed, --seed + 1, …; what is found is to be judged on others"""
    confirm: int = 8
    """further seeds on which the five best trials, and the baseline, are run at the end: chosen on a few, the best is mostly lucky"""
    objective: Objective | None = None
    """steps: fewest to the goal; return: the highest mean of all evaluations; final: the highest last one (none: steps where a goal is
    known, else return)"""
    prune: bool = True
    """stop a trial where its evaluations lie below the median of what others had reached at that point"""
    baseline: bool = True
    """use the settings that a run starts with, the task's preset for one, as the first trial"""

    def __post_init__(self) -> None:
        require_counts(self, "trials", "jobs", "seeds", most=100_000)
        require_counts(self, "confirm", least=0, most=100_000)
        require(self.jobs <= 1024, f"jobs: expected an integer ≥ 1 and at most 1,024, found {self.jobs}")
        known = ("steps", "return", "final", None)
        require(self.objective in known, f"objective: expected steps, return or final, found {self.objective!r}")


@dataclass(frozen=True)
class Sweep(SweepOptions):
    """A search for the settings with which a run does best; :meth:`run` carries it out, or on.

    Args:
        config: the run; its seed is the first one of each trial, and that of the search.
        space: what is searched; without it :func:`~upslope.studies.sweep_space.default_space`.

    Raises:
        UsageError: a setting that the run does not have, or a value that it does not take.
    """

    config: RunConfig
    space: Space = field(default_factory=dict[str, Range | Choices])

    def __post_init__(self) -> None:
        super().__post_init__()
        require_packages("sweep", "optuna")
        check_seed(self.config.settings.seed + self.seeds + self.confirm - 1)
        object.__setattr__(self, "space", dict(self.space) or default_space(self.config))
        check_space(self.config, self.space)
        known = {name: setting.value for name, setting in settings_of(*self.config.parts()).items()}
        outside = [name for name, each in self.space.items() if self.baseline and not each.holds(known[name])]
        for name in outside[:1]:
            why = f"the {name} searched does not hold {known[name]}, with which a run starts and the first trial would be"
            raise UsageError(f"search: {why}; add it, or say --no-baseline")

    @property
    def unit(self) -> str:
        """What the budget counts: ``total_steps`` or ``iterations``."""
        return unit_of(self.config.world)

    def recorded(self) -> dict[str, Any]:
        """``sweep.json``, but for what may change when a sweep goes on."""
        space = {name: [type(each).__name__, str(each)] for name, each in self.space.items()}
        how = {name: getattr(self, name) for name in ("seeds", "objective", "prune", "baseline")}
        return json.loads(json.dumps(finite_or_none({"config": self.config.config(), "space": space, **how})))

    def run(self, output: Output | None = None) -> Swept:
        """Search, in the output's folder (none: ``sweeps/ALGORITHM-TASK-SEED``); one that is there already goes on.

        Args:
            output: where the folder is, what is printed, and what the runs log.

        Raises:
            UsageError: before anything was written: the run cannot be, or the folder holds something else.
            RunFault: every one of the first trials failed, or nothing can be compared.
        """
        output = output or Output()
        if output.out is not None and not (output.out / SWEEP).exists():
            check_free(output.out)
        sweep, goal, target = self.prepared()
        folder = sweep.folder(output.out, target)
        with folder, locked(folder.path), quiet_optuna():
            return Search(sweep, folder, output, goal).carry_out()

    def prepared(self) -> tuple[Sweep, float | None, str]:
        """The same with all that making the run once decides; the goal of its trials, if they have one; what is learned."""
        until = ("until_solved", "until_return", "until_accuracy")
        settings = self.config.settings
        asked = any(getattr(settings, name, None) not in (None, False) for name in until)
        world = self.config.prepare()
        try:
            goal, target = world.good, world.target
        finally:
            world.close()
        known = goal is not None and (asked or self.config.world == "control")
        objective = self.objective or ("steps" if known else "return")
        if objective != "steps":
            return replace(self, objective=objective), None, target
        how = "until-accuracy" if self.config.world == "language" else "until-return"
        require(known, f"objective: steps are counted to a goal, and none is known here; add --{how} X, or take --objective return")
        config = self.config if asked else self.config.replaced({"until_solved": True})
        if config.world == "control" and config.settings.eval_every is None:
            config = config.replaced({"eval_every": UNTIL_EVERY})
        return replace(self, config=config, objective=objective), goal, target

    def folder(self, out: Path | None, target: str) -> RunFolder:
        """The folder, with ``sweep.json``: a new one, or the one in which this sweep was begun.

        Raises:
            UsageError: it holds another sweep.
        """
        recorded = self.recorded()
        if out is None or not (out / SWEEP).exists():
            default = Path("sweeps") / default_path(self.config.name, target, self.config.settings.seed).name
            folder = RunFolder.create(out, default)
            folder.write_json(SWEEP, {"format_version": FORMAT_VERSION, **recorded, "versions": versions()})
            return folder
        found = read_json(out / SWEEP, versioned=True)
        for name, value in flattened(recorded).items():
            if (was := flattened(found).get(name)) != value:
                short = name.rpartition(".")[2]
                raise UsageError(f"--out: {out} holds another sweep, with {short} {was!r}, here it is {value!r}; name another folder")
        return RunFolder(out)

    def measure(self, goal: float | None) -> Measure:
        every = self.config.settings.eval_every
        budget = getattr(self.config.settings, self.unit)
        return Measure(cast("Objective", self.objective), budget, every or budget / POINTS, goal)
