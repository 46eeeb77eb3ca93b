"""What a collector writes down, and how it becomes a :class:`~upslope.records.Rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from upslope.control.envs import Envs, Step
from upslope.control.heads import Head
from upslope.control.kinds import Array, Box, MultiDiscrete
from upslope.control.spaces import short
from upslope.errors import UsageError
from upslope.records import Metrics, Rollout
from upslope.typed import from_numpy

COLUMNS = ("reward", "terminated", "truncated", "mask")
EPISODE_METRICS = ("episode_return", "episode_length")  # means over the episodes that ended


class Player:
    """A policy in environments: what collectors also use of one where it has it, and in place of the rest what serves any policy.

    That is ``inputs(observation, *, action_mask, update)``, how raw observations become inputs; ``value(inputs)``, the critic alone;
    ``tape(num_envs, num_steps)``, a fast recorder; ``head``, what stored actions are outside; the environments' ``observation_space``
    and ``action_space``; and running moments, ``observation_normalizer`` and ``reward_normalizer``, each of which may be None.
    ``encode(observation, action_mask=None, update=False)`` gives the policy's inputs, ``to_env(action)`` stored actions as the
    environments take them. ``methods`` are those that the policy has; a layer ``self.value = nn.Linear(…)`` is none.
    """

    def __init__(self, policy: Any, envs: Any) -> None:
        self.policy, self.envs = policy, envs
        found = {name: getattr(policy, name, None) for name in ("inputs", "value", "tape", "act", "distribution")}
        self.methods: dict[str, Any] = {name: x for name, x in found.items() if callable(x) and not isinstance(x, nn.Module)}
        self.encode = self.methods.get("inputs", self._as_numbers)
        head = getattr(policy, "head", None)
        self.to_env = head.to_env if isinstance(head, Head) else self._in_space

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The critic's values ``[N, T]``: of ``policy.value`` where there is one, else what ``evaluate`` says beside its scores."""
        critic, states = self.methods.get("value"), {name: tensor for name, tensor in inputs.items() if name != "action"}
        value = self.policy.evaluate(**inputs).value if critic is None else critic(states)
        if value is not None and value.shape != (shape := next(iter(inputs.values())).shape[:2]):
            raise misshapen("the critic returned value", value, shape)
        return value

    def _as_numbers(self, observation: Any, *, action_mask: Array | None = None, update: bool | Array = False) -> dict[str, Tensor]:
        """For a policy without ``inputs``: one float tensor ``observation``."""
        if not isinstance(observation, np.ndarray):
            name, space = type(self.policy).__name__, self.envs.observation_space
            raise UsageError(f"policy: {name} needs a method inputs(observation, …), because observations are {space}")
        inputs = {"observation": from_numpy(np.array(observation, dtype=np.float32))}
        return inputs if action_mask is None else {**inputs, "action_mask": from_numpy(action_mask)}

    def _in_space(self, action: Tensor) -> Array:
        """For a policy without a head: clipped to a Box, or counted from a start."""
        array: Array = action.cpu().numpy()
        space: Space[Any] = self.envs.action_space
        shape = (self.envs.num_envs, *(space.shape or ()))
        if array.shape != shape:
            raise UsageError(f"policy: sample returned an action of shape {array.shape}, the environments take {shape}")
        if isinstance(space, Box):
            return np.clip(array, space.low, space.high).astype(space.dtype, copy=False)
        if isinstance(space, (spaces.Discrete, MultiDiscrete)):
            count = space.n if isinstance(space, spaces.Discrete) else space.nvec
            if array.dtype.kind not in "iu" or (array < 0).any() or (array >= count).any():
                message = f"policy: sample returned actions {array.min()} to {array.max()} ({array.dtype}) for {space}, counted from 0"
                raise UsageError(message)
            return array + space.start
        return array


def check_spaces(policy: object, envs: Envs) -> None:
    for kind in ("observation_space", "action_space"):
        made, here = getattr(policy, kind, None), getattr(envs, kind)
        if isinstance(made, spaces.Space) and made != here:
            raise UsageError(f"policy: it was made for {kind} {short(made)}, the environment {envs.env_id} has {short(here)}")


def takes_observations_as_they_are(policy: object, envs: Envs) -> bool:
    """Whether encoding would only flatten: a Box of floats, not normalized."""
    space, normalizer = envs.observation_space, getattr(policy, "observation_normalizer", None)
    return isinstance(space, Box) and space.dtype.kind == "f" and normalizer is None


def counts_from_0(envs: Envs) -> bool:
    """Whether stored actions are in the environment's units."""
    return isinstance(envs.action_space, spaces.Discrete) and envs.action_space.start == 0


@dataclass
class Recording:
    """Lists with one entry a step, each ``[N, …]``; they become ``[N, T, …]`` at the end.

    ``first_step`` is the environments' when it begins. ``live`` are the rows that are still played, all unless given: only their
    observations reach the running moments. ``inputs`` hold the action too, and the observation of a step, which ``steps`` need not keep.
    """

    player: Player
    generator: torch.Generator
    first_step: Array
    live: bool | Array = True
    inputs: list[dict[str, Tensor]] = field(default_factory=list[dict[str, Tensor]])
    log_prob: list[Tensor] = field(default_factory=list[Tensor])
    steps: list[Step] = field(default_factory=list[Step])

    def act(self) -> Array:
        player, envs = self.player, self.player.envs
        inputs = player.encode(envs.observation, action_mask=envs.action_mask, update=self.live)
        sample = player.policy.sample(inputs, generator=self.generator)
        self.inputs.append({**inputs, "action": sample.action})
        self.log_prob.append(sample.log_prob)
        return player.to_env(sample.action)

    def acted(self) -> tuple[dict[str, Tensor], Tensor]:
        """``(inputs, log_prob)``, each ``[N, T, …]``."""
        first, last = self.inputs[0], self.inputs[-1]
        if len(last) > len(first):  # an action mask that only appeared with a step's info: before it, all was legal
            late = {name: torch.ones_like(tensor) for name, tensor in last.items() if name not in first}
            self.inputs = [{**late, **inputs} for inputs in self.inputs]
        return {name: torch.stack([inputs[name] for inputs in self.inputs], 1) for name in last}, torch.stack(self.log_prob, 1)

    def rollout(self) -> Rollout:
        """The recording as tensors, with the critic's values from one pass over all of it, if the policy has a critic."""
        player, envs, steps, normalizer = self.player, self.player.envs, self.steps, getattr(self.player.policy, "reward_normalizer", None)
        inputs, log_prob = self.acted()
        if log_prob.shape != (envs.num_envs, len(steps)):
            raise misshapen("sample returned log_prob", log_prob, (envs.num_envs, len(steps)))
        final = {**player.encode(envs.observation, action_mask=envs.action_mask), "action": inputs["action"][:, -1]}
        values = player.value({name: torch.cat([tensor, final[name].unsqueeze(1)], 1) for name, tensor in inputs.items()})
        value, next_value = (None, None) if values is None else (values[:, :-1].contiguous(), values[:, 1:].contiguous())
        if next_value is not None and any(step.successors for step in steps):
            put_replaced(player, next_value, inputs["action"], self.successors(inputs))
        columns = {name: np.array([getattr(step, name) for step in steps]).T.copy() for name in COLUMNS}
        columns["reward"] = columns["reward"].astype(np.float32) if normalizer is None else self.normalized(normalizer)
        columns["first_step"] = self.first_step
        tensors: dict[str, Any] = {name: from_numpy(column).to(log_prob.device) for name, column in columns.items()}
        finished = [item for step in steps for item in step.finished if item[0] == item[0]]
        means = {name: sum(x) / len(x) for name, x in zip(EPISODE_METRICS, zip(*finished, strict=True), strict=False)}
        metrics = {"num_episodes": float(len(finished)), **(means or self.reward_per_step())}
        return Rollout(inputs=inputs, behavior_log_prob=log_prob, value=value, next_value=next_value, metrics=metrics, **tensors)

    def normalized(self, normalizer: Any) -> Array:
        for step in self.steps:
            normalizer.update(step.reward, step.terminated | step.truncated, step.mask)
        return normalizer(np.stack([step.reward for step in self.steps], 1))

    def reward_per_step(self) -> Metrics:
        """Where no episode ended: what the environments paid on average, unscaled; of clipped rewards that is not known."""
        envs, mask = self.player.envs, np.array([step.mask for step in self.steps])
        if envs.clip_reward or not mask.any():
            return {}
        return {"reward_per_step": float(np.array([step.reward for step in self.steps])[mask].mean() / envs.reward_scale)}

    def successors(self, inputs: Mapping[str, Tensor]) -> Replaced:
        """The true successors whose observations were replaced by those of the next episode: where they stood, and their inputs."""
        seen = [(t, step.successor_masks, *step.successors) for t, step in enumerate(self.steps) if step.successors is not None]
        rows = from_numpy(np.concatenate([indices for _, _, indices, _ in seen])).to(inputs["action"].device)
        column = torch.tensor([t for t, _, indices, _ in seen for _ in indices], device=rows.device)
        encoded: list[dict[str, Tensor]] = []
        for _, mask, indices, observation in seen:
            if mask is None and "action_mask" in inputs:  # everything is legal where the environments do not say
                mask = np.ones((len(indices), inputs["action_mask"].shape[-1]), np.bool_)
            encoded.append(self.player.encode(observation, action_mask=mask if "action_mask" in inputs else None))
        return (rows, column), {name: torch.cat([item[name] for item in encoded]) for name in encoded[0]}


@dataclass
class TapedRecording(Recording):
    """One whose policy's part is on a ``tape`` (:mod:`upslope.fast.step`): a compiled policy's, for recordings of known length."""

    tape: Any = None

    def __post_init__(self) -> None:
        self.tape.begin(self.generator)
        self._as_they_are = takes_observations_as_they_are(self.player.policy, self.player.envs)
        self._counts_from_0 = counts_from_0(self.player.envs)

    def act(self) -> Array:
        envs, tape, t = self.player.envs, self.tape, len(self.steps)
        if tape is None:
            return super().act()
        if envs.action_mask is not None:  # it came up with a step's info: go on step by step, as if it had been so from the start
            tape.stop(t)
            acted = zip(tape.observation[:t], tape.action[:t], strict=True)
            self.inputs = [{"observation": row, "action": action} for row, action in acted]
            self.log_prob, self.tape = list(tape.log_prob[:t]), None
            return super().act()
        if self._as_they_are:
            tape.rows[t][:] = envs.observation.reshape(envs.num_envs, -1)
        else:
            tape.rows[t][:] = self.player.encode(envs.observation, update=True)["observation"].numpy()
        action = tape.act(t)
        return action if self._counts_from_0 else self.player.to_env(tape.actions[t])

    def acted(self) -> tuple[dict[str, Tensor], Tensor]:
        if self.tape is None:
            return super().acted()
        columns = (self.tape.observation, self.tape.action, self.tape.log_prob)
        observation, action, log_prob = (x.transpose(0, 1).clone(memory_format=torch.contiguous_format) for x in columns)
        return {"observation": observation, "action": action}, log_prob


Replaced = tuple[tuple[Tensor, Tensor], dict[str, Tensor]]
"""Rows and columns ``[K]`` whose true successors the next columns do not show, and the successors' inputs ``[K, …]``."""


def put_replaced(player: Player, next_value: Tensor, action: Tensor, replaced: Replaced) -> None:
    """The critic's values of replaced successors, where ``next_value [N, T]`` has those of the next episodes' first states."""
    at, after = replaced
    result = player.value({name: x.unsqueeze(1) for name, x in {**after, "action": action[at]}.items()})
    if result is None:
        raise UsageError("policy: its critic valued the states that it acted in, and gave None for their successors")
    next_value[at] = result.squeeze(1)


def misshapen(what: str, tensor: Tensor, expected: tuple[int, ...]) -> UsageError:
    """[N] against [N, 1] would broadcast to [N, N] further on, silently."""
    message = f"policy: {what} of shape {tuple(tensor.shape)} for a recording of shape {tuple(expected)} (one number for each step)"
    return UsageError(message)
