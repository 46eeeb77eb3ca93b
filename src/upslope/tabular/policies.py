"""Softmax policies over a finite number of observations: preferences from a table, features or a network.

``π(a|o) = exp h(o, a; θ) / Σ_b exp h(o, b; θ)`` (SB eq. 13.2), in float64. A policy sees observations, never states; of an
:class:`~upslope.tabular.mdp.MDP` whose states can be distinguished these are the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from upslope import functional as F
from upslope.errors import is_kind, require
from upslope.records import Evaluation, Sample
from upslope.tabular.arguments import as_tensor, check_seed, check_whole
from upslope.tabular.mdp import MDP
from upslope.typed import fork_rng


@dataclass(frozen=True)
class Softmax:
    """Distributions over actions with preferences ``parameters [*, A]``."""

    parameters: Tensor

    @property
    def probabilities(self) -> Tensor:
        """``[*, A]``."""
        return self.parameters.softmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """``log π(action)``, ``[*]``."""
        return F.categorical_log_prob(self.parameters, action)

    def entropy(self) -> Tensor:
        """In nats, ``[*]``."""
        return F.categorical_entropy(self.parameters)

    def kl(self, other: Softmax) -> Tensor:
        """``KL(self‖other)``, ``[*]``."""
        return F.categorical_kl(self.parameters, other.parameters)


class Table(nn.Module):
    """One row of numbers for each observation, all zero at first: ``[*]`` int64 → ``[*, width]``."""

    def __init__(self, num_observations: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_observations, width, dtype=torch.float64))

    def forward(self, index: Tensor) -> Tensor:
        return self.table[index]


class Linear(nn.Module):
    """``Θᵀx`` with Θ ``[d, width]``, zero at first: ``[*, d]`` → ``[*, width]``."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(num_features, width, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.theta


class SoftmaxPolicy(nn.Module):
    """``softmax(preferences(features[observation]))``, and a critic ``value(features[observation])`` where one is given.

    ``preferences`` maps features ``[*, d]`` to ``[*, A]`` and ``value`` to ``[*, 1]``; without ``features`` both are given the
    observation's number itself, as a :class:`Table` wants it. Inputs: ``observation [..., T]`` and ``action [..., T]``, int64.
    """

    features: Tensor

    def __init__(
        self, preferences: nn.Module, features: Tensor | None = None, *, num_observations: int = 0, value: nn.Module | None = None
    ):
        super().__init__()
        check_whole("num_observations", num_observations, 0)
        require(features is not None or num_observations >= 1, "features: give features [O, d], or num_observations for a table")
        self.register_buffer("features", torch.arange(num_observations) if features is None else features)
        self.preferences, self.value = preferences, value

    def probabilities(self) -> Tensor:
        """``π(a|o)``, ``[O, A]``, differentiable."""
        return self.preferences(self.features).softmax(-1)

    def values(self, observation: Tensor | None = None) -> Tensor | None:
        """The critic's value of each observation (of all, ``[O]``), differentiable; None without a critic."""
        features = self.features if observation is None else self.features[observation]
        return None if self.value is None else self.value(features).squeeze(-1)

    def distribution(self, *, observation: Tensor, action: Tensor | None = None) -> Softmax:
        """The distribution after each observation; ``action`` is taken so that a batch's inputs fit, and ignored."""
        return Softmax(self.preferences(self.features[observation]))

    @torch.no_grad()
    def sample(self, inputs: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Sample:
        """One action for each ``inputs["observation"]``."""
        distribution = self.distribution(observation=inputs["observation"])
        action = F.categorical_sample(distribution.parameters, generator)
        return Sample(action=action, log_prob=distribution.log_prob(action), value=self.values(inputs["observation"]))

    def evaluate(self, *, observation: Tensor, action: Tensor) -> Evaluation:
        """Recorded actions scored by the current parameters."""
        distribution = self.distribution(observation=observation)
        return Evaluation(log_prob=distribution.log_prob(action), entropy=distribution.entropy(), value=self.values(observation))

    forward = evaluate


def tabular_policy(mdp: MDP, *, critic: bool = False) -> SoftmaxPolicy:
    """A preference for each pair of observation and action, all zero at first: the uniform policy."""
    n = mdp.num_observations
    return SoftmaxPolicy(Table(n, mdp.num_actions), num_observations=n, value=Table(n, 1) if critic else None)


def linear_policy(mdp: MDP, features: Any = None, *, critic: bool = False) -> SoftmaxPolicy:
    """``h(o, ·) = Θᵀ x(o)`` from features ``x [O, d]`` (one-hot unless given); Θ is zero at first. SB section 13.1."""
    x = checked_features(mdp, features)
    return SoftmaxPolicy(Linear(x.shape[1], mdp.num_actions), x, value=Linear(x.shape[1], 1) if critic else None)


def polynomial_policy(mdp: MDP, degree: int = 2, *, critic: bool = False) -> SoftmaxPolicy:
    """Linear in the powers ``1, x, …, x^degree`` of the observation's number, scaled to [−1, 1]. SB section 9.5.1."""
    check_whole("degree", degree, 0)
    x = torch.linspace(-1.0, 1.0, mdp.num_observations, dtype=torch.float64)
    return linear_policy(mdp, x.unsqueeze(-1) ** torch.arange(degree + 1), critic=critic)


def network_policy(
    mdp: MDP, hidden_sizes: Sequence[int] = (16,), features: Any = None, *, seed: int = 0, critic: bool = False
) -> SoftmaxPolicy:
    """tanh networks over features ``x [O, d]`` (one-hot unless given), one for the preferences and one for the critic."""
    x = checked_features(mdp, features)
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    require(is_kind(hidden_sizes, Sequence), f"hidden_sizes: expected a width for each layer, found {hidden_sizes!r}")
    for width in hidden_sizes:
        check_whole("hidden_sizes", width)
    sizes = (x.shape[1], *hidden_sizes)
    return SoftmaxPolicy(network((*sizes, mdp.num_actions), generator), x, value=network((*sizes, 1), generator) if critic else None)


def checked_features(mdp: MDP, features: Any) -> Tensor:
    if features is None:
        return torch.eye(mdp.num_observations, dtype=torch.float64)
    x = as_tensor("features", features)
    fits = x.dim() == 2 and x.shape[0] == mdp.num_observations and x.shape[1] >= 1
    require(fits, f"features: expected shape [{mdp.num_observations}, d], a row for each observation, found {list(x.shape)}")
    require(bool(x.isfinite().all()), "features: expected finite numbers, found NaN or infinity")
    return x


def network(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with tanh in between, weights normal with variance 1 / inputs, biases zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        with fork_rng([]):  # the initialization of torch draws numbers that nobody seeded
            linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        nn.init.normal_(linear.weight, std=inputs**-0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
