"""Which fast path serves which objects: the one place that decides, by what they *are* and never by a flag.

- A policy that is an MLP, with a shipped objective: every epoch and minibatch of an update in one call of machine code
  (:mod:`upslope.fast.update`), 10 to 20 times faster than autograd at minibatches of 64.
- The same policy while it acts: :mod:`upslope.fast.step`.
- A linear policy that acts and learns at every step: :mod:`upslope.fast.linear`.
- The same policy with a user's own surrogate, or with a KL penalty: forward and backward of the networks by hand, the objective
  in plain torch (:mod:`upslope.fast.dense`).
- A user's own network under a shipped head with a shipped objective: head and objective compiled (:mod:`upslope.fast.objective`).
- The critic's fit of TRPO and NPG on the MLP policy: every epoch and minibatch in one call (:mod:`upslope.fast.natural`).
- Everything else: clip and Adam in one call (:mod:`upslope.fast.descent`).
- An own update, parameters that do not lie in one buffer, and everything where LLVM is not installed: the readable twins themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from upslope import functional as F
from upslope.algorithms import A2C, GRPO, PPO, REINFORCE, RLOO, OffPolicyGradient
from upslope.fast import layout as at
from upslope.fast.dense import DensePolicy, DenseUpdate
from upslope.fast.descent import CompiledDescent
from upslope.fast.linear import linear_twin
from upslope.fast.native import library
from upslope.fast.natural import CompiledNatural
from upslope.fast.objective import Objective, ObjectiveUpdate
from upslope.fast.plan import anatomy, head_of, identity
from upslope.fast.step import CompiledPolicy
from upslope.fast.update import CompiledUpdate
from upslope.records import Metrics, Surrogate
from upslope.updates import Ascent, NaturalGradient, TrustRegion

SURROGATES = (
    (F.importance_weighted, at.IMPORTANCE),
    (F.clipped_surrogate, at.CLIPPED),
    (F.truncated_score, at.TRUNCATED_SCORE),
    (F.score_function, at.SCORE),
)


def number_of(surrogate: Surrogate) -> int | None:
    """What the kernels call a surrogate; None for the user's."""
    return next((number for function, number in SURROGATES if function is surrogate), None)


def ppo_objective(algorithm: PPO) -> Objective | None:
    """``PPO.objective`` in numbers; None with a KL penalty or a surrogate of the user's."""
    surrogate = number_of(algorithm.surrogate)
    if surrogate is None or algorithm.kl_coef > 0:
        return None
    return Objective(
        surrogate=surrogate,
        value=True,
        value_coef=algorithm.value_coef,
        entropy_coef=algorithm.entropy_coef,
        bounds=F.clip_bounds(algorithm.clip_range),
        dual_clip=math.inf if algorithm.dual_clip is None else algorithm.dual_clip,
        value_clip=math.inf if algorithm.value_clip_range is None else algorithm.value_clip_range,
    )


def a2c_objective(algorithm: A2C) -> Objective:
    """``A2C.objective`` in numbers."""
    return Objective(surrogate=at.SCORE, value=True, value_coef=algorithm.value_coef, entropy_coef=algorithm.entropy_coef)


def reinforce_objective(algorithm: REINFORCE) -> Objective:
    """``REINFORCE.objective`` in numbers."""
    value_coef = algorithm.value_coef if algorithm.baseline else 0.0
    return Objective(surrogate=at.SCORE, value=algorithm.baseline, value_coef=value_coef, entropy_coef=algorithm.entropy_coef)


def grpo_objective(algorithm: GRPO) -> Objective | None:
    """``GRPO.objective`` in numbers; None with a KL to a reference, a ratio of whole sequences or a surrogate of the user's."""
    surrogate = number_of(algorithm.surrogate)
    if surrogate is None or algorithm.kl_in_objective or algorithm.ratio is not F.token_ratio:
        return None
    return Objective(
        surrogate=surrogate,
        value=False,
        entropy_coef=algorithm.entropy_coef,
        bounds=F.clip_bounds(algorithm.clip_range),
        dual_clip=math.inf if algorithm.dual_clip is None else algorithm.dual_clip,
    )


def rloo_objective(algorithm: RLOO) -> Objective | None:
    """``RLOO.objective`` in numbers; None with a KL to a reference."""
    if algorithm.kl_in_objective:
        return None
    surrogate = at.SCORE if algorithm.update.makes_one_step else at.CLIPPED
    return Objective(surrogate=surrogate, value=False, entropy_coef=algorithm.entropy_coef, bounds=F.clip_bounds(algorithm.clip_range))


def off_policy_objective(algorithm: OffPolicyGradient) -> Objective:
    """``OffPolicyGradient.objective`` in numbers."""
    return Objective(
        surrogate=at.CLIPPED,
        value=algorithm.critic,
        value_coef=algorithm.value_coef if algorithm.critic else 0.0,
        entropy_coef=algorithm.entropy_coef,
        bounds=F.clip_bounds(algorithm.bounds),
    )


OBJECTIVES: dict[Callable[..., Any], Callable[[Any], Objective | None]] = {
    PPO.objective: ppo_objective,
    A2C.objective: a2c_objective,
    REINFORCE.objective: reinforce_objective,
    GRPO.objective: grpo_objective,
    RLOO.objective: rloo_objective,
    OffPolicyGradient.objective: off_policy_objective,
}
"""The shipped objectives that the kernels know; a subclass that overrides ``objective`` is not among them."""


def description(algorithm: Any) -> Callable[[Any], Objective | None] | None:
    """What turns an algorithm with a shipped objective into numbers; None for an objective of the user's."""
    return OBJECTIVES.get(getattr(type(algorithm), "objective", None))  # pyright: ignore[reportArgumentType]


def compiled_update(algorithm: Any, policy: Any) -> CompiledUpdate | None:
    """The compiled twin of ``algorithm.update`` for this policy, called the same way; None where there is none."""
    describe = description(algorithm)
    parts = anatomy(policy)
    if describe is None or parts is None or type(algorithm.update) is not Ascent or describe(algorithm) is None:
        return None
    kernels = library()
    return None if kernels is None else CompiledUpdate(kernels, parts, describe)


def fast_policy(policy: Any) -> Any:
    """The policy with fast ``sample``, ``value`` and ``act``; the policy itself where there is no twin."""
    if (linear := linear_twin(policy)) is not None:
        return linear
    parts = anatomy(policy)
    kernels = None if parts is None else library()
    return policy if parts is None or kernels is None else CompiledPolicy(policy, kernels, parts)


def dense_policy(policy: Any) -> DensePolicy | None:
    """The policy with ``evaluate`` as one node of the autograd graph; None where there is no twin."""
    parts = anatomy(policy)
    kernels = None if parts is None else library()
    return None if parts is None or kernels is None else DensePolicy(policy, kernels, parts)


def objective_update(algorithm: Any, policy: Any) -> ObjectiveUpdate | None:
    """The update of a user's own network with head and objective compiled; None where there is none."""
    describe = description(algorithm)
    found, kernels = head_of(policy), library()
    return None if describe is None or found is None or kernels is None else ObjectiveUpdate(kernels, describe, *found)


def natural_update(policy: Any) -> CompiledNatural | None:
    """The natural-gradient update with the critic's fit compiled; None where there is no such twin."""
    parts = anatomy(policy)
    kernels = None if parts is None or not parts.critic else library()
    return None if parts is None or kernels is None else CompiledNatural(kernels, parts)


def fast_update(algorithm: Any, policy: Any) -> Callable[..., Metrics] | None:
    """What the training loop calls to update this policy: the fastest twin of ``algorithm.update`` that serves these objects.

    None for a method that learns at every step, which has no update.
    """
    if hasattr(algorithm, "learn"):
        return None
    if (compiled := compiled_update(algorithm, policy)) is not None:
        return compiled
    if type(algorithm.update) in (NaturalGradient, TrustRegion):
        return natural_update(policy) or algorithm.update
    kernels = library() if type(algorithm.update) is Ascent else None
    if kernels is None:
        return algorithm.update
    # an objective of the user's may ask for more than an evaluation gives: the parameters themselves, or second derivatives
    if description(algorithm) is not None and (dense := dense_policy(policy)) is not None:
        return DenseUpdate(dense)
    return objective_update(algorithm, policy) or CompiledDescent(kernels)


class Twins:
    """The fast twins of a run's objects, chosen anew where a callback has made them something else."""

    def __init__(self) -> None:
        self.known: Any = None
        self.chosen: tuple[Callable[..., Metrics] | None, Any] | None = None

    def __call__(self, algorithm: Any, policy: Any) -> tuple[Callable[..., Metrics] | None, Any]:
        """``(update, actor)`` for this iteration."""
        seen = (type(algorithm), type(getattr(algorithm, "update", None)), id(getattr(algorithm, "surrogate", None)), identity(policy))
        if self.chosen is None or seen != self.known:
            self.known, self.chosen = seen, (fast_update(algorithm, policy), fast_policy(policy))
        return self.chosen
