"""The gradient bandit (SB 2.8): REINFORCE with a baseline where an episode is one decision."""

import numpy as np

from upslope.reference.arrays import Array
from upslope.reference.distributions import categorical_sample, softmax
from upslope.reference.problems import Bandit


class GradientBandit:
    """Preferences ``h [k]``, ``π = softmax(h)``; with π and R̄ as they were before the action A and its reward R,

        h(A) += α (R − R̄)(1 − π(A)),   h(b) −= α (R − R̄) π(b)  for b ≠ A.

    R̄ is the mean of the rewards before this one, R̄ = R at the first (so the first reward moves nothing), or 0 without a baseline.
    """

    def __init__(self, num_arms: int, *, learning_rate: float, baseline: bool = True, seed: int = 0) -> None:
        self.preferences: Array = np.zeros(num_arms)
        self.learning_rate, self.baseline = learning_rate, baseline
        self.mean_reward, self.count = 0.0, 0
        self.generator = np.random.default_rng(seed)

    def get_probs(self) -> Array:
        """π, ``[k]``."""
        return softmax(self.preferences)

    def sample_action(self) -> int:
        return categorical_sample(self.preferences, self.generator.random())

    def learn(self, action: int, reward: float) -> None:
        reference = 0.0 if not self.baseline else reward if self.count == 0 else self.mean_reward
        probs = self.get_probs()
        for arm in range(len(probs)):
            chosen = 1.0 if arm == action else 0.0
            self.preferences[arm] += self.learning_rate * (reward - reference) * (chosen - probs[arm])
        self.count += 1
        self.mean_reward += (reward - self.mean_reward) / self.count

    def train(self, bandit: Bandit, num_steps: int) -> Array:
        """Pull and learn; whether each pull was of the best arm, ``[num_steps]``."""
        best = int(np.argmax(bandit.means))
        optimal: list[bool] = []
        for _ in range(num_steps):
            action = self.sample_action()
            _, reward, _ = bandit.step(action)
            self.learn(action, reward)
            optimal.append(action == best)
        return np.array(optimal)
