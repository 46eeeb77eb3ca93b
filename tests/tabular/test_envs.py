"""The problems as Gymnasium environments."""

import subprocess
import sys

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from upslope import UsageError, control, environments, tabular
from upslope.tabular import envs

IDS = [f"{environments.NAMESPACE}/{name}" for name in environments.ENVIRONMENTS]


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_own_check(env_id):
    check_env(gymnasium.make(env_id, disable_env_checker=True).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_a_walk_follows_the_arrays(env_id):
    env = gymnasium.make(env_id).unwrapped
    mdp = env.mdp
    observation, info = env.reset(seed=0)
    for t in range(1, 60):
        state = info["state"]
        assert observation == mdp.observation[state] and env.observation_space.contains(observation)
        action = env.np_random.integers(mdp.num_actions)
        observation, reward, terminated, truncated, info = env.step(action)
        assert mdp.transition[state, action, info["state"]] > 0 and reward == mdp.reward[state, action]
        assert terminated == bool(mdp.terminal[info["state"]])
        assert truncated == (not terminated and mdp.time_limit == t)
        if terminated or truncated:
            break


def test_frequencies_are_the_transitions():
    env = envs.TabularEnv(tabular.random_mdp(3, 2, seed=0))
    env.reset(seed=0)
    counts = torch.zeros(3, 2, 4)
    for _ in range(8_000):
        state, action = env.state, int(env.np_random.integers(2))
        _, _, terminated, _, info = env.step(action)
        counts[state, action, info["state"]] += 1
        if terminated:
            env.reset()
    found = counts / counts.sum(-1, keepdim=True)
    assert float((found - env.mdp.transition[:3]).abs().max()) < 0.06  # four standard errors of about 1200 draws each


def test_seeds():
    walks = []
    for seed in (3, 3, 4):
        env = gymnasium.make("upslope/Gridworld-v0")
        walk = [env.reset(seed=seed)[0]]
        walk += [env.step(a % 4)[0] for a in range(3)] + [env.reset()[0] for _ in range(20)]
        walks.append(walk)
    assert walks[0] == walks[1] != walks[2]


def test_termination_wins_over_the_limit():
    env = envs.make("bandit")
    env.mdp = tabular.MDP(env.mdp.transition, env.mdp.reward, env.mdp.start, env.mdp.terminal, time_limit=1)
    env.reset(seed=0)
    assert env.step(0)[2:4] == (True, False)
    loop = gymnasium.make("upslope/Loop-v0", time_limit=2)
    loop.reset(seed=0)
    assert [loop.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]
    assert gymnasium.make("upslope/Ring-v0", time_limit=None).unwrapped.mdp.time_limit is None


def test_the_aliased_corridor_shows_nothing():
    env = gymnasium.make("upslope/ShortCorridor-v0")
    assert env.observation_space.n == 1
    assert env.reset(seed=0)[0] == 0
    assert [env.step(a)[4]["state"] for a in (1, 1, 1, 0, 1)] == [1, 0, 1, 2, 3]


def test_what_cannot_be_made_says_so():
    with pytest.raises(UsageError, match="unknown problem 'gridwrld': did you mean 'gridworld'"):
        envs.make("gridwrld")
    with pytest.raises(UsageError, match="unknown option of ring 'slp': did you mean 'slip'"):
        envs.make("ring", slp=0.1)
    with pytest.raises(UsageError, match="action: expected an integer from 0 to 1, found 7"):
        envs.make("ring").step(7)
    with pytest.raises(UsageError, match="did you mean 'upslope/ShortCorridor-v0'"):
        control.make("upslope/ShortCoridor-v0")


def test_every_way_to_name_one_works():
    code = (
        "from upslope import control; control.make('upslope/ShortCorridor-v0', 2); control.make('upslope.tabular.envs:upslope/Ring-v0', 2)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)  # where nothing was registered before
    assert gymnasium.make("upslope.tabular.envs:upslope/Bandit-v0").unwrapped.mdp.num_actions == 3
