"""Where metrics may go besides ``metrics.jsonl``: TensorBoard and Weights & Biases, both into the run folder.

A logger is called with each row and closed at the end. Both packages are extras and are imported only when asked for.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from upslope.errors import missing_extra

Row = Mapping[str, Any]


class Logger(Protocol):
    """Takes one row per iteration."""

    def __call__(self, row: Row) -> None: ...

    def close(self) -> None: ...


def check_loggers(*, tensorboard: bool, wandb: bool) -> None:
    """Raise :class:`UsageError` naming the extra of a logger that is asked for and not installed."""
    for name, wanted in (("tensorboard", tensorboard), ("wandb", wandb)):
        if wanted and importlib.util.find_spec(name) is None:
            raise missing_extra(name, name)


def loggers_for(folder: Path, config: Mapping[str, Any], *, tensorboard: bool, wandb: bool) -> list[Logger]:
    """The loggers that were asked for, open."""
    chosen: list[Logger] = []
    if tensorboard:
        chosen.append(TensorBoardLogger(folder))
    if wandb:
        chosen.append(WandbLogger(folder, config))
    return chosen


def scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a row, counters apart: what can be drawn."""
    skip = ("iteration", "total_steps")
    return {k: float(v) for k, v in row.items() if k not in skip and isinstance(v, int | float) and math.isfinite(v)}


class TensorBoardLogger:
    """Event files in ``<run>/tensorboard``; the horizontal axis is environment steps."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(log_dir=str(folder / "tensorboard"))

    def __call__(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, int(row["total_steps"]))

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """An offline Weights & Biases run in ``<run>/wandb``; ``WANDB_MODE`` in the environment overrides offline."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(console="off", silent=True)  # its farewell would stand between our own words
        self.run: Any = wandb.init(project="upslope", name=folder.name, dir=str(folder), config=dict(config), mode=mode, settings=settings)

    def __call__(self, row: Row) -> None:
        self.run.log(scalars(row), step=int(row["total_steps"]))

    def close(self) -> None:
        self.run.finish()
