"""Checkpoints: what goes in comes out, and nothing that was damaged does."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from upslope.errors import RunFault, UsageError
from upslope.run.checkpoints import KEPT, MANIFEST, STATE, TENSORS, checkpoints_in, newest, read_checkpoint, write_checkpoint


def state() -> dict:
    return {
        "weights": torch.arange(6.0).view(2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "moments": [torch.zeros(3), None, [torch.ones((), dtype=torch.float64)]],
        "array": np.arange(4, dtype=np.int8),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 2)),
        "scalar": np.float32(0.1),
        "big": 2**127 + 5,
        "float": 0.1 + 0.2,
        "odd": [math.inf, -math.inf, math.nan],
        "text": "ä\n\x00",
        "nothing": {},
        "named": [{"tensor": "x"}, {"array": 1}, {"float": None}, {"mapping": {"mapping": {}}}],
        "nested": {"a/b": {"c": torch.ones(1)}, "a": {"b": {"c": torch.zeros(1)}, "b/c": np.full(1, 2.0)}},
    }


def test_what_goes_in_comes_out(tmp_path: Path):
    expected, found = state(), read_checkpoint(write_checkpoint(tmp_path, 3, state()))
    assert torch.equal(found["weights"], expected["weights"])
    assert found["half"].dtype == torch.bfloat16
    assert torch.equal(found["half"], expected["half"])
    assert found["moments"][1] is None
    assert found["moments"][2][0].dtype == torch.float64
    assert found["array"].dtype == np.int8
    assert found["flags"].tolist() == [True, False]
    assert found["empty"].shape == (0, 2)
    assert found["scalar"] == float(np.float32(0.1))
    assert (found["big"], found["float"], found["text"], found["nothing"]) == (2**127 + 5, 0.1 + 0.2, "ä\n\x00", {})
    assert found["named"] == expected["named"]
    assert found["odd"][:2] == [math.inf, -math.inf]
    assert math.isnan(found["odd"][2])
    inside = found["nested"]
    assert (inside["a/b"]["c"].item(), inside["a"]["b"]["c"].item(), inside["a"]["b/c"].item()) == (1.0, 0.0, 2.0)


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array([object()]), {3, 4}, b"bytes"])
def test_what_a_checkpoint_cannot_hold_is_refused_with_its_place(value, tmp_path: Path):
    with pytest.raises(TypeError, match=r"^/part"):
        write_checkpoint(tmp_path, 1, {"part": {"x": 0, "inside": value}})
    assert checkpoints_in(tmp_path) == []


def test_the_newest_are_kept(tmp_path: Path):
    for iteration in (1, 2, 10, 200_000_000):
        write_checkpoint(tmp_path, iteration, {"iteration": iteration})
    assert len(checkpoints_in(tmp_path)) == KEPT
    assert newest(tmp_path).state == {"iteration": 200_000_000}


def test_a_damaged_one_is_passed_over_in_one_line(tmp_path: Path):
    write_checkpoint(tmp_path, 1, {"iteration": 1})
    second = write_checkpoint(tmp_path, 2, {"iteration": 2})
    (second / STATE).write_bytes((second / STATE).read_bytes()[:-1])
    found = newest(tmp_path)
    assert found.state == {"iteration": 1}
    assert len(found.passed_over) == 1
    assert "iteration-00000002 is damaged: its files are not those that its manifest describes" in found.passed_over[0]
    (tmp_path / "checkpoints" / "iteration-00000001" / MANIFEST).unlink()
    with pytest.raises(UsageError, match="no checkpoint is whole"):
        newest(tmp_path)


def test_one_under_the_name_of_another_is_damaged(tmp_path: Path):
    for iteration in (1, 2):
        write_checkpoint(tmp_path, iteration, {"iteration": iteration})
    newer, older = checkpoints_in(tmp_path)
    for path in older.iterdir():
        (newer / path.name).write_bytes(path.read_bytes())
    found = newest(tmp_path)
    assert (found.path, len(found.passed_over)) == (older, 1)


def test_without_one_there_is_none(tmp_path: Path):
    assert newest(tmp_path) is None


def test_no_damage_is_loaded(tmp_path: Path):
    """Bit flips, cuts, files too many and too few."""
    path = write_checkpoint(tmp_path, 1, state())
    rng = random.Random(0)
    for trial in range(200):
        target = path / rng.choice([STATE, TENSORS, MANIFEST])
        before = target.read_bytes()
        damage = bytearray(before)
        if trial % 2:
            position = rng.randrange(len(damage))
            damage[position] ^= 1 << rng.randrange(8)
        else:
            damage = damage[: rng.randrange(len(damage))]
        target.write_bytes(damage)
        with pytest.raises(UsageError, match="damaged"):
            read_checkpoint(path)
        target.write_bytes(before)
    read_checkpoint(path)
    (path / "more").write_bytes(b"")
    with pytest.raises(UsageError, match="expected manifest"):
        read_checkpoint(path)
    (path / "more").unlink()
    (path / TENSORS).rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="damaged"):
        read_checkpoint(path)
    (path / TENSORS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not a plain file"):
        read_checkpoint(path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch):
    write_checkpoint(tmp_path, 1, {"iteration": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunFault, match=r"cannot write .*iteration-00000002: No space left on device"):
        write_checkpoint(tmp_path, 2, {"iteration": 2})
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration-00000001"]
    assert newest(tmp_path).state == {"iteration": 1}
