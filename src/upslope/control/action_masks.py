"""Which actions are legal: ``info["action_mask"]`` of a vector environment as one bool array ``[N, choices]``.

:mod:`upslope.control.guard` puts there what environments say in other ways.
"""

from typing import Any

import numpy as np
from gymnasium import Space, spaces

from upslope.control.kinds import AnyList, AnyTuple, Array, MultiDiscrete


class ActionMasks:
    """Reads masks for one action space: n choices of Discrete, the factors of MultiDiscrete side by side.

    Every method raises ``ValueError`` for masks that do not fit.
    """

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        self.space, self.num_envs = space, num_envs
        self._cuts: list[int] = []
        self.num_choices = 0
        if isinstance(space, spaces.Discrete):
            self.num_choices = int(space.n)
        elif isinstance(space, MultiDiscrete):
            *self._cuts, self.num_choices = np.cumsum(space.nvec.ravel()).tolist()

    def read(self, info: dict[str, Any]) -> Array:
        """``[N, choices]``; environments whose row Gymnasium's ``_action_mask`` marks as missing have every action."""
        mask = np.ones((self.num_envs, self.num_choices), dtype=np.bool_)
        given, present = info.get("action_mask"), info.get("_action_mask")
        if given is None:
            return mask
        if np.shape(given)[:1] != (self.num_envs,):
            raise ValueError(f"action_mask has shape {np.shape(given)}, expected a row for each of {self.num_envs} environments")
        for index in range(self.num_envs) if present is None else np.flatnonzero(present):
            mask[index] = self.row(given[index])
        return mask

    def row(self, given: Any) -> Array:
        """One environment's mask ``[choices]``: flat, or a sequence with a part for each factor; booleans, or 0 and 1."""
        if not self.num_choices:
            raise ValueError(f"an action_mask is given, but masks are for Discrete and MultiDiscrete actions, not {self.space}")
        parts: list[Array] = [np.ravel(part) for part in given] if isinstance(given, (AnyTuple, AnyList)) else []
        row: Array = np.concatenate(parts) if parts else np.ravel(given)
        if row.shape != (self.num_choices,):
            raise ValueError(f"action_mask has {row.size} entries, the action space has {self.num_choices} choices")
        if row.dtype == np.bool_:
            return row
        wrong = (row != 0) & (row != 1)
        if np.any(wrong):
            raise ValueError(f"action_mask holds {row[np.argmax(wrong)]!s}, expected booleans, or 1 for legal and 0 for illegal")
        return np.asarray(row == 1)

    def has_legal(self, mask: Array) -> Array:
        """``[N]`` whether there is a legal choice in every factor."""
        return np.asarray(np.stack([part.any(axis=1) for part in np.split(mask, self._cuts, axis=1)]).all(axis=0))
