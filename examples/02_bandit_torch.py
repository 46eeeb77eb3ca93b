"""The bare-metal trainer's twin in PyTorch: autograd in place of the gradient by hand, and a loss, hence a minus sign."""

import numpy as np
import torch
from torch.distributions import Categorical

from upslope.reference import Bandit, Reinforce, SoftmaxPolicy


class TorchPolicy(torch.nn.Module):
    """``π(a|x) = softmax(Θᵀx)_a`` with parameters Θ ``[d, k]``."""

    def __init__(self, theta):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta))

    def forward(self, x):
        return Categorical(logits=torch.as_tensor(x) @ self.theta)


class TorchReinforce:
    """The same update as :class:`upslope.reference.Reinforce`, by descent on a loss."""

    def __init__(self, policy, *, learning_rate, gamma=1.0, baseline_rate=0.0):
        self.policy, self.gamma = policy, gamma
        self.w = torch.zeros(len(policy.theta), dtype=torch.float64, requires_grad=True)
        self.rates = ((policy.theta, learning_rate), (self.w, baseline_rate))

    def learn(self, steps):
        """One update from one episode."""
        loss, future = 0.0, 0.0
        for t in reversed(range(len(steps))):
            x, future = torch.as_tensor(steps[t].x), steps[t].reward + self.gamma * future  # G_t
            delta = future - self.w @ x
            log_prob = self.policy(x).log_prob(torch.tensor(steps[t].action))
            # ascent on γ^t δ log π is descent on its negative: theta.grad will hold minus Σ_t γ^t δ ∇log π
            loss = loss - self.gamma**t * delta.detach() * log_prob + delta**2 / 2
        loss.backward()
        with torch.no_grad():
            for parameter, rate in self.rates:
                parameter -= rate * parameter.grad
                parameter.grad = None


if __name__ == "__main__":
    from upslope.reference import play

    bandit, numpy_policy = Bandit.testbed(10, shift=4.0, seed=0), SoftmaxPolicy(1, 10, seed=0)
    by_hand = Reinforce(numpy_policy, learning_rate=0.1, baseline_rate=0.05)
    torch_policy = TorchPolicy(numpy_policy.theta)
    by_autograd = TorchReinforce(torch_policy, learning_rate=0.1, baseline_rate=0.05)
    for _ in range(300):
        episode = play(numpy_policy, bandit)
        by_hand.learn(episode)
        by_autograd.learn(episode)
    probs = torch_policy(np.ones(1)).probs
    print(f"after 300 updates the best arm has probability {probs[bandit.means.argmax()]:.2f}")
    print(f"NumPy and PyTorch differ by {np.abs(numpy_policy.theta - torch_policy.theta.detach().numpy()).max():.0e} at most")
