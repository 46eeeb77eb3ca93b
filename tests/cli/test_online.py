"""Methods that learn at every step, from the command line to a policy that is loaded again."""

import json

import pytest

from tests.cli.conftest import Command, good
from upslope import Run

SHORT = ["--total-steps", "100", "--num-steps", "50", "--eval-episodes", "2", "--out", "run"]
RUNS = {
    "traces, network": ["actor-critic", "CartPole-v1", "--features", "network", "--trace-decay", "0.5"],
    "one step, Box actions": ["actor-critic", "Pendulum-v1", "--features", "tiles", "--num-tiles", "4"],
    "continuing": ["continuing-actor-critic", "Pendulum-v1", "--features", "fourier"],
    "action values": ["sarsa", "MountainCar-v0", "--features", "tiles", "--epsilon", "0.2"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_trained_and_loaded(name: str, cli: Command) -> None:
    said = good(cli("train", *RUNS[name], *SHORT)).out
    assert "1 environment, an update at every step" in said
    run = Run.load("run")
    assert run.summary is not None and run.summary["total_steps"] == 100 and run.algorithm == RUNS[name][0]
    assert all(row["td_error_squared"] >= 0 for row in run.metrics())
    assert type(run.policy).__name__ == ("MLPPolicy" if "network" in name else "LinearPolicy")
    again = json.loads(good(cli("evaluate", "run", "--episodes", "2", "--json")).out)
    assert again["episodes"] == 2
    if name == "action values":
        assert run.policy.head.epsilon == 0.2
        good(cli("train", "sarsa", "MountainCar-v0", "--init", "run", *SHORT[:-1], "second"))


def test_an_environment_that_ends_has_no_average_reward(cli: Command) -> None:
    answer = cli("train", "continuing-actor-critic", "CartPole-v1", *SHORT)
    assert answer.code == 2 and "env: it terminated" in answer.err
