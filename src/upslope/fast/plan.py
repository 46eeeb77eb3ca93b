"""An MLP policy and a batch as the kernels see them: sizes, addresses and scratch memory; flat columns, checked, and the order of rows.

:func:`match_mlp_policy` says what an object is (or that it is nothing the kernels know); :class:`Plan` writes that down as the
integers of :mod:`upslope.fast.layout`. The policy's tensors are used where they lie: nothing is copied.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.fast import layout as at
from upslope.fast.agreement import agrees, class_evaluates_as_made, evaluates_as_made, is_shipped
from upslope.fast.graph import NotLowered
from upslope.records import ROW_AXES, Batch

if TYPE_CHECKING:
    from upslope.control import ActorCritic, MLPPolicy


ACTIVATIONS: dict[type[nn.Module], int] = {nn.Tanh: at.TANH, nn.ReLU: at.RELU}
MAX_SCRATCH = 2**24
"""Numbers of scratch memory that a plan may take (64 MiB): beyond, as for a one-hot of 200,000 states, torch serves better."""


@dataclass(frozen=True)
class MLPLayout:
    """The parts of an MLP policy."""

    head: int  # CATEGORICAL or GAUSSIAN (with one log standard deviation per dimension)
    activation: int
    actor: tuple[nn.Linear, ...]
    critic: tuple[nn.Linear, ...]
    log_std: nn.Parameter | None
    apart: bool = False  # whether the critic's gradient is clipped by itself

    @property
    def inputs(self) -> int:
        return (*self.actor, *self.critic)[0].in_features

    @property
    def outputs(self) -> int:
        """Number of actions, or of action dimensions; 0 for a critic by itself."""
        return self.actor[-1].out_features if self.actor else 0

    @cached_property
    def parameters(self) -> tuple[Tensor, ...]:
        """In the order of ``policy.parameters()``."""
        layers = [p for layer in (*self.actor, *self.critic) for p in (layer.weight, layer.bias)]
        return (*layers, self.log_std) if self.log_std is not None else tuple(layers)


def match_mlp_policy(policy: object) -> MLPLayout | None:
    """What an MLP policy consists of; None for every other policy, and for one that was changed by hand.

    Known are :class:`upslope.control.MLPPolicy` itself (not a subclass, which may evaluate differently) with tanh or ReLU
    layers, a categorical head or a Gaussian one whose spread does not depend on the state, in float32 on the processor,
    without hooks, and of a size that fits :data:`MAX_SCRATCH`.
    """
    control = sys.modules.get("upslope.control.policy")  # whoever has such a policy has imported it
    if control is None or type(policy) is not control.MLPPolicy:
        return None
    mlp = cast("MLPPolicy", policy)
    if any(changed(module) for module in mlp.modules()) or not evaluates_as_made(mlp):
        return None
    head = head_kind(mlp)
    actor, critic = linear_layers(mlp.actor), linear_layers(mlp.critic)
    if head is None or actor is None or critic is None or (critic[0] and actor[1] != critic[1]):
        return None
    parts = MLPLayout(head, actor[1], actor[0], critic[0], mlp.log_std, bool(mlp.critic_parameters()))
    known = {id(p) for p in parts.parameters}
    plain = all(p.dtype == torch.float32 and p.device.type == "cpu" and id(p) in known for p in mlp.parameters())
    return parts if plain and fits(parts) else None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
METHODS = {"forward", "evaluate", "sample", "value", "act", "inputs", "distribution", "_run", "_outputs", "_actor", "_with_log_std"}


def changed(module: nn.Module) -> bool:
    """Whether somebody hung a hook on this very module, or replaced a method of it alone."""
    return any(getattr(module, name) for name in HOOKS) or not METHODS.isdisjoint(vars(module))


def structure_key(policy: object) -> Any:
    """What would differ if a module, a parameter, a hook or a method were exchanged, or one frozen: cheap enough for each iteration."""
    if not isinstance(policy, nn.Module):
        return id(policy)
    modules = [
        (id(module), type(module), len(vars(module)), *(len(getattr(module, name)) for name in HOOKS)) for module in policy.modules()
    ]
    return id(policy), modules, [(id(p), p.requires_grad, p.dtype, p.device) for p in policy.parameters()]


def head_kind(policy: ActorCritic) -> int | None:
    """Which of the kernels' heads the policy's is; None for another one, and for one that says something else than they do."""
    kind = head_by_name(policy)
    return kind if kind is not None and agrees(policy.head) else None


def head_by_name(policy: ActorCritic) -> int | None:
    heads = sys.modules["upslope.control.heads"]
    if type(policy.head) is heads.Categorical:
        return at.CATEGORICAL
    return at.GAUSSIAN if type(policy.head) is heads.Gaussian and policy.log_std is not None else None


def edited_part(policy: object) -> str | None:
    """What of a shipped policy computes something else than the kernels: its head, its network or how it evaluates; None for others."""
    control = sys.modules.get("upslope.control.policy")
    if control is None or not isinstance(policy, control.ActorCritic):
        return None
    actor_critic = cast("ActorCritic", policy)
    if head_by_name(actor_critic) is not None and not agrees(actor_critic.head):
        return f"{type(actor_critic.head).__name__} head"
    if type(policy) not in (control.MLPPolicy, control.LinearPolicy) or evaluates_as_made(actor_critic):
        return None
    return "evaluation" if is_shipped(actor_critic.network) else f"{type(actor_critic.network).__name__} network"


def head_of(policy: object) -> tuple[int, int] | None:
    """Kind and number of outputs of a known head over a user's network (or one the kernels do not know)."""
    control = sys.modules.get("upslope.control.policy")
    if (
        control is None
        or type(policy) not in (control.ActorCritic, control.MLPPolicy, control.CNNPolicy)
        or changed(cast(nn.Module, policy))
    ):
        return None
    actor_critic = cast("ActorCritic", policy)
    if head_by_name(actor_critic) is None or not class_evaluates_as_made(control.MLPPolicy, policy):
        return None
    kind, head, log_std = head_kind(actor_critic), cast(Any, actor_critic.head), actor_critic.log_std
    return None if kind is None else (kind, head.n if log_std is None else log_std.numel())


def linear_layers(network: nn.Module | None) -> tuple[tuple[nn.Linear, ...], int] | None:
    """The layers of ``Linear, activation, …, Linear`` and the activation; no layers for no network, None for anything else."""
    if network is None:
        return (), at.TANH
    modules = list(network) if type(network) is nn.Sequential else []
    linear, between = modules[::2], modules[1::2]
    kinds = {type(module) for module in between}
    if len(modules) % 2 == 0 or len(kinds) > 1 or not kinds <= ACTIVATIONS.keys():
        return None
    layers = tuple(layer for layer in linear if type(layer) is nn.Linear and layer.bias is not None)
    return (layers, ACTIVATIONS[kinds.pop()] if kinds else at.TANH) if len(layers) == len(linear) else None


def shared_sizes(parts: MLPLayout) -> tuple[int, int, int]:
    """Numbers for a layer's input with the batch first, for ``δ xᵀ``, and for a δ: what the widest of all layers needs."""
    layers = [(rounded(layer.in_features, at.WIDTH), rounded(layer.out_features, at.WIDTH)) for layer in (*parts.actor, *parts.critic)]
    return max(x for x, _ in layers) * at.BLOCK, max(x * y for x, y in layers), max(y for _, y in layers) * at.BLOCK


def fits(parts: MLPLayout) -> bool:
    rowwise, product, _ = shared_sizes(parts)
    return 2 * rowwise + product + sum(p.numel() for p in parts.parameters) <= MAX_SCRATCH


class Plan:
    """Integers and scratch memory for a policy wherever its parameters lie, all in one stretch: training moves them into a buffer."""

    def __init__(self, parts: MLPLayout) -> None:
        self.parts = parts
        self.first, self.last = parts.parameters[0], parts.parameters[-1]
        self.make(self.look())

    def look(self) -> tuple[int, int]:
        return self.first.data_ptr(), self.last.data_ptr()

    def addresses(self) -> tuple[int, int, int]:
        """Parameters, scratch, networks; made anew if the parameters have moved."""
        if (where := self.look()) != self.where:
            self.make(where)
        return where[0], *self.pointers

    def make(self, where: tuple[int, int]) -> None:
        self.where, self.used, parts = where, 0, self.parts
        networks = self.networks = np.zeros(at.LAYERS_AT + at.LAYER * (len(parts.actor) + len(parts.critic)), np.int64)
        networks[at.INPUTS], networks[at.OUTPUTS] = parts.inputs, parts.outputs
        networks[at.HEAD], networks[at.ACTIVATION] = parts.head, parts.activation
        networks[at.ACTOR_LAYERS], networks[at.CRITIC_LAYERS] = len(parts.actor), len(parts.critic)
        networks[at.LOG_STD] = 0 if parts.log_std is None else self.place(parts.log_std)
        networks[at.NUM_PARAMETERS] = sum(p.numel() for p in parts.parameters)
        if parts.apart and parts.critic:
            networks[at.CRITIC_AT] = self.place(parts.critic[0].weight)
            networks[at.CRITIC_SIZE] = sum(p.numel() for layer in parts.critic for p in (layer.weight, layer.bias))
        networks[at.OBSERVATION_AT] = self.reserve(parts.inputs * at.BLOCK)
        records: list[int] = []
        for layers, out in ((parts.actor, at.OUT_AT), (parts.critic, at.VALUE_OUT_AT)):
            networks[out] = networks[at.OBSERVATION_AT]  # where a layer's output stands, the next one's input does
            for layer in layers:
                source, networks[out] = networks[out], self.reserve(rounded(layer.out_features, 4) * at.BLOCK)
                records += [layer.in_features, layer.out_features, *map(self.place, (layer.weight, layer.bias)), source, networks[out]]
        networks[at.LAYERS_AT :] = records
        rowwise, product, delta = shared_sizes(parts)
        sizes = {at.ROWWISE_AT: rowwise, at.PRODUCT_AT: product, at.DELTA_AT: delta, at.OTHER_AT: delta, at.VALUE_DELTA_AT: delta}
        for place, size in {**sizes, at.GRADIENT_AT: networks[at.NUM_PARAMETERS]}.items():
            networks[place] = self.reserve(size)
        room = np.zeros(self.used + at.WIDTH, np.float32)
        start = -room.ctypes.data % 64 // 4  # on a cache line
        self.scratch: NDArray[np.float32] = room[start : start + self.used]
        self.pointers = self.scratch.ctypes.data, networks.ctypes.data

    def place(self, parameter: Tensor) -> int:
        """Where a parameter stands, counted in numbers from the first."""
        return (parameter.data_ptr() - self.where[0]) // 4

    def reserve(self, count: int) -> int:
        """Room in the scratch memory, on a separate cache line."""
        start, self.used = self.used, self.used + rounded(count, at.WIDTH)
        return start


def rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def kernel_can_read(observation: Tensor, legal: Tensor | None, parts: MLPLayout) -> bool:
    fits = observation.dtype == torch.float32 and observation.shape[-1] == parts.inputs
    if not (fits and observation.is_contiguous() and observation.device.type == "cpu"):
        return False
    if legal is None:
        return True
    known = parts.head == at.CATEGORICAL and legal.dtype == torch.bool and legal.is_contiguous()
    return known and legal.shape == (*observation.shape[:-1], parts.outputs)


class Columns:
    """The steps of a batch: each tensor contiguous, with the batch's axes made one. ``names`` are the columns that the objective reads.

    ``outputs`` is 0 where no action is scored. Raises :class:`NotLowered` for shapes and types that the kernels do not read.
    """

    def __init__(self, batch: Batch, head: int, outputs: int, names: list[str]) -> None:
        self.shape = batch.mask.shape
        self.tensors: dict[str, Tensor] = {}
        action = batch.inputs.get("action")
        if head == at.GAUSSIAN and outputs:
            self.add("continuous", action, torch.float32, outputs)
        elif outputs:
            self.add("action", action, torch.int64)
            if "action_mask" in batch.inputs:
                self.add("legal", batch.inputs["action_mask"], torch.bool, outputs)
            lowest, highest = self.tensors["action"].aminmax()
            if int(lowest) < 0 or int(highest) >= outputs:  # the kernels use them as addresses
                raise NotLowered
        self.add("mask", batch.mask, torch.bool)
        self.further = [self.add(f"batch.{name}", getattr(batch, name), getattr(batch, name).dtype) for name in names]

    def add(self, name: str, tensor: Tensor | None, dtype: torch.dtype, size: int | None = None) -> int:
        """Take a tensor in, if it is what the kernels expect; where its numbers begin."""
        shape = self.shape if size is None else (*self.shape, size)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
            raise NotLowered
        self.tensors[name] = tensor.contiguous()
        return self.tensors[name].data_ptr()

    @property
    def masked(self) -> bool:
        return "legal" in self.tensors

    def addresses(self) -> NDArray[np.int64]:
        """Where each column's numbers begin; 0 for one that is not there, which the kernel has a flag not to look at."""
        return np.array([*(self.tensors[name].data_ptr() if name in self.tensors else 0 for name in at.BATCH_COLUMNS), *self.further])


class Rows(Columns):
    """The columns of a whole batch for an MLP policy, its observations among them, and its units."""

    def __init__(self, batch: Batch, parts: MLPLayout, names: list[str]) -> None:
        super().__init__(batch, parts.head, parts.outputs, names)
        self.add("observation", batch.inputs.get("observation"), torch.float32, parts.inputs)
        axes = ROW_AXES[batch.unit]
        if batch.inputs.keys() - {"observation", "action", "action_mask"} or axes > len(self.shape):
            raise NotLowered
        self.size = int(np.prod(self.shape[len(self.shape) - axes :]))
        self.alive = np.flatnonzero(self.tensors["mask"].numpy().reshape(-1, self.size).any(1))
        if not len(self.alive):
            raise NotLowered

    @property
    def num_units(self) -> int:
        """Units with at least one unmasked step: only these are shuffled, and only these count."""
        return len(self.alive)

    def order(self, permutation: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the units in a permuted order, unit by unit."""
        units = self.alive[permutation]
        return units if self.size == 1 else (units[:, None] * self.size + np.arange(self.size)).reshape(-1)


def split(count: int, parts: int) -> NDArray[np.int64]:
    """Where the parts of ``torch.tensor_split`` begin and end: the first ones take what does not divide evenly."""
    return np.concatenate([[0], np.cumsum([count // parts + (i < count % parts) for i in range(parts)])]).astype(np.int64)
