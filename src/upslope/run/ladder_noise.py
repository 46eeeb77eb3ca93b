"""How noisy each rung's gradient is, and where it points: many estimates at one policy that stands still.

Every estimate takes the same number of whole episodes; rungs that do not compare groups see the very same ones. The gradient is
that of the rung's own ``estimate`` and ``objective`` for the actor's parameters, summed over steps and divided by the number of
episodes, so that an unbiased one estimates ∇J of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from upslope.records import Rollout
from upslope.run.chart import Array
from upslope.run.ladder_rungs import RUNGS, Rung, Task, settings_for
from upslope.run.ladder_runs import prepared_for, problem_of, table_of

SEED = 100_000
"""Far from the seeds of the runs."""
GROUP, LONGEST = 8, 1000
"""Episodes that are compared with one another, and more steps than any of them has."""
HALFWAY = 6_000
"""Steps of PPO that make the policy to measure at, where a fresh one would show nothing."""


def measured_policy(task: Task) -> Any:
    """Where the gradients are taken: where a tabular task begins, with the exact critic; else after some thousand steps of PPO."""
    from upslope.run.train import train
    from upslope.tabular import exact

    ppo = next(rung for rung in RUNGS if rung.key == "ppo")
    prepared = prepared_for(task, ppo, SEED)
    policy: Any = prepared.policy
    if task.problem:
        with torch.no_grad():
            mdp = problem_of(task)
            table = table_of(mdp, policy)
            visits, value = exact.on_policy_distribution(mdp, table, 1.0), exact.value(mdp, table, 1.0)
            share = torch.zeros(len(policy.network.critic), dtype=torch.float64).index_add(0, mdp.observation, visits)
            total = torch.zeros_like(share).index_add(0, mdp.observation, visits * value)
            policy.network.critic.copy_(total / share.clamp(min=1e-300))  # states that look alike share their mean
    else:
        train(prepared.run.algorithm, policy, prepared.collect, total_steps=HALFWAY, seed=SEED)
    prepared.close()
    return policy


def noises(task: Task, rungs: Sequence[Rung]) -> tuple[float, dict[str, dict[str, Any]]]:
    """Mean environment steps of an estimate, and for each rung :func:`noise` of its gradients."""
    from upslope import control

    policy = measured_policy(task)
    parameters = [p for name, p in policy.named_parameters() if "actor" in name]
    estimators = {rung.key: estimator_of(task, rung) for rung in rungs}
    found: dict[str, list[Array]] = {rung.key: [] for rung in rungs}
    kwargs = task.shared.get("env_kwargs")
    plain = control.make(task.env_id, task.episodes, SEED, env_kwargs=kwargs)
    alike = control.make(task.env_id, task.episodes, SEED, env_kwargs=kwargs)
    num_steps = 0
    try:
        episodes = control.Episodes(plain, seed=SEED)
        group = control.GroupedEpisodes(alike, GROUP, max_steps=LONGEST, seed=SEED)
        for _ in range(task.repeats):
            rollout, compared = episodes(policy), group(policy)
            num_steps += rollout.num_steps
            for rung in rungs:
                seen = compared if rung.algorithm in ("rloo", "grpo") else rollout
                found[rung.key].append(gradient(estimators[rung.key], policy, parameters, seen, None if rung.own_scale else task.episodes))
    finally:
        plain.close()
        alike.close()
    exact = exact_gradient(task, policy, parameters) if task.problem else None
    return num_steps / task.repeats, {key: noise(np.stack(rows), exact) for key, rows in found.items()}


def estimator_of(task: Task, rung: Rung) -> Any:
    """The rung's algorithm, or the batch method that adds up what one that learns at every step does."""
    from upslope.run.control_run import ControlRun

    settings = settings_for(task, rung)
    if rung.measured is not None:
        return ControlRun.of("a2c", task.env_id, **rung.measured(settings)).algorithm
    return ControlRun.of(rung.algorithm, task.env_id, **settings).algorithm


def gradient(algorithm: Any, policy: Any, parameters: list[Any], rollout: Rollout, episodes: int | None) -> Array:
    """One estimate as a flat vector; ``episodes`` replaces the batch's weights by one over their number."""
    batch = algorithm.estimate(policy, rollout)
    if episodes is not None:
        batch = replace(batch, weight=batch.mask / episodes)
    objective, _ = algorithm.objective(policy, batch)
    pieces = torch.autograd.grad(objective, parameters)
    return torch.cat([piece.reshape(-1) for piece in pieces]).double().numpy()


def exact_gradient(task: Task, policy: Any, parameters: list[Any]) -> Array:
    """∇J through the linear solve (:func:`upslope.tabular.gradient_by_autograd`), for the actor's parameters."""
    from upslope.tabular import exact

    mdp = problem_of(task)
    (found,) = torch.autograd.grad(exact.objective(mdp, table_of(mdp, policy), 1.0), parameters)
    return found.reshape(-1).double().numpy()


def noise(rows: Array, exact: Array | None) -> dict[str, Any]:
    """Of estimates ``[K, P]``: ``tr Cov(ĝ) / |E ĝ|²``, and the share of ∇J in them, ``⟨E ĝ, ∇J⟩ / |∇J|²``, which is 1 without bias.

    |E ĝ|² is estimated without bias, as ``|mean|² − tr Cov / K``; where that is not positive, the relative variance is not known.
    """
    count, mean = len(rows), rows.mean(0)
    variance = float(rows.var(0, ddof=1).sum())
    signal = float(mean @ mean) - variance / count
    found: dict[str, Any] = {"variance": variance, "relative_variance": variance / signal if signal > 0 else None}
    if exact is not None:
        shares = rows @ exact / (exact @ exact)
        found |= {"exact_share": float(shares.mean()), "exact_share_error": float(shares.std(ddof=1) / count**0.5)}
    return found
