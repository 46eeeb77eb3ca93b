"""What a head is: the meaning of a network's numbers as a distribution over actions.

A head is a small frozen object without parameters of its own: every method takes the parameter tensor ``[*, P]``. The
*stored* action is the one that ``log_prob`` takes (int64 or float32); :meth:`Head.to_env` turns it into what the
environment takes. They differ where the environment's action is a function of the sampled one: a Gaussian's clipped
action has no density, and a squashed action near ±1 has lost the digits that its density needs; so the sampled one is stored.

Masks are boolean, True = legal: ``[*, n]`` for a categorical head, the factors' masks side by side ``[*, Σ nvec]`` for a
multi-categorical one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Head(ABC):
    """What every head has. ``num_parameters`` P; ``stored_shape``, the stored action's shape per decision."""

    masked = False
    """Whether the head can take an action mask."""

    @property
    @abstractmethod
    def num_parameters(self) -> int: ...

    @property
    @abstractmethod
    def stored_shape(self) -> tuple[int, ...]: ...

    @abstractmethod
    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mask: Tensor | None = None) -> Tensor:
        """A stored action ``[*, *stored_shape]`` for each row of parameters."""

    @abstractmethod
    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        """The greedy stored action."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """log π of stored actions, ``[*]``."""

    @abstractmethod
    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        """Entropy in nats, ``[*]``; differential for continuous actions."""

    def score(self, parameters: Tensor, action: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(log_prob, entropy)``: what an update asks for, in as few operations as the head can."""
        return self.log_prob(parameters, action, mask), self.entropy(parameters, mask)

    @abstractmethod
    def kl(self, p: Tensor, q: Tensor, mask: Tensor | None = None) -> Tensor:
        """Exact KL(p‖q) of two parameter tensors, ``[*]``."""

    @abstractmethod
    def to_env(self, action: Tensor) -> NDArray[Any]:
        """Stored actions ``[N, …]`` as the environment's, a new NumPy array."""


@dataclass(frozen=True)
class Distribution:
    """A head with its parameters ``[*, P]`` and mask: the policy's distribution in each state."""

    head: Head
    parameters: Tensor
    mask: Tensor | None = None

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.head.sample(self.parameters, generator, self.mask)

    def mode(self) -> Tensor:
        return self.head.mode(self.parameters, self.mask)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.head.log_prob(self.parameters, action, self.mask)

    def entropy(self) -> Tensor:
        return self.head.entropy(self.parameters, self.mask)

    def kl(self, other: Distribution) -> Tensor:
        """KL(self‖other)."""
        return self.head.kl(self.parameters, other.parameters, self.mask)
