"""The bare-metal policy: a linear softmax whose score is an outer product, and one step of gradient ascent."""

import numpy as np

from upslope.reference.arrays import Array
from upslope.reference.distributions import softmax


def linear_score(x: Array, action: int, probs: Array) -> Array:
    """``∇_Θ log π_a = x (e_a − p)ᵀ`` of a softmax that is linear in ``x [d]``, ``[d, k]``."""
    score = np.zeros((len(x), len(probs)))
    for i in range(len(x)):
        for j in range(len(probs)):
            score[i, j] = x[i] * (float(j == action) - probs[j])
    return score


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
        probs, uniform, cumulative = self.get_probs(x), self.generator.random(), 0.0
        for action, p in enumerate(probs):
            cumulative += p
            if cumulative > uniform:
                return action, probs
        return len(probs) - 1, probs  # rounding left the sum just below 1

    def grad_log_prob(self, x: Array, action: int, probs: Array) -> Array:
        """``∇_Θ log π_a = x (e_a − p)ᵀ``, ``[d, k]``."""
        return linear_score(x, action, probs)

    def ascend(self, x: Array, action: int, advantage: float, learning_rate: float) -> None:
        """``Θ ← Θ + α A ∇ log π_a``."""
        self.theta = self.theta + learning_rate * advantage * self.grad_log_prob(x, action, self.get_probs(x))


class FlooredPolicy(SoftmaxPolicy):
    """A softmax of two actions neither of which is ever rarer than ``floor``: ``p = clip(softmax(Θᵀx), floor, 1 − floor)``.

    It acts with the clipped p, and ``e_a − p`` takes the clipped p too, so that the score's mean stays 0. Without the floor a
    corridor run that came to prefer one action would not end its episode.
    """

    def __init__(self, num_features: int, *, floor: float, seed: int = 0) -> None:
        super().__init__(num_features, 2, seed=seed)
        self.floor = floor

    def get_probs(self, x: Array) -> Array:
        """The clipped probabilities of the two actions."""
        return np.clip(super().get_probs(x), self.floor, 1.0 - self.floor)
