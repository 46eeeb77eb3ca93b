"""What a collector writes down, and how it becomes a :class:`~upslope.records.Rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.control.envs import Envs, Step
from upslope.control.head import Head
from upslope.control.spaces import short
from upslope.control.trees import Array
from upslope.errors import UsageError
from upslope.records import Metrics, Rollout, SamplingPolicy


class HasNormalizers(Protocol):
    """A policy that keeps running moments of observations and rewards, each of which may be None."""

    observation_normalizer: Any
    reward_normalizer: Any


class ForEnvs(SamplingPolicy, HasNormalizers, Protocol):
    """What collectors also use of a policy where it has it: how raw observations become inputs, the critic alone, the environments'
    spaces, the head that says what stored actions are outside, a fast recorder."""

    observation_space: Any
    action_space: Any
    head: Head

    def inputs(self, observation: Any, *, action_mask: Any = None, update: bool | Array = False) -> dict[str, Tensor]: ...

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor | None: ...

    def tape(self, num_envs: int, num_steps: int) -> Any: ...


def method(policy: SamplingPolicy, name: str) -> Any:
    """The policy's method of that name (see :class:`ForEnvs`), None without one; a layer ``self.value = nn.Linear(…)`` is not a method."""
    found = getattr(policy, name, None)
    return None if isinstance(found, nn.Module) or not callable(found) else found


def encode(
    policy: SamplingPolicy, envs: Any, observation: Any, *, action_mask: Array | None = None, update: bool | Array = False
) -> dict[str, Tensor]:
    """A batch of raw observations as the policy's inputs; a policy without ``inputs`` gets one float tensor ``observation``."""
    if (inputs := method(policy, "inputs")) is not None:
        return inputs(observation, action_mask=action_mask, update=update)
    if not isinstance(observation, np.ndarray):
        raise UsageError(
            f"policy: {type(policy).__name__} needs a method inputs(observation, …), because observations are {envs.observation_space}"
        )
    inputs = {"observation": torch.from_numpy(np.array(observation, dtype=np.float32))}
    return inputs if action_mask is None else {**inputs, "action_mask": torch.from_numpy(action_mask)}


def check_spaces(policy: object, envs: Envs) -> None:
    """Refuse environments that a policy with spaces of its own was not made for."""
    for kind in ("observation_space", "action_space"):
        made, here = getattr(policy, kind, None), getattr(envs, kind)
        if isinstance(made, spaces.Space) and made != here:
            raise UsageError(f"policy: it was made for {kind} {short(made)}, the environment {envs.env_id} has {short(here)}")


def to_env(policy: SamplingPolicy, envs: Envs, action: Tensor) -> Array:
    """Stored actions as the environment takes them: by the policy's head, else clipped to a Box or counted from a start."""
    head = getattr(policy, "head", None)
    if isinstance(head, Head):
        return head.to_env(action)
    array, space = action.cpu().numpy(), envs.action_space
    shape = (envs.num_envs, *(space.shape or ()))
    if array.shape != shape:
        raise UsageError(f"policy: sample returned an action of shape {array.shape}, the environments take {shape}")
    if isinstance(space, spaces.Box):
        return np.clip(array, space.low, space.high).astype(space.dtype, copy=False)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        count = space.n if isinstance(space, spaces.Discrete) else space.nvec
        if array.dtype.kind not in "iu" or (array < 0).any() or (array >= count).any():
            raise UsageError(f"policy: sample returned actions {array.min()} to {array.max()} ({array.dtype}) for {space}, counted from 0")
        return array + space.start
    return array


def takes_observations_as_they_are(policy: object, envs: Envs) -> bool:
    """Whether encoding would only flatten: a Box of floats, not normalized."""
    space, normalizer = envs.observation_space, getattr(policy, "observation_normalizer", None)
    return isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind == "f" and normalizer is None


def counts_from_0(envs: Envs) -> bool:
    """Whether stored actions are the environment's own."""
    return isinstance(envs.action_space, spaces.Discrete) and envs.action_space.start == 0


@dataclass
class Recording:
    """Lists with one entry a step, each ``[N, …]``; they become ``[N, T, …]`` at the end.

    With a ``tape`` (:mod:`upslope.fast.tape`: a compiled policy's, for recordings of known length) the policy's part is written
    there instead.
    """

    envs: Envs
    policy: Any
    generator: torch.Generator
    tape: Any = None
    live: Array | None = None
    """rows that are still played, all unless given: only their observations reach the running moments"""
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    action: list[Tensor] = field(default_factory=list)
    log_prob: list[Tensor] = field(default_factory=list)
    reward: list[Array] = field(default_factory=list)
    terminated: list[Array] = field(default_factory=list)
    truncated: list[Array] = field(default_factory=list)
    mask: list[Array] = field(default_factory=list)
    successors: list[tuple[int, Array, Any]] = field(default_factory=list)
    successor_masks: list[Array | None] = field(default_factory=list)
    finished: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first_step = self.envs.first_step
        if self.tape is not None:
            self.tape.begin(self.generator)
            self._as_they_are = takes_observations_as_they_are(self.policy, self.envs)
            self._counts_from_0 = counts_from_0(self.envs)

    def act(self) -> Array:
        """The policy's actions for what the environments show, as they take them."""
        envs, policy = self.envs, self.policy
        if self.tape is not None:
            if envs.action_mask is None:
                return self._act_on_tape(len(self.reward))
            self._leave_tape()
        inputs = encode(policy, envs, envs.observation, action_mask=envs.action_mask, update=True if self.live is None else self.live)
        sample = policy.sample(inputs, generator=self.generator)
        self.inputs.append(inputs)
        self.action.append(sample.action)
        self.log_prob.append(sample.log_prob)
        return to_env(policy, envs, sample.action)

    def _act_on_tape(self, t: int) -> Array:
        envs, tape = self.envs, self.tape
        if self._as_they_are:
            tape.rows[t][:] = envs.observation.reshape(envs.num_envs, -1)
        else:
            tape.rows[t][:] = encode(self.policy, envs, envs.observation, update=True)["observation"].numpy()
        action = tape.act(t)
        return action if self._counts_from_0 else to_env(self.policy, envs, tape.actions[t])

    def _leave_tape(self) -> None:
        """An environment came up with an action mask: go on step by step, as if it had been so from the start."""
        tape, taken = self.tape, len(self.reward)
        tape.stop(taken)
        self.inputs = [{"observation": row} for row in tape.observation[:taken]]
        self.action = list(tape.action[:taken])
        self.log_prob = list(tape.log_prob[:taken])
        self.tape = None

    def _acted(self) -> tuple[dict[str, Tensor], Tensor]:
        """``(inputs, log_prob)``, each ``[N, T, …]``."""
        if self.tape is not None:
            tape = self.tape
            observation, action, log_prob = (
                x.transpose(0, 1).clone(memory_format=torch.contiguous_format) for x in (tape.observation, tape.action, tape.log_prob)
            )
            return {"observation": observation, "action": action}, log_prob
        last = self.inputs[-1]
        if len(last) > len(self.inputs[0]):  # an action mask that only appeared with a step's info: before it, all was legal
            late = {name: torch.ones_like(tensor) for name, tensor in last.items() if name not in self.inputs[0]}
            self.inputs = [{**late, **inputs} for inputs in self.inputs]
        stacked = {name: torch.stack([inputs[name] for inputs in self.inputs], 1) for name in last}
        return {**stacked, "action": torch.stack(self.action, 1)}, torch.stack(self.log_prob, 1)

    def add(self, step: Step) -> None:
        """What the environments answered."""
        if step.successors is not None:
            self.successors.append((len(self.reward), *step.successors))
            self.successor_masks.append(step.successor_masks)
        self.reward.append(step.reward)
        self.terminated.append(step.terminated)
        self.truncated.append(step.truncated)
        self.mask.append(step.mask)
        self.finished += step.finished

    def rollout(self) -> Rollout:
        """The recording as tensors, with the critic's values from one pass over all of it, if the policy has a critic."""
        inputs, log_prob = self._acted()
        shape = (self.envs.num_envs, len(self.reward))
        _check_shape("sample returned log_prob", log_prob, shape)
        value, next_value = self._values(inputs)
        reward, terminated, truncated, mask = (
            torch.from_numpy(np.ascontiguousarray(np.array(columns).T)).to(log_prob.device)
            for columns in (self._seen_reward(), self.terminated, self.truncated, self.mask)
        )
        return Rollout(
            inputs=inputs,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            mask=mask,
            behavior_log_prob=log_prob,
            value=value,
            next_value=next_value,
            first_step=torch.from_numpy(self.first_step).to(log_prob.device),
            metrics=episode_metrics(self.finished) if self.finished else {"num_episodes": 0.0, **self._reward_per_step()},
        )

    def _reward_per_step(self) -> Metrics:
        """Where no episode ended: what the environments paid on average, unscaled; of clipped rewards that is not known."""
        mask = np.array(self.mask)
        if self.envs.clip_reward or not mask.any():
            return {}
        return {"reward_per_step": float(np.array(self.reward)[mask].mean() / self.envs.reward_scale)}

    def _seen_reward(self) -> Array:
        """``[T, N]`` rewards as the learner sees them: divided by the running scale if the policy keeps one."""
        normalizer = getattr(self.policy, "reward_normalizer", None)
        reward = np.array(self.reward)
        if normalizer is None:
            return reward.astype(np.float32)
        for raw, terminated, truncated, mask in zip(self.reward, self.terminated, self.truncated, self.mask, strict=True):
            normalizer.update(raw, terminated | truncated, mask)
        return normalizer(reward)

    def _values(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """``(value, next_value)``, each ``[N, T]``: of what was acted on, and of each step's true successor."""
        envs, policy = self.envs, self.policy
        final = encode(policy, envs, envs.observation, action_mask=envs.action_mask)
        final["action"] = inputs["action"][:, -1]
        extended = {name: torch.cat([tensor, final[name].unsqueeze(1)], 1) for name, tensor in inputs.items()}
        if not self.successors:
            return values_and_next(policy, extended)
        index = torch.from_numpy(np.concatenate([indices for _, indices, _ in self.successors])).to(final["action"].device)
        column = torch.tensor([t for t, indices, _ in self.successors for _ in indices], device=index.device)
        masks = None if (legal := inputs.get("action_mask")) is None else self._masks_of_successors(legal.shape[-1])
        encoded = [
            encode(policy, envs, seen, action_mask=None if masks is None else masks[i]) for i, (*_, seen) in enumerate(self.successors)
        ]
        after = {name: torch.cat([item[name] for item in encoded]) for name in encoded[0]}
        return values_and_next(policy, extended, (index, column), after)

    def _masks_of_successors(self, choices: int) -> list[Array]:
        """What is legal in each replaced successor; everything where the environments do not say."""
        return [
            np.ones((len(rows), choices), np.bool_) if mask is None else mask
            for (_, rows, _), mask in zip(self.successors, self.successor_masks, strict=True)
        ]


def values_and_next(
    policy: SamplingPolicy, extended: dict[str, Tensor], at: tuple[Tensor, Tensor] | None = None, after: Mapping[str, Tensor] | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """``(value, next_value)``, each ``[N, T]``, from inputs ``[N, T + 1, …]``: the next column's value, but for replaced successors.

    Those stood at rows and columns ``at`` and have the inputs ``after [K, …]``.
    """
    values = value_of(policy, extended)
    if values is None:
        return None, None
    value, next_value = values[:, :-1].contiguous(), values[:, 1:].contiguous()
    if at is not None and after is not None:  # their observations were replaced by those of the next episode
        inputs = {name: tensor.unsqueeze(1) for name, tensor in after.items()}
        inputs["action"] = extended["action"][at].unsqueeze(1)
        result = value_of(policy, inputs)
        if result is None:
            raise UsageError("policy: its critic valued the states that it acted in, and gave None for their successors")
        next_value[at] = result.squeeze(1)
    return value, next_value


def value_of(policy: SamplingPolicy, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The critic's values ``[N, T]``: of ``policy.value`` where there is one, else what ``evaluate`` says beside its scores."""
    if (critic := method(policy, "value")) is not None:
        value = critic({name: tensor for name, tensor in inputs.items() if name != "action"})
    else:
        value = policy.evaluate(**inputs).value
    if value is not None:
        _check_shape("the critic returned value", value, tuple(next(iter(inputs.values())).shape[:2]))
    return value


def _check_shape(what: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """[N] against [N, 1] would broadcast to [N, N] further on, silently."""
    if tuple(tensor.shape) != expected:
        raise UsageError(f"policy: {what} of shape {tuple(tensor.shape)} for a recording of shape {expected} (one number for each step)")


def episode_metrics(finished: list[tuple[float, int]]) -> Metrics:
    """Mean return and length of the episodes that ended; without one there is no mean to give."""
    metrics: Metrics = {"num_episodes": float(len(finished))}
    if finished:
        metrics["episode_return"] = sum(item[0] for item in finished) / len(finished)
        metrics["episode_length"] = sum(item[1] for item in finished) / len(finished)
    return metrics
