"""How every file is written: whole or not at all, never through somebody else's link, on disk before it counts.

A reader sees the old content or the new one. The temporary file lies beside the target (a rename works within one file system only),
is made exclusively under a name that nobody can guess, and is gone after a failure; a target that is a symbolic link is replaced,
not followed.
"""

import contextlib
import ctypes
import filecmp
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from upslope.errors import RunFault, UsageError

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
PARTIAL = ".partial"  # how the name of everything ends that is not finished yet
KEYS = ("config.json", "adapter_config.json")  # files without which no reader takes a folder for a model
ASIDE = ".replaced"  # how the name of a folder ends that is moved aside for the one that takes its place


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that does not exist and that nobody can foresee; it keeps the suffix out of sight: ``.a.png.….partial``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write into, which takes ``path``'s place once the block has ended without an exception; RunFault where it cannot."""
    temporary = temporary_beside(path)
    try:
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only file system says so even of what is not there
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, which takes ``path``'s place once the block has ended without an exception; RunFault where it cannot."""
    temporary = temporary_beside(path)
    try:
        temporary.mkdir()  # exclusive
        yield temporary
        on_disk(*(file for file in temporary.rglob("*") if file.is_file()))
        replace_folder(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into; what it holds is moved into ``path`` once the block has ended without an exception.

    ``path`` may exist and hold other files, which stay; it is made if it does not. A link inside it in a file's place is replaced.
    Old files and new ones never pass for one model: where more than one changes, its configuration (one of the :data:`KEYS`) is removed
    first and written last; after a failure before anything is new, all is what it was. RunFault says what cannot be written, and why.
    """
    existed = path.exists()
    temporary = temporary_beside(path.absolute() / "files")
    try:
        path.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()  # exclusive
        yield temporary
        on_disk(*(file for file in temporary.rglob("*") if file.is_file()))
        found = sorted(temporary.iterdir())
        changed = [new for new in found if not is_same_file(new, path / new.name)]
        keys = [new for new in found if new.name in KEYS and len(changed) > 1]
        aside = [(path / new.name, temporary / f"{new.name}{ASIDE}") for new in keys if os.path.lexists(path / new.name)]
        replaced = False
        try:
            for old, kept in aside:
                os.replace(old, kept)
            for new in [*(new for new in changed if new not in keys), *keys]:
                if new.is_dir():
                    replace_folder(new, path / new.name)
                else:
                    os.replace(new, path / new.name)
                replaced = True
        except BaseException:
            for old, kept in aside if not replaced else ():  # nothing is new yet: all is again what it was
                if os.path.lexists(kept):
                    os.replace(kept, old)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # it holds what was written
                path.rmdir()


def is_same_file(new: Path, old: Path) -> bool:
    return new.is_file() and old.is_file() and not old.is_symlink() and filecmp.cmp(new, old, shallow=False)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder ``new`` in ``path``'s place, whatever stands there, and remove that; :func:`survivor` finds one of them at any time.

    Where the system can swap two names in one step, it does; where it cannot, what stood there is moved aside first, for a rename
    replaces no folder that holds something.
    """
    if not os.path.lexists(path):
        new.rename(path)
    elif swapped(new, path):
        remove(new)
    else:
        replace_in_two_steps(new, path)


def replace_in_two_steps(new: Path, path: Path) -> None:
    """Two renames; between them ``path`` does not exist. After an exception it is again what it was."""
    aside = temporary_beside(path).with_suffix(ASIDE)
    try:
        path.rename(aside)
        new.rename(path)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(path):
            aside.rename(path)
        raise
    discarded = temporary_beside(path)
    aside.rename(discarded)
    remove(discarded)


def survivor(path: Path) -> Path:
    """``path``, or where it is gone what a process that was killed between two renames had moved aside."""
    if os.path.lexists(path):
        return path
    aside = [other for other in path.parent.glob(f".{glob.escape(path.name)}.*{ASIDE}") if other.is_dir() and not other.is_symlink()]
    return max(aside, key=lambda other: other.stat().st_mtime, default=path)


def swapped(a: Path, b: Path) -> bool:
    """Swap what two names stand for in one step; False where the system or the file system cannot (Linux and macOS can)."""
    try:
        system: Any = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return system.renamex_np(os.fsencode(a), os.fsencode(b), 2) == 0  # RENAME_SWAP
        return system.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):  # no such function; no such library (Windows)
        return False


def remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def folder_for(path: Path) -> None:
    """Make the folder that a file is to be written into; UsageError where it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise UsageError(f"--out: the folder for {path} cannot be made: {what}") from error


def on_disk(*paths: Path) -> None:
    """Wait until the contents of files have left the system's cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_to_append(path: Path) -> TextIO:
    """A text file that grows; a symbolic link in its place is refused."""
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | NO_FOLLOW, 0o666))


def cannot_write(path: Path, error: OSError) -> RunFault:
    with contextlib.suppress(ValueError, OSError):  # it is elsewhere; the current folder is gone
        path = path.relative_to(Path.cwd())
    return RunFault(f"cannot write {path}: {error.strerror or error}")
