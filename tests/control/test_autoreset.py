"""Three autoreset modes, one stream of steps: equal advantages, true successors, reset rows that do not count."""

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from tests.control.worlds import MODES, Counting, Critic, Loop, side_by_side
from upslope import UsageError, control
from upslope import functional as F
from upslope.records import Batch

GAMMA, LAMBDA = 0.9, 0.8


def by_hand(which: int, num_episodes: int, value) -> np.ndarray:
    """Advantages of one environment's first episodes, by a plain loop over its true successors."""
    env, advantages = Counting(which), []
    for _ in range(num_episodes):
        observation, _ = env.reset()
        deltas, over = [], False
        while not over:
            following, reward, terminated, truncated, _ = env.step(0)
            successor = 0.0 if terminated else value(following)
            deltas.append(reward + GAMMA * successor - value(observation))
            observation, over = following, terminated or truncated
        advantages += [sum((GAMMA * LAMBDA) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]
    return np.array(advantages)


@pytest.mark.parametrize("mode", MODES)
def test_advantages_on_real_steps_are_the_same_in_every_mode(mode):
    envs = side_by_side([lambda i=i: Counting(i) for i in range(4)], mode)
    policy = Critic()
    rollout = control.Steps(envs, 23)(policy)
    advantage = F.gae(rollout.reward, rollout.value, rollout.next_value, rollout.terminated, rollout.truncated, GAMMA, LAMBDA, rollout.mask)
    for i in range(4):
        expected = by_hand(i, 4, lambda o: float(policy.value_function(torch.from_numpy(o).double())))
        found = advantage[i][rollout.mask[i]].numpy()[: len(expected)]
        # float32 sums of about ten numbers of size ten
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (rollout.mask.all()) == (mode is not AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("mode", MODES)
def test_masked_rows_carry_nothing(mode):
    envs = side_by_side([lambda i=i: Counting(i) for i in range(4)], mode)
    rollout = control.Steps(envs, 23)(Critic())
    hidden = ~rollout.mask
    assert hidden.any() == (mode is AutoresetMode.NEXT_STEP)
    assert (Batch.of(rollout).weight[hidden] == 0).all()
    assert (rollout.reward[hidden] == 0).all()
    assert not (rollout.terminated | rollout.truncated)[hidden].any()
    # a reset row follows each end, and nothing else is one
    ended = rollout.terminated | rollout.truncated
    assert torch.equal(hidden[:, 1:], ended[:, :-1] if mode is AutoresetMode.NEXT_STEP else torch.zeros_like(ended[:, 1:]))


@pytest.mark.parametrize("mode", MODES)
def test_every_real_step_has_its_true_successor(mode):
    """With the observation's count as the value, a successor's value is one more than the step's own."""
    envs = side_by_side([lambda i=i: Counting(i) for i in range(4)], mode)
    collect = control.Steps(envs, 11)
    for _ in range(3):  # ends fall on the last column of some recordings and on the first of others
        rollout = collect(Critic(lambda observation: observation[..., 0]))
        torch.testing.assert_close(rollout.next_value[rollout.mask], rollout.value[rollout.mask] + 1, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_do_not_count_reset_steps(mode):
    envs = side_by_side([lambda i=i: Counting(i) for i in range(4)], mode)
    finished = []
    envs.reset()
    for _ in range(40):
        finished += envs.step(np.zeros(4, np.int64)).finished
    assert len(finished) > 30
    for total, length in finished:
        assert length in Counting.lengths
        assert total == sum(1.0 + 0.5 * t for t in range(1, length + 1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trace", [0.0, 0.95, 1.0])
def test_truncation_is_bootstrapped(mode, trace):
    """One state, reward 1, γ = 0.9, cut after 5 steps: V = 10. Taken for a termination, 2.6288 (λ = 1) or 3.5714 (λ = 0)."""
    envs = side_by_side([Loop, Loop], mode)
    collect = control.Episodes(envs)

    def settle(as_termination: bool) -> float:
        value = torch.zeros((), dtype=torch.float64)
        for _ in range(150):
            rollout = collect(Critic(lambda observation, value=value: value.expand(observation.shape[:-1])))
            ends = rollout.terminated | rollout.truncated
            flags = (ends, ends & False) if as_termination else (rollout.terminated, rollout.truncated)
            advantage = F.gae(rollout.reward.double(), rollout.value, rollout.next_value, *flags, 0.9, trace, rollout.mask)
            value = (advantage + rollout.value)[rollout.mask].mean()
        return float(value)

    # 150 sweeps of a contraction by at least 0.9 leave 1e-6 of the start
    assert settle(as_termination=False) == pytest.approx(10.0, abs=1e-5)
    if trace != 0.95 and mode is AutoresetMode.NEXT_STEP:
        assert settle(as_termination=True) == pytest.approx({0.0: 3.5714, 1.0: 2.6288}[trace], abs=5e-5)  # the table's digits


def test_without_bootstrap_the_first_return_is_too_small():
    rollout = control.Episodes(side_by_side([Loop]))(Critic(lambda observation: torch.full(observation.shape[:-1], 10.0)))
    parts = (rollout.reward, rollout.terminated, rollout.truncated, 0.9, rollout.mask)
    assert float(F.returns_to_go(*parts)[0, 0]) == pytest.approx(4.0951, abs=1e-5)
    assert float(F.returns_to_go(*parts, rollout.next_value)[0, 0]) == pytest.approx(10.0, abs=1e-5)


class Pictures(Counting):
    """Counting seen as a dict with a tuple inside."""

    def __init__(self, which=0):
        super().__init__(which)
        inner = self.observation_space
        self.observation_space = spaces.Dict({"numbers": inner, "more": spaces.Tuple((spaces.Discrete(50), inner))})

    def seen(self):
        numbers = super().seen()
        return {"numbers": numbers, "more": (self.time, numbers * 2)}


@pytest.mark.parametrize("mode", MODES)
def test_structured_observations_have_true_successors_too(mode):
    envs = side_by_side([lambda i=i: Pictures(i) for i in range(3)], mode)
    envs.reset()
    for _ in range(12):
        step = envs.step(np.zeros(3, np.int64))
        ended = np.flatnonzero(step.terminated | step.truncated)
        if mode is AutoresetMode.NEXT_STEP:
            assert step.successors is None
            final, indices = step.observation, ended
        elif len(ended):
            assert step.observation["numbers"][ended, 0].max() == 0
            (indices, final), ended = step.successors, np.arange(len(ended))
        else:
            continue
        lengths = [length for _, length in step.finished]
        assert final["numbers"][ended, 0].tolist() == lengths == final["more"][0][ended].tolist()
        assert (final["more"][1][ended] == 2 * final["numbers"][ended]).all()
        assert final["numbers"][ended, 1].tolist() == indices.tolist()


class Chatty(gymnasium.vector.VectorEnv):
    """NEXT_STEP, with a reward and flags that are set at every step, reset steps included; every array is used again."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    num_envs = 2
    single_observation_space = spaces.Box(0, 1, (1,), np.float32)
    single_action_space = spaces.Discrete(2)
    arrays = (np.zeros((2, 1), np.float32), np.array([3.0, 5.0]), np.array([True, False]), np.array([True, False]), {})

    def reset(self, *, seed=None, options=None):
        return self.arrays[0], {}

    def step(self, actions):
        for array in self.arrays[1:4]:
            array[:] = array[::-1].copy()
        return self.arrays


def test_what_a_reset_step_reports_is_nobodys():
    """Row 1 ends at once, row 0 at the step after it, and so on: every second step is a reset step."""
    rollout = control.Steps(control.Envs(Chatty()), 6)(control.MLPPolicy.for_envs(Chatty()))
    # row 0: a step, then (end, reset) by turns; row 1: (end, reset) by turns
    assert rollout.mask.int().tolist() == [[1, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]
    assert rollout.terminated.int().tolist() == rollout.truncated.int().tolist() == [[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]
    assert rollout.reward.tolist() == [[5, 3, 0, 3, 0, 3], [3, 0, 3, 0, 3, 0]]
    assert rollout.metrics == {"num_episodes": 6.0, "episode_return": (8 + 5 * 3) / 6, "episode_length": 7 / 6}


class Undeclared(gymnasium.vector.VectorEnv):
    num_envs = 2
    single_observation_space = observation_space = spaces.Box(0, 1, (1,))
    single_action_space = action_space = spaces.Discrete(2)


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": "sometimes"}, {"autoreset_mode": True}])
def test_an_undeclared_mode_is_refused(metadata):
    vector = Undeclared()
    vector.metadata = metadata
    with pytest.raises(UsageError, match=r"autoreset_mode.*NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED$"):
        control.Envs(vector)


def test_a_mode_by_its_value_is_understood():
    vector = Undeclared()
    vector.metadata = {"autoreset_mode": "SameStep"}
    assert control.Envs(vector).autoreset_mode is AutoresetMode.SAME_STEP
