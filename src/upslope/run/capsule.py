"""What a run leaves that stopped because nothing was finite any more: the checkpoint before it, the minibatch, what was said.

A capsule is a small run folder inside the run's; ``upslope replay`` plays the iteration that failed again.
"""

import json
import shutil
from dataclasses import fields
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from upslope import files
from upslope.errors import Diverged, RunFault, UsageError
from upslope.records import Batch
from upslope.run.checkpoints import FOLDER, Found, newest
from upslope.run.folder import FORMAT_VERSION
from upslope.run.resume import GROWING

CAPSULE = "capsule.json"
"""The iteration, and what was said."""


def keep_capsule(run: Path, shown: Path, iteration: int, fault: Diverged) -> str:
    """Write the capsule of a run's iteration; what is to be said of it."""
    try:
        return f"`upslope replay {shown / write_capsule(run, iteration, fault).name}` repeats the iteration that diverged"
    except (RunFault, UsageError) as why:
        return f"the iteration that diverged was not kept: {why}"


def write_capsule(run: Path, iteration: int, fault: Diverged) -> Path:
    """Write the capsule of a run's iteration into the run folder.

    Raises:
        RunFault: it cannot be written, and why.
    """
    path = run / f"capsule-{iteration:08d}"
    with files.whole_folder(path) as inside:
        copy_of(run, inside, newest(run, before=iteration))
        if isinstance(fault.batch, Batch):
            write_tensors(inside / "batch.safetensors", tensors_of(fault.batch))
        content = {"format_version": FORMAT_VERSION, "iteration": iteration, "error": str(fault)}
        (inside / CAPSULE).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path


def copy_of(run: Path, copy: Path, found: Found | None) -> None:
    """A run folder with what a run needs to go on from this checkpoint, or to begin anew."""
    names = ("policy.json", "policy.safetensors", *GROWING, f"{FOLDER}/reference.safetensors")
    rest = [] if found is None else [*map(Path, names), found.path.relative_to(run)]
    for name in [Path("config.json"), *rest]:
        if (run / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, copy / name, follow_symlinks=False)
        elif (run / name).is_dir():
            shutil.copytree(run / name, copy / name, symlinks=True)


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name: ``batch/advantage``."""
    named = {**{item.name: getattr(batch, item.name) for item in fields(batch)}, **{f"inputs/{k}": v for k, v in batch.inputs.items()}}
    return {f"batch/{name}": tensor.detach() for name, tensor in named.items() if isinstance(tensor, Tensor)}


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """All of them into one safetensors file."""
    files.write_bytes(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))
