"""Whether a run that is killed and resumed is, to the bit, the run that was never interrupted: anyone's configuration, tried out.

Three processes: one trains without interruption; one trains and kills itself (SIGKILL, so nothing is tidied up); one resumes what that
one has left. Then every row of metrics and every number of the two last states are compared.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from upslope.errors import RunFault, UsageError, describe_error, require
from upslope.records import State
from upslope.run.checkpoints import newest
from upslope.run.config import RunConfig
from upslope.run.folder import Output
from upslope.run.load import Run
from upslope.run.train import RunState

NOT_COMPARED = ("_seconds", "_per_second")
"""How the names of measured times end; they are the only numbers that may differ."""


PATIENCE = (1.0, 10.0)
"""Seconds that a run's process has to end behind a first and a second signal, before it is killed."""

REFUSED = 2
"""Exit code of a process that was asked for what cannot be."""


@dataclass(frozen=True)
class Verdict:
    """What differs, first things first; empty where nothing does. ``tensors`` and ``rows`` say how much was compared."""

    differs: Sequence[str]
    tensors: int
    rows: int
    resumed_at: int
    warnings: Sequence[str] = ()
    """what the resumed run said that the other one did not"""


class StopAt:
    """A callback that ends a run after so many iterations, or kills its process behind the next one, before that is saved."""

    def __init__(self, iteration: int, *, kill: bool = False) -> None:
        self.iteration, self.kill = iteration, kill

    def __call__(self, state: RunState) -> bool:
        if self.kill and state.iteration > self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        return not self.kill and state.iteration >= self.iteration


def verify_resume(config: RunConfig, folder: Path, *, iterations: int = 6, kill_at: int = 3) -> Verdict:
    """Train ``iterations``, the same killed after ``kill_at`` and resumed, in the new folders ``whole`` and ``killed`` of ``folder``.

    Raises:
        UsageError: the run cannot be, or is not long enough.
        RunFault: a process failed by itself.
    """
    if not 1 <= kill_at < iterations:
        raise UsageError(f"kill_at: expected 1 to {iterations - 1}, before the last of the {iterations} iterations, found {kill_at}")
    whole, killed = folder / "whole", folder / "killed"
    run_in_process("the uninterrupted run", config, whole, StopAt(iterations))
    code = run_in_process("the run to be killed", config, killed, StopAt(kill_at, kill=True), expected=-signal.SIGKILL)
    require(code != 0, f"kill_at: the run was over before iteration {kill_at + 1} ended; give it a larger budget")
    found = newest(killed)
    resumed_at = 0 if found is None else int(found.state["run"]["iteration"])
    run_in_process("the resumed run", config, killed, StopAt(iterations), resume=True)
    return compare_runs(whole, killed, resumed_at)


def compare_runs(whole: Path, killed: Path, resumed_at: int) -> Verdict:
    """Rows and states of two run folders side by side."""
    rows, others = (Run.load(path).metrics() for path in (whole, killed))
    differs = [] if len(rows) == len(others) else [f"metrics.jsonl: {len(rows)} rows, resumed {len(others)}"]
    for row, other in zip(rows, others, strict=False):
        differs += [f"metrics.jsonl, iteration {row.get('iteration')}: {name[1:]}" for name in differences(row, other)]
    states = [compared_parts(found.state) for path in (whole, killed) if (found := newest(path)) is not None]
    if len(states) == 2:
        differs += [f"state: {name[1:]}" for name in differences(*states)]
    else:
        differs += ["state: a run has left no checkpoint"]
    count = sum(isinstance(leaf, torch.Tensor | np.ndarray) for state in states[:1] for _, leaf in leaves(state))
    said, more = ((Run.load(path).summary or {}).get("warnings", []) for path in (whole, killed))
    return Verdict(differs, count, len(rows), resumed_at, [line for line in more if line not in said])


def compared_parts(state: State) -> State:
    """What two runs must have in common: all but when and where they ran."""
    session = {name: value for name, value in state["session"].items() if name != "resumed_at"}
    return {"run": state["run"], "session": session, "world": state["world"]}


# -------------------------------------------------------------------------------------------------------------- processes


def run_in_process(name: str, config: RunConfig, folder: Path, stop: StopAt, *, resume: bool = False, expected: int = 0) -> int:
    """Carry out a run in a separate process and wait for it; the exit code, which is 0 or ``expected``.

    The process ends with the wait, however that ends, and with this process.
    """
    answers = multiprocessing.get_context("spawn")
    received, sent = answers.Pipe(duplex=False)
    process = answers.Process(target=reported, args=(multiprocessing.get_start_method(), sent, config, folder, stop, resume))
    process.start()
    sent.close()
    try:
        process.join()
    finally:
        end(process)
    code = process.exitcode or 0
    if code not in (0, expected):
        why = received.recv() if received.poll() else f"its process ended with exit code {code}"
        raise UsageError(why) if code == REFUSED else RunFault(f"verify-resume: {name} failed: {why}")
    return code


def end(process: BaseProcess) -> None:
    """End a run's process: a first signal after its iteration, a second one at once, and both with all that it has started."""
    for seconds in PATIENCE:
        if process.exitcode is None:
            process.terminate()
            process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()


def end_with_parent() -> None:
    """In the process: wait until its parent is gone, however it went, and go."""
    parent = cast("BaseProcess", multiprocessing.parent_process())
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def reported(start_method: str, sent: Any, config: RunConfig, folder: Path, stop: StopAt, resume: bool) -> None:
    """In the process: the run, from its beginning (with a checkpoint after each iteration) or its end; say in a line why it failed.

    Its environments' processes start as those of any run do, and not as this one has.
    """
    multiprocessing.set_start_method(start_method, force=True)
    threading.Thread(target=end_with_parent, daemon=True).start()
    output = Output(quiet=True) if resume else Output(out=folder, quiet=True, checkpoint_every=0.0)
    try:
        config.session(output, [stop], resumed=folder if resume else None).run()
    except Exception as error:
        sent.send(describe_error(error))
        raise SystemExit(REFUSED if isinstance(error, UsageError) else 1) from None


# -------------------------------------------------------------------------------------------------------------- comparison


def differences(a: Any, b: Any) -> list[str]:
    """The places at which two trees of state are not equal to the bit, measured times left out.

    And what environments keep in their attributes, for they measure times, too; a resumed run has compared it.
    """
    one, other = dict(leaves(a)), dict(leaves(b))
    places = [place for place in {**one, **other} if not place.endswith(NOT_COMPARED) and "/memory/" not in place]
    return [place for place in places if place not in one or place not in other or not equal(one[place], other[place])]


def leaves(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a tree of state holds, with the place of each: ``/update/moments/0/1``."""
    if isinstance(state, Mapping):
        parts = list(cast("Mapping[str, Any]", state).items())
    elif isinstance(state, list | tuple):
        parts = [(str(i), part) for i, part in enumerate(cast("list[Any]", state))]
    else:
        yield path, state
        return
    for key, part in parts:
        yield from leaves(part, f"{path}/{key}")


def equal(a: Any, b: Any) -> bool:
    """Whether two leaves are the same, to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_bytes(a), as_bytes(b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        one, other = cast("NDArray[Any]", a), cast("NDArray[Any]", b)
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return repr(cast("object", a)) == repr(cast("object", b))  # numbers, texts and None: whole digits, and NaN is NaN


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
