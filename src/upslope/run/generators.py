"""The process's own random generators, from which environments, rewards and callbacks of one's own may draw."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator

import numpy as np
import torch

from upslope.records import State


def generators() -> State:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (others may use it)
    return {"python": random.getstate(), "numpy": [name, keys, *rest], "torch": torch.get_rng_state()}


def set_generators(state: State) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed them all for a while, so that what draws from them is the same each time; afterwards they are what they were."""
    before = generators()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    try:
        yield
    finally:
        set_generators(before)
