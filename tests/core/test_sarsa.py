"""SARSA against the box in plain loops."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.core.recorded_steps import Recorded, start, transitions
from upslope import SARSA, UsageError
from upslope.reference.sarsa import sarsa


class Values(nn.Module):
    """``q̂ = wᵀx``."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def action_values(self, observation):
        return observation @ self.w


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("ends", ["t", "ct", "tct"])
def test_sarsa_is_the_box(ends, trace_decay):
    policy, recorded = Values(start()[0]), transitions(ends)
    algorithm = SARSA(gamma=0.9, learning_rate=0.05, trace_decay=trace_decay)
    algorithm.learn(policy, Recorded(recorded), algorithm.start(policy))
    wanted = sarsa(start()[0], recorded, gamma=0.9, learning_rate=0.05, trace_decay=trace_decay)
    np.testing.assert_allclose(policy.w.detach().numpy(), wanted, rtol=0, atol=1e-12)


def test_the_action_that_was_bootstrapped_from_is_the_one_that_is_taken():
    class Asked(Recorded):
        asked = 0

        def act(self, policy, inputs):
            self.asked += 1
            return super().act(policy, inputs)

    policy, stream = Values(start()[0]), Asked(transitions("tt", length=5))
    SARSA().learn(policy, stream, SARSA().start(policy))
    assert stream.asked == 10  # once for each state that is not terminal


def test_bad_settings_are_named():
    with pytest.raises(UsageError, match=r"^trace_decay: expected"):
        SARSA(trace_decay=1.1)
