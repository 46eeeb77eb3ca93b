"""One environment, a step at a time, for methods that learn at every step."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from upslope.control.collect import Collector
from upslope.control.envs import Envs
from upslope.control.recording import EPISODE_METRICS, Player
from upslope.errors import require
from upslope.records import Metrics, SamplingPolicy, State, Transition


class Stream(Collector):
    """What an online method plays in: observe S, act, step to R and S′; ``num_steps`` of them make one iteration of a run.

    An iteration may begin and end anywhere in an episode, and its length changes nothing that is learned. After an end the
    environment is reset before the next :meth:`observe`; S′ is always the true successor.

    Raises:
        UsageError: more than one environment.
    """

    def __init__(self, envs: Envs, num_steps: int = 512, *, seed: int = 0) -> None:
        super().__init__(envs, seed)
        require(isinstance(num_steps, int) and num_steps >= 1, f"num_steps: expected an integer ≥ 1, found {num_steps!r}")
        require(envs.num_envs == 1, f"num_envs: a method that learns at every step plays in 1 environment, found {envs.num_envs}")
        self.num_steps = num_steps
        self._player: Player | None = None
        self._inputs: dict[str, Tensor] | None = None
        self._finished: list[tuple[float, int]] = []
        self._rewards: list[float] = []

    def state_dict(self) -> State:
        """With the state to act in, for encoding it again would count it twice."""
        under_way = {"inputs": self._inputs, "finished": self._finished, "rewards": self._rewards}
        return super().state_dict() | under_way

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._inputs = None if self.envs.observation is None else state["inputs"]
        self._finished, self._rewards = [tuple(item) for item in state["finished"]], state["rewards"]

    def observe(self, policy: SamplingPolicy) -> dict[str, Tensor]:
        """The inputs ``[1, *]`` of the state to act in; running moments take it in."""
        if self.envs.observation is None:
            self._start(policy)
            self._inputs = None
        if self._inputs is None:
            self._inputs = self._encoded(self._as_player(policy))
        return self._inputs

    def act(self, policy: SamplingPolicy, inputs: Mapping[str, Tensor]) -> Tensor:
        """An action ``[1, *]`` drawn from the policy."""
        return policy.sample(inputs, generator=self.generator).action

    def step(self, policy: SamplingPolicy, action: Tensor) -> Transition:
        """One step of the environment; the reward as the learner sees it."""
        envs, player = self.envs, self._as_player(policy)
        answer = envs.step(player.to_env(action))
        terminated, truncated = bool(answer.terminated[0]), bool(answer.truncated[0])
        self._finished += answer.finished
        self._rewards.append(float(answer.reward[0]) / envs.reward_scale)
        if not (terminated or truncated):
            next_inputs = self._inputs = self._encoded(player)
        else:
            successor, mask = answer.observation, envs.action_mask
            if answer.successors is not None:  # there the next episode's start; everything is legal unless something is said
                successor, everything = answer.successors[1], None if mask is None else np.ones_like(mask)
                mask = everything if answer.successor_masks is None else answer.successor_masks
            next_inputs = player.encode(successor, action_mask=mask)
            self._inputs = None
            if answer.successors is None:
                envs.step(player.to_env(action))  # the reset step, which ignores its action
        return Transition(reward=self._seen(policy, answer), next_inputs=next_inputs, terminated=terminated, truncated=truncated)

    def _as_player(self, policy: SamplingPolicy) -> Player:
        if self._player is None or self._player.policy is not policy:
            self._player = Player(policy, self.envs)
        return self._player

    def _encoded(self, player: Player) -> dict[str, Tensor]:
        return player.encode(self.envs.observation, action_mask=self.envs.action_mask, update=True)

    @staticmethod
    def _seen(policy: SamplingPolicy, answer: Any) -> float:
        normalizer = getattr(policy, "reward_normalizer", None)
        if normalizer is None:
            return float(answer.reward[0])
        normalizer.update(answer.reward, answer.terminated | answer.truncated, answer.mask)
        return float(normalizer(answer.reward)[0])

    def metrics(self) -> Metrics:
        """Number, mean return and mean length of the episodes that ended since the last call; without one the reward per step."""
        finished, rewards, self._finished, self._rewards = self._finished, self._rewards, [], []
        means = {name: sum(x) / len(x) for name, x in zip(EPISODE_METRICS, zip(*finished, strict=True), strict=False)}
        if not finished and rewards and not self.envs.clip_reward:
            means = {"reward_per_step": sum(rewards) / len(rewards)}
        return {"num_episodes": float(len(finished)), **means}
