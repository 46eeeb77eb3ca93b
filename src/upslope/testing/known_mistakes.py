"""The mistakes by name, each with one line, and which of them a shipped method makes on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from upslope import functional as F
from upslope.algorithms import A2C, GRPO, NPG, PPO, REINFORCE, RLOO, AllActions, OffPolicyGradient, OnlineActorCritic
from upslope.algorithms import off_policy as off
from upslope.algorithms.grpo import ADVANTAGES
from upslope.algorithms.reinforce import full_trajectory, to_go
from upslope.functional import leave_one_out
from upslope.records import Algorithm

MISTAKES = {
    "missing discount weight": "γ^t is missing: returns are discounted, and the steps they belong to are not, which is the gradient of "
    "no objective; multiply by F.discount_weight, or take gamma = 1",
    "discount applied twice": "γ is applied twice: to the returns and once more; discount each reward once, by its distance from t",
    "discount restarted": "γ^t restarts inside an episode: count t from the episode's start, which rollout.first_step knows",
    "wrong sign": "it points down: the library maximizes, and the update rule holds the one minus sign",
    "truncation taken for termination": "what follows a truncation counts as 0: only the recording stops there; add γ V(next state)",
    "termination taken for truncation": "a terminal state's value is bootstrapped: nothing follows it; multiply the value by 1 − "
    "terminated",
    "ends do not cut": "episodes in one row run into each other: terminated | truncated cuts every recursion and restarts γ^t",
    "off by one": "each action is credited with the return of the step after it: G_t begins with the reward of step t",
    "reward of the next step": "δ_t takes the reward of step t + 1: it is r_t + γ V(s_{t+1}) − V(s_t), with the reward that followed a_t",
    "later rewards left out": "an action is credited with its own reward and with nothing that follows: add γ V(s_{t+1}), the value of the "
    "next state and not of this one, or sum the return backwards from the end",
    "value of the same state": "δ_t takes V(s_t) for what follows: it is r_t + γ V(s_{t+1}) − V(s_t), with the value of the next state",
    "temporal-difference sign": "the critic's signs in δ are the wrong way round: δ_t = r_t + γ V(s_{t+1}) − V(s_t)",
    "log-probabilities shifted": "log-probabilities and advantages are one step apart: that of step t belongs to the action taken at t",
    "baseline depends on the action": "the baseline contains what the action decides: subtract only what is known before it, V(s_t) say",
    "advantage carries gradient": "the advantage is differentiated as well: detach it, and the values in it",
    "group mean without G/(G-1)": "the mean holds the row's own score, which shrinks the gradient by (G − 1)/G; take F.leave_one_out",
    "k1 in the objective": "the KL term has gradient 0 in expectation: log π − log π_ref as a loss teaches nothing; take k2 or k3, or "
    "put k1 in the reward",
    "k2 or k3 in the reward": "the KL in the reward is an estimate whose score-function gradient is no KL's: there it is k1, log π − log "
    "π_ref; k2 and k3 belong into the objective",
    "k3 with swapped arguments": "the two log-probabilities in k3 are the wrong way round: it is exp(log π_ref − log π) − (log π_ref − log "
    "π) − 1",
    "entropy of the action taken": "the entropy bonus is −log π of the action taken, whose gradient is 0 in expectation: take that of the "
    "distribution, −Σ_a π log π; if it is meant as a constant baseline, say by_design",
    "padding leaks": "masked entries or their number change the estimate: hide them with torch.where and count with the mask",
    "entropy on masked steps": "the entropy of masked steps is counted: weight it with the mask like everything else",
    "mean of micro-batch means": "the means of parts are averaged, or do not add up: long and short parts weigh the same; take weights "
    "over the whole batch and add the parts",
    "normalized per micro-batch": "each part of the batch is normalized by itself: normalize once, over the whole batch",
    "length bias": "each row is divided by its own length, which prefers short good rows and long bad ones; divide by a constant",
    "importance weight missing": "steps of another policy count as its own: multiply by π(a|s) / b(a|s)",
    "per-step ratio": "each step is weighed with its own ratio alone, which corrects neither how its state was reached nor what followed; "
    "multiply the ratios up to each reward, or, where only a policy nearby acts, say by_design or off_policy=False",
    "past ratio missing": "the ratios of the steps before are missing: states are as frequent as the other policy makes them; begin the "
    "product at the episode's start",
    "later ratios missing": "the ratios of the steps after are missing: the return is what the other policy earned from there; multiply "
    "the ratios up to each reward",
    "importance weights cut": "large importance weights are cut, which bounds the variance and biases as far as they are cut",
    "ratio inverted": "the importance ratio is upside down: it is π(a|s) / b(a|s), the policy over the one that acted",
    "clip on the wrong side": "the clip takes the gradient from steps that moved the wrong way: for A > 0 it acts above 1 + ε only, for "
    "A < 0 below 1 − ε only",
    "not finite": "the estimate is not finite: rows that are all alike have no spread to divide by, and masked entries are hidden "
    "before exp",
    "no gradient": "the estimate is 0 whatever happens: nothing would be learned",
    "biased by no known mistake": "its expectation is the gradient of no objective, and none of the known mistakes explains it",
}
"""Name → what is wrong, and what to do."""


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
    Design(
        "past ratio missing",
        weighs(off.vtrace),
        "V-trace leaves out how states are reached: Σ_s d^b Σ_a Q^π ∇π (Degris et al. 2012)",
    ),
)
"""What shipped methods do on purpose; a finding that stands here breaks nothing."""


def reason(algorithm: Algorithm, mistake: str) -> str | None:
    """Why a shipped algorithm makes this mistake on purpose, or None."""
    return next((design.why for design in BY_DESIGN if design.mistake == mistake and design.applies(algorithm)), None)
