"""Recorded transitions as a stream, and a linear policy in float64 for them: what an online method does, to the last digit."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from upslope import functional as F
from upslope.records import Evaluation, Sample
from upslope.records import Transition as Answer
from upslope.reference.actor_critic import Transition


class Linear(nn.Module):
    """``π = softmax(θᵀx)``, ``v̂ = wᵀx``."""

    def __init__(self, theta, w):
        super().__init__()
        self.theta, self.w = nn.Parameter(torch.tensor(theta)), nn.Parameter(torch.tensor(w))

    def sample(self, inputs, *, generator=None):
        logits = inputs["observation"] @ self.theta.detach()
        action = F.categorical_sample(logits, generator)
        return Sample(action=action, log_prob=F.categorical_log_prob(logits, action))

    def evaluate(self, observation, action):
        logits = observation @ self.theta
        return Evaluation(
            log_prob=F.categorical_log_prob(logits, action), entropy=F.categorical_entropy(logits), value=observation @ self.w
        )


class Recorded:
    """A stream that answers what was recorded, whatever the policy."""

    def __init__(self, transitions):
        self.transitions, self.num_steps, self.at = transitions, len(transitions), 0

    def observe(self, policy):
        return {"observation": torch.tensor(self.transitions[self.at].x)[None]}

    def act(self, policy, inputs):
        return torch.tensor([self.transitions[self.at].action])

    def step(self, policy, action):
        found = self.transitions[self.at]
        self.at += 1
        after = {"observation": torch.tensor(found.next_x)[None]}
        return Answer(reward=found.reward, next_inputs=after, terminated=found.terminated, truncated=found.truncated)

    def metrics(self):
        return {}


def transitions(ends="tc-t", length=5, num_features=4, num_actions=3, seed=0):
    """Episodes of ``length`` steps: ``t`` terminates, ``c`` is cut, ``-`` just stops."""
    random = np.random.default_rng(seed)
    found = []
    for end in ends:
        x = random.standard_normal((length + 1, num_features))
        for t in range(length):
            last = t == length - 1
            action, reward = int(random.integers(num_actions)), float(random.standard_normal())
            found.append(Transition(x[t], action, reward, x[t + 1], last and end == "t", last and end == "c"))
    return found


def start(num_features=4, num_actions=3, seed=1):
    """``(theta, w)``."""
    random = np.random.default_rng(seed)
    return random.standard_normal((num_features, num_actions)), random.standard_normal(num_features)
