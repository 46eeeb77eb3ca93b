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
    for _ in range(num_steps):
        history.append(exact.objective(mdp, policy, gamma).item())
        step = gradient(mdp, policy, gamma)
        with torch.no_grad():
            for parameter, change in zip(parameters_of(policy), split(step, policy), strict=True):
                parameter += learning_rate * change
    return history


def split(flat: torch.Tensor, policy: TabularPolicy) -> list[torch.Tensor]:
    """A flat vector ``[P]`` in the shapes of the policy's parameters."""
    parameters = parameters_of(policy)
    return [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)]
