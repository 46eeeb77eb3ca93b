"""Gradient ascent on the exact objective: what every method of this library estimates."""

from __future__ import annotations

import torch

from upslope.tabular import exact
from upslope.tabular.arguments import check_number, check_whole
from upslope.tabular.chains import TabularPolicy
from upslope.tabular.enumeration import parameters_of
from upslope.tabular.gradients import gradient
from upslope.tabular.mdp import MDP


def ascend(mdp: MDP, policy: TabularPolicy, gamma: float, *, learning_rate: float, num_steps: int) -> list[float]:
    """``θ ← θ + α ∇J(θ)``, ``num_steps`` times, in place; returns J before each step. Source: SB eq. 13.1."""
    check_number("learning_rate", learning_rate, 0.0)
    check_whole("num_steps", num_steps, 0)
    history: list[float] = []
    parameters = parameters_of(policy)
    for _ in range(num_steps):
        history.append(exact.objective(mdp, policy, gamma).item())
        steps = gradient(mdp, policy, gamma).split([p.numel() for p in parameters])
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter += learning_rate * step.view_as(parameter)
    return history
