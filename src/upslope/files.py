"""How every file is written: whole or not at all, never through somebody else's link, on disk before it counts.

A reader sees the old content or the new one. The temporary file lies beside the target (a rename works within one file system only),
is made exclusively under a name that nobody can guess, and is gone after a failure; a target that is a symbolic link is replaced,
not followed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from upslope.errors import RunFault

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
PARTIAL = ".partial"
"""How the name of everything ends that is not finished yet."""


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that does not exist and that nobody can foresee; it keeps the suffix out of sight: ``.a.png.….partial``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write into; it takes ``path``'s place once the block has ended without an exception.

    Raises:
        RunFault: it cannot be written, and why.
    """
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
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into; it takes ``path``'s place once the block has ended without an exception.

    Raises:
        RunFault: it cannot be written, and why.
    """
    temporary = temporary_beside(path)
    try:
        temporary.mkdir()  # exclusive
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                on_disk(file)
        replace_folder(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into; what it holds is moved into ``path`` once the block has ended without an exception.

    ``path`` may exist and hold other files, which stay; it is made if it does not. A link inside it in a file's place is replaced.

    Raises:
        RunFault: it cannot be written, and why.
    """
    existed = path.exists()
    temporary = temporary_beside(path.absolute() / "files")
    try:
        path.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()  # exclusive
        yield temporary
        for new in sorted(temporary.iterdir()):
            if new.is_dir():
                replace_folder(new, path / new.name)
            else:
                on_disk(new)
                os.replace(new, path / new.name)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # it holds what was written
                path.rmdir()


def replace_folder(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; what stood there is moved aside first (a rename replaces no folder that holds something)."""
    old = temporary_beside(path)
    if path.is_symlink() or path.exists():
        path.rename(old)
    new.rename(path)
    if old.is_symlink() or old.is_file():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def on_disk(path: Path) -> None:
    """Wait until a file's content has left the system's cache."""
    descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_append(path: Path) -> TextIO:
    """A text file that grows; a symbolic link in its place is refused."""
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | NO_FOLLOW, 0o666))


def cannot_write(path: Path, error: OSError) -> RunFault:
    """The fault that names the file."""
    return RunFault(f"cannot write {path}: {error.strerror or error}")
