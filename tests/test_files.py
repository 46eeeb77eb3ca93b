"""A folder that is replaced is there at every moment, the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from upslope import files


class Struck(BaseException):
    """As a second Ctrl-C, for one."""


def strike(at: int, how: Callable[[], Any], work: Callable[[], None]) -> bool:
    """Do ``how`` before the line number ``at`` that runs in ``files``, counted as they run; whether there were so many."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != files.__file__:
            return None
        count += event == "line"
        if event == "line" and count == at:
            sys.settrace(None)
            how()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count >= at


def write(path: Path, content: str) -> None:
    with files.whole_folder(path) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(content)


def read(path: Path) -> set[str]:
    return {(files.survivor(path) / name).read_text() for name in ("a", "b")}


def raised(at: int, path: Path) -> bool:
    def how() -> None:
        raise Struck

    try:
        return strike(at, how, lambda: write(path, "new"))
    except Struck:
        assert path.is_dir(), at  # nobody was killed, so it is where it was
        return True


def killed(at: int, path: Path, work: Callable[[Path, str], None] = write) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of forks beside threads
        child = os.fork()
    if child == 0:
        struck = strike(at, lambda: os._exit(1), lambda: work(path, "new"))
        os._exit(2 if struck else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.skipif(os.name != "posix", reason="processes are forked")
@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("struck", [raised, killed])
def test_a_folder_that_is_replaced_is_always_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, struck: Callable[[int, Path], bool], swaps: bool
):
    if not swaps:
        monkeypatch.setattr(files, "swapped", lambda a, b: False)
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        swaps = files.swapped(tmp_path / "a", tmp_path / "b")  # not every file system can
    found, at, gone = [], 1, False
    while True:
        path = tmp_path / str(at) / "policy"
        path.parent.mkdir()
        write(path, "old")
        if not struck(at, path):
            break
        gone |= not path.exists()
        (content,) = read(path)
        found.append(content)
        write(path, "newer")
        assert read(path) == {"newer"} and path.is_dir()
        at += 1
    assert read(path) == {"new"} and [p.name for p in path.parent.iterdir()] == ["policy"]
    assert len(found) > 10 and found == sorted(found, reverse=True)  # old, … old, new, … new
    assert gone == (struck is killed and not swaps)  # the gap was struck


def test_a_folder_takes_the_place_of_a_link_and_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for swaps in (True, False):
        if not swaps:
            monkeypatch.setattr(files, "swapped", lambda a, b: False)
        elsewhere, file, link, dangling = (tmp_path / str(swaps) / name for name in ("elsewhere", "file", "link", "dangling"))
        elsewhere.parent.mkdir()
        write(elsewhere, "kept")
        file.write_text("a file")
        link.symlink_to("elsewhere")
        dangling.symlink_to("nowhere")
        for path in (file, link, dangling):
            write(path, "new")
            assert path.is_dir() and not path.is_symlink() and read(path) == {"new"}
        assert read(elsewhere) == {"kept"} and len(list(elsewhere.parent.iterdir())) == 4


def test_the_newest_of_what_was_moved_aside_survives(tmp_path: Path):
    for name, when in (("older", 1), ("newest", 3), ("old", 2)):
        write(tmp_path / f".policy.{name}{files.ASIDE}", name)
        os.utime(tmp_path / f".policy.{name}{files.ASIDE}", (when, when))
    write(tmp_path / ".best_policy.x.replaced", "another")
    assert read(tmp_path / "policy") == {"newest"} and files.survivor(tmp_path / "none") == tmp_path / "none"
    write(tmp_path / "policy", "there")
    assert read(tmp_path / "policy") == {"there"}


def fill(path: Path, content: str) -> None:
    """As a model is saved: of the three files the second is the same for all models."""
    with files.filled_folder(path) as folder:
        for name in MODEL:
            (folder / name).write_text("same" if name == "generation_config.json" else content)


MODEL = ("config.json", "generation_config.json", "model.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="processes are forked")
def test_a_model_that_is_saved_over_another_is_never_a_mixture(tmp_path: Path):
    found, at = set[str](), 1
    while True:
        path = tmp_path / str(at)
        fill(path, "old")
        (path / "notes").write_text("mine")
        struck = killed(at, path, fill)
        whole = (path / "config.json").exists()
        contents = {(path / name).read_text() for name in MODEL if (path / name).exists()} - {"same"}
        assert (len(contents) == 1 or not whole) and (path / "notes").read_text() == "mine"
        found.add(contents.pop() if whole else "none")
        if not struck:
            break
        at += 1
    assert found == {"old", "none", "new"} and {file.name for file in path.iterdir()} == {*MODEL, "notes"}


def test_where_one_file_of_a_model_changes_there_is_always_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path / "model", "old")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("the configuration was removed"))
    with files.filled_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("old")
        (folder / "model.safetensors").write_text("new")
    assert (tmp_path / "model" / "model.safetensors").read_text() == "new"


def test_a_model_that_could_not_be_saved_over_another_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, replace, calls = tmp_path / "model", os.replace, []
    fill(path, "old")

    def full(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == 2:  # its configuration is moved aside, nothing is new yet
            raise OSError(28, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(files.RunFault, match="No space left"):
        fill(path, "new")
    assert {(path / name).read_text() for name in MODEL} == {"old", "same"}


def test_no_temporary_name_can_be_foreseen(tmp_path: Path) -> None:
    names = {files.temporary_beside(tmp_path / "a.png").name for _ in range(100)}
    assert len(names) == 100 and all(len(name) >= len(".a.png..partial") + 16 for name in names)
