"""Small environments and policies for the tests of the control world."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from upslope import functional as F
from upslope.control import Envs
from upslope.records import Evaluation, Sample

MODES = list(AutoresetMode)


class Counting(gymnasium.Env):
    """Counts its steps. Episode e of environment ``which`` ends after ``lengths[(which + e) % len]`` steps, by turns both ways."""

    lengths = (3, 5, 2, 4)

    def __init__(self, which: int = 0) -> None:
        self.observation_space = spaces.Box(0.0, 100.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.which, self.episode, self.time = which, -1, 0

    def seen(self):
        return np.array([self.time, self.which, self.episode], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.time = 0
        return self.seen(), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.lengths[(self.which + self.episode) % len(self.lengths)]
        by_end = (self.which + self.episode) % 2 == 0
        return self.seen(), 1.0 + 0.5 * self.time, over and by_end, over and not by_end, {}


class Loop(gymnasium.Env):
    """One state, reward 1, no end of its own; cut after ``limit`` steps."""

    def __init__(self, limit: int = 5) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.limit, self.time = limit, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.ones(1, np.float32), 1.0, False, self.time == self.limit, {}


class SeededLength(gymnasium.Env):
    """Its seed says how long an episode is: 2 steps in three of four, 40 steps in the fourth; reward 1."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length = self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.time = (40 if self.np_random.random() < 0.25 else 2), 0
        return np.array([self.np_random.random()], np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time >= self.length, False, {}


class Ruled(gymnasium.Env):
    """Only some actions are legal: at time t those of ``rule(t)``; ends after 4 steps, where nothing is legal any more."""

    def __init__(self, action_space=None, rule=lambda time: np.arange(3) == time % 3, silent: bool = False) -> None:
        self.observation_space = spaces.Box(0.0, 10.0, (1,), np.float32)
        self.action_space = action_space or spaces.Discrete(3)
        self.rule, self.silent, self.time = rule, silent, 0

    def info(self):
        if self.silent:
            return {}
        mask = np.asarray(self.rule(self.time), np.int8)
        return {"action_mask": mask * 0 if self.time == 4 else mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), self.info()

    def step(self, action):
        legal = np.asarray(self.rule(self.time), bool)
        if not self.silent and not legal[int(np.ravel(action)[0])]:
            raise ValueError(f"illegal action {action} at time {self.time}")
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, self.time == 4, False, self.info()


def side_by_side(factories, mode=AutoresetMode.NEXT_STEP, *, seed=0) -> Envs:
    """Different environments in one vector environment of this autoreset mode."""
    return Envs(SyncVectorEnv(list(factories), copy=False, autoreset_mode=mode), seed=seed)


def make_counting(mode=AutoresetMode.NEXT_STEP, count: int = 3) -> Envs:
    """Counting environments with staggered lengths."""
    return side_by_side([lambda i=i: Counting(i) for i in range(count)], mode)


class Critic(nn.Module):
    """Any action with probability ½; the value is a fixed function of the observation, so that every answer is known."""

    def __init__(self, value=lambda observation: 0.7 * observation[..., 0] + 0.2 * observation[..., 1] - 0.1 * observation[..., 2] ** 2):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))
        self.value_function = value

    def sample(self, inputs, *, generator=None):
        logits = self.logits.expand(len(inputs["observation"]), 2)
        action = F.categorical_sample(logits, generator)
        return Sample(action=action, log_prob=F.categorical_log_prob(logits, action))

    def evaluate(self, observation, action):
        logits = self.logits.expand(*action.shape, 2)
        log_prob = F.categorical_log_prob(logits, action)
        return Evaluation(log_prob=log_prob, entropy=F.categorical_entropy(logits), value=self.value_function(observation))


class Masked(gymnasium.Env):
    """Six steps of four actions, of which ``time % 4`` and the next one are legal; it says so by ``convention`` and counts the others.

    At the end nothing is legal.
    """

    def __init__(self, convention: str = "method", action_space=None) -> None:
        mask, place = spaces.MultiBinary(4), spaces.Box(0, 6, (1,), np.float32)
        self.observation_space = spaces.Dict(action_mask=mask, place=place) if convention == "observation" else place
        self.action_space = action_space or spaces.Discrete(4)
        self.convention, self.time, self.illegal = convention, 0, 0
        if convention == "method":
            self.action_masks = self.legal

    def legal(self):
        return np.zeros(4, bool) if self.time == 6 else (np.arange(4) - self.time) % 4 < 2

    def answer(self):
        place = np.full(1, self.time, np.float32)
        seen = {"action_mask": self.legal().astype(np.int8), "place": place} if self.convention == "observation" else place
        return seen, {"action_mask": self.legal()} if self.convention == "info" else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.answer()

    def step(self, action):
        if not self.legal()[int(action)]:
            raise ValueError(f"illegal action {action} at time {self.time}")
        self.time += 1
        seen, info = self.answer()
        return seen, 1.0, self.time == 6, False, info
