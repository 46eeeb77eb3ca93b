"""Which actions are legal: ``info["action_mask"]`` of a vector environment as one bool array ``[N, choices]``."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space, spaces

from upslope.control.trees import Array


class ActionMasks:
    """Reads masks for one action space: n choices of Discrete, the factors of MultiDiscrete side by side.

    Every method raises ``ValueError`` for masks that do not fit.
    """

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        self.space = space
        self.num_envs = num_envs
        self._cuts: list[int] = []
        self.num_choices = 0
        if isinstance(space, spaces.Discrete):
            self.num_choices = int(space.n)
        elif isinstance(space, spaces.MultiDiscrete):
            *self._cuts, self.num_choices = np.cumsum(space.nvec.ravel()).tolist()

    def read(self, info: dict[str, Any]) -> Array:
        """``[N, choices]``; environments whose row Gymnasium's ``_action_mask`` marks as missing have every action."""
        mask = np.ones((self.num_envs, self.num_choices), dtype=np.bool_)
        given = info.get("action_mask")
        if given is None:
            return mask
        if not self.num_choices:
            raise ValueError(f"info has an action_mask, but masks are for Discrete and MultiDiscrete actions, not {self.space}")
        present = info.get("_action_mask")
        for index in range(self.num_envs) if present is None else np.flatnonzero(present):
            row = given[index]
            row = np.concatenate([np.ravel(part) for part in row]) if isinstance(row, (tuple, list)) else np.ravel(row)
            if row.shape != (self.num_choices,):
                raise ValueError(f"action_mask has {row.size} entries, the action space has {self.num_choices} choices")
            mask[index] = row != 0
        return mask

    def check_legal(self, mask: Array) -> None:
        """Every factor of every environment's action needs a legal choice."""
        legal = np.stack([part.any(axis=1) for part in np.split(mask, self._cuts, axis=1)]).all(axis=0)
        if not legal.all():
            raise ValueError(f"action_mask allows no action in environment {int(np.flatnonzero(~legal)[0])}")
