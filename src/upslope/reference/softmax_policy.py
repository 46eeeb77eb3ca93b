"""The bare-metal policy: a linear softmax whose score is an outer product, and one step of gradient ascent."""

from __future__ import annotations

import numpy as np

from upslope.reference.arrays import Array
from upslope.reference.distributions import categorical_sample, softmax


class SoftmaxPolicy:
    """``π(a|x) = softmax(Θᵀx)_a`` with parameters Θ ``[d, k]``: d features, k actions."""

    def __init__(self, num_features: int, num_actions: int, *, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.theta: Array = self.generator.standard_normal((num_features, num_actions))

    def get_probs(self, x: Array) -> Array:
        """Probabilities of the k actions for features ``x [d]``."""
        return softmax(x @ self.theta)

    def sample_action(self, x: Array) -> tuple[int, Array]:
        """A random action and the probabilities that it was drawn from."""
        return categorical_sample(x @ self.theta, self.generator.random()), self.get_probs(x)

    def grad_log_prob(self, x: Array, action: int, probs: Array) -> Array:
        """``∇_Θ log π_a = x (e_a − p)ᵀ``, ``[d, k]``."""
        score = np.zeros_like(self.theta)
        for i in range(len(x)):
            for j in range(len(probs)):
                score[i, j] = x[i] * (float(j == action) - probs[j])
        return score

    def ascend(self, x: Array, action: int, advantage: float, learning_rate: float) -> None:
        """``Θ ← Θ + α A ∇ log π_a``."""
        self.theta = self.theta + learning_rate * advantage * self.grad_log_prob(x, action, self.get_probs(x))
