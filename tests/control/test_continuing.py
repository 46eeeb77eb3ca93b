"""The continuing actor–critic on a ring whose best average reward is known exactly."""

import itertools

import numpy as np
import torch
from gymnasium import spaces

from upslope import ContinuingActorCritic, control
from upslope.records import Transition
from upslope.tabular import ring


class Endless:
    """A stream of a finite problem without an end; inputs are one-hot."""

    def __init__(self, mdp, num_steps, seed):
        self.mdp, self.num_steps, self.state = mdp, num_steps, 0
        self.random, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.ways, self.eye = mdp.transition.numpy(), torch.eye(mdp.num_states)

    def observe(self, policy):
        return {"observation": self.eye[self.state : self.state + 1]}

    def act(self, policy, inputs):
        return policy.sample(inputs, generator=self.generator).action

    def step(self, policy, action):
        reward = float(self.mdp.reward[self.state, action[0]])
        self.state = int(self.random.choice(self.mdp.num_states, p=self.ways[self.state, int(action[0])]))
        return Transition(reward=reward, next_inputs=self.observe(policy), terminated=False, truncated=False)

    def metrics(self):
        return {}


def average_reward(mdp, probabilities):
    """``dᵀr_π`` with ``dᵀP_π = dᵀ``."""
    ways = torch.einsum("sa,sat->st", probabilities, mdp.transition).numpy()
    n = len(ways)
    stationary = np.linalg.lstsq(np.vstack([ways.T - np.eye(n), np.ones(n)]), np.r_[np.zeros(n), 1.0], rcond=None)[0]
    return float(stationary @ (probabilities * mdp.reward).sum(1).numpy())


def test_the_ring_is_learned_to_within_2_percent_of_its_best():
    mdp = ring()
    tables = itertools.product(range(2), repeat=mdp.num_states)
    best = max(average_reward(mdp, torch.eye(2, dtype=torch.float64)[list(table)]) for table in tables)
    np.testing.assert_allclose(best, 0.9 / 5, atol=1e-12)
    policy = control.LinearPolicy.for_envs((spaces.Discrete(mdp.num_states), spaces.Discrete(2)), features="linear")
    rates = {"learning_rate": 1.0, "value_learning_rate": 0.2, "average_reward_rate": 0.02}
    algorithm = ContinuingActorCritic(**rates, trace_decay=0.8, value_trace_decay=0.8)
    state = algorithm.start(policy)
    algorithm.learn(policy, Endless(mdp, 6000, seed=0), state)
    learned = average_reward(mdp, policy.network.actor.detach().double().softmax(-1))
    assert 0.98 * best <= learned <= best
    assert abs(state.average_reward - learned) < 0.1 * best  # R̄ itself wanders with its step size
