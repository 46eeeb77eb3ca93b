"""The mistakes by name, each with one line, and which of them a shipped method makes on purpose."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope import functional as F
from upslope.algorithms import A2C, GRPO, NPG, PPO, REINFORCE, RLOO, AllActions, OffPolicyGradient, OnlineActorCritic
from upslope.algorithms import off_policy as off
from upslope.algorithms.grpo import ADVANTAGES
from upslope.algorithms.reinforce import full_trajectory, to_go
from upslope.functional import leave_one_out
from upslope.records import Algorithm

MISTAKES: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
"""Name → what is wrong, and what to do; from ``known_mistakes.toml``."""


@dataclass(frozen=True)
class Design:
    """A mistake that a shipped method makes on purpose: which settings do, and why."""

    mistake: str
    applies: Callable[[Any], bool]
    why: str


def no_weight(algorithm: Algorithm) -> bool:
    """Whether a method with γ < 1 leaves γ^t out."""
    return (
        isinstance(algorithm, A2C | PPO | NPG)
        or (isinstance(algorithm, AllActions) and algorithm.state_discount == 1.0)
        or (isinstance(algorithm, OnlineActorCritic) and not algorithm.discount_weight)
        or (isinstance(algorithm, REINFORCE) and algorithm.returns is to_go)
        or weighs(off.vtrace, off.per_step)(algorithm)
    )


def keeps_plain_mean(algorithm: Algorithm) -> bool:
    """Whether a group's mean holds the score that it is subtracted from."""
    function = getattr(algorithm, "advantage", None)
    function = getattr(function, "func", function)
    return isinstance(algorithm, GRPO) and function in ADVANTAGES.values() and function is not leave_one_out


def weighs(*estimators: Any) -> Callable[[Any], bool]:
    """Whether a method is off-policy learning with one of these estimators."""
    return lambda algorithm: isinstance(algorithm, OffPolicyGradient) and algorithm.estimator in estimators


BY_DESIGN = (
    Design("missing discount weight", no_weight, "left out as in every implementation: later steps keep their weight (Nota & Thomas 2020)"),
    Design(
        "discount restarted",
        lambda a: isinstance(a, REINFORCE) and a.returns is full_trajectory,
        "the full-trajectory form is of whole episodes, counted from their first recorded step",
    ),
    Design(
        "length bias",
        lambda a: isinstance(a, GRPO | RLOO) and a.average_over == "sequences",
        "average_over='sequences' is the paper's; 'constant' has no such bias",
    ),
    Design("group mean without G/(G-1)", keeps_plain_mean, "the group's plain mean is the paper's; only the step size shrinks"),
    Design(
        "importance weights cut",
        lambda a: weighs(*off.CAPPED)(a) and a.ratio_cap is not None,
        "weights are cut at ratio_cap: bounded variance for some bias (Ionides 2008; Espeholt et al. 2018)",
    ),
    Design(
        "importance weights cut",
        lambda a: isinstance(a, PPO | GRPO) and a.surrogate is F.truncated_score,
        "the ratio is capped and no step loses its gradient (MiniMax 2025)",
    ),
    Design(
        "per-step ratio",
        weighs(off.per_step),
        "estimator='per-step' is of the states and returns of the policy that acted; per-decision is unbiased",
    ),
    Design(
        "per-step ratio",
        lambda a: isinstance(a, PPO | NPG | GRPO | RLOO),
        "a surrogate for steps of a policy nearby: its slope is ∇J where the two agree (Kakade & Langford 2002)",
    ),
    Design("past ratio missing", weighs(off.vtrace), "V-trace leaves out how states are reached: Σ_s d^b Σ_a Q^π ∇π (Degris et al. 2012)"),
)
"""What shipped methods do on purpose; a finding that stands here breaks nothing."""


def reason(algorithm: Algorithm, mistake: str) -> str | None:
    """Why a shipped algorithm makes this mistake on purpose, or None."""
    return next((design.why for design in BY_DESIGN if design.mistake == mistake and design.applies(algorithm)), None)
