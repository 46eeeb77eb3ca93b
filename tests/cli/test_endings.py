"""How a run ends: when it evaluates, where episodes have no end, where it stops, and what evaluation may not cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.cli.conftest import TRAIN, Command, good
from tests.cli.test_bad_input import one_line
from upslope import Run
from upslope.run.config import RunConfig
from upslope.run.control import known_goal
from upslope.run.control_settings import RunSettings
from upslope.run.evaluations import Schedule

SMALL = ["--num-envs", "4", "--num-steps", "8", "--num-minibatches", "1", "--num-epochs", "1", "--no-fast", "--quiet", "--out", "run"]


def played(length: float, episodes: int) -> SimpleNamespace:
    return SimpleNamespace(length_mean=length, episodes=episodes)


def evaluations(settings: RunSettings, lengths: float, native: bool = False, step: int = 1000) -> list[tuple[int, int]]:
    """``(steps, episodes)`` of the evaluations of a run whose episodes all have one length."""
    schedule, found = Schedule(settings), []
    for now in range(step, settings.total_steps + 1, step):
        if episodes := schedule.due(now - step, now):
            found.append((now, episodes))
            schedule.played(played(lengths, episodes), SimpleNamespace(native=native, steps=lengths))
    return found


# ---------------------------------------------------------------------------------------------------------- evaluations


def test_a_run_evaluates_at_about_twenty_points_and_a_fifth_of_its_steps():
    settings = RunSettings(total_steps=300_000)
    found = evaluations(settings, 200.0)  # Pendulum: 3,000 steps are 15 episodes
    assert found == [(15_000, 20), *((15_000 * i, 15) for i in range(2, 20))]
    found = evaluations(RunSettings(total_steps=100_000), 1000.0)  # long episodes in a short run: fewer, and never less than 5
    assert [episodes for _, episodes in found] == [20]
    assert all(episodes == 20 for _, episodes in evaluations(RunSettings(total_steps=100_000), 500.0, native=True))
    assert len(evaluations(RunSettings(total_steps=100_000), 500.0, native=True)) == 19


def test_chosen_evaluations_are_all_made():
    settings = RunSettings(total_steps=10_000, eval_every=2000, eval_episodes=7)
    assert evaluations(settings, 1e6) == [(steps, 7) for steps in range(2000, 10_001, 2000)]
    assert evaluations(RunSettings(total_steps=10_000, eval_every=0), 1.0) == []


def test_an_episode_is_cut_off_after_twice_what_training_has_seen():
    schedule = Schedule(RunSettings())
    assert schedule.cut_after == 1000
    for length in (100.0, 4000.0, 30.0):
        schedule.watch({"episode_length": length})
    assert schedule.cut_after == 8000


def test_evaluations_change_nothing_in_training(cli: Command):
    for out, every in (("a", "0"), ("b", "40")):
        good(cli(*TRAIN, "--total-steps", "160", "--eval-every", every, "--quiet", "--out", out))
    a, b = (Run.load(out) for out in ("a", "b"))
    assert Path("a/policy.safetensors").read_bytes() == Path("b/policy.safetensors").read_bytes()
    assert a.summary["evaluations"] == 0 and b.summary["evaluations"] > 3  # type: ignore[index]
    assert a.summary["best_return"] is None and not Path("a/best_policy.safetensors").exists()  # type: ignore[index]
    drop = ("train_seconds", "steps_per_second", "evaluation_return", "evaluation_std", "evaluation_episodes", "weight_change")
    assert all(
        {k: v for k, v in x.items() if k not in drop} == {k: v for k, v in y.items() if k not in drop}
        for x, y in zip(a.metrics(), b.metrics(), strict=True)
    )


# ------------------------------------------------------------------------------------------------------ the task's goal


def test_until_solved_stops_at_the_goal_of_the_task():
    assert known_goal("CartPole-v1") == 475 and known_goal("Pendulum-v1") == -200 and known_goal("CliffWalking-v1") is None
    prepared = RunConfig.of("ppo", "CartPole-v1", until_solved=True).prepare()
    assert prepared.stop_at == prepared.solved_at == 475
    prepared.close()


def test_until_solved_asks_for_the_goal_where_none_is_known(cli: Command):
    answer = cli("train", "ppo", "endings:Corridor", "--until-solved", *SMALL)
    assert answer.code == 2 and "until_solved: no return is known at which 'endings:Corridor' counts as solved" in one_line(answer.err)
    answer = cli("train", "ppo", "CartPole-v1", "--until-solved", "--until-return", "475")
    assert answer.code == 2 and "until_solved: leave it out" in one_line(answer.err)
    assert not Path("run").exists() and not Path("runs").exists()


# ---------------------------------------------------------------------------------------------- episodes without an end


def test_a_policy_that_runs_into_a_wall_is_cut_off_and_learns_on(cli: Command):
    """Also where a goal is waited for: episodes that were cut off cannot reach it, whatever they were paid."""
    flags = ["--total-steps", "6000", "--eval-every", "32", "--eval-episodes", "3", "--learning-rate", "0.005", "--seed", "2"]
    good(cli("train", "ppo", "endings:Corridor", *flags, "--until-return", "-4", *SMALL))
    run = Run.load("run")
    cut = [row for row in run.metrics() if "evaluation_episodes_ended" in row]
    assert cut and all(row["evaluation_return"] <= -1000 and row["evaluation_reward_per_step"] == -1.0 for row in cut)
    assert run.summary is not None and run.summary["solved"] is True and run.summary["return_mean"] == -4.0
    assert run.summary["warnings"] == []


def test_where_no_episode_ends_a_step_is_what_counts(cli: Command):
    flags = ["--total-steps", "3000", "--eval-episodes", "3", "--learning-rate", "0.02"]
    words = [word for word in SMALL if word != "--quiet"]
    out = good(cli("train", "ppo", "endings:Endless", *flags, *words)).out
    run = Run.load("run")
    assert run.summary is not None and run.summary["episodes_ended"] == 0 and run.summary["reward_per_step"] == 1.0
    assert "is paid 1.000 a step: none of 3 fresh episodes ended within 1,000 steps" in out and " · reward per step " in out
    assert run.summary["warnings"] == []  # certain, and right
    rewards = [row["reward_per_step"] for row in run.metrics()]
    assert rewards[0] < 0.7 < rewards[-1] and all("episode_return" not in row for row in run.metrics())
    with Image.open("run/curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000) or []) > 3  # there is a curve
    said = json.loads(
        good(cli("evaluate", "run", "--env", "endings:Endless", "--episodes", "2", "--max-episode-steps", "50", "--json")).out
    )
    assert (said["return_mean"], said["episodes_ended"], said["length_mean"]) == (50.0, 2, 50.0)


def test_a_time_limit_of_ones_own_holds_in_training_and_in_evaluation(cli: Command):
    flags = ["--total-steps", "320", "--max-episode-steps", "5", "--eval-episodes", "3"]
    good(cli("train", "ppo", "endings:Endless", *flags, *SMALL))
    run = Run.load("run")
    assert run.config["env"]["max_episode_steps"] == 5 and run.metrics()[0]["episode_length"] == 5.0
    assert run.summary is not None and (run.summary["episodes_ended"], run.summary["length_mean"]) == (3, 5.0)
    again = json.loads(good(cli("evaluate", "run", "--env", "endings:Endless", "--episodes", "2", "--json")).out)
    assert again["length_mean"] == 5.0
    assert "max_episode_steps: expected an integer ≥ 1" in cli("train", "ppo", "CartPole-v1", "--max-episode-steps", "0").err


# ------------------------------------------------------------------------------------------------ what evaluation costs


def test_where_no_more_environments_can_be_made_the_training_has_them(cli: Command, monkeypatch: pytest.MonkeyPatch):
    from tests.cli import endings

    monkeypatch.setitem(__import__("sys").modules, "endings", endings)
    monkeypatch.setattr(endings.Few, "made", 0)
    good(cli("train", "ppo", "endings:Few", "--total-steps", "200", *SMALL))
    run = Run.load("run")
    assert run.summary is not None and run.summary["episodes"] == 20 and run.summary["return_mean"] is not None
    (warning,) = run.summary["warnings"]
    assert "3 evaluations failed, the first after" in warning and "port already in use (5 instances)" in warning


def test_one_environment_is_made_where_they_are_slow_to_make(monkeypatch: pytest.MonkeyPatch):
    prepared = RunConfig.of("ppo", "MountainCar-v0").prepare()
    slow = replace(prepared, make_seconds=1.0)
    for item, count in ((prepared, 8), (slow, 1)):
        evaluator = item.make_evaluator()
        assert evaluator.envs.num_envs == count
        evaluator.close()
    prepared.close()


def test_a_run_says_once_that_a_reset_does_not_say_what_is_legal(cli: Command, tmp_path: Path):
    err = cli("train", "ppo", "endings:Ruled", "--total-steps", "400", *[word for word in SMALL if word != "--quiet"])
    assert err.code == 0
    assert (err.out + err.err).count('legal in info["action_mask"] of its steps, but not of its resets: the first action of each') == 1
