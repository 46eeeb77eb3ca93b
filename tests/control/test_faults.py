"""Faults while running: what an environment may do wrong, said in one line; closing is always safe."""

import asyncio
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from tests.control.worlds import Counting, Critic, side_by_side
from upslope import RunFault, control


class Faulty(Counting):
    """Counting until step 2, and then what ``fault`` says."""

    def __init__(self, fault="", value=None):
        super().__init__()
        self.fault, self.value = fault, value

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        if self.fault == "reset" and self.episode == 1:
            raise KeyError("lost\nthe map")
        return (self.value if self.fault == "first" else observation), info

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.time == 2:
            if self.fault == "raise":
                raise ZeroDivisionError("division by zero")
            if self.fault == "observation":
                observation = self.value
            if self.fault == "reward":
                reward = self.value
        return observation, reward, terminated, truncated, info


NAN = np.array([0.0, np.nan, 0.0], np.float32)
FAULTS = [
    ("raise", None, "environment 'Faulty' raised ZeroDivisionError in step: division by zero"),
    ("reset", None, "environment 'Faulty' raised KeyError in"),
    ("observation", NAN, "environment 'Faulty', step: observation is not finite: nan in environment 0, index [1]"),
    ("observation", np.array([np.inf, 0, 0], np.float32), "observation is not finite: inf in environment 0, index [0]"),
    ("observation", np.zeros(2, np.float32), "observation has shape (2,), observation_space says (3,)"),
    ("observation", np.zeros((3, 1), np.float32), "observation has shape (3, 1), observation_space says (3,)"),
    ("observation", np.array(["a", "b", "c"]), "observation has dtype <U1, observation_space says float32"),
    ("observation", None, "environment 'Faulty'"),
    ("first", NAN, "environment 'Faulty', reset: observation is not finite: nan in environment 0, index [1]"),
    ("first", np.zeros(4, np.float32), "environment 'Faulty', reset: observation has shape (4,), observation_space says (3,)"),
    ("reward", np.nan, "environment 'Faulty', step: reward is not finite: nan in environment 0"),
    ("reward", -np.inf, "environment 'Faulty', step: reward is not finite: -inf in environment 0"),
    ("reward", "much", "environment 'Faulty', step: reward is 'much' (str), expected a number"),
    ("reward", None, "environment 'Faulty', step: reward is None (NoneType), expected a number"),
    ("reward", np.ones(1), "step: reward is an array of shape (1,), expected a number; return float(reward.item())"),
    ("reward", np.ones(2), "step: reward is an array of shape (2,), expected a number"),
]


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("fault, value, message", FAULTS)
def test_faults_are_one_line_and_closing_is_safe(fault, value, message, num_envs):
    envs = control.make(Faulty, num_envs, env_kwargs={"fault": fault, "value": value})
    with pytest.raises(RunFault) as caught:
        control.Steps(envs, 10)(Critic())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    envs.close()
    envs.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_final_observation_that_is_not_finite_is_a_fault(mode):
    class Last(Counting):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return (observation * np.nan if terminated or truncated else observation), reward, terminated, truncated, info

    with pytest.raises(RunFault, match="not finite"):
        control.Steps(side_by_side([Last] * 2, mode), 10)(Critic())


def test_a_fault_in_a_worker_process_is_one_line_too(capfd):
    envs = control.make(Faulty, 2, vectorization="async", env_kwargs={"fault": "raise"})
    with envs, pytest.raises(RunFault, match="raised ZeroDivisionError in step: division by zero"):
        control.Steps(envs, 10)(Critic())
    assert capfd.readouterr() == ("", "")


class Whole(gymnasium.vector.VectorEnv):
    """A vector environment of the user's own, with whatever it is told to return."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    num_envs = 2
    single_observation_space = spaces.Box(-1, 1, (2,), np.float32)
    single_action_space = spaces.Discrete(2)

    def __init__(self, **changes):
        self.changes = changes

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions):
        parts = {
            "observation": np.zeros((2, 2), np.float32),
            "reward": np.ones(2, np.float32),
            "terminated": np.zeros(2, bool),
            "truncated": np.zeros(2, bool),
        }
        return (*{**parts, **self.changes}.values(), {})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reward": np.ones((2, 1))}, "reward has shape (2, 1) and dtype float64, expected 2 numbers"),
        ({"reward": np.ones(3)}, "reward has shape (3,)"),
        ({"reward": np.array(["1", "2"])}, "dtype <U1, expected 2 numbers"),
        ({"terminated": np.zeros((2, 1), bool)}, "terminated and truncated should be bool arrays of shape (2,)"),
        ({"truncated": np.zeros(2)}, "terminated and truncated should be bool arrays of shape (2,)"),
        ({"observation": np.zeros((2, 3), np.float32)}, "observation has shape (3,), observation_space says (2,)"),
        ({"observation": {"a": 1}}, "observation has shape ()"),
        ({"observation": np.full((2, 2), np.inf)}, "observation is not finite"),
    ],
)
def test_a_users_vector_environment_is_checked(changes, message):
    with pytest.raises(RunFault) as caught:
        control.Steps(control.Envs(Whole(**changes)), 3)(control.MLPPolicy.for_envs(Whole()))
    assert message in str(caught.value)


def test_what_can_be_converted_is():
    envs = control.Envs(Whole(observation=np.full((2, 2), 0.5), reward=np.array([1, 0])))
    envs.reset()
    step = envs.step(np.zeros(2, np.int64))
    assert step.observation.dtype == np.float32
    assert step.reward.dtype == np.float64


def test_large_numbers_are_finite():
    envs = control.Envs(Whole(observation=np.full((2, 2), 1e30, np.float32), reward=np.array([1e15, -1e15])))
    envs.reset()
    assert envs.step(np.zeros(2, np.int64)).reward.tolist() == [1e15, -1e15]


def test_a_reward_whose_square_nobody_can_hold_is_refused():
    for options, most in (({}, 1e15), ({"reward_scale": 1e-3}, 1e18), ({"clip_reward": True}, 1e300)):
        for factor, fine in ((0.99, True), (1.01, False)):
            envs = control.Envs(Whole(reward=np.array([1.0, -factor * most])), **options)
            envs.reset()
            if fine or most == 1e300:
                envs.step(np.zeros(2, np.int64))
                continue
            with pytest.raises(RunFault, match=r"reward is -1.01e\+1. in environment 1, expected a number from -1e\+15 to 1e\+15; scale"):
                envs.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([4, 4]), spaces.Dict(a=spaces.Discrete(4))])
@pytest.mark.parametrize("found", [-1, 4])
def test_a_number_outside_a_discrete_space(space, found):
    class Outside(gymnasium.Env):
        observation_space, action_space = space, spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return space.sample(), {}

        def step(self, action):
            value = np.int64(found) if not space.shape else np.array([0, found])
            return ({"a": np.int64(found)} if isinstance(space, spaces.Dict) else value), 0.0, False, False, {}

    envs = control.make(Outside, 2)
    envs.reset()
    with pytest.raises(RunFault, match=rf"step: observation.* is outside .*Discrete.*: {found} in environment 0"):
        envs.step(np.zeros(2, np.int64))


def test_what_an_environment_raises_need_not_be_an_exception():
    class Cancelled(Counting):
        def step(self, action):
            raise asyncio.CancelledError("later")

    envs = control.make(Cancelled, 2)
    envs.reset()
    with pytest.raises(RunFault, match=r"raised CancelledError in step: later \(test_faults.py, line"):
        envs.step(np.zeros(2, np.int64))


def test_closing_that_fails_is_a_warning():
    class Closing(Counting):
        def close(self):
            raise OSError("no such window")

    envs = control.make(Closing)
    with pytest.warns(UserWarning, match="environment Closing raised OSError in close: no such window"):
        envs.close()
