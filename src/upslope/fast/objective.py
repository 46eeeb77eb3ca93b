"""An algorithm's objective, compiled: traced once, kept as long as it is the same, its settings read anew at every update."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from upslope.fast import layout as at
from upslope.fast.graph import NotLowered
from upslope.fast.lower import FIXED, FUNCTIONS, Lowered
from upslope.fast.native import functions
from upslope.fast.trace import trace
from upslope.fast.watching import Kept, Watched, watch, watch_called
from upslope.records import Batch, HasObjective, Metrics, Policy

TENSORS = tuple(f.name for f in fields(Batch) if "Tensor" in str(f.type) and f.name != "inputs")
"""The columns that a batch may have."""


class CompiledObjective:
    """The functions of an objective and the memory that they work in; ``table`` is the address of both for the kernels."""

    def __init__(self, lowered: Lowered) -> None:
        self.source = lowered.text
        self.engine, addresses = functions(self.source, *FUNCTIONS)
        self.metrics, self.columns, self.uses = ("objective", *lowered.metrics), lowered.columns, lowered.uses
        self.constants = [x.value for x in lowered.constants]
        sizes = lowered.num_numbers, at.NUM_EACH * at.BLOCK, lowered.num_sums, len(self.metrics)
        self.numbers, self.each, self.sums, self.values = self.memory = tuple(np.zeros(size) for size in sizes)
        self.table = np.array([*addresses, *(array.ctypes.data for array in self.memory)])

    def read_settings(self) -> None:
        """Numbers that the objective takes from tensors may have changed in place."""
        self.numbers[len(FIXED) : len(FIXED) + len(self.constants)] = [float(x) for x in self.constants]

    def written_into(self, networks: Any) -> Any:
        """The integers of a plan with how many sums and values there are, and which is the approximate KL."""
        networks = networks.copy()
        networks[at.NUM_SUMS], networks[at.NUM_VALUES] = len(self.sums), len(self.values)
        networks[at.KL_AT] = self.metrics.index("approx_kl") if "approx_kl" in self.metrics else -1
        if "value" not in self.uses:
            networks[at.CRITIC_LAYERS] = 0
        return networks

    def averaged(self, totals: Any, count: float) -> Metrics:
        return {name: float(value / count) for name, value in zip(self.metrics, totals, strict=True)}


class Objectives:
    """The compiled objective of an algorithm; made anew where algorithm, policy or the kind of batch have changed."""

    def __init__(self) -> None:
        self.algorithm: Any = None
        self.kinds: Any = None
        self.watched: list[Watched] = []
        self.found: CompiledObjective | NotLowered | None = None

    def __call__(
        self, algorithm: HasObjective, policy: Policy, batch: Batch, restored: Callable[[Tensor], Any] | None
    ) -> CompiledObjective:
        """``restored`` makes a value from what the kernels see of the critic. Raises :class:`NotLowered` where nothing is compiled."""
        kinds = kinds_of(policy, batch)
        if not (equals(algorithm, self.algorithm) and kinds == self.kinds and all(read(key) is value for read, key, value in self.watched)):
            self.algorithm, self.kinds, self.watched = algorithm, kinds, [*watch(algorithm)]
            try:
                found = lowered(algorithm, policy, batch, restored)
                self.watched += watch_called(algorithm, found.called)
                self.found = CompiledObjective(found)
            except NotLowered as reason:
                self.found = reason
                if isinstance(reason, ChangesThings):  # with every call: what it was traced with is no reason to trace it again
                    self.watched = []
        if not isinstance(self.found, CompiledObjective):
            raise self.found or NotLowered
        self.found.read_settings()
        return self.found


class ChangesThings(NotLowered):
    """A call of the objective leaves something behind, so calls that the user does not see must not be."""


def lowered(algorithm: HasObjective, policy: Policy, batch: Batch, restored: Callable[[Tensor], Any] | None) -> Lowered:
    kept, found = Kept(algorithm), None
    try:
        found = Lowered(trace(algorithm, policy, batch, restored))
    except RecursionError:
        found = NotLowered("it is too long")
    except NotLowered as reason:
        found = reason
    if changed := kept.put_back():
        raise ChangesThings(f"it changes {changed} when it is called")
    if isinstance(found, NotLowered):
        raise found
    return found


def equals(algorithm: HasObjective, other: Any) -> bool:
    """Whether two algorithms have the same settings: equal ones, where they cannot change."""
    if algorithm is other or type(algorithm) is not type(other):
        return algorithm is other
    return is_dataclass(algorithm) and type(algorithm).__dataclass_params__.frozen and algorithm == other  # pyright: ignore


def kinds_of(policy: Policy, batch: Batch) -> Any:
    """What a trace depends on of a policy and of a batch: which tensors it has."""
    kinds = [None if t is None else (t.dtype, t.dim()) for t in map(partial(getattr, batch), TENSORS)]
    return id(policy), getattr(policy, "value_scale", None) is None, kinds, list(batch.inputs), batch.unit
