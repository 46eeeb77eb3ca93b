"""Where metrics may go besides ``metrics.jsonl``: TensorBoard, Weights & Biases and MLflow, each into the run folder.

A logger is called with each row and closed at the end. The packages are extras and are imported only when asked for. So is a logger of
a user's, ``module:Class``.
"""

import importlib
import importlib.util
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from upslope.errors import UsageError, missing_extra
from upslope.run.settings import check_takes, flattened, load_object

Row = Mapping[str, Any]


Logger = Callable[[Row], object]  # takes one row per iteration; its close(), where it has one, is called at the end
MakesLogger = Callable[[Path, Mapping[str, Any]], Logger]
"""A logger's class: called with the run folder and the configuration."""
GivenLogger = Logger | MakesLogger
"""What a run takes: a logger, its class, or a function that is called with each row."""


def check_loggers(names: Iterable[str]) -> None:
    for name in names:
        if ":" in name:
            load_object(name, "logger")
        elif importlib.util.find_spec(name) is None:
            raise missing_extra(name, name)


def opened(wanted: str | GivenLogger, folder: Path, config: Mapping[str, Any]) -> Logger:
    """A logger of a run, open: a shipped one by name, a class as ``module:Class`` or as it is, or one that is made already."""
    if isinstance(wanted, str) and wanted in LOGGERS:
        return LOGGERS[wanted](folder, config)
    made: Any = load_object(wanted, "logger") if isinstance(wanted, str) else wanted
    name = wanted if isinstance(wanted, str) else getattr(wanted, "__name__", type(wanted).__name__)
    if isinstance(made, type):
        try:
            made = made(folder, config)
        except Exception as error:
            raise UsageError(f"logger: {name} cannot be made with (folder, config): {type(error).__name__}: {error}") from error
    if not callable(made):
        raise UsageError(f"logger: expected something to call with each row, found {name}, which is of type {type(made).__name__}")
    check_takes(made, [one_row], f"logger {name}")
    return cast(Logger, made)


def one_row(row: Row) -> None:
    """How a logger is called."""


def scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a row, counters apart: what can be drawn."""
    skip = ("iteration", "total_steps")
    return {k: float(v) for k, v in row.items() if k not in skip and isinstance(v, int | float) and math.isfinite(v)}


GROUPS = {
    "evaluation": re.compile("evaluation_(.*)"),
    "time": re.compile("(.*_seconds|.*_per_second)"),
    "rollout": re.compile("((?:episode|num_episodes|completion|reward|length|groups|accuracy|format|finish).*)"),
    "update": re.compile("(.*)"),
}
"""Under which heading TensorBoard shows a number of a row: the first that its name matches."""


def grouped(name: str) -> str:
    """``evaluation_return`` → ``evaluation/return``, ``approx_kl`` → ``update/approx_kl``."""
    return next(f"{group}/{match[1]}" for group, pattern in GROUPS.items() if (match := pattern.fullmatch(name)))


class TensorBoardLogger:
    """Event files in ``<run>/tensorboard``, names in :data:`GROUPS`; the horizontal axis is environment steps."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer: Any = SummaryWriter(log_dir=str(folder / "tensorboard"))

    def __call__(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self.writer.add_scalar(grouped(name), value, int(row["total_steps"]))

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """An offline Weights & Biases run in ``<run>/wandb``; ``WANDB_MODE`` in the environment overrides offline."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(console="off", silent=True)  # its farewell would stand among the lines of the run
        self.run: Any = wandb.init(project="upslope", name=folder.name, dir=str(folder), config=dict(config), mode=mode, settings=settings)

    def __call__(self, row: Row) -> None:
        self.run.log(scalars(row), step=int(row["total_steps"]))

    def close(self) -> None:
        self.run.finish()


class MLflowLogger:
    """An MLflow run in ``<run>/mlflow.db``; ``MLFLOW_TRACKING_URI`` in the environment names another place.

    ``mlflow ui --backend-store-uri sqlite:///<run>/mlflow.db`` shows it.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        tracking: Any = importlib.import_module("mlflow.tracking")
        for name in ("mlflow", "alembic"):  # which announce each table that they make
            logging.getLogger(name).setLevel(logging.WARNING)

        place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        client: Any = tracking.MlflowClient(tracking_uri=place)
        experiment = client.get_experiment_by_name("upslope")
        number = client.create_experiment("upslope") if experiment is None else experiment.experiment_id
        self.client, self.run_id = client, client.create_run(number, run_name=folder.name).info.run_id
        for name, value in flattened(config).items():
            client.log_param(self.run_id, name, str(value))

    def __call__(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self.client.log_metric(self.run_id, name, value, step=int(row["total_steps"]))

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


LOGGERS: dict[str, MakesLogger] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger, "mlflow": MLflowLogger}
"""Name of the flag, of the package and of the extra."""
