"""One run of one rung and how its learning curve is seen; how noisy each rung's gradient is, and where that is known how biased.

The noise is measured (:mod:`~upslope.studies.variance`) at one policy for all: the one that the runs of a tabular task begin with, else one
that PPO has trained for a while. Its critic is fitted on separate episodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from upslope import control, tabular
from upslope.records import Policy
from upslope.run.config import RunConfig
from upslope.run.drawing import Array
from upslope.run.process import one_thread
from upslope.run.train import train
from upslope.studies.estimators import estimator_of
from upslope.studies.ladder_rungs import RUNGS, Rung, Task, settings_for
from upslope.studies.variance import Measurement, Reference, measure
from upslope.studies.variance_run import Tabulated, episodes, finite_problem, fit_critic
from upslope.tabular import exact
from upslope.typed import norm

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
    run, mdp = prepared_for(task, rung, seed, **changes), problem_of(task)
    steps, returns = [0], [np.nan if mdp is None else exact_return(mdp, run.policy)]

    def look(state: Any) -> None:
        if mdp is None:
            found = state.metrics.get("episode_return")
        else:  # once for each point of the curve, not for each iteration
            due = state.total_steps * POINTS // budget > steps[-1] * POINTS // budget
            found = exact_return(mdp, state.policy) if due else None
        if found is not None:
            steps.append(state.total_steps)
            returns.append(found)

    try:
        with one_thread(run.policy):
            state = train(run.config.algorithm, run.policy, run.collect, total_steps=budget, seed=seed, callbacks=look, progress=False)
    finally:
        run.close()
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
    place = np.minimum(np.searchsorted(ends, steps), POINTS)  # what came after the budget falls into a separate bin
    count = np.bincount(place, minlength=POINTS + 1)[:POINTS]
    total = np.bincount(place, returns, POINTS + 1)[:POINTS]
    return np.where(count > 0, total / np.maximum(count, 1), between)


def exact_return(mdp: tabular.MDP, policy: Policy) -> float:
    """J of a tabular policy, by linear algebra."""
    with torch.no_grad():
        return float(exact.objective(mdp, table_of(mdp, policy), 1.0))


def problem_of(task: Task) -> tabular.MDP | None:
    return finite_problem(task.env_id, **task.shared.get("env_kwargs", {}))


def table_of(mdp: tabular.MDP, policy: Any) -> Any:
    """``π(a|s)`` of a policy that is linear in one-hot observations, ``[S, A]`` float64, differentiable."""
    return policy.network.actor.double().softmax(-1)[mdp.observation]


SEED = 100_000  # far from the seeds of the runs
HALFWAY = 3_000  # steps of PPO that make the policy to measure at, where a fresh one would show nothing
LANES, MAX_STEPS = 64, 1000  # episodes played side by side, and more steps than any of them has


def measured_policy(task: Task) -> Any:
    prepared = prepared_for(task, next(rung for rung in RUNGS if rung.key == "ppo"), SEED)
    try:
        if not task.problem:
            train(prepared.config.algorithm, prepared.policy, prepared.collect, total_steps=HALFWAY, seed=SEED, progress=False)
    finally:
        prepared.close()
    return prepared.policy


def estimator_name(task: Task, rung: Rung) -> str:
    """What ``upslope variance`` calls the rung's estimator: ``a2c:0.8``."""
    settings = settings_for(task, rung)
    trace = settings.get("trace_decay", settings.get("gae_lambda"))
    return rung.estimator if trace is None else f"{rung.estimator}:{trace:g}"


def noises(task: Task, rungs: Sequence[Rung]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Environment steps of all episodes, and for each rung what ``ladder.json`` holds of its gradient."""
    policy, gamma = measured_policy(task), task.shared["gamma"]
    names = {rung.key: estimator_name(task, rung) for rung in rungs}
    chosen = {name: estimator_of(name) for name in names.values()}
    algorithms = {name: item.make(gamma, trace) for name, (item, trace) in chosen.items()}
    with control.make(task.env_id, LANES, SEED, env_kwargs=task.shared.get("env_kwargs")) as envs:
        collect = control.GroupedEpisodes(envs, task.group_size, max_steps=MAX_STEPS, seed=SEED)
        fit_critic(policy, episodes(collect, policy, LANES), gamma)
        rollout = episodes(collect, policy, task.episodes)
    if (mdp := problem_of(task)) is not None:
        reference = Reference.exact(tabular.gradient(mdp, Tabulated(policy, mdp), gamma))
    else:  # nothing to compare with: only variances are kept
        reference = Reference.sampled(next(iter(algorithms.values())), policy, rollout)
    rows = {row.estimator: row for row in measure(algorithms, policy, rollout, reference, seed=SEED)}
    length = None if mdp is None else float(norm(reference.gradient))
    return rollout.num_steps, {key: found_in(rows[name], length) for key, name in names.items()}


def found_in(row: Measurement, length: float | None) -> dict[str, Any]:
    """A measurement's numbers; bias in lengths of the exact gradient, where there is one."""
    noise = row.relative_variance if math.isfinite(row.relative_variance) else None  # no signal to be seen
    found: dict[str, Any] = {"estimator": row.estimator, "variance": row.variance, "relative_variance": noise}
    if length is not None:
        found |= {"bias": row.bias / length, "bias_by_chance": row.bias_by_chance / length, "cosine": row.cosine, "biased": row.biased}
    return found
