"""All trajectories of a small problem with their probabilities, and what an estimator gives in expectation over them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from upslope.errors import UsageError, require
from upslope.records import Policy, Rollout, offers
from upslope.tabular.arguments import check_whole
from upslope.tabular.mdp import MDP

MAX_TRAJECTORIES = 1_000_000  # trajectories that are listed at most


def enumerate_rollouts(mdp: MDP, policy: object, horizon: int | None = None) -> tuple[Rollout, Tensor]:
    """Every trajectory that the transitions allow, one a row: ``(rollout [N, T], probability [N])``.

    ``probability`` is that of the trajectory when ``policy`` acts (it sums to 1). An episode that has not terminated after
    ``horizon`` steps (``time_limit`` unless given) is truncated there. ``value`` and ``next_value`` are the policy's.

    Raises:
        UsageError: no horizon, and trajectories without a longest length; or more than a million of them.
    """
    steps = mdp.time_limit if horizon is None else horizon
    check_whole("horizon", steps, optional=True)
    if not offers(policy, Policy):
        raise UsageError(f"policy: expected one with evaluate, found {type(policy).__name__}")
    states, actions, dynamics = trajectories(mdp, steps)
    length = actions.shape[1]
    mask = ~mdp.terminal[states[:, :-1]]
    last = mask & torch.cat([~mask[:, 1:], torch.ones_like(mask[:, :1])], -1)
    terminated = last & mdp.terminal[states[:, 1:]]
    seen = mdp.observation[states]
    with torch.no_grad():
        evaluation = policy.evaluate(observation=seen[:, :-1], action=actions)
        after = policy.evaluate(observation=seen[:, 1:], action=actions).value
    log_prob = evaluation.log_prob.where(mask, 0.0)
    inputs, reward = {"observation": seen[:, :-1], "action": actions}, mdp.reward[states[:, :-1], actions].where(mask, 0.0)
    ends: dict[str, Any] = {"terminated": terminated, "truncated": last & ~terminated, "mask": mask}
    ends["max_steps"] = length if steps is None else steps
    rollout = Rollout(inputs=inputs, reward=reward, behavior_log_prob=log_prob, value=evaluation.value, next_value=after, **ends)
    return rollout, dynamics * log_prob.sum(-1).exp()


def trajectories(mdp: MDP, horizon: int | None, start: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``(states [N, T+1], actions [N, T], probability of start and transitions [N])``; ended rows stay where they are, by action 0.

    First states are those of ``start [S]``, the problem's unless given.
    """
    first = mdp.start if start is None else start
    states = first.nonzero()
    actions, probability = states.new_zeros(len(states), 0), first[states[:, 0]]
    while bool((alive := ~mdp.terminal[states[:, -1]]).any()) and (horizon is None or actions.shape[1] < horizon):
        if horizon is None and actions.shape[1] >= mdp.num_states:  # a path that visits more states than there are has a loop in it
            raise UsageError("horizon: trajectories of this mdp have no longest length; give horizon, or an mdp with time_limit")
        row, action, successor = mdp.transition[states[alive, -1]].nonzero().unbind(-1)
        done, origin = (~alive).nonzero().squeeze(-1), alive.nonzero().squeeze(-1)[row]
        here = states[origin, -1]
        source = torch.cat([done, origin])
        within = f"{MAX_TRAJECTORIES} trajectories within {actions.shape[1] + 1} steps"
        require(len(source) <= MAX_TRAJECTORIES, f"horizon: more than {within}; give a shorter one")
        states = torch.cat([states[source], torch.cat([states[done, -1], successor]).unsqueeze(-1)], -1)
        actions = torch.cat([actions[source], torch.cat([torch.zeros_like(done), action]).unsqueeze(-1)], -1)
        probability = torch.cat([probability[done], probability[origin] * mdp.transition[here, action, successor]])
    return states, actions, probability


def expected_gradient(estimator: Any, policy: Policy, rollouts: Rollout, probability: Tensor) -> Tensor:
    """The exact expectation of a gradient estimate that treats episodes one by one, ``[P]`` for all of ``policy.parameters()``.

    ``estimator`` is an algorithm, whose estimate from one episode is ``Σ_t ∇ value_t``: ``probability`` takes the place of the
    batch's weight, so how it averages over steps does not matter, and what looks at the whole batch must be off. Or it is a
    function ``(policy, rollouts) -> [N]`` of numbers to be maximized, one for each episode. The expectation is
    ``Σ_τ P(τ) · estimate(τ)``, comparable with :func:`upslope.tabular.gradient`.

    Raises:
        UsageError: advantages that are normalized over the batch, or a function that raises or does not return one number a row.
    """
    if hasattr(estimator, "estimate"):
        if getattr(estimator, "normalize_advantage", False):
            reason = "it looks at all episodes of a batch together; switch it off for an expectation over single ones"
            raise UsageError(f"normalize_advantage: {reason}")
        batch = estimator.estimate(policy, rollouts)
        total, _ = estimator.objective(policy, replace(batch, weight=probability.unsqueeze(-1) * batch.mask))
        return flat_gradient(total, policy)
    return flat_gradient((probability * per_episode(estimator, policy, rollouts)).sum(), policy)


def per_episode(function: Callable[[Any, Rollout], object], policy: Policy, rollouts: Rollout) -> Tensor:
    """``function(policy, rollouts)``, checked to be one number for each episode."""
    require(callable(function), f"estimator: expected an algorithm or a function (policy, rollouts), found {function!r}")
    try:
        found, expected = function(policy, rollouts), rollouts.mask.shape[:1]
    except Exception as error:
        raise UsageError(f"estimator: raised {type(error).__name__} ({' '.join(str(error).split())})") from error
    if not isinstance(found, Tensor) or found.shape != expected:
        kind = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(f"estimator: expected one number for each episode, shape {list(expected)}, found {kind}")
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).nonzero()[0])
        raise UsageError(f"estimator: expected finite numbers, found {float(found[row])} for episode {row}")
    return found


def parameters_of(policy: object) -> list[Tensor]:
    """What a gradient is taken by; UsageError for a table, which has none."""
    parameters = getattr(policy, "parameters", None)
    if not callable(parameters):
        raise UsageError(f"policy: a gradient needs a policy with parameters, found {type(policy).__name__}")
    return list(cast(Iterable[Tensor], parameters()))


def flat_gradient(total: Tensor, policy: object) -> Tensor:
    """The gradient of a number for all parameters of the policy as one vector, ``[P]``; zeros where it does not reach."""
    parameters = parameters_of(policy)
    if not total.requires_grad:
        return torch.cat([torch.zeros_like(p).reshape(-1) for p in parameters])
    gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.detach().reshape(-1) for gradient in gradients])
