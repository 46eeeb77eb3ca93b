"""What a problem must be, said in one line; and time in the state."""

import numpy as np
import pytest
import torch

from upslope import UsageError, tabular
from upslope.tabular import exact

GOOD = {
    "transition": [[[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]], [[0.0] * 3, [0.0] * 3]],
    "reward": [[1.0, 0.0], [2.0, 3.0], [0.0, 0.0]],
    "start": [1.0, 0.0, 0.0],
    "terminal": [False, False, True],
}


def test_lists_arrays_and_tensors_make_the_same_problem():
    problems = [
        tabular.MDP(**GOOD),
        tabular.MDP(**{name: np.array(x) for name, x in GOOD.items()}),
        tabular.MDP(**{name: torch.tensor(x) for name, x in GOOD.items()}),
    ]
    for mdp in problems:
        assert mdp.transition.dtype == mdp.reward.dtype == mdp.start.dtype == torch.float64
        assert mdp.num_states == 3 and mdp.num_actions == 2 and mdp.num_observations == 3
        assert mdp.observation.tolist() == [0, 1, 2]
    with pytest.raises(AttributeError):
        problems[0].time_limit = 3


def test_the_caller_keeps_its_own_arrays():
    transition = torch.tensor(GOOD["transition"], dtype=torch.float64)
    transition[2, :, 2] = 1.0  # a terminal state that stays where it is
    mdp = tabular.MDP(transition, GOOD["reward"], GOOD["start"], GOOD["terminal"])
    assert float(mdp.transition[2].sum()) == 0.0 and float(transition[2].sum()) == 2.0


def changed(name, index, value):
    array = np.array(GOOD[name], dtype=bool if name == "terminal" else float)
    array[index] = value
    return {**GOOD, name: array}


@pytest.mark.parametrize(
    "arguments,message",
    [
        (changed("transition", (0, 0, 1), 0.4), r"transition: the row of state 0, action 0 sums to 0\.9; it must sum to 1"),
        (changed("transition", (1, 1), [-0.5, 0.5, 1.0]), r"transition: expected probabilities ≥ 0, found -0\.5 from state 1 by action 1"),
        (changed("transition", (0, 0, 0), np.nan), "transition: expected probabilities ≥ 0, found nan"),
        (changed("transition", (2, 0), [1.0, 0.0, 0.0]), "transition: terminal state 2 leads to other states"),
        ({**GOOD, "transition": [[0.5, 0.5]]}, r"transition: expected shape \[S, A, S\], found \[1, 2\]"),
        ({**GOOD, "transition": "p"}, "transition: expected an array of numbers, found str"),
        ({**GOOD, "reward": [1.0, 2.0]}, r"reward: expected shape \[3, 2\] to go with transition \[3, 2, 3\], found \[2\]"),
        ({**GOOD, "start": [1.0]}, r"start: expected shape \[3\]"),
        ({**GOOD, "terminal": [True]}, r"terminal: expected shape \[3\]"),
        ({**GOOD, "observation": [0]}, r"observation: expected shape \[3\]"),
        ({**GOOD, "observation": [0, 1, -1]}, "observation: expected numbers ≥ 0, found -1"),
        (changed("reward", (1, 0), np.inf), "reward: state 1, action 0 pays inf; rewards must be finite"),
        (changed("reward", (2, 1), 5.0), "reward: state 2, action 1 is terminal and pays 5.0"),
        ({**GOOD, "start": [0.5, 0.4, 0.0]}, r"start: expected probabilities ≥ 0 that sum to 1, found .* \(sum 0\.9\)"),
        ({**GOOD, "start": [2.0, -1.0, 0.0]}, "start: expected probabilities ≥ 0"),
        ({**GOOD, "start": [0.0, 0.5, 0.5]}, "start: state 2 is terminal"),
        ({**GOOD, "reward": np.ones((3, 2)) * 1j}, "reward: expected an array of numbers, found ndarray .they are complex"),
        ({**GOOD, "start": None}, "start: expected an array of numbers, found NoneType"),
        ({**GOOD, "observation": [0.5, 1, 2]}, "observation: expected whole numbers, found 0.5"),
        ({**GOOD, "observation": [0, 1, np.nan]}, "observation: expected whole numbers, found nan"),
        ({**GOOD, "terminal": [0, 0, 2]}, "terminal: expected booleans, found 2"),
        ({**GOOD, "transition": [[[0.0], [0.0, 1.0]]]}, "transition: expected an array of numbers, found list"),
        ({**GOOD, "transition": []}, r"transition: expected shape \[S, A, S\], found \[0\]"),
        ({**GOOD, "start": [np.nan, 1.0, 0.0]}, "start: expected probabilities ≥ 0 that sum to 1, found .nan"),
        ({**GOOD, "time_limit": "5"}, "time_limit: expected an integer ≥ 1 or none, found '5'"),
        ({**GOOD, "time_limit": True}, "time_limit: expected an integer ≥ 1 or none, found True"),
        ({**GOOD, "time_limit": 0}, "time_limit: expected an integer ≥ 1 or none, found 0"),
        (
            {"transition": np.eye(2)[:, None], "reward": np.zeros((2, 1)), "start": [1.0, 0.0], "terminal": [False, False]},
            "start: state 0 is absorbing: every action stays there and pays 0",
        ),
    ],
)
def test_what_is_no_problem_says_so_in_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        tabular.MDP(**arguments)
    assert "\n" not in str(caught.value)


def test_single_precision_is_rounding_and_no_error():
    rows = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    mdp = tabular.MDP(rows, torch.zeros(3, 2), torch.full((3,), 1.0 / 3.0), torch.zeros(3))
    assert float((mdp.transition.sum(-1) - 1.0).abs().max()) < 1e-15 and float(mdp.start.sum()) == pytest.approx(1.0, abs=1e-15)


def test_a_state_that_stays_and_pays_may_be_a_start():
    assert tabular.loop().num_states == 1


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: tabular.bandit([]), "means"),
        (lambda: tabular.bandit(3), "means: expected one number for each arm"),
        (lambda: tabular.bandit([float("nan")]), "reward: state 0, action 0 pays nan"),
        (lambda: tabular.gridworld(2.5), "height: expected an integer ≥ 1, found 2.5"),
        (lambda: tabular.gridworld(slip=float("nan")), r"slip: expected a number in \[0, 1\], found nan"),
        (lambda: tabular.gridworld(goals=(1, 2)), r"goals: expected \(row, column\), found 1"),
        (lambda: tabular.gridworld(goals=None), r"goals: expected \(row, column\) of each, found None"),
        (lambda: tabular.gridworld(1, 1), "goals: every cell is one"),
        (lambda: tabular.gridworld(start="ab"), "start: expected an array of whole numbers, found str"),
        (lambda: tabular.ring("5"), "num_states: expected an integer ≥ 2, found '5'"),
        (lambda: tabular.ring(rest=float("inf")), "rest: expected a finite number, found inf"),
        (lambda: tabular.random_mdp(seed=-1), "seed: expected an integer ≥ 0, found -1"),
        (lambda: tabular.random_mdp(3, 0), "num_actions: expected an integer ≥ 1, found 0"),
        (lambda: tabular.loop(2.5), "time_limit: expected an integer ≥ 1 or none, found 2.5"),
        (lambda: tabular.ring().unrolled(1.5), "horizon: expected an integer ≥ 1, found 1.5"),
        (lambda: tabular.gridworld(0), "height: expected an integer ≥ 1, found 0"),
        (lambda: tabular.gridworld(goals=((9, 0),)), r"goals: \(9, 0\)"),
        (lambda: tabular.gridworld(start=(0, 9)), r"start: \(0, 9\)"),
        (lambda: tabular.gridworld(start=(0, 0)), "start: state 0 is terminal"),
        (lambda: tabular.ring(1), "num_states"),
        (lambda: tabular.ring(slip=1.0), "slip"),
        (lambda: tabular.random_mdp(end=2.0), "end"),
    ],
)
def test_problems_check_their_options(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_unrolled_counts_the_steps():
    mdp = tabular.random_mdp(2, 2, seed=0, time_limit=3)
    ends = mdp.unrolled()
    assert ends.num_states == 4 * 3 and ends.time_limit is None
    assert ends.terminal[9:].all() and ends.terminal[2::3].all() and int(ends.terminal.sum()) == 3 + 3
    assert ends.observation.tolist() == [0, 1, 2] * 4
    assert torch.equal(ends.transition[0:3, :, 3:6], mdp.transition)
    with pytest.raises(UsageError, match="horizon: expected an integer ≥ 1"):
        tabular.short_corridor().unrolled()


def test_a_limit_of_the_recording_and_an_end_of_the_problem_are_two_problems():
    """The first step is worth 10 where the loop goes on, and 1 + 0.9 + … + 0.9⁴ = 4.0951 where it is over after five."""
    loop = tabular.loop(5)
    assert float(exact.objective(loop, [[1.0]], 0.9)) == pytest.approx(10.0, abs=1e-12)
    assert float(exact.objective(loop.unrolled(), torch.ones(6, 1), 0.9)) == pytest.approx(4.0951, abs=1e-12)
    assert float(exact.objective(loop.unrolled(), torch.ones(6, 1), 1.0)) == pytest.approx(5.0, abs=1e-12)
