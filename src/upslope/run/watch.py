"""A look at a run in progress: how far its weights have moved, and what does not go well, each thing said once."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from upslope.records import Policy, State
from upslope.run.health import LIVE_AFTER, findings
from upslope.run.history import History

SAMPLE = 1024
"""Weights of each tensor that are looked at, evenly spread."""


class Watch:
    """``weight_change()`` is the way of the actor's weights since it was last asked, as a share of their length."""

    def __init__(self, policy: Policy) -> None:
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        critic = getattr(policy, "critic", None)
        only_critic = {id(parameter) for parameter in critic.parameters()} if isinstance(critic, nn.Module) else set[int]()
        self.weights = [parameter for parameter in trained if id(parameter) not in only_critic] or trained
        self.before: Sequence[Tensor] = [sample.clone() for sample in self.samples()]
        self.said: list[str] = []

    def samples(self) -> Iterator[Tensor]:
        weights = (weight.detach().reshape(-1) for weight in self.weights)
        return (weight[:: max(1, weight.numel() // SAMPLE)].float() for weight in weights)

    def weight_change(self) -> float:
        now = [sample.clone() for sample in self.samples()]
        moved = sum(float((new - old).square().sum()) for new, old in zip(now, self.before, strict=True))
        length, self.before = sum(float(new.square().sum()) for new in now), now
        return math.sqrt(moved / length) if length > 0 and math.isfinite(moved) else 0.0

    def look(self, history: History, fraction: float) -> list[str]:
        """What has not been said before, after this ``fraction`` of the budget."""
        found = [] if fraction < LIVE_AFTER else [finding for finding in findings(history, live=True) if finding.rule not in self.said]
        self.said += [finding.rule for finding in found]
        return [f"warning: {finding}" for finding in found]

    def state_dict(self) -> State:
        return {"before": list(self.before), "said": self.said}

    def load_state_dict(self, state: State) -> None:
        self.before = [old.to(now.device) for old, now in zip(state["before"], self.samples(), strict=True)]
        self.said = list(state["said"])
