"""A linear policy for one state at a time, in NumPy: what a method that learns at every step asks of it between two steps.

With a single row an operation of PyTorch costs many times its arithmetic, one of NumPy about a fifth of that. Gradients are given
by the rows that are not 0 (:class:`upslope.algorithms.online.Rows`), so that tile coding touches a few rows of a large table.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.algorithms.online import Rows
from upslope.fast.agreement import agrees, evaluates_as_made
from upslope.fast.formulas import HALF_LOG_TWO_PI
from upslope.fast.plan import changed
from upslope.fast.step import PolicyProxy
from upslope.records import Sample

if TYPE_CHECKING:
    from upslope.control import LinearPolicy

Array = NDArray[Any]
Inputs = Mapping[str, Tensor]


class FastLinear(PolicyProxy):
    """Stands in for a linear policy while it acts and learns; whatever else is asked of it, the policy itself answers."""

    def __init__(self, policy: object) -> None:
        super().__init__(policy)
        self.views: dict[int, Array] = {}

    @property
    def arrays(self) -> tuple[Array, Array | None, Array | None]:
        """Θ ``[size, n]``, w ``[size]`` and a Gaussian's ``log σ [n]`` where they lie; None for what there is not."""
        network = self.policy.network
        return self.view(network.actor), self.view(network.critic), self.view(self.policy.log_std)

    def view(self, parameter: nn.Parameter | None) -> Any:
        if parameter is None:
            return None
        where = parameter.data_ptr()
        if where not in self.views:
            self.views[where] = parameter.detach().numpy()
        return self.views[where]

    @property
    def epsilon(self) -> float | None:
        """ε of an ε-greedy head; None for a softmax."""
        return getattr(self.policy.head, "epsilon", None)

    def probabilities(self, preferences: Array) -> Array:
        """π of every action ``[n]``."""
        if (epsilon := self.epsilon) is not None:
            best = (preferences == preferences.max()).astype(np.float32)
            return np.float32(epsilon / best.size) + np.float32(1 - epsilon) * best / best.sum()
        e = np.exp(preferences - preferences.max())
        return e / e.sum()

    def sample(self, inputs: Inputs, *, generator: torch.Generator | None = None) -> Sample:
        """The twin of ``LinearPolicy.sample``: the same draw from the same random number."""
        if not is_single_state(inputs):
            return self.policy.sample(inputs, generator=generator)
        x, (actor, critic, log_std) = inputs["observation"].numpy()[0], self.arrays
        value = None if critic is None else torch.from_numpy(product(x, critic).reshape(1))
        if log_std is not None:
            mean, noise = product(x, actor), torch.randn(1, actor.shape[1], generator=generator).numpy()
            action, log_prob = mean + np.exp(log_std) * noise, -0.5 * noise * noise - log_std - HALF_LOG_TWO_PI
            return Sample(action=torch.from_numpy(action), log_prob=torch.from_numpy(log_prob.sum(1)), value=value)
        p = self.probabilities(product(x, actor))
        cumulative = p.cumsum()
        u = torch.rand(1, generator=generator).numpy()
        drawn = min(np.count_nonzero(cumulative <= u), np.count_nonzero(cumulative < cumulative[-1]))
        return Sample(action=torch.tensor([drawn]), log_prob=torch.from_numpy(np.log(p[[drawn]])), value=value)

    def value(self, inputs: Inputs) -> Tensor | None:
        critic = self.view(self.policy.network.critic)
        if critic is None or not is_single_state(inputs):
            return self.policy.value(inputs)
        return torch.from_numpy(product(inputs["observation"].numpy()[0], critic).reshape(1))

    def gradients(self, inputs: Inputs, action: Tensor, parameters: Sequence[nn.Parameter]) -> Any:
        """``(v̂, ∇v̂, ∇log π)`` of one state by hand: ``∇w v̂ = x``; of a softmax ``∇Θ log π_a = x (e_a − p)ᵀ`` (FORMULAS section 1), of a
        Gaussian ``∇Θ log π_a = x ((a − Θᵀx)/σ²)ᵀ`` and ``∇log σ = ((a − Θᵀx)/σ)² − 1``. None where autograd has to say it.
        """
        actor, critic, log_std = self.arrays
        count = 2 if log_std is None else 3
        if critic is None or len(parameters) != count or not is_single_state(inputs) or self.epsilon is not None:
            return None
        x = inputs["observation"].numpy()[0]
        value, by_critic = float(product(x, critic)), outer(x, np.ones((), np.float32), critic)
        if log_std is None:
            direction = -self.probabilities(product(x, actor))
            direction[int(action)] += 1
            return value, (None, by_critic), (outer(x, direction, actor), None)
        noise = (action.numpy()[0] - product(x, actor)) * np.exp(-log_std)
        direction = noise * np.exp(-log_std)
        return value, (None, by_critic, None), (outer(x, direction, actor), None, torch.from_numpy(noise * noise - 1))

    def action_values(self, **inputs: Tensor) -> Tensor:
        """The twin of ``LinearPolicy.action_values``, as a constant."""
        if not is_single_state(inputs) or self.epsilon is None:
            return self.policy.action_values(**inputs)
        return torch.from_numpy(product(inputs["observation"].numpy()[0], self.arrays[0])[None])

    def action_gradient(self, inputs: Inputs, action: Tensor, parameters: Sequence[nn.Parameter]) -> Any:
        """``(q̂(S, A), ∇q̂(S, A))``; None where autograd has to say it."""
        if len(parameters) != 1 or not is_single_state(inputs) or self.epsilon is None:
            return None
        x, actor, chosen = inputs["observation"].numpy()[0], self.arrays[0], int(action)
        direction = np.zeros(actor.shape[1], np.float32)
        direction[chosen] = 1
        return float(product(x, actor)[chosen]), (outer(x, direction, actor),)


def linear_twin(policy: object) -> FastLinear | None:
    """The twin of a linear policy with a softmax, ε-greedy or plain Gaussian head, in float32 on the processor; else None."""
    control = sys.modules.get("upslope.control.policy")  # whoever has such a policy has imported it
    if control is None or type(policy) is not control.LinearPolicy:
        return None
    linear, heads = cast("LinearPolicy", policy), sys.modules["upslope.control.heads"]
    plain_gaussian = type(linear.head) is heads.Gaussian and linear.log_std is not None
    known = plain_gaussian or type(linear.head) in (heads.Categorical, heads.EpsilonGreedy)
    if not known or any(changed(module) for module in linear.modules()) or not evaluates_as_made(linear):
        return None
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in linear.parameters()):
        return None
    twin = FastLinear(policy)
    return twin if (agrees(linear.head) if twin.epsilon is None else is_epsilon_greedy(twin)) else None


def is_epsilon_greedy(twin: FastLinear) -> bool:
    """Whether the head says what :meth:`FastLinear.probabilities` does; looked at for the reason of :mod:`upslope.fast.agreement`."""
    values = np.array([0.5, 1.5, 1.5, -0.5], np.float32)
    found = twin.policy.head.log_prob(torch.from_numpy(values).expand(4, 4), torch.arange(4))
    return bool(np.allclose(found.exp().numpy(), twin.probabilities(values), atol=1e-6))


def is_single_state(inputs: Inputs) -> bool:
    """Whether this is one state, without an action mask."""
    x = inputs["observation"]
    return x.dim() == 2 and x.shape[0] == 1 and "action_mask" not in inputs


def product(x: Array, weight: Array) -> Array:
    """``xᵀ weight``; where x is given by the indices of its ones, the sum of those rows."""
    return weight[x].sum(0) if x.dtype == np.int64 else x.astype(np.float32, copy=False) @ weight


def outer(x: Array, row: Array, like: Array) -> Rows | Tensor:
    """``x rowᵀ``, the gradient of ``xᵀ weight · row`` by the weight."""
    if x.dtype == np.int64:
        return Rows(x, row, like.shape)
    return torch.from_numpy(x.astype(np.float32, copy=False)[:, None] * row if row.ndim else x.astype(np.float32) * row)
