"""Small problems with known answers, each an :class:`~upslope.tabular.mdp.MDP` made by a function."""

from collections.abc import Sequence
from typing import Any

import torch

from upslope.errors import is_kind, require
from upslope.tabular.arguments import as_tensor, check_number, check_seed, check_whole
from upslope.tabular.mdp import MDP

LEFT, RIGHT = 0, 1
STAY, GO = 0, 1


def bandit(means: Sequence[float] = (0.1, 0.5, 0.9)) -> MDP:
    """One decision: arm a pays ``means[a]`` and the episode ends."""
    pay = as_tensor("means", means)
    require(pay.dim() == 1 and len(pay) >= 1, f"means: expected one number for each arm, found shape {list(pay.shape)}")
    transition = torch.zeros(2, len(pay), 2, dtype=torch.float64)
    transition[0, :, 1] = 1.0
    return MDP(transition, torch.stack([pay, torch.zeros_like(pay)]), [1.0, 0.0], [False, True])


def short_corridor(time_limit: int | None = None) -> MDP:
    """Three states in a row that all look the same; in the middle one left and right are switched. Each step costs 1.

    A policy can only choose one probability p of ``RIGHT``: ``v(start) = 2 (p − 2) / (p (1 − p))``, with its maximum
    −(6 + 4√2) = −11.657 at p = 2 − √2 = 0.5858. Source: SB Example 13.1.
    """
    transition = torch.zeros(4, 2, 4, dtype=torch.float64)
    for state, left, right in ((0, 0, 1), (1, 2, 0), (2, 1, 3)):
        transition[state, LEFT, left] = 1.0
        transition[state, RIGHT, right] = 1.0
    reward = [[-1.0, -1.0]] * 3 + [[0.0, 0.0]]
    return MDP(transition, reward, [1.0, 0.0, 0.0, 0.0], [False, False, False, True], time_limit, observation=torch.zeros(4))


def gridworld(
    height: int = 4,
    width: int = 4,
    *,
    goals: Sequence[tuple[int, int]] = ((0, 0), (-1, -1)),
    start: tuple[int, int] | None = None,
    slip: float = 0.0,
    time_limit: int | None = None,
) -> MDP:
    """Up, right, down, left on a grid; each step costs 1 until a goal is reached, and a step into a wall goes nowhere.

    ``slip`` is the probability that a random direction is taken instead. Begins at ``start`` (row, column), else anywhere
    but on a goal; negative rows and columns count from the end. State ``row · width + column``. The defaults are SB
    Example 4.1: under the uniform policy the values are −14, −18, −20 and −22.
    """
    check_whole("height", height)
    check_whole("width", width)
    check_number("slip", slip, 0.0, 1.0)
    n = height * width
    moves = torch.zeros(n, 4, n, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for action, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
                to_row, to_column = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
                moves[row * width + column, action, to_row * width + to_column] = 1.0
    terminal = torch.zeros(n, dtype=torch.bool)
    require(is_kind(goals, Sequence), f"goals: expected (row, column) of each, found {goals!r}")
    for goal in goals:
        terminal[cell("goals", goal, height, width)] = True
    require(not bool(terminal.all()), "goals: every cell is one, so there is nowhere to begin; leave a cell free")
    alive = (~terminal).double()
    begin = alive / alive.sum()
    if start is not None:
        begin = torch.eye(n, dtype=torch.float64)[cell("start", start, height, width)]
    transition = (1.0 - slip) * moves + slip * moves.mean(1, keepdim=True)
    return MDP(transition * alive[:, None, None], -alive[:, None].repeat(1, 4), begin, terminal, time_limit)


def cell(name: str, place: Any, height: int, width: int) -> int:
    """The state at ``(row, column)``, negative numbers counted from the end."""
    at = as_tensor(name, place, torch.int64)
    require(list(at.shape) == [2], f"{name}: expected (row, column), found {place!r}")
    row, column = (int(i) for i in at)
    inside = -height <= row < height and -width <= column < width
    require(inside, f"{name}: ({row}, {column}) lies outside of {height} × {width} cells")
    return row % height * width + column % width


def ring(num_states: int = 5, *, slip: float = 0.1, rest: float = 0.05, time_limit: int | None = None) -> MDP:
    """A continuing task: ``STAY`` pays ``rest``; ``GO`` moves on around the ring (with probability ``1 − slip``), and each lap pays 1.

    The reward of a lap is paid by its last step, as its expectation ``1 − slip``. Going everywhere is best as long as ``rest`` is
    less than what it earns, and earns exactly ``(1 − slip) / num_states`` per step.
    """
    check_whole("num_states", num_states, 2)
    check_number("slip", slip, 0.0, 1.0)
    require(slip < 1.0, "slip: at 1 the ring never moves; give less")
    check_number("rest", rest)
    transition = torch.zeros(num_states, 2, num_states, dtype=torch.float64)
    for state in range(num_states):
        transition[state, STAY, state] = 1.0
        transition[state, GO, state] = slip
        transition[state, GO, (state + 1) % num_states] = 1.0 - slip
    reward = torch.tensor([[rest, 0.0]], dtype=torch.float64).repeat(num_states, 1)
    reward[-1, GO] = 1.0 - slip
    return MDP(transition, reward, torch.eye(num_states, dtype=torch.float64)[0], torch.zeros(num_states), time_limit)


def loop(time_limit: int | None = 5) -> MDP:
    """One state, one action, reward 1 for ever; only the recording stops, after ``time_limit`` steps.

    With γ = 0.9 the value is 1 / (1 − γ) = 10. Who takes the truncation for a termination gets 4.0951 for the first step.
    """
    return MDP([[[1.0]]], [[1.0]], [1.0], [False], time_limit)


def random_mdp(num_states: int = 4, num_actions: int = 3, *, seed: int = 0, end: float = 0.2, time_limit: int | None = None) -> MDP:
    """Random transitions, rewards and start over ``num_states`` states, and one terminal state more unless ``end`` is 0.

    Rows and start are uniform over all distributions, rewards standard normal; every action ends the episode with
    probability ``end · u``, u uniform.
    """
    check_whole("num_states", num_states)
    check_whole("num_actions", num_actions)
    check_seed(seed)
    check_number("end", end, 0.0, 1.0)
    generator = torch.Generator().manual_seed(seed)

    def simplex(*shape: int) -> torch.Tensor:
        draws = -torch.rand(*shape, generator=generator, dtype=torch.float64).log()
        return draws / draws.sum(-1, keepdim=True)

    inner, start = simplex(num_states, num_actions, num_states), simplex(num_states)
    reward = torch.randn(num_states, num_actions, generator=generator, dtype=torch.float64)
    if end == 0:
        return MDP(inner, reward, start, torch.zeros(num_states), time_limit)
    leave = end * torch.rand(num_states, num_actions, generator=generator, dtype=torch.float64)
    n = num_states + 1
    transition, pay = torch.zeros(n, num_actions, n, dtype=torch.float64), torch.zeros(n, num_actions, dtype=torch.float64)
    transition[:-1, :, :-1] = inner * (1.0 - leave).unsqueeze(-1)
    transition[:-1, :, -1] = leave
    pay[:-1] = reward
    return MDP(transition, pay, torch.cat([start, start.new_zeros(1)]), torch.arange(n) == num_states, time_limit)
