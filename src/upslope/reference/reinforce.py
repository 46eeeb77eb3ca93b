"""REINFORCE with and without a baseline, every gradient by hand (SB 13.3 and 13.4).

    Θ ← Θ + α Σ_t γ^t (G_t − w·x_t) ∇log π(a_t|x_t)
    w ← w + α_w Σ_t (G_t − w·x_t) x_t

Parameters move once an episode, with all gradients taken where the episode was played. (SB's box moves them at each t of the
finished episode instead; to first order in α that is the same.)
"""

from dataclasses import dataclass

import numpy as np

from upslope.reference.arrays import Array
from upslope.reference.problems import Problem
from upslope.reference.softmax_policy import SoftmaxPolicy


@dataclass(frozen=True)
class Step:
    """What was seen, done and paid: features ``[d]``, action, the probabilities that it was drawn from, reward."""

    x: Array
    action: int
    probs: Array
    reward: float


def play(policy: SoftmaxPolicy, problem: Problem) -> list[Step]:
    """One episode from start to end."""
    steps: list[Step] = []
    x, terminated = problem.reset(), False
    while not terminated:
        action, probs = policy.sample_action(x)
        following, reward, terminated = problem.step(action)
        steps.append(Step(x, action, probs, reward))
        x = following
    return steps


class Reinforce:
    """The trainer; ``baseline_rate`` α_w = 0 leaves the baseline at 0."""

    def __init__(self, policy: SoftmaxPolicy, *, learning_rate: float, gamma: float = 1.0, baseline_rate: float = 0.0) -> None:
        self.policy, self.learning_rate, self.gamma, self.baseline_rate = policy, learning_rate, gamma, baseline_rate
        self.w: Array = np.zeros(len(policy.theta))

    def learn(self, steps: list[Step]) -> None:
        gradient, error, future = np.zeros_like(self.policy.theta), np.zeros_like(self.w), 0.0
        for t in reversed(range(len(steps))):
            step = steps[t]
            future = step.reward + self.gamma * future  # G_t
            delta = future - float(self.w @ step.x)
            gradient += self.gamma**t * delta * self.policy.grad_log_prob(step.x, step.action, step.probs)
            error += delta * step.x
        self.policy.theta = self.policy.theta + self.learning_rate * gradient
        self.w = self.w + self.baseline_rate * error

    def train(self, problem: Problem, num_episodes: int) -> Array:
        """Play and learn; the undiscounted return of every episode, ``[num_episodes]``."""
        returns: list[float] = []
        for _ in range(num_episodes):
            steps = play(self.policy, problem)
            self.learn(steps)
            returns.append(sum(step.reward for step in steps))
        return np.array(returns)
