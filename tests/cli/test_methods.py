"""Methods from the command line: groups of episodes, their relatives, and the score of whole trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, good
from upslope import Run
from upslope.algorithms.grpo import RELATIVES
from upslope.run.config import RunConfig

GROUPS = ["--num-groups", "2", "--group-size", "3", "--total-steps", "1", "--eval-episodes", "2", "--quiet", "--out", "run"]


@pytest.mark.parametrize("name", ["grpo", *RELATIVES, "rloo"])
def test_groups_of_episodes(cli: Command, name: str):
    good(cli("train", name, "CartPole-v1", *GROUPS))
    run = Run.load("run")
    assert run.algorithm == name and run.summary is not None and run.summary["algorithm"] == name
    assert run.config["collector"] == {"group_size": 3, "num_groups": 2, "max_steps": None}
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert row["num_episodes"] == 6 and row["score_mean"] == pytest.approx(row["episode_return"]) and "value_error" not in row
    assert run.policy.critic is None
    again = RunConfig.from_config(run.config)
    assert again.name == name and again.config() == {k: v for k, v in run.config.items() if k not in ("format_version", "versions", "goal")}


def test_a_relative_keeps_what_defines_it_and_takes_the_rest_from_the_preset():
    grpo, dapo = (RunConfig.of(name, "CartPole-v1") for name in ("grpo", "dapo"))
    assert dapo.algorithm.update == grpo.algorithm.update and dapo.collector == grpo.collector
    assert (dapo.algorithm.clip_range, dapo.algorithm.average_over) == ((0.2, 0.28), "steps") and grpo.algorithm.average_over == "constant"
    elsewhere = RunConfig.of("gspo", "Acrobot-v9")
    assert elsewhere.algorithm.update.learning_rate == 3e-3 and elsewhere.algorithm.clip_range == (3e-4, 4e-4)


def test_groups_without_a_time_limit(cli: Command):
    good(cli("train", "grpo", "faulty:walk", *GROUPS))
    answer = cli("train", "rloo", "faulty:walk", *GROUPS[:-1], "other", "--max-steps", "10")
    good(answer)
    answer = cli("train", "rloo", "faulty:walk", *GROUPS[:-1], "third", "--max-steps", "9")
    assert answer.code == 1 and "an episode did not end within 9 steps" in answer.err


def test_whole_trajectories(cli: Command):
    """``--returns full-trajectory``: every action of an episode is credited with all of its reward."""
    flags = ["--returns", "full-trajectory", "--no-baseline", "--gamma", "1", "--num-envs", "4", "--eval-episodes", "2", "--quiet"]
    good(cli("train", "reinforce", "CartPole-v1", *flags, "--total-steps", "200", "--out", "run"))
    run = Run.load("run")
    assert run.config["algorithm"]["returns"] == "full-trajectory"
    good(cli("train", "reinforce", "CartPole-v1", "--config", "run", "--quiet", "--out", "again"))
    assert Path("again/policy.safetensors").read_bytes() == Path("run/policy.safetensors").read_bytes()
    good(cli("train", "reinforce", "CartPole-v1", "--config", "run", "--quiet", "--returns", "to-go", "--out", "togo"))
    assert Path("togo/policy.safetensors").read_bytes() != Path("run/policy.safetensors").read_bytes()


def test_all_actions_with_values_that_are_learned(cli: Command):
    short = ["--num-envs", "2", "--total-steps", "64", "--eval-episodes", "2", "--quiet"]
    good(cli("train", "all-actions", "CartPole-v1", *short, "--out", "run"))
    run = Run.load("run")
    assert type(run.policy).__name__ == "QCriticPolicy" and run.config["algorithm"]["q"] is None
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert row["value_error"] > 0 and "explained_variance" in row
    good(cli("evaluate", "run", "--episodes", "2"))
    good(cli("train", "all-actions", "CartPole-v1", "--init", "run", *short, "--out", "more"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["Pendulum-v1"], "policy: a value for every action needs Discrete actions and a critic, found Box"),
        (["CartPole-v1", "--features", "tiles"], "features: all-actions learns a value for every action with a network; leave it out"),
        (["CartPole-v1", "--init", "ppo"], "policy: it has preferences and no action values; take a QCriticPolicy"),
    ],
    ids=["no actions to count", "tiles", "a policy without them"],
)
def test_where_there_are_no_values_of_actions(cli: Command, flags: list[str], message: str):
    if "ppo" in flags:
        good(cli("train", "ppo", "CartPole-v1", "--total-steps", "1", "--eval-episodes", "1", "--quiet", "--out", "ppo"))
    answer = cli("train", "all-actions", *flags, "--total-steps", "1", "--out", "run")
    assert answer.code == 2 and message in answer.err and len(answer.err.strip().splitlines()) == 1
    assert not Path("run").exists()
