"""A bandit by hand, in NumPy: softmax preferences, the score e_a − p, gradient ascent, and what a baseline is for."""

import numpy as np

from upslope.reference import Bandit, SoftmaxPolicy

print("preferences (3, 2, 4, 5, 1) → probabilities", end=" ")
table = SoftmaxPolicy(num_features=1, num_actions=5)
table.theta = np.array([[3.0, 2.0, 4.0, 5.0, 1.0]])
one = np.ones(1)  # a bandit has one state: its only feature is the constant 1
print(np.round(table.get_probs(one), 3))

probs = table.get_probs(one)
mean_score = sum(probs[a] * table.grad_log_prob(one, a, probs) for a in range(5))
print(f"the score's mean over actions: {np.abs(mean_score).max():.0e}, so a baseline that ignores the action changes no expectation")


def train(baseline, seed, num_steps=500, learning_rate=0.1):
    """REINFORCE on a ten-armed bandit whose rewards lie around 4; the share of best arms among the last 100."""
    bandit = Bandit.testbed(10, shift=4.0, seed=seed)
    policy = SoftmaxPolicy(num_features=1, num_actions=10, seed=seed)
    policy.theta = np.zeros((1, 10))
    rewards, best = [], []
    for _ in range(num_steps):
        action, probs = policy.sample_action(one)
        _, reward, _ = bandit.step(action)
        expected = np.mean(rewards or [reward]) if baseline else 0.0  # the mean of the rewards before this one
        policy.theta += learning_rate * (reward - expected) * policy.grad_log_prob(one, action, probs)
        rewards.append(reward)
        best.append(action == bandit.means.argmax())
    return np.mean(best[-100:])


for baseline in (True, False):
    shares = [train(baseline, seed) for seed in range(20)]
    print(f"{'with' if baseline else 'without'} a baseline: the best of ten arms in {np.mean(shares):.0%} of pulls 400 to 500 (20 bandits)")
