"""One run of one rung, and how its learning curve is seen."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upslope.records import Policy
from upslope.run.config import RunConfig
from upslope.run.device import one_thread
from upslope.run.drawing import Array
from upslope.run.train import train
from upslope.studies.ladder_rungs import Rung, Task, settings_for
from upslope.tabular import exact, problems

POINTS = 60  # of a learning curve


@dataclass(frozen=True)
class Climb:
    """One run: its return at :data:`POINTS` equal distances of the budget, and the seconds that it trained."""

    returns: Array
    seconds: float


def prepared_for(task: Task, rung: Rung, seed: int, **changes: Any) -> Any:
    """Environments, policy, collector and algorithm of one run; tabular policies lean to where the task begins."""
    prepared = RunConfig.of(rung.algorithm, task.env_id, **{**settings_for(task, rung), **changes, "seed": seed}).prepare()
    if task.problem:
        policy: Any = prepared.policy
        with torch.no_grad():
            policy.network.actor[:, 0] = float(np.log(task.odds))
    return prepared


def climb(task: Task, rung: Rung, seed: int, budget: int, **changes: Any) -> Climb:
    """Train one rung with one seed. Tabular tasks are judged by the exact expected return, others by their training episodes."""
    prepared = prepared_for(task, rung, seed, **changes)
    steps, returns = [0], [exact_return(task, prepared.policy)] if task.problem else [np.nan]

    def look(state: Any) -> None:
        if not task.problem:
            found = state.metrics.get("episode_return")
        else:  # once for each point of the curve, not for each iteration
            due = state.total_steps * POINTS // budget > steps[-1] * POINTS // budget
            found = exact_return(task, state.policy) if due else None
        if found is not None:
            steps.append(state.total_steps)
            returns.append(found)

    try:
        with one_thread(prepared.policy):
            state = train(
                prepared.config.algorithm, prepared.policy, prepared.collect, total_steps=budget, seed=seed, callbacks=look, progress=False
            )
    finally:
        prepared.close()
    return Climb(resampled(np.array(steps, float), np.array(returns), budget), state.train_seconds)


def grid(budget: int) -> Array:
    """Where a curve has its points, in environment steps."""
    return np.linspace(budget / POINTS, budget, POINTS)


def resampled(steps: Array, returns: Array, budget: int) -> Array:
    """A curve at the points of the grid: the mean of what was seen since the point before, else what lies between its neighbors."""
    known = np.isfinite(returns)
    steps, returns, ends = steps[known], returns[known], grid(budget)
    if not len(steps):
        return np.full(POINTS, np.nan)
    between = np.interp(ends, steps, returns)
    place = np.minimum(np.searchsorted(ends, steps), POINTS)  # what came after the budget falls into a bin of its own
    count = np.bincount(place, minlength=POINTS + 1)[:POINTS]
    total = np.bincount(place, returns, POINTS + 1)[:POINTS]
    return np.where(count > 0, total / np.maximum(count, 1), between)


def exact_return(task: Task, policy: Policy) -> float:
    """J of a tabular policy, by linear algebra."""
    with torch.no_grad():
        mdp = problem_of(task)
        return float(exact.objective(mdp, table_of(mdp, policy), 1.0))


def problem_of(task: Task) -> Any:
    return _problem(task.problem, tuple(task.shared.get("env_kwargs", {}).get("means", ())))


@functools.cache
def _problem(name: str, means: tuple[float, ...]) -> Any:
    return getattr(problems, name)(*([means] if means else []))


def table_of(mdp: Any, policy: Any) -> Any:
    """``π(a|s)`` of a policy that is linear in one-hot observations, ``[S, A]`` float64, differentiable."""
    return policy.network.actor.double().softmax(-1)[mdp.observation]
