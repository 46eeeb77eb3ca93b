"""The bare-metal policy of the reference: probabilities, score by outer product, and the gradient bandit as its special case."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.functional.made import autograd, close, finite_difference, near, tensor
from upslope import functional as F
from upslope.reference import SoftmaxPolicy
from upslope.reference.special import digamma, log_beta_function, trigamma


def test_probabilities_and_score() -> None:
    policy, x = SoftmaxPolicy(4, 3, seed=1), np.array([0.5, -1.0, 2.0, 0.3])
    probs = policy.get_probs(x)
    close(probs, torch.softmax(tensor(x @ policy.theta), -1))
    for action in range(3):

        def log_prob(theta: torch.Tensor, action: int = action) -> torch.Tensor:
            return F.categorical_log_prob(tensor(x) @ theta, torch.tensor(action))

        score = policy.grad_log_prob(x, action, probs)
        close(score, np.outer(x, np.eye(3)[action] - probs))
        close(autograd(log_prob, policy.theta)[0], score)
        near(finite_difference(log_prob, policy.theta)[0], score)
    close(sum(p * policy.grad_log_prob(x, a, probs) for a, p in enumerate(probs)), np.zeros((4, 3)))


def test_sampled_actions_follow_the_probabilities() -> None:
    policy, x = SoftmaxPolicy(2, 3, seed=0), np.array([1.0, -0.5])
    counts = np.bincount([policy.sample_action(x)[0] for _ in range(20_000)], minlength=3)
    probs = policy.get_probs(x)
    assert (np.abs(counts / 20_000 - probs) < 4.5 * np.sqrt(probs * (1 - probs) / 20_000)).all()


def test_one_step_of_ascent_is_the_gradient_bandit() -> None:
    """SB eq. 2.12: with one constant feature, h(A) += α(R − R̄)(1 − π(A)) and h(b) −= α(R − R̄)π(b)."""
    policy, one = SoftmaxPolicy(1, 4, seed=2), np.ones(1)
    before, probs = policy.theta.copy(), policy.get_probs(one)
    policy.ascend(one, action=2, advantage=1.5 - 0.4, learning_rate=0.1)
    expected = before[0] - 0.1 * 1.1 * probs
    expected[2] = before[0, 2] + 0.1 * 1.1 * (1 - probs[2])
    close(policy.theta[0], expected)
    assert policy.get_probs(one)[2] > probs[2]


@pytest.mark.parametrize("x", [0.05, 0.5, 1.0, 3.7, 9.99, 10.0, 40.0])
def test_gamma_functions(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    close(np.array(digamma(x)), value.digamma(), 1e-12)
    close(np.array(trigamma(x)), torch.polygamma(1, value), 1e-8)  # torch's own is good to about 1e-9
    close(np.array([log_beta_function(x, 1.0), log_beta_function(x, 2.0)]), -np.log([x, x * (x + 1.0)]))  # B(x, 1) = 1/x


def test_known_values_of_the_trigamma_function() -> None:
    """``ψ′(1) = π²/6``, ``ψ′(½) = π²/2``, ``ψ′(x) + ψ′(1 − x) = π² / sin² πx``."""
    close(np.array([trigamma(1.0), trigamma(0.5)]), np.array([np.pi**2 / 6, np.pi**2 / 2]), 1e-13)
    close(np.array(trigamma(0.3) + trigamma(0.7)), np.array((np.pi / np.sin(0.3 * np.pi)) ** 2), 1e-13)
