"""The worked cases of an introduction to policy gradients, by hand, in the library's functions and in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from upslope import functional as F
from upslope.reference import SoftmaxPolicy
from upslope.reference.distributions import sigmoid, softmax

X = np.array([0.5, -1.0, 2.0, 0.3])


def test_the_softmax_table() -> None:
    """Preferences 3, 2, 4, 5, 1."""
    policy = SoftmaxPolicy(1, 5)
    policy.theta = np.array([[3.0, 2.0, 4.0, 5.0, 1.0]])
    for probs in (policy.get_probs(np.ones(1)), Categorical(logits=torch.tensor(policy.theta[0])).probs.numpy()):
        assert probs.round(3).tolist() == [0.086, 0.032, 0.234, 0.636, 0.012]


def test_one_step_by_hand_and_in_pytorch() -> None:
    """``theta.grad`` of the loss ``−log p(a) · r`` holds minus ``r ∇log p(a)``; descending it is the step that NumPy ascends."""
    reward, learning_rate, action = 1.5, 0.01, 2
    policy = SoftmaxPolicy(4, 3, seed=1)
    theta = torch.nn.Parameter(torch.tensor(policy.theta))
    loss = -Categorical(logits=torch.tensor(X) @ theta).log_prob(torch.tensor(action)) * reward
    loss.backward()
    assert theta.grad is not None
    score = policy.grad_log_prob(X, action, policy.get_probs(X))
    np.testing.assert_allclose(theta.grad.numpy(), -reward * score, rtol=0, atol=1e-15)
    descended = (theta - learning_rate * theta.grad).detach().numpy()
    policy.ascend(X, action, advantage=reward, learning_rate=learning_rate)
    np.testing.assert_allclose(descended, policy.theta, rtol=0, atol=1e-15)


def test_visit_counts_are_weights_of_states() -> None:
    """States visited 10, 3, 50, 5 and 3 times: averaging over the 71 steps weighs them with the on-policy distribution μ = counts / 71."""
    counts = torch.tensor([10, 3, 50, 5, 3])
    state = torch.repeat_interleave(torch.arange(5), counts)
    state = state[torch.randperm(71, generator=torch.Generator().manual_seed(0))]
    weight = F.average_weight(torch.ones(71, dtype=torch.bool), "steps", dtype=torch.float64)
    mu = torch.zeros(5, dtype=torch.float64).index_add(0, state, weight)
    torch.testing.assert_close(mu, counts / torch.tensor(71.0, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_the_score_has_mean_zero(seed: int) -> None:
    policy = SoftmaxPolicy(4, 3, seed=seed)
    probs = policy.get_probs(X)
    mean = sum(probs[a] * policy.grad_log_prob(X, a, probs) for a in range(3))
    np.testing.assert_allclose(mean, np.zeros((4, 3)), rtol=0, atol=1e-15)


def test_logistic_regression_is_the_softmax_of_two_actions() -> None:
    """``softmax(z, 0) = (σ(z), σ(−z))``, and the gradient of the log-likelihood is ``x (y − σ(xᵀw))``."""
    w = np.array([0.2, -0.4, 0.7, 1.1])
    policy = SoftmaxPolicy(4, 2)
    policy.theta = np.stack([w, np.zeros(4)], axis=1)
    z = float(X @ w)
    probs = policy.get_probs(X)
    np.testing.assert_allclose(probs, [sigmoid(z), sigmoid(-z)], rtol=0, atol=1e-15)
    assert np.log(probs[0] / probs[1]) == pytest.approx(z, abs=1e-12)  # the log-odds are linear in x
    for y, action in ((1.0, 0), (0.0, 1)):
        np.testing.assert_allclose(policy.grad_log_prob(X, action, probs)[:, 0], X * (y - sigmoid(z)), rtol=0, atol=1e-15)
        log_prob = F.bernoulli_log_prob(torch.tensor([z]), torch.tensor([y]))
        assert float(log_prob) == pytest.approx(np.log(probs[action]), abs=1e-6)  # torch.tensor([z]) is float32


def test_supervised_and_policy_gradient_updates() -> None:
    """A label is an action that somebody else chose and that is worth 1: descending cross-entropy is ascending ``1 · log π(label)``.

    A sampled action is weighed with its reward instead, and one that is worth nothing moves nothing.
    """
    label, learning_rate = 1, 0.1
    policy = SoftmaxPolicy(4, 3, seed=2)
    start = policy.theta
    theta = torch.nn.Parameter(torch.tensor(start))
    torch.nn.functional.cross_entropy(torch.tensor(X) @ theta, torch.tensor(label)).backward()
    assert theta.grad is not None
    supervised = start - learning_rate * theta.grad.numpy()
    for reward in (1.0, 0.0, -2.0):
        policy.theta = start
        policy.ascend(X, label, advantage=reward, learning_rate=learning_rate)
        np.testing.assert_allclose(policy.theta - start, reward * (supervised - start), rtol=0, atol=1e-15)


def test_a_low_positive_reward_still_raises_a_probability() -> None:
    """Hence the baseline: against what is usual, a reward of 0.1 among rewards of 1 lowers it."""
    start = np.array([[0.0, 0.5, -0.5]])
    for baseline, sign in ((0.0, 1.0), (1.0, -1.0)):
        policy = SoftmaxPolicy(1, 3)
        policy.theta = start
        policy.ascend(np.ones(1), 0, advantage=0.1 - baseline, learning_rate=0.1)
        assert np.sign(policy.get_probs(np.ones(1))[0] - softmax(start[0])[0]) == sign
