"""Sweeps: what is searched, what a trial is worth, what ends early, and what a stopped sweep keeps."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from tests.studies.sweeping import HereWorker, here  # noqa: F401 (a fixture)
from upslope import RunFault, UsageError
from upslope.run.config import RunConfig
from upslope.run.folder import Output
from upslope.run.load import Run
from upslope.studies import sweep_search
from upslope.studies.sweep import Choices, Range, Sweep
from upslope.studies.sweep_optuna import importances, quiet_optuna, study_in
from upslope.studies.sweep_runs import Result, Watcher, carried_out
from upslope.studies.sweep_space import default_space
from upslope.studies.sweep_trials import Measure, Part, Trial

SMALL = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "num_epochs": 1, "hidden_sizes": (4,), "eval_episodes": 2, "fast": False}
SPACE = {"learning_rate": Range(1e-4, 1e-2, log=True), "gamma": Choices((0.9, 0.99))}


def config(**settings) -> RunConfig:
    return RunConfig.of("ppo", "CartPole-v1", **{"total_steps": 64, "eval_every": 32, **SMALL, **settings})


def sweep(**options) -> Sweep:
    return Sweep(config(), SPACE, **{"trials": 3, "seeds": 2, "confirm": 0, "objective": "return", **options})


def study_of(folder: Path):
    with quiet_optuna():
        return study_in(folder / "journal.jsonl", "maximize")


# ------------------------------------------------------------------------------------------------------------------ the space


def test_the_default_space_has_what_the_method_has():
    found = default_space(config(learning_rate=3e-3))
    assert {"learning_rate", "gamma", "gae_lambda", "clip_range", "entropy_coef"} <= set(found)
    assert found["learning_rate"] == Range(3e-4, 3e-2, log=True)
    assert "num_epochs" not in found  # one epoch stays one
    assert "num_steps" not in default_space(RunConfig.of("sarsa", "CartPole-v1"))  # it learns at every step
    assert "group_size" in default_space(RunConfig.of("grpo", "CartPole-v1"))
    assert "learning_rate" not in default_space(config(), frozenset(["learning_rate"]))


def test_every_method_has_a_default_space_that_its_run_takes():
    from upslope.run.methods import methods_in

    for name in methods_in("control"):
        Sweep(RunConfig.of(name, "CartPole-v1"))


@pytest.mark.parametrize(
    "space, message",
    [
        ({"gama": Choices((0.9, 0.99))}, "did you mean 'gamma'"),
        ({"gamma": Range(0.5, 2.0)}, "gamma"),
        ({"seed": Range(0, 5)}, "seed is not searched"),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_anything_happens(space, message: str):
    with pytest.raises(UsageError, match=message):
        Sweep(config(), space)


def test_ranges_and_choices_refuse_what_they_cannot_hold():
    for make in (lambda: Range(1, 1), lambda: Range(0.0, 1.0, log=True), lambda: Choices((1,)), lambda: Choices((1, 1))):
        with pytest.raises(UsageError, match="search"):
            make()


def test_choices_may_be_of_any_kind():
    sizes = Choices(((64, 64), (128,), None))
    assert [sizes.recorded(value) for value in sizes.values] == ["64 64", "128", "none"]
    assert sizes.value("64 64") == (64, 64) and sizes.value("none") is None


# ---------------------------------------------------------------------------------------------------------- what it is worth


def test_solved_runs_count_their_steps_and_lie_before_all_others():
    measure = Measure("steps", 1000, 100, goal=475)
    solved = [measure.value(Result({0.5: 480.0}, 500.0, spent=count, solved=True)) for count in (300, 1010)]
    unsolved = [measure.value(Result({1.0: level}, level, spent=1000, solved=False)) for level in (470.0, 100.0, -50.0)]
    assert solved == [300, 1010] and solved[-1] < unsolved[0] < unsolved[1] < unsolved[2] <= 3000


def test_the_mean_of_evaluations_goes_on_where_a_run_has_reached_its_goal():
    measure = Measure("return", 1000, 250)
    assert measure.value(Result({0.25: 0.0, 0.5: 100.0, 0.75: 100.0}, 100.0, spent=1000, solved=False)) == 75
    assert measure.value(Result({0.25: 0.0, 0.5: 100.0}, 100.0, spent=500, solved=True)) == 75
    assert Measure("final", 1000, 250).value(Result({0.25: 0.0}, 80.0, spent=1000, solved=False)) == 80


def test_a_trial_is_compared_where_all_of_its_runs_have_got_to(tmp_path: Path):
    measure = Measure("final", 1000, 100)
    parts = [Part(seed, config(), tmp_path, running=True) for seed in (0, 1)]
    trial = Trial(None, {}, parts)
    parts[0].points.update({0.1: 10.0, 0.2: 20.0, 0.3: 30.0})
    assert trial.curve(measure) == {}
    parts[1].points.update({0.1: 0.0, 0.2: 10.0})
    assert trial.curve(measure) == {1: 5.0, 2: 15.0}
    trial.reported = 2
    parts[0].running, parts[0].result = False, Result(parts[0].points, 30.0, spent=300, solved=True)
    parts[1].points[0.4] = 20.0
    assert trial.curve(measure) == {3: 20.0, 4: 25.0}  # one passes a point over, the other stands where it ended


# ------------------------------------------------------------------------------------------------------------- from start to end


def test_a_sweep_leaves_runs_a_table_a_preset_and_pictures(here: type[HereWorker], tmp_path: Path, capsys):  # noqa: F811
    found = sweep(trials=5, seeds=1, jobs=2).run(Output(out=tmp_path / "s"))
    assert [row["trial"] for row in found.rows] == [0, 1, 2, 3, 4] and found.signal is None
    assert found.rows[0]["settings"] == {"learning_rate": config().algorithm.update.learning_rate, "gamma": "0.99"}  # the baseline
    assert {path.name for path in found.folder.iterdir()} >= {"best.json", "trials.jsonl", "history.png", "importance.png", "sweep.json"}
    assert [json.loads(line) for line in (found.folder / "trials.jsonl").read_text().splitlines()] == list(found.rows)
    best = json.loads((found.folder / "best.json").read_text())
    assert found.best is not None and best["learning_rate"] == found.best["settings"]["learning_rate"] and "seed" not in best
    assert Run.load(found.folder / "trial-0001" / "seed-0").finished
    out = capsys.readouterr().out
    assert sorted(line.split(":")[0] for line in out.splitlines() if line.startswith("trial ")) == [f"trial {n}" for n in range(5)]
    assert (
        "judge it on others" in out
        and "pictures: history.png, importance.png" in out
        and "best: trial" in out
        and "0.0001 to 0.01, logarithmic" in out
    )


def test_without_the_baseline_the_first_trial_is_drawn_and_draws_do_not_depend_on_interruptions(here, tmp_path: Path):  # noqa: F811
    whole = sweep(trials=3, seeds=1, baseline=False).run(Output(out=tmp_path / "whole", quiet=True))
    for count in (1, 2, 3):
        last = sweep(trials=count, seeds=1, baseline=False).run(Output(out=tmp_path / "parts", quiet=True))
    assert [row["settings"] for row in last.rows] == [row["settings"] for row in whole.rows]
    assert whole.rows[0]["settings"]["learning_rate"] != config().algorithm.update.learning_rate


def test_finished_trials_are_kept_and_runs_of_a_stopped_one_counted_once(here, tmp_path: Path, monkeypatch):  # noqa: F811
    """The sweep dies behind the first run of its second trial, in which the journal's last line is cut."""
    ended = sweep_search.Search.ended

    def dying(self, worker, kind, *said):
        ended(self, worker, kind, *said)
        if len(here.begun) == 3:
            raise SystemExit

    monkeypatch.setattr(sweep_search.Search, "ended", dying)
    with pytest.raises(SystemExit):
        sweep().run(Output(out=tmp_path, quiet=True))
    monkeypatch.setattr(sweep_search.Search, "ended", ended)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"op_code":4,"wor')
    first = here.begun[:]
    here.begun.clear()
    found = sweep().run(Output(out=tmp_path, quiet=True))
    assert [path.parent.name for path in first] == ["trial-0000", "trial-0000", "trial-0001"]
    assert [(path.parent.name, path.name) for path in here.begun] == [
        *(("trial-0001", "seed-1"), ("trial-0002", "seed-0"), ("trial-0002", "seed-1"))
    ]
    assert [row["state"] for row in found.rows] == ["complete"] * 3 and all(len(row["values"]) == 2 for row in found.rows)
    assert len(study_of(tmp_path).trials) == 3
    here.begun.clear()
    assert sweep().run(Output(out=tmp_path, quiet=True)).rows == found.rows and here.begun == []


def test_a_trial_below_the_median_is_pruned(here, tmp_path: Path, monkeypatch):  # noqa: F811
    """Runs whose evaluations are made up: the later the trial, the worse."""

    def made_up(row):
        return None if "evaluation_return" not in row else row["evaluation_return"] * 0 - float(len(here.begun))

    monkeypatch.setattr("upslope.studies.sweep_runs.evaluation_in", made_up)
    many = Sweep(config(total_steps=160), SPACE, trials=7, seeds=1, confirm=0, objective="return")
    found = many.run(Output(out=tmp_path, quiet=True))
    assert [row["state"] for row in found.rows] == ["complete"] * 5 + ["pruned"] * 2
    assert "trial" in str(found.best) and found.rows[-1]["value"] is None
    kept = Sweep(config(total_steps=160), SPACE, trials=7, seeds=1, confirm=0, objective="return", prune=False)
    assert {row["state"] for row in kept.run(Output(out=tmp_path / "kept", quiet=True)).rows} == {"complete"}


def test_a_run_that_is_told_to_stop_can_go_on(tmp_path: Path):
    line, parent = multiprocessing.Pipe()
    line.send("stop")
    job = config(), Output(out=tmp_path / "run", quiet=True)
    assert carried_out(*job, Watcher(parent)) == ("stopped", "")
    assert (Run.load(tmp_path / "run").summary or {})["status"] == "interrupted" and Result.of(tmp_path / "run") is None
    assert carried_out(*job, Watcher(parent)) == ("finished", "") == carried_out(*job, Watcher(parent))
    found = Result.of(tmp_path / "run")
    assert found is not None and found.spent >= 64 and max(found.points) == 1.0
    assert [line.recv() for _ in found.points] == [("evaluation", *point) for point in found.points.items()] and not line.poll()


def test_settings_that_do_not_go_together_fail_their_trial_and_only_that(here, tmp_path: Path):  # noqa: F811
    found = Sweep(config(), {"num_minibatches": Choices((2, 4096))}, trials=4, seeds=1, confirm=0, objective="final", baseline=False)
    rows = found.run(Output(out=tmp_path, quiet=True)).rows
    assert {row["state"] for row in rows if row["settings"]["num_minibatches"] == "2"} <= {"complete"}
    assert all(row["why"] for row in rows if row["state"] == "failed")


def test_where_every_trial_fails_the_sweep_ends_in_a_line(here, tmp_path: Path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("upslope.studies.sweep_runs.session_in", lambda *_: 1 / 0)
    with pytest.raises(RunFault, match="first 5 trials all failed, the last one because ZeroDivisionError"):
        sweep(trials=9).run(Output(out=tmp_path, quiet=True))


def test_another_sweep_in_the_folder_is_refused(here, tmp_path: Path):  # noqa: F811
    sweep(trials=1).run(Output(out=tmp_path, quiet=True))
    for other in (sweep(seeds=3), Sweep(config(seed=5), SPACE, objective="return"), Sweep(config(), dict(list(SPACE.items())[:1]))):
        with pytest.raises(UsageError, match="holds another sweep, with"):
            other.run(Output(out=tmp_path, quiet=True))


def test_steps_need_a_goal(tmp_path: Path):
    with pytest.raises(UsageError, match="add --until-return X"):
        Sweep(RunConfig.of("reinforce", "upslope/ShortCorridor-v0"), objective="steps").run(Output(out=tmp_path, quiet=True))
    chosen, goal, _ = Sweep(config()).prepared()
    assert chosen.objective == "steps" and goal == 475 and chosen.config.settings.until_solved
    chosen, goal, _ = Sweep(RunConfig.of("reinforce", "upslope/ShortCorridor-v0")).prepared()
    assert chosen.objective == "return" and goal is None


def test_importances_name_the_setting_that_matters(tmp_path: Path):
    import optuna

    with quiet_optuna():
        study = study_in(tmp_path / "journal.jsonl", "minimize")
        even = {"a": optuna.distributions.FloatDistribution(0, 1), "b": optuna.distributions.FloatDistribution(0, 1)}
        for number in range(40):
            params = {"a": number / 40, "b": (number * 17 % 40) / 40}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=even, value=params["a"]))
        found = importances(study)
    assert found["a"] > 0.8 and sum(found.values()) == pytest.approx(1.0)


def test_the_best_are_confirmed_on_further_seeds_once_and_the_mean_over_all_of_them_chooses(here, tmp_path: Path):  # noqa: F811
    options = {"trials": 7, "seeds": 1, "prune": False}
    plain = sweep(**options).run(Output(out=tmp_path, quiet=True))
    here.begun.clear()
    found = sweep(**options, confirm=2).run(Output(out=tmp_path, quiet=True))
    confirmed = [row for row in found.rows if row["confirmed"]]
    assert found.rows[0] in confirmed and len(confirmed) in (5, 6) and len(here.begun) == 2 * len(confirmed)
    assert {path.name for path in here.begun} == {"seed-1", "seed-2"}
    lowest = sorted((row["value"] for row in plain.rows), reverse=True)[4]
    assert all(row["value"] >= lowest or row["trial"] == 0 for row in confirmed)
    means = {row["trial"]: sum([*row["values"], *row["confirmed"]]) / 3 for row in confirmed}
    assert found.best is not None and means[found.best["trial"]] == max(means.values())
    here.begun.clear()
    assert sweep(**options, confirm=2).run(Output(out=tmp_path, quiet=True)).rows == found.rows and here.begun == []
