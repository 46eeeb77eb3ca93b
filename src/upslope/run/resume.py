"""Going on with a run that was stopped or killed: what is around its loop, and how its folder is made ready again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import stat
import sys
import zlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch

from upslope import files
from upslope.errors import UsageError, describe_error, require
from upslope.records import State, Stateful
from upslope.run.checkpoints import FOLDER, checkpoints_in, newest
from upslope.run.folder import LOCK, versions
from upslope.run.load import AtItsEnd, NoCheckpoint, Run, damaged
from upslope.run.settings import flat_config

if TYPE_CHECKING:
    from upslope.run.config import RunConfig

NOT_RESUMABLE = "this run cannot be resumed"
COMPUTING = ("llvmlite", "transformers", "tokenizers", "mujoco", "box2d", "ale-py", "envpool")
"""Packages on which numbers depend where they are there; without llvmlite PyTorch computes what would be compiled."""
GROWING = ("metrics.jsonl", "completions.jsonl")
"""Files of a run folder that only grow; what was written behind a checkpoint is computed again."""


@dataclass(frozen=True)
class Stopped:
    """A run that can go on: its folder, the state in its newest whole checkpoint, and what was wrong with newer ones."""

    path: Path
    state: State
    passed_over: tuple[str, ...] = ()
    jump: str = ""
    """what another budget than the one it was stopped with does to its learning rate"""
    earlier: tuple[tuple[int, int], ...] = ()
    """budgets that it had before this one, each with the last iteration that it was for"""
    seen: tuple[list[Path], bool] = ([], False)
    """the checkpoints that there were, and whether the run had come to its end"""

    @classmethod
    def of(cls, run: Run, config: RunConfig) -> Self:
        """What a run has left, to go on with this configuration.

        Raises:
            UsageError: it has left nothing to go on from, and why; or it has made all of its steps.
        """
        seen = (checkpoints_in(run.path), run.finished)
        found = newest(run.path)
        unit = "iterations" if config.world == "language" else "total_steps"
        planned, before = getattr(config.settings, unit), run.config["settings"].get(unit)
        if found is None and run.finished:
            said = map(str, run.summary.get("warnings", []) if run.summary else [])
            because = next((f" ({line})" for line in said if line.startswith(NOT_RESUMABLE)), "")
            why = f"run folder {run.path}: this run is finished, and its folder has no checkpoint to go on from{because}"
            raise AtItsEnd(why) if planned == before else UsageError(f"{why}; train anew for {planned:,} {unit.removeprefix('total_')}")
        if found is None:
            with locked(run.path):  # no other process is about to write one
                raise NoCheckpoint(
                    f"run folder {run.path}: it was stopped before its first iteration ended, so there is no checkpoint; train anew"
                )
        try:
            check_state(found.state)
            state, reached = found.state["run"], found.state["session"]["reached"]
            done = state["iteration" if unit == "iterations" else unit]
        except (KeyError, TypeError) as error:
            raise damaged(found.path, f"it holds no {error}") from error
        iteration = state["iteration"]
        if done > planned and planned != before:
            raise UsageError(f"{unit}: this run has made {done:,} already, found {planned:,}; go on to more, or leave it out")
        if run.finished and reached:
            raise AtItsEnd(f"resume: this run ended at its goal, after {done:,} {unit.removeprefix('total_')}")
        if run.finished and done >= planned:
            flag, counted = unit.replace("_", "-"), unit.removeprefix("total_")
            raise AtItsEnd(f"resume: this run has made {done:,} of its {planned:,} {counted}; --{flag} N goes on to a larger budget")
        earlier = [(min(last, iteration), budget) for last, budget in run.earlier_budgets]  # of several for an iteration the first is its
        earlier += [(iteration, before)] if before != planned else []
        return cls(run.path, found.state, found.passed_over, jump_of(config, done, before, planned), tuple(earlier), seen)

    def latest(self, path: Path, config: RunConfig) -> Self:
        """The same once the folder is locked; read again where another process has gone on with the run in the meantime."""
        now = Run.load(path)
        seen = [path / FOLDER / each.name for each in self.seen[0]], self.seen[1]
        return self if seen == (checkpoints_in(path), now.finished) else self.of(now, config)

    @property
    def iteration(self) -> int:
        return self.state["run"]["iteration"]

    def spent(self, budget: Mapping[str, int]) -> dict[str, int]:
        """The budget that leaves no iteration to make."""
        state = self.state["run"]
        return {unit: state[{"iterations": "iteration"}.get(unit, unit)] for unit in budget}

    def lines(self, now: Mapping[str, Any]) -> list[str]:
        """Where it goes on, and what is no longer as it was."""
        state = self.state["run"]
        lines = [f"going on after iteration {state['iteration']:,}, step {state['total_steps']:,}", *self.passed_over]
        lines += [self.jump] if self.jump else []
        changed = self.changed(now)
        return [*lines, f"warning: {changed}"] if changed else lines

    def changed(self, now: Mapping[str, Any]) -> str:
        """What around the run is not what it was, and what that means; '' where all is."""
        found = changed_surroundings(self.state["surroundings"], now)
        return f"not to the bit what it would have been: {found}" if found else ""


def check_state(state: State) -> None:
    """Look at what is used of a checkpoint before its parts are loaded.

    Raises:
        KeyError: something is not there.
        TypeError: something is of another kind, or beyond what can be.
    """
    session, counts = state["session"], [state["run"][name] for name in ("iteration", "total_steps")]
    numbers = [*counts, state["seconds"], *(point["mean"] for name in ("start", "points") for point in session[name])]
    if not all(isinstance(number, int | float) and abs(number) < 2**53 for number in numbers) or any(
        type(count) is not int or count < 0 for count in counts
    ):
        raise TypeError(f"counts and evaluations that can be, but {numbers!r:.80}")
    if not all(isinstance(state[name], dict) for name in ("surroundings", "files", "checksums")):
        raise TypeError("mappings where they should be")


def jump_of(config: RunConfig, done: int, before: Any, planned: int) -> str:
    """A warning where the rate's schedule, which spans the whole budget, stands elsewhere than where the run was stopped."""
    schedule = getattr(getattr(config.algorithm, "update", config.algorithm), "schedule", None)
    if schedule is None or not isinstance(before, int) or before == planned or not before > 0:
        return ""
    then, now = (float(schedule(min(1.0, done / budget))) for budget in (before, planned))
    if then == now:
        return ""
    rate = f"it goes on at {now:.0%} of its size, where it was at {then:.0%}"
    return f"warning: the learning rate's schedule spans the budget, now {planned:,}: {rate}"


# ------------------------------------------------------------------------------------------- what is around the loop


def remembering(attached: Iterable[object]) -> dict[str, Stateful]:
    """Those callbacks and loggers of a run that say what they remember, by their class, and their number where several are of one."""
    found: dict[str, Stateful] = {}
    for each in attached:
        if all(callable(getattr(each, name, None)) for name in ("state_dict", "load_state_dict")):
            name = f"{type(each).__module__}:{type(each).__qualname__}"
            found[f"{name} {1 + sum(other.startswith(f'{name} ') for other in found)}"] = cast("Stateful", each)
    return found


def states_of(attached: Mapping[str, Stateful]) -> dict[str, State]:
    """What each of them remembers, by name; a :class:`UsageError` where one cannot say."""
    found: dict[str, State] = {}
    for name, each in attached.items():
        try:
            found[name] = each.state_dict()
        except RuntimeError:  # it may be well the next time
            raise
        except Exception as error:
            raise UsageError(f"{name.rpartition(' ')[0]}.state_dict() raised {describe_error(error)}") from error
    return found


def attach(attached: Mapping[str, Stateful], states: Mapping[str, State]) -> list[str]:
    """Let callbacks and loggers go on where those of the stopped run were; a sentence for each that is not given again.

    Raises:
        UsageError: one cannot go on, and why.
    """
    missing: list[str] = []
    for name, state in states.items():
        kind = name.rpartition(" ")[0]
        if name not in attached:
            missing.append(f"what {kind} remembered is left behind: it is not given again")
            continue
        try:
            attached[name].load_state_dict(state)
        except Exception as error:
            raise UsageError(f"{kind} cannot go on where it was: {describe_error(error)}") from error
    return missing


def surroundings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's numbers depend on besides its configuration: versions, the processor's capabilities, threads, what is in its files.

    A ``module:name`` stands for the file of that module.
    """
    computing = {name: version_of(name) for name in COMPUTING}
    values: list[Any] = list(flat_config(recorded).values())
    named = [str(item) for value in values for item in (cast("list[Any]", value) if isinstance(value, list | tuple) else [value])]
    modules = [name for name in [*named, str(recorded.get("env_id")), str(recorded["algorithm"]["name"])] if ":" in name]
    found = {name: str(getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)) for name in modules}
    data = {name: digest(Path(file)) for name, file in [*zip(named, named, strict=True), *found.items()] if is_file(file)}
    return {
        **data,
        **versions(),
        **{name: version for name, version in computing.items() if version is not None},
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def is_file(name: str | Path) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False


def digest(path: Path) -> str:
    """The beginning of the SHA-256 of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def changed_surroundings(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not as it was when the checkpoint was written, briefly; '' where all is."""
    return ", ".join(f"{name} {then.get(name)} → {now.get(name)}" for name in {**then, **now} if then.get(name) != now.get(name))


# ------------------------------------------------------------------------------------------------------- the run folder


def sizes(folder: Path) -> dict[str, int]:
    """How long the growing files are, with what they hold on the disk."""
    found: dict[str, int] = {}
    for path in (folder / name for name in GROWING):
        if path.is_file():
            try:
                files.on_disk(path)
                found[path.name] = path.stat().st_size
            except OSError as error:
                raise files.cannot_write(path, error) from error
    return found


def rows_until(folder: Path, state: State) -> list[dict[str, Any]]:
    """The rows of metrics up to the checkpoint with this state; nothing is changed.

    Raises:
        UsageError: a growing file is a link, or shorter than it was, so rows are lost; or it does not hold what was written.
    """
    lengths: dict[str, int] = state["files"]
    for path in (folder / name for name in GROWING):
        length, found = lengths.get(path.name, 0), path.stat().st_size if path.is_file() else 0
        require(not path.is_symlink(), f"{path}: this is a link, which is not followed; put the file itself there")
        if found < length:
            raise UsageError(f"{path} is damaged: it holds {found:,} bytes, the checkpoint was written behind {length:,}; rows are lost")
        if length and zlib.crc32(path.read_bytes()[:length]) != state["checksums"][path.name]:
            raise damaged(path, "a row in front of the checkpoint is not what was written")
    return [json.loads(line) for line in (folder / GROWING[0]).read_bytes()[: lengths[GROWING[0]]].splitlines()]


def cut_files(folder: Path, lengths: Mapping[str, int]) -> None:
    """Cut the growing files to what they had at the checkpoint: later rows, and a half line, are computed again.

    Raises:
        RunFault: it cannot be written.
    """
    for path in (folder / name for name in GROWING):
        if path.is_file():
            try:
                os.truncate(path, lengths.get(path.name, 0))
            except OSError as error:
                raise files.cannot_write(path, error) from error


LOCKS: set[int] = set()
"""Descriptors of the locks that this process holds; what it forks lets go of them, lest an orphan keep a folder locked."""


def let_go() -> None:
    while LOCKS:
        with contextlib.suppress(OSError):
            os.close(LOCKS.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=let_go)


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the folder for one run; it is free again when the process ends, however it ends.

    Raises:
        UsageError: another process holds it, or something else stands in the lock's place.
    """
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | files.NO_FOLLOW | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        hint = "" if isinstance(error, PermissionError) or error.errno == errno.EROFS else "; remove it"
        raise UsageError(f"{path}: it cannot be opened ({error.strerror}){hint}") from error
    with os.fdopen(descriptor, "r+b", buffering=0, closefd=True) as file:
        require(stat.S_ISREG(os.fstat(descriptor).st_mode), f"{path}: this is no file; remove it")
        try:
            import fcntl  # not on Windows, where two runs in one folder are not noticed

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            raise UsageError(f"run folder {folder}: another process is writing there; wait for its end, or name another folder") from error
        LOCKS.add(descriptor)
        try:
            yield
        finally:
            LOCKS.discard(descriptor)
