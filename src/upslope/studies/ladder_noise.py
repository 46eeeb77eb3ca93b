"""How noisy each rung's gradient is, and where the gradient is known how biased: :mod:`~upslope.studies.variance` at one policy for all.

The policy is the one that the runs of a tabular task begin with, else one that PPO has trained for a while. Its critic is fitted on
separate episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from upslope import control, tabular
from upslope.run.train import train
from upslope.studies.estimators import estimator_of
from upslope.studies.ladder_rungs import RUNGS, Rung, Task, settings_for
from upslope.studies.ladder_runs import prepared_for, problem_of
from upslope.studies.variance import Measurement, Reference, measure
from upslope.studies.variance_run import Tabulated, episodes, fit_critic

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
    if task.problem:
        mdp = problem_of(task)
        reference = Reference.exact(tabular.gradient(mdp, Tabulated(policy, mdp), gamma))
    else:  # nothing to compare with: only variances are kept
        reference = Reference.sampled(next(iter(algorithms.values())), policy, rollout)
    rows = {row.estimator: row for row in measure(algorithms, policy, rollout, reference, seed=SEED)}
    length = float(reference.gradient.norm()) if task.problem else None
    return rollout.num_steps, {key: found_in(rows[name], length) for key, name in names.items()}


def found_in(row: Measurement, length: float | None) -> dict[str, Any]:
    """A measurement's numbers; bias in lengths of the exact gradient, where there is one."""
    noise = row.relative_variance if math.isfinite(row.relative_variance) else None  # no signal to be seen
    found: dict[str, Any] = {"estimator": row.estimator, "variance": row.variance, "relative_variance": noise}
    if length is not None:
        found |= {"bias": row.bias / length, "bias_by_chance": row.bias_by_chance / length, "cosine": row.cosine, "biased": row.biased}
    return found
