"""A recorded episode played to a method that learns at every step, whose updates are kept apart: its estimate of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from upslope.records import Metrics, Policy, Rollout, Transition
from upslope.tabular.policies import SoftmaxPolicy


class RecordedStream:
    """Row ``row`` of a recording as the stream that an online algorithm plays in; the actions are those recorded."""

    def __init__(self, rollout: Rollout, row: int) -> None:
        self.rollout, self.row, self.t = rollout, row, 0

    @property
    def num_steps(self) -> int:
        return int(self.rollout.mask[self.row].sum())

    def at(self, x: Tensor, t: int) -> Tensor:
        return x[self.row, t : t + 1]

    def observe(self, policy: Policy) -> dict[str, Tensor]:
        return {"observation": self.at(self.rollout.inputs["observation"], self.t)}

    def act(self, policy: Policy, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.at(self.rollout.inputs["action"], self.t)

    def step(self, policy: Policy, action: Tensor) -> Transition:
        """S′ is a state that has the recorded value of the true successor: nothing else of it is asked for."""
        r, t = self.rollout, self.t
        self.t += 1
        assert r.next_value is not None
        alike = (cast(Tensor, cast(SoftmaxPolicy, policy).values()).detach() - r.next_value[self.row, t]).abs().argmin()
        return Transition(
            reward=float(r.reward[self.row, t]),
            terminated=bool(r.terminated[self.row, t]),
            truncated=bool(r.truncated[self.row, t]),
            next_inputs={"observation": alike.unsqueeze(0)},
        )

    def metrics(self) -> Metrics:
        return {}


def online_update(algorithm: Any, policy: Policy, rollout: Rollout) -> list[Tensor]:
    """What an online algorithm adds to the parameters over the rows of a recording, divided by its step size and their number.

    The policy stays as it is meanwhile (offline updates, SB section 12.1), so that the sum over an episode has an expectation that
    can be compared with ∇J. The critic's steps are not counted.
    """
    if hasattr(algorithm, "average_reward_rate"):  # the rewards it is shown have had their average taken off
        algorithm = replace(algorithm, average_reward_rate=0.0)
    sums = [torch.zeros_like(p) for p in policy.parameters()]
    for row in range(len(rollout.mask)):
        state = algorithm.start(policy, seed=0)
        state.targets = sums
        algorithm.learn(policy, RecordedStream(rollout, row), state)
    return [x.detach() / (algorithm.learning_rate * len(rollout.mask)) for x in sums]
