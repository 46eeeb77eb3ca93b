"""The run folder: what is written, when, and how it stays valid whatever happens.

======================  ==============================================================================
``config.json``         every setting, the versions of what computed it, the format's version
``metrics.jsonl``       one line per iteration, flushed as it is written; of long runs not of every one (:func:`is_kept`)
``policy.safetensors``  the policy's parameters and normalizers, and in its header after how many iterations and steps;
                        ``policy.json`` says how to build it
``best_policy.…``       the same for the best periodic evaluation, where there was one
``checkpoints``         everything that going on takes (:mod:`upslope.run.checkpoints`); ``.lock`` keeps a second run out
``curve.png``           the learning curve
``summary.json``        the result; written last, so its presence says that the run came to an end
======================  ==============================================================================

Whole files are written to a temporary name and renamed (:mod:`upslope.files`), so a reader never sees half of one.
"""

import contextlib
import json
import math
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO, cast

from upslope import files
from upslope._version import __version__
from upslope.errors import UsageError, require, require_counts

FORMAT_VERSION = 1  # raised when an older upslope could no longer read what a newer one writes


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the run's record goes; none of it changes a result."""

    out: Path | None = None
    """run folder to write (none: runs/ALGORITHM-TASK-SEED, numbered when taken)"""
    quiet: bool = False
    """print errors only"""
    tensorboard: bool = False
    """also write TensorBoard event files into the run folder"""
    wandb: bool = False
    """also log to Weights & Biases, offline into the run folder unless WANDB_MODE says otherwise"""
    mlflow: bool = False
    """also log to MLflow, into mlflow.db in the run folder unless MLFLOW_TRACKING_URI says otherwise"""
    checkpoint_every: float = 10.0
    """seconds between checkpoints, fewer where they would take more than a hundredth of the time (0: after every iteration)"""
    checkpoint_iterations: int | None = None
    """iterations between checkpoints, besides those by the clock (none: by the clock alone)"""
    logger: tuple[str, ...] = ()
    """also log to this class of yours, module:Class, which is made with the folder and the configuration and called with each row"""

    def __post_init__(self) -> None:
        require(self.checkpoint_every >= 0, f"checkpoint_every: expected seconds ≥ 0, found {self.checkpoint_every}")
        require_counts(self, "checkpoint_iterations")

    @property
    def loggers(self) -> list[str]:
        """The names of the loggers that are wanted."""
        return [name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name)] + list(self.logger)


LOCK = ".lock"


def is_kept(iteration: int) -> bool:
    """Whether what an iteration says is kept: of the first 10,000 of each, then of every tenth, from 100,000 on of every hundredth, ….

    So ten times as many iterations leave 9,000 rows more. Evaluations and skipped steps are kept whenever they are.
    """
    return iteration % 10 ** max(0, len(str(iteration)) - 4) == 0


def default_path(algorithm: str, env_id: str, seed: int) -> Path:
    """``runs/<algorithm>-<task>-<seed>``: no module before either name, nor characters that a file name should not have."""
    names = (re.sub(r"[^A-Za-z0-9._-]+", "-", text.rpartition(":")[2]).strip("-") for text in (algorithm, env_id))
    return Path("runs") / "-".join([*(name or "task" for name in names), str(seed)])


def check_free(path: Path) -> None:
    """Raise :class:`UsageError` unless a run may be written to ``path``: absent, or a folder with nothing but what a kill has left."""
    if path.is_dir():
        left = (item for item in path.iterdir() if item.name != LOCK and not (item.name[0] == "." and item.name.endswith(files.PARTIAL)))
        require(not any(left), f"--out: {path} exists and is not empty; name another folder or remove it")
        return
    require(not (path.exists() or path.is_symlink()), f"--out: {path} is a file, not a folder; name another folder")
    parent = next(p for p in path.absolute().parents if p.exists())
    require(parent.is_dir(), f"--out: {parent} is a file, so {path} cannot be made in it; name another folder")
    require(os.access(parent, os.W_OK), f"--out: no permission to write in {parent}; name another folder")


class RunFolder:
    """An open run folder; create it with :meth:`create`, and close it (or use ``with``)."""

    def __init__(self, path: Path, made: Iterable[Path] = (), base: Path | None = None) -> None:
        self.given, self.path = path, (base or Path.cwd()) / path  # an environment or a reward may change the current folder
        self._open: dict[str, TextIO] = {}
        self.checksums: dict[str, int] = {}
        """CRC-32 of all that has been appended to each growing file"""
        self.made = tuple(made)  # the folders around it that were made for it, from the inside

    @classmethod
    def create(cls, out: Path | None, default: Path, base: Path | None = None) -> Self:
        """Make ``out``, or where it is None ``default`` with the first free number: ``-2``, ``-3``, …; in the folder ``base``."""
        base = base or Path.cwd()
        made = [folder for folder in (base / (out or default)).parents if not folder.exists()]
        try:
            if out is not None:
                check_free(base / out)
                (base / out).mkdir(parents=True, exist_ok=True)
                return cls(out, made, base)
            (base / default).parent.mkdir(parents=True, exist_ok=True)
            path, number = default, 1
            while True:
                try:
                    (base / path).mkdir()  # exclusive: two runs that start together get two folders
                    return cls(path, made, base)
                except FileExistsError:
                    number += 1
                    path = default.with_name(f"{default.name}-{number}")
        except OSError as error:
            raise UsageError(f"--out: cannot make {out or default}: {error.strerror or error}") from error

    @property
    def shown(self) -> Path:
        """Its path as it was given, as long as that leads to it."""
        try:
            return self.given if self.given.absolute() == self.path else self.path
        except OSError:  # the current folder is gone
            return self.path

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one JSON object, atomically; numbers that are not finite become null."""
        self.write_bytes(name, (json.dumps(finite_or_none(value), indent=2, ensure_ascii=False) + "\n").encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        files.write_bytes(self.path / name, content)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        try:
            if name not in self._open:
                self._open[name] = files.open_to_append(self.path / name)
            text = "".join(map(json_line, rows))
            self._open[name].write(text)
            self._open[name].flush()
            self.checksums[name] = zlib.crc32(text.encode(), self.checksums.get(name, 0))
        except OSError as error:
            raise files.cannot_write(self.path / name, error) from error

    def save_policy(self, policy: Any, name: str, progress: Mapping[str, Any]) -> None:
        """Write ``<name>.safetensors`` from the policy's state, with how far it is; tensors are copied out of any shared buffer."""
        from safetensors.torch import save

        state = {key: value.detach().cpu().contiguous().clone() for key, value in policy.state_dict().items()}
        self.write_bytes(f"{name}.safetensors", save(state, {"upslope": json.dumps({"format_version": FORMAT_VERSION, **progress})}))

    def close(self) -> None:
        """Close the files that grow; writing to one again reopens it."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def discard(self) -> None:
        """Remove a folder in which nothing happened yet, with the files that were written ahead of the run."""
        self.close()
        shutil.rmtree(self.path)
        for folder in self.made:
            with contextlib.suppress(OSError):  # another run is in it
                folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def json_line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError):  # a number that JSON cannot hold, a mapping that it does not know
        return json.dumps(finite_or_none(row), ensure_ascii=False) + "\n"


def finite_or_none(value: Any) -> Any:
    """The same value with numbers that JSON cannot hold (NaN, infinities) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in cast("list[Any]", value)]
    return value


def versions() -> dict[str, str]:
    import gymnasium
    import numpy
    import torch

    loaded = {module.__name__: str(module.__version__) for module in (torch, gymnasium, numpy)}
    return {"upslope": __version__, "python": platform.python_version(), **loaded}
