"""Which fast path serves which objects: the one place that decides, by what they *are* and never by a flag.

:func:`explain` says which it is, and why; ``docs/design.md`` lists them. Without LLVM everything is PyTorch as it is written.
"""

from collections.abc import Callable
from typing import Any, cast

import torch

from upslope.fast.agreement import step_agrees
from upslope.fast.graph import NotLowered
from upslope.fast.linear import linear_twin
from upslope.fast.native import library
from upslope.fast.objective import lowered
from upslope.fast.plan import edited_part, head_of, match_mlp_policy, structure_key
from upslope.fast.step import CompiledPolicy
from upslope.fast.update import CompiledNatural, CompiledUpdate, HeadUpdate
from upslope.records import Algorithm, Batch, Metrics, Policy, Unit
from upslope.updates import Ascent, NaturalGradient, TrustRegion


def fast_policy(policy: Policy) -> Any:
    """The policy with fast ``sample``, ``value`` and ``act``; the policy itself where there is no twin."""
    if (linear := linear_twin(policy)) is not None:
        return linear
    parts = match_mlp_policy(policy)
    kernels = None if parts is None else library()
    return policy if parts is None or kernels is None else CompiledPolicy(policy, kernels, parts)


def fast_update(algorithm: Algorithm, policy: Policy) -> Callable[..., Metrics] | None:
    """What the training loop calls to update this policy: the fastest twin of ``algorithm.update`` that serves these objects.

    None for a method that learns at every step, which has no update.
    """
    if hasattr(algorithm, "learn"):
        return None
    kind, parts = type(algorithm.update), match_mlp_policy(policy)
    head = None if parts is not None else head_of(policy)
    kernels = library() if (parts is not None or head is not None) and step_agrees() else None
    if kernels is not None and parts is not None:
        if kind is Ascent:
            return CompiledUpdate(kernels, parts)
        if kind in (NaturalGradient, TrustRegion) and parts.critic:
            return CompiledNatural(kernels, parts)
    if kernels is not None and head is not None and kind is Ascent:
        return HeadUpdate(kernels, *head)
    return algorithm.update


def explain(algorithm: Algorithm, policy: Policy, unit: Unit = "step") -> str:
    """How a method's update runs, in a line; ``unit`` is that of its collector's recordings."""
    update, name = fast_update(algorithm, policy), f"{type(algorithm).__name__}.objective"
    off = "; --no-fast runs it in PyTorch"
    if update is None:
        return "between two steps in NumPy" + off if linear_twin(policy) is not None else "at every step, in PyTorch"
    if isinstance(update, CompiledNatural):
        return "the policy's step in PyTorch, the critic's fit compiled" + off
    if not isinstance(update, (CompiledUpdate, HeadUpdate)):
        return f"{name} in PyTorch: {why_not(algorithm, policy)}"
    inputs = {name: torch.zeros(1, 1) for name in ("observation", "action")}
    known: dict[str, Any] = dict.fromkeys(("behavior_log_prob", "weight", "advantage", "returns", "value"), torch.zeros(1))
    old = torch.zeros(1, 1) if hasattr(policy, "distribution") else None
    batch = Batch(inputs=inputs, mask=torch.ones(1, dtype=torch.bool), unit=unit, behavior_parameters=old, **known)
    try:
        lowered(algorithm, policy, batch, None if getattr(policy, "critic", True) is None else lambda value: value)
    except NotLowered as reason:
        return f"{name} in PyTorch: {reason}"
    if cast(Ascent, algorithm.update).micro_batch_size is not None:
        return f"{name} in PyTorch, which takes micro-batches"
    what = "compiled with its gradient" if isinstance(update, CompiledUpdate) else "and its head compiled with their gradient"
    return f"{name} {what}{off}"


def why_not(algorithm: Algorithm, policy: Policy) -> str:
    if (part := edited_part(policy)) is not None:
        return f"its {part} computes something else than the kernels"
    if match_mlp_policy(policy) is None and head_of(policy) is None:
        return f"nothing of this {type(policy).__name__} is compiled"
    if type(algorithm.update) not in (Ascent, NaturalGradient, TrustRegion):
        return f"{type(algorithm.update).__name__} is called as it is written"
    if not step_agrees():
        return "its gradient step, or the loop around it, does something else than the kernels"
    return "llvmlite, which compiles it, is not installed" if library() is None else "its policy's step is what takes the time"


class CompiledPaths:
    """The fast twins of a run's objects, chosen anew where a callback has made them something else."""

    def __init__(self) -> None:
        self.known: Any = None
        self.chosen: tuple[Callable[..., Metrics] | None, Any] | None = None

    def __call__(self, algorithm: Algorithm, policy: Policy) -> tuple[Callable[..., Metrics] | None, Any]:
        """``(update, actor)`` for this iteration."""
        seen = type(algorithm), type(getattr(algorithm, "update", None)), structure_key(policy)
        if self.chosen is None or seen != self.known:
            self.known, self.chosen = seen, (fast_update(algorithm, policy), fast_policy(policy))
        return self.chosen
