"""The critic's fit of a natural-gradient method for MLP policies: one call of machine code for all its epochs.

The step of the policy itself is some twenty large matrix products in torch, which nothing here makes faster; the fit is hundreds
of small ones. See :mod:`upslope.fast.value_kernels`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from upslope.fast import layout as at
from upslope.fast.native import Library
from upslope.fast.objective import Objective
from upslope.fast.plan import Anatomy, Plan
from upslope.fast.update import CompiledUpdate
from upslope.records import Batch, Metrics
from upslope.updates.ascent import AscentState
from upslope.updates.trust_region import NaturalState


class CompiledFit(CompiledUpdate):
    """Called like the :class:`~upslope.updates.Ascent` of the critic."""

    def __init__(self, library: Library, parts: Anatomy) -> None:
        super().__init__(library, parts, lambda _: Objective(surrogate=at.SCORE, value=True, value_coef=1.0))
        self.kernel = library.fit
        self.critic = replace(parts, actor=parts.critic, critic=(), log_std=None)

    def prepared(self, state: AscentState) -> Plan:
        """The plan for the critic's stretch of the flat parameters."""
        return self.planned(state, self.critic)


class CompiledNatural:
    """Called like a :class:`~upslope.updates.TrustRegion`: its own step, and the compiled fit."""

    def __init__(self, library: Library, parts: Anatomy) -> None:
        self.fit = CompiledFit(library, parts)

    def __call__(self, algorithm: Any, policy: Any, batch: Batch, state: NaturalState) -> Metrics:
        """One update on one batch; the metrics of the readable twin."""
        return algorithm.update(algorithm, policy, batch, state, ascend=self.fit)
