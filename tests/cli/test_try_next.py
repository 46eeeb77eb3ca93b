"""Every command under "try next" runs as it stands, for every method and every kind of environment."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Command, good
from upslope.run.control_settings import EpisodesSettings, GroupedEpisodesSettings
from upslope.run.methods import METHODS, methods_in

ENVIRONMENTS = {
    "upslope/Bandit-v0": "grpo",
    "upslope/ShortCorridor-v0": "reinforce",
    "upslope/Gridworld-v0": "reinforce",
    "Taxi-v4": "a2c",
    "MountainCarContinuous-v0": "ppo",
    "faulty:walk": "ppo",
    "faulty:no_frames": "ppo",
    "faulty:drawn": "ppo",
}


def commands(out: str) -> list[list[str]]:
    """The commands under "try next", as words; the reason stands behind several spaces."""
    lines = out.split("try next:\n")[1].split("\n\n")[0].splitlines()
    return [shlex.split(line.strip().split("   ")[0]) for line in lines if line.strip()]


def short(name: str) -> list[str]:
    """Flags that make a run of this algorithm small."""
    start = METHODS[name].control
    collector = None if start is None else start.collector
    if isinstance(collector, GroupedEpisodesSettings):
        return ["--num-groups", "1", "--group-size", "2", "--total-steps", "1", "--eval-episodes", "1"]
    size = ["--num-envs", "1", "--total-steps", "1", "--eval-episodes", "1"]
    return size if isinstance(collector, EpisodesSettings) else [*size, "--num-steps", "64"]


def follow(cli: Command, words: list[str], env: str, name: str) -> list[str]:
    """Train, then carry out what is said to be tried next; returns the names of the commands."""
    tried = []
    for command in commands(good(cli("train", name, env, *words, *short(name), "--out", "my run")).out):
        assert command[0] == "upslope"
        length = {"play": ["--max-steps", "3"], "evaluate": ["--episodes", "1"]}.get(command[1], [])
        good(cli(*command[1:], *length))
        tried.append(command[1])
    return tried


@pytest.mark.parametrize("name", methods_in("control"))
def test_of_every_method(cli: Command, name: str):
    env = "Pendulum-v1" if name == "continuing-actor-critic" else "CartPole-v1"
    assert follow(cli, [], env, name) == ["play", "evaluate", "train"]
    assert Path("policy.gif").exists()


@pytest.mark.parametrize("env, name", ENVIRONMENTS.items())
def test_of_every_kind_of_environment(cli: Command, env: str, name: str):
    tried = follow(cli, ["--features", "linear"] if env.startswith("upslope/") else [], env, name)
    drawn = not env.startswith("upslope/") and env not in ("faulty:walk", "faulty:no_frames")
    assert tried == (["play"] if drawn else []) + ["evaluate", "train"]
