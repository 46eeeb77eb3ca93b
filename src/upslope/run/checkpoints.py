"""A run's whole state on disk: whole or not at all, verified before it is read, and nothing in it is code.

A checkpoint is a folder ``checkpoints/iteration-00000012`` with ``tensors.safetensors``, ``state.json`` (everything else, with the places
of the tensors), and ``manifest.json``: its name, each file's size and SHA-256, written last. The folder is filled under a temporary name,
flushed to the disk and renamed. The reader takes the newest whose manifest verifies, and names those that it passed over.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from upslope import files
from upslope.errors import UsageError, require
from upslope.records import State
from upslope.run.load import damaged

FOLDER = "checkpoints"
STATE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
KEPT = 2
"""Checkpoints that are kept: the newest, and the one before it."""
NAMED = re.compile(r"iteration-(\d{8,})")
KINDS = {"tensor", "array", "float", "mapping"}
"""What a JSON object with one key of these names stands for; a mapping that has such a key is one under ``mapping``."""
MAX_MANIFEST = 1 << 16
"""Bytes of a manifest; a longer one is damaged."""


# ---------------------------------------------------------------------------------------------------------- trees of state


def encoded(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """``value`` as JSON; tensors and arrays go into ``tensors`` under the path at which they stand.

    Raises:
        TypeError: it holds something that is neither.
    """
    while path in tensors:  # a key may hold a slash
        path += "'"
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        if array.dtype == object:
            raise TypeError(f"{path}: an array of Python objects")
        try:
            tensors[path] = torch.as_tensor(np.array(array, order="C"))
        except (TypeError, ValueError) as error:  # of text, or in another machine's byte order
            raise TypeError(f"{path}: an array of {array.dtype}") from error
        return {"array": path}
    if isinstance(value, np.generic):
        return encoded(value.item(), tensors, path)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list | tuple):
        return [encoded(item, tensors, f"{path}/{i}") for i, item in enumerate(cast("list[Any]", value))]
    if isinstance(value, Mapping):
        found = cast("Mapping[Any, Any]", value)
        if any(not isinstance(key, str) for key in found):
            raise TypeError(f"{path}: a mapping with the keys {list(found)!r:.60}")
        parts = {key: encoded(item, tensors, f"{path}/{key}") for key, item in found.items()}
        return {"mapping": parts} if len(found) == 1 and KINDS & found.keys() else parts
    raise TypeError(f"{path}: {type(value).__module__}.{type(value).__qualname__}")


def decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`encoded` made JSON of; tuples are lists now."""
    if isinstance(value, list):
        return [decoded(item, tensors) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, Any]", value)
    if len(found) == 1 and KINDS & found.keys():
        ((kind, inside),) = found.items()
        if kind == "float":
            return float(inside)
        if kind == "mapping":
            return {key: decoded(item, tensors) for key, item in inside.items()}
        return tensors[inside] if kind == "tensor" else tensors[inside].numpy()
    return {key: decoded(item, tensors) for key, item in found.items()}


# ------------------------------------------------------------------------------------------------------------ write and read


def write_checkpoint(run: Path, iteration: int, state: State) -> Path:
    """Write a checkpoint of the run in folder ``run``, and remove all but the newest :data:`KEPT`.

    Raises:
        RunFault: it cannot be written, and why; what was there before is still there.
        TypeError: the state holds what a checkpoint cannot.
    """
    tensors: dict[str, Tensor] = {}
    content = {STATE: json.dumps(encoded(state, tensors), ensure_ascii=False, allow_nan=False).encode(), TENSORS: save(tensors)}
    path = run / FOLDER / f"iteration-{iteration:08d}"
    check_no_link(path.parent)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise files.cannot_write(path.parent, error) from error
    with files.whole_folder(path) as inside:
        for name, data in content.items():
            (inside / name).write_bytes(data)
        (inside / MANIFEST).write_bytes(manifest_of(content, path.name))
    with contextlib.suppress(OSError):  # where a folder cannot be opened, as on Windows
        files.on_disk(path.parent)
    for older in checkpoints_in(run)[KEPT:]:
        files.remove(older)
    return path


def manifest_of(content: Mapping[str, bytes], checkpoint: str) -> bytes:
    """The checkpoint's name, each file's size and SHA-256, and the SHA-256 of all that."""
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(content.items())}
    described = {"checkpoint": checkpoint, "files": entries}
    return json.dumps({**described, "sha256": hashlib.sha256(json.dumps(described).encode()).hexdigest()}).encode()


def checkpoints_in(run: Path) -> list[Path]:
    """The run's checkpoints, the newest first, valid or not."""
    folder = run / FOLDER
    check_no_link(folder)
    found = [(int(match[1]), path) for path in (folder.iterdir() if folder.is_dir() else ()) if (match := NAMED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def iteration_of(path: Path) -> int:
    """The iteration behind which a checkpoint was written, by its name."""
    return int(path.name.rpartition("-")[2])


def read_checkpoint(path: Path) -> State:
    """The state in a checkpoint.

    Raises:
        UsageError: it is damaged, and how.
    """
    if path.is_symlink() or not path.is_dir():
        raise damaged(path, "not a folder")
    names = {item.name for item in path.iterdir()}
    if names != {STATE, TENSORS, MANIFEST}:
        raise damaged(path, f"it holds {', '.join(sorted(names)) or 'nothing'}, expected {MANIFEST}, {STATE} and {TENSORS}")
    try:
        for name in names:
            if (path / name).is_symlink() or not (path / name).is_file():
                raise damaged(path / name, "not a plain file")
        if (path / MANIFEST).stat().st_size > MAX_MANIFEST:
            raise damaged(path / MANIFEST, "too large")
        promised = json.loads((path / MANIFEST).read_bytes())["files"]
        for name in (STATE, TENSORS):  # before memory is taken
            if (path / name).stat().st_size != promised[name]["size"]:
                raise damaged(path, "its files are not those that its manifest describes")
        content = {name: (path / name).read_bytes() for name in (STATE, TENSORS)}
        if (path / MANIFEST).read_bytes() != manifest_of(content, path.name):
            raise damaged(path, "its files are not those that its manifest describes")
        return cast("State", decoded(json.loads(content[STATE]), load(content[TENSORS])))
    except (UsageError, PermissionError):  # what may not be read may be whole, and is not passed over
        raise
    except Exception as error:  # a manifest that fits and a content that does not: whatever it is, it is not what this library wrote
        raise damaged(path, f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies, and what was wrong with newer ones."""

    path: Path
    state: State
    passed_over: tuple[str, ...] = ()


def newest(run: Path, before: int | None = None) -> Found | None:
    """The newest valid checkpoint of a run, of an earlier iteration than ``before`` where that is given; None where there is none."""
    faults: list[str] = []
    for path in checkpoints_in(run):
        if before is not None and iteration_of(path) >= before:
            continue
        try:
            return Found(path, read_checkpoint(path), tuple(faults))
        except UsageError as fault:
            faults.append(str(fault))
    if faults:
        raise UsageError(f"{run / FOLDER}: no checkpoint is whole; {faults[0]}")
    return None


def tidy(run: Path, iteration: int) -> None:
    """Remove what a run that goes on from ``iteration`` has no use for: later checkpoints, and halves that a kill has left."""
    for path in checkpoints_in(run):
        if iteration_of(path) > iteration:
            files.remove(path)
    for folder in (run, run / FOLDER):
        for path in folder.glob(f".*{files.PARTIAL}"):
            files.remove(path)


def check_no_link(folder: Path) -> None:
    """Refuse a link in the folder's place: what is written there would be written elsewhere."""
    require(not folder.is_symlink(), f"{folder}: this is a link, which is not followed; put the folder itself there")
