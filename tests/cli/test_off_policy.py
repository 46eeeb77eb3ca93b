"""``upslope record`` and ``upslope train off-policy``: from a run to a file of steps to another run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, good
from tests.cli.test_bad_input import one_line
from upslope import Run
from upslope.control import Dataset

OFF = ["train", "off-policy", "CartPole-v1", "--eval-episodes", "2", "--num-minibatches", "2"]


def test_from_a_run_to_a_file_to_another_run(cli: Command, trained: Path):
    said = good(cli("record", trained, "--steps", "400", "--num-envs", "4", "--seed", "3", "--out", "steps.safetensors")).out
    data = Dataset.load("steps.safetensors")
    assert data.shape == (4, 100)
    assert (
        f"{data.num_steps} steps of ppo, seed 0 in CartPole-v1" in said and "train off-policy CartPole-v1 --data steps.safetensors" in said
    )
    assert data.about["behavior"] == "ppo, seed 0" and data.about["env_id"] == "CartPole-v1"
    out = good(cli(*OFF, "--data", "steps.safetensors", "--num-rows", "2", "--total-steps", "600", "--out", "run")).out
    assert "2 rows of steps.safetensors per iteration" in out
    run = Run.load("run")
    assert run.config["collector"]["data"] == "steps.safetensors" and run.summary is not None and run.summary["status"] == "finished"
    row = run.metrics()[0]
    assert {"effective_sample_size", "ratio_mean", "ratio_max", "capped_fraction", "value_error", "approx_kl"} <= row.keys()
    assert 1 < row["effective_sample_size"] <= row["total_steps"]
    good(cli("train", "off-policy", "CartPole-v1", "--config", "run", "--out", "again", "--quiet"))
    changing = ("train_seconds", "steps_per_second")
    first, second = ([{k: v for k, v in r.items() if k not in changing} for r in Run.load(p).metrics()] for p in ("run", "again"))
    assert first == second


@pytest.mark.parametrize("estimator", ["per-decision", "trajectory", "truncated", "per-step"])
def test_random_actions_and_every_estimator(cli: Command, estimator: str):
    good(cli("record", "CartPole-v1", "--random", "--steps", "200", "--out", "random.safetensors"))
    good(cli(*OFF, "--data", "random.safetensors", "--estimator", estimator, "--total-steps", "400", "--out", "run", "--quiet"))
    assert json.loads((Path("run") / "config.json").read_text())["algorithm"]["estimator"] == estimator


def test_without_data_it_plays(cli: Command):
    flags = ["--num-envs", "2", "--num-steps", "16", "--ratio-cap", "none", "--total-steps", "64"]
    assert "2 environments × 16 steps" in good(cli(*OFF, *flags)).out


REFUSED = {
    "record nothing": (["record", "--out", "x"], "record: expected RUN, a run folder, or ENV_ID with --random"),
    "no file": (["record", "CartPole-v1", "--random"], "--out: expected the file to write, found nothing"),
    "taken": (["record", "CartPole-v1", "--random", "--out", "steps"], "--out: steps exists"),
    "no folder": (["record", "CartPole-v1", "--random", "--out", "deep/steps"], "--out: there is no folder"),
    "no run": (["record", "CartPole-v1", "--out", "x"], "run folder CartPole-v1: there is no such folder"),
    "no steps": (["record", "CartPole-v1", "--random", "--out", "x", "--steps", "0"], "--steps: expected an integer from 1"),
    "random and best": (["record", "CartPole-v1", "--random", "--policy", "best", "--out", "x"], "--random: it needs no run"),
    "unknown environment": (["record", "CartPol-v1", "--random", "--out", "x"], "did you mean 'CartPole-v1'?"),
    "no data": ([*OFF, "--data", "nowhere"], "data: there is no file nowhere"),
    "no data set": ([*OFF, "--data", "text"], "data: text is no safetensors file"),
    "other spaces": (
        ["train", "off-policy", "Acrobot-v1", "--data", "steps"],
        "data: it was recorded in CartPole-v1 with observation_space",
    ),
    "too many rows": ([*OFF, "--data", "steps", "--num-rows", "9"], "num_rows: expected an integer from 1 to 8"),
    "rows of nothing": ([*OFF, "--num-rows", "2"], "num_rows: it counts rows of a file"),
    "normalized rewards": ([*OFF, "--data", "steps", "--normalize-reward"], "normalize_reward: recorded rewards have no running scale"),
    "another's data": (["train", "ppo", "CartPole-v1", "--data", "steps"], "--data: a setting of off-policy, not of ppo"),
    "unknown estimator": ([*OFF, "--estimator", "v-trace"], "did you mean 'vtrace'?"),
}


@pytest.mark.parametrize("argv, expected", REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_are_one_line(cli: Command, argv: list[str], expected: str):
    if "steps" in argv:
        good(cli("record", "CartPole-v1", "--random", "--steps", "80", "--out", "steps"))
    Path("text").write_text("hello")
    answer = cli(*argv)
    assert answer.code == 2 and expected in one_line(answer.err), answer
    assert not Path("runs").exists() and not Path("x").exists()
