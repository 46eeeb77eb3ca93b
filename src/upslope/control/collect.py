"""Collectors: a policy plays in environments and the recording becomes a :class:`~upslope.records.Rollout`; and the stream that methods
play in which learn at every step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.control.envs import Envs, Step
from upslope.control.kinds import Array
from upslope.control.recording import EPISODE_METRICS, Player, Recording, TapedRecording, check_spaces
from upslope.control.restore import same_in_groups
from upslope.errors import Diverged, RunFault, is_kind, require
from upslope.records import Metrics, Rollout, SamplingPolicy, State, Transition, map_tensors

MAX_EPISODE_STEPS = 100_000  # an episode of so many steps has no end


class Collector:
    """What the collectors share: environments, and a generator for the actions."""

    def __init__(self, envs: Envs, seed: int) -> None:
        require(is_kind(envs, Envs), f"envs: expected what control.make returns, found {type(envs).__name__}")
        self.envs, self.num_envs = envs, envs.num_envs
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> State:
        return {"generator": self.generator.get_state(), "envs": self.envs.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"])
        self.envs.load_state_dict(state["envs"])

    def _start(self, policy: SamplingPolicy, seed: Sequence[int] | None = None) -> None:
        expected = "expected sample(inputs, *, generator) -> Sample, by which what plays draws its actions"
        require(callable(getattr(policy, "sample", None)), f"policy: {type(policy).__name__} has no sample; {expected}")
        check_spaces(policy, self.envs)
        self.envs.reset(seed)
        if (normalizer := getattr(policy, "reward_normalizer", None)) is not None:
            normalizer.reset()


class Steps(Collector):
    """``num_steps`` steps of every environment, going on where the last recording stopped: a ``[num_envs, num_steps]`` rollout.

    Episodes may begin and end anywhere in a row; the value of what follows the last column is in ``next_value``. Reset steps
    are masked, so in ``NEXT_STEP`` mode a rollout holds ``num_envs · num_steps`` transitions less one for each reset.
    ``metrics`` speak of the episodes that ended in this recording.
    """

    def __init__(self, envs: Envs, num_steps: int, *, seed: int = 0) -> None:
        super().__init__(envs, seed)
        require(is_kind(num_steps, int) and num_steps >= 1, f"num_steps: expected an integer ≥ 1, found {num_steps!r}")
        self.num_steps = num_steps

    @property
    def transitions(self) -> int:
        """Rows of a rollout, reset steps included."""
        return self.num_envs * self.num_steps

    @torch.no_grad()
    def __call__(self, policy: SamplingPolicy) -> Rollout:
        if self.envs.observation is None:
            self._start(policy)
        player = Player(policy, self.envs)
        recording = Recording(player, self.generator, self.envs.first_step)
        if "tape" in player.methods and self.envs.action_mask is None:
            tape = player.methods["tape"](self.num_envs, self.num_steps)
            recording = TapedRecording(player, self.generator, self.envs.first_step, tape=tape)
        for _ in range(self.num_steps):
            recording.steps.append(self.envs.step(recording.act())._replace(observation=None))
        return recording.rollout()


class Episodes(Collector):
    """``num_episodes`` whole episodes from fresh starts (one for each environment unless given): an ``[num_envs, T]`` rollout.

    Every environment plays its share, all to the end, so that short episodes are not preferred (the first k to finish
    would be); T is the longest row, and shorter rows are masked behind their last episode. Episodes that do not divide
    evenly give the first environments one more.

    Raises:
        RunFault: an episode is longer than ``max_episode_steps``, which is there so that an environment without an end says so.
    """

    def __init__(self, envs: Envs, num_episodes: int | None = None, *, seed: int = 0, max_episode_steps: int = MAX_EPISODE_STEPS) -> None:
        super().__init__(envs, seed)
        count = envs.num_envs if num_episodes is None else num_episodes
        require(is_kind(count, int) and count >= 1, f"num_episodes: expected an integer ≥ 1, found {count!r}")
        what = f"expected at least one for each of the {envs.num_envs} environments, found {count}"
        require(count >= envs.num_envs, f"num_episodes: {what}; make fewer environments")
        require(max_episode_steps >= 1, f"max_episode_steps: expected an integer ≥ 1, found {max_episode_steps}")
        self.num_episodes, self.max_episode_steps = count, max_episode_steps

    @torch.no_grad()
    def __call__(self, policy: SamplingPolicy) -> Rollout:
        self._start(policy)
        recording = Recording(Player(policy, self.envs), self.generator, self.envs.first_step)
        share, rest = divmod(self.num_episodes, self.num_envs)
        play_episodes(recording, np.full(self.num_envs, share) + (np.arange(self.num_envs) < rest), self.max_episode_steps)
        return recording.rollout()


class GroupedEpisodes(Collector):
    """One whole episode of every environment, ``group_size`` of them from the same reset: a ``[groups, G, T]`` rollout of groups.

    Before each recording every group draws one seed from the collector's generator, and all its environments are reset
    with it: their first observations are equal (that is checked). What an environment draws later comes from that seed as well,
    so its randomness is the same only as long as the members act alike, and only as far as the reset seed fixes it; their actions
    are drawn apart. T is the longest episode; shorter rows are masked behind their end.

    ``max_steps`` is the longest that an episode may be: the environments' time limit unless given. ``average_over="constant"``
    divides by it.

    Raises:
        UsageError: a group of one, environments that do not divide into groups, or that cannot start alike (EnvPool's).
        RunFault: an episode is longer than ``max_steps``, or than 100,000 steps where nothing is known.
    """

    def __init__(self, envs: Envs, group_size: int = 8, *, max_steps: int | None = None, seed: int = 0) -> None:
        super().__init__(envs, seed)
        message = f"group_size: expected an integer ≥ 2, found {group_size!r}; there is nothing to compare a row with"
        require(is_kind(group_size, int) and group_size >= 2, message)
        groups, rest = divmod(envs.num_envs, group_size)
        message = f"group_size: {group_size} does not divide {envs.num_envs} environments; make {max(1, groups) * group_size} of them"
        require(not rest, message)
        require(max_steps is None or max_steps >= 1, f"max_steps: expected an integer ≥ 1 or none, found {max_steps}")
        hint = "make them with vectorization='sync' or 'async'"
        message = f"envs: {envs.env_id!r} took its seed when it was made (EnvPool), so no two environments can start alike; {hint}"
        require(not envs.seeded, message)
        self.group_size, self.num_groups = group_size, groups
        self.max_steps = envs.max_episode_steps if max_steps is None else max_steps

    @torch.no_grad()
    def __call__(self, policy: SamplingPolicy) -> Rollout:
        envs, size = self.envs, self.group_size
        drawn = torch.randint(2**31, (self.num_groups,), generator=self.generator).numpy().tolist()
        self._start(policy, [seed for seed in drawn for _ in range(size)])
        hint = "so a group has no common start; let its reset draw from self.np_random only"
        message = f"env {envs.env_id!r}: its first observations differ after a reset with the same seed, {hint}"
        require(same_in_groups(envs.observation, size), message)
        recording = Recording(Player(policy, envs), self.generator, envs.first_step)
        play_episodes(recording, np.ones(self.num_envs, np.int64), self.max_steps or MAX_EPISODE_STEPS)
        return map_tensors(recording.rollout(), lambda t: t.reshape(-1, size, *t.shape[1:]), unit="group", max_steps=self.max_steps)


def play_episodes(recording: Recording, left: Array, most: int) -> None:
    """Record until every environment has played the episodes that it has ``left [N]``; who is through is masked."""
    envs, normalizes = recording.player.envs, getattr(recording.player.policy, "observation_normalizer", None) is not None
    while left.any():
        live = left > 0
        if normalizes and not live.all():
            recording.live = live
        step = mask_finished(live, envs.step(recording.act()))
        recording.steps.append(step._replace(observation=None))
        left = left - (step.terminated | step.truncated)
        if int(envs.first_step[live].max()) >= most:
            hint = "give the environment a time limit, or collect with Steps"
            raise RunFault(f"environment {envs.env_id!r}: an episode did not end within {most} steps; {hint}")


def mask_finished(live: Array, step: Step) -> Step:
    """The step with the other rows masked: their episodes are complete."""
    if live.all():
        return step
    ended = np.flatnonzero(step.terminated | step.truncated)
    flags: dict[str, Any] = {name: getattr(step, name) & live for name in ("terminated", "truncated", "mask")}
    finished = [item for index, item in zip(ended, step.finished, strict=True) if live[index]]
    return step._replace(reward=np.where(live, step.reward, 0.0), finished=finished, **flags)


class Stream(Collector):
    """What an online method plays in: observe S, act, step to R and S′; ``num_steps`` of them make one iteration of a run.

    An iteration may begin and end anywhere in an episode, and its length changes nothing that is learned. After an end the
    environment is reset before the next :meth:`observe`; S′ is always the true successor.

    Raises:
        UsageError: more than one environment.
    """

    def __init__(self, envs: Envs, num_steps: int = 512, *, seed: int = 0) -> None:
        super().__init__(envs, seed)
        require(is_kind(num_steps, int) and num_steps >= 1, f"num_steps: expected an integer ≥ 1, found {num_steps!r}")
        require(envs.num_envs == 1, f"num_envs: a method that learns at every step plays in 1 environment, found {envs.num_envs}")
        self.num_steps = num_steps
        self._player: Player | None = None
        self._inputs: dict[str, Tensor] | None = None
        self._finished: list[tuple[float, int]] = []
        self._rewards: list[float] = []

    def state_dict(self) -> State:
        """With the state to act in, for encoding it again would count it twice."""
        return super().state_dict() | {"inputs": self._inputs, "finished": self._finished, "rewards": self._rewards}

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
        """An action ``[1, *]`` drawn from the policy; :class:`Diverged` where the numbers of that are not finite."""
        drawn = policy.sample(inputs, generator=self.generator)
        if not math.isfinite(float(drawn.log_prob.detach().sum())):
            raise Diverged("diverged: the policy's log-probability of its action is not finite; lower the learning rates")
        return drawn.action

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

    def _seen(self, policy: SamplingPolicy, answer: Step) -> float:
        normalizer = getattr(policy, "reward_normalizer", None)
        if normalizer is None:
            return float(answer.reward[0])
        normalizer.update(answer.reward, answer.terminated | answer.truncated, answer.mask)
        return float(normalizer(answer.reward)[0])

    def metrics(self) -> Metrics:
        """Number, mean return and mean length of the episodes that ended since the last call; without one the reward per step."""
        finished, rewards = [item for item in self._finished if item[0] == item[0]], self._rewards
        self._finished, self._rewards = [], []
        means = {name: sum(x) / len(x) for name, x in zip(EPISODE_METRICS, zip(*finished, strict=True), strict=False)}
        if not finished and rewards and not self.envs.clip_reward:
            means = {"reward_per_step": sum(rewards) / len(rewards)}
        return {"num_episodes": float(len(finished)), **means}
