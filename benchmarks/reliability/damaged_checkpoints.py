"""A thousand damaged checkpoints: each is passed over with a line, or the resume is refused with one; none is loaded.

python benchmarks/reliability/damaged_checkpoints.py                  # a minute
python benchmarks/reliability/damaged_checkpoints.py --only "one bit" manifest --count 100
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import Record, ended, finish, forked, harness, said

from upslope.cli.main import main as upslope
from upslope.errors import UsageError
from upslope.run.checkpoints import MANIFEST, STATE, TENSORS, checkpoints_in, manifest_of, newest
from upslope.run.resume import GROWING
from upslope.run.verify import differences

NAMES = (STATE, TENSORS, MANIFEST)
TRAIN = "train ppo CartPole-v1 --num-envs 2 --num-steps 16 --num-minibatches 2 --num-epochs 1 --total-steps 320 --eval-episodes 2 --quiet"
PROTOCOL = (
    "A run with two checkpoints (`settings`); in a copy of its folder the newer one is damaged, in a fifth of the copies the older one "
    "as well. Right: the reader gives the older one, equal to what it was, and one line that names the newer one; where both are "
    "damaged, it refuses in one line. Kinds that only a resume can tell (`resume …`): `upslope resume` in a forked process exits 2 with "
    "one line and the folder is, byte for byte, what it was. `silent` counts what was loaded."
)


def one_bit(path: Path, other: Path, number: random.Random) -> None:
    target = path / number.choice(NAMES)
    content = bytearray(target.read_bytes())
    content[number.randrange(len(content))] ^= 1 << number.randrange(8)
    target.write_bytes(content)


def some_bits(path: Path, other: Path, number: random.Random) -> None:
    for _ in range(number.randrange(2, 9)):
        one_bit(path, other, number)


def zeros(path: Path, other: Path, number: random.Random) -> None:
    """A block that never reached the disk."""
    target = path / number.choice(NAMES)
    content = bytearray(target.read_bytes())
    start = 0 if target.name == MANIFEST else number.randrange(0, len(content) - 512, 512)
    if not any(content[start : start + 512]):  # it was all zeros already
        start = 0
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    target.write_bytes(content)


def cut_off(path: Path, other: Path, number: random.Random) -> None:
    target = path / number.choice(NAMES)
    target.write_bytes(target.read_bytes()[: number.randrange(target.stat().st_size)])


def longer(path: Path, other: Path, number: random.Random) -> None:
    target = path / number.choice(NAMES)
    target.write_bytes(target.read_bytes() + number.randbytes(number.choice((1, 8, 100_000))))


def missing(path: Path, other: Path, number: random.Random) -> None:
    for name in number.sample(NAMES, number.choice((1, 1, 2, 3))):
        (path / name).unlink()


def extra(path: Path, other: Path, number: random.Random) -> None:
    name = number.choice(("code.py", "tensors.safetensors.1", ".hidden", "STATE.JSON", "folder"))
    if name == "folder":
        (path / name).mkdir()
    else:
        (path / name).write_bytes(number.randbytes(10))


def no_file(path: Path, other: Path, number: random.Random) -> None:
    """A folder or a link in a file's place, or in the checkpoint's."""
    target = path / number.choice(NAMES) if number.random() < 0.8 else path
    elsewhere = path.parents[1] / "elsewhere" / path.name
    elsewhere.parent.mkdir(exist_ok=True)
    target.rename(elsewhere)
    if target != path and number.random() < 0.3:
        target.mkdir()
    else:
        target.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())


def of_the_other(path: Path, other: Path, number: random.Random) -> None:
    """One or two files of the other checkpoint."""
    for name in number.sample(NAMES, number.choice((1, 2))):
        (path / name).write_bytes((other / name).read_bytes())


def swapped(path: Path, other: Path, number: random.Random) -> None:
    """One file of each in the other one's place."""
    name = number.choice(NAMES)
    ours, theirs = (path / name).read_bytes(), (other / name).read_bytes()
    (path / name).write_bytes(theirs)
    (other / name).write_bytes(ours)


def all_of_the_other(path: Path, other: Path, number: random.Random) -> None:
    """The other checkpoint under this one's name."""
    for name in NAMES:
        (path / name).write_bytes((other / name).read_bytes())


def manifest_for(path: Path) -> None:
    """A manifest that fits what is there now."""
    (path / MANIFEST).write_bytes(manifest_of({name: (path / name).read_bytes() for name in (STATE, TENSORS)}, path.name))


def bad_header(path: Path, other: Path, number: random.Random) -> None:
    """Tensors with an impossible header, and a manifest that fits."""
    content = (path / TENSORS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = number.choice([key for key in header if key != "__metadata__"])
    kind = number.randrange(6)
    if kind == 0:
        content = number.choice((2**63, 2**40, size + 10**9, 0, 1)).to_bytes(8, "little") + content[8:]
    else:
        change = {
            1: {"data_offsets": [0, 10**15]},
            2: {"shape": [2**40, 2**40]},
            3: {"dtype": "PICKLE"},
            4: {"data_offsets": [5, 1]},
            5: {"shape": [-1]},
        }[kind]
        text = json.dumps(header | {name: header[name] | change}).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    (path / TENSORS).write_bytes(content)
    manifest_for(path)


def bad_state(path: Path, other: Path, number: random.Random) -> None:
    """State that nobody wrote, and a manifest that fits."""
    text = (path / STATE).read_bytes()
    content = {
        0: text[: number.randrange(len(text))],
        1: b"[" * 100_000,
        2: text.replace(b'{"tensor": "', b'{"tensor": "no', 1),
        3: b"\xff\xfe" + text,
        4: b"",
        5: b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
        6: text.replace(b'{"tensor": "', b'{"array": ["', 1),
    }[number.randrange(7)]
    (path / STATE).write_bytes(content)
    manifest_for(path)


def bad_manifest(path: Path, other: Path, number: random.Random) -> None:
    text = (path / MANIFEST).read_bytes()
    found = json.loads(text)
    (path / MANIFEST).write_bytes(
        {
            0: b"{}",
            1: b" " * (1 << 20),
            2: json.dumps(found | {"files": {}}).encode(),
            3: json.dumps(found, indent=1).encode(),
            4: text.replace(b"0", b"1", 1) if b"0" in text else b"",
            5: json.dumps(found | {"files": found["files"] | {"../state.json": found["files"][STATE]}}).encode(),
            6: b"null",
            7: b"[" * 60_000,
        }[number.randrange(8)]
    )


KINDS: dict[str, tuple[int, Callable[[Path, Path, random.Random], None]]] = {
    "one bit": (300, one_bit),
    "some bits": (60, some_bits),
    "a block of zeros": (60, zeros),
    "cut off": (120, cut_off),
    "longer": (50, longer),
    "files missing": (50, missing),
    "files too many": (40, extra),
    "no plain file": (40, no_file),
    "files of the other one": (50, of_the_other),
    "a file swapped": (30, swapped),
    "the other one under this name": (20, all_of_the_other),
    "header of tensors": (50, bad_header),
    "state": (50, bad_state),
    "manifest": (40, bad_manifest),
}


# ---------------------------------------------------------------------------------------------- what only a resume can tell


def of_another_run(run: Path, stranger: Path, number: random.Random) -> None:
    """Checkpoints of a run with another seed."""
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(stranger / "checkpoints", run / "checkpoints")


def of_another_kind(run: Path, stranger: Path, number: random.Random) -> None:
    """A checkpoint whose state lacks something, or has another shape, and a manifest that fits."""
    from upslope.run.checkpoints import read_checkpoint, write_checkpoint

    path = checkpoints_in(run)[0]
    state, iteration = read_checkpoint(path), int(path.name[-8:])
    inside = number.choice(["run", "session", "world", "files", "seconds", "surroundings", "policy", "collect", "update", "generators"])
    owner = state if inside in state else state["run"]
    if number.random() < 0.5 or not isinstance(owner[inside], dict) or inside == "surroundings":  # which would only be warned of
        del owner[inside]
    else:
        owner[inside] = {}
    shutil.rmtree(run / "checkpoints")
    write_checkpoint(run, iteration, state)


def rows_changed(run: Path, stranger: Path, number: random.Random) -> None:
    """Rows of metrics in front of the checkpoint: cut off, of another run, or no JSON."""
    path = run / GROWING[0]
    text, kind = path.read_bytes(), number.randrange(3)
    if kind == 0:
        path.write_bytes(text[: number.randrange(len(text) - 1)])
    elif kind == 1:
        path.write_bytes((stranger / GROWING[0]).read_bytes().ljust(len(text), b"\n"))
    else:
        place = number.randrange(len(text) - 1)
        other = number.choice([byte for byte in (b"\x00", b"\xff", b"\n") if byte != text[place : place + 1]])
        path.write_bytes(text[:place] + other + text[place + 1 :])


AT_RESUME: dict[str, tuple[int, Callable[[Path, Path, random.Random], None]]] = {
    "resume: checkpoints of another run": (5, of_another_run),
    "resume: a state that lacks something": (20, of_another_kind),
    "resume: rows of metrics changed": (15, rows_changed),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def read_back(kind: str, index: int, run: Path, work: Path, both: bool) -> Record:
    """Damage a copy and read it."""
    number, copy = random.Random(f"{kind} {index}"), work / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    newer, older = checkpoints_in(copy)
    expected = newest_state(run, 1)
    KINDS[kind][1](newer, older, number)
    both = both or kind == "a file swapped"
    if both and kind != "a file swapped":
        one_bit(older, older, number)
    record: Record = {"kind": kind, "index": index, "both": both, "silent": False}
    try:
        found = newest(copy)
    except UsageError as fault:
        right = both and "\n" not in str(fault) and "damaged" in str(fault)
        return record | {"said": str(fault)[-150:], "right": right}
    except BaseException as fault:
        return record | {"said": f"{type(fault).__name__}: {fault}"[:200], "right": False}
    if found is None or found.path != older:
        return record | {"said": "" if found is None else f"loaded {found.path.name}", "silent": True, "right": False}
    lines = found.passed_over
    right = not both and len(lines) == 1 and "\n" not in lines[0] and newer.name in lines[0]
    right = right and not differences(expected, found.state)
    return record | {"said": lines[0][-150:] if lines else "", "right": right}


def newest_state(run: Path, index: int, kept: dict[tuple[Path, int], object] = {}) -> object:  # noqa: B006
    """A checkpoint's state, read once."""
    from upslope.run.checkpoints import read_checkpoint

    if (run, index) not in kept:
        kept[run, index] = read_checkpoint(checkpoints_in(run)[index])
    return kept[run, index]


def go_on(kind: str, index: int, run: Path, stranger: Path, work: Path) -> Record:
    """Damage a copy and resume it."""
    number, copy = random.Random(f"{kind} {index}"), work / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    AT_RESUME[kind][1](copy, stranger, number)
    before = contents(copy)
    code = ended(forked(lambda: upslope(["resume", str(copy), "--total-steps", "480"]), work / "output"))
    words = said(work / "output")
    right = code == 2 and words.count("\n") == 0 and words != "" and contents(copy) == before
    return {"kind": kind, "index": index, "said": words[-150:], "code": code, "silent": code == 0, "right": right}


def main() -> int:
    kinds = {**KINDS, **AT_RESUME}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="kinds with one of these words in their names")
    parser.add_argument("--count", type=int, default=1000, help="how many in all, in the usual proportions")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "damaged_checkpoints.json")
    args = parser.parse_args()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        runs = [work / "run", work / "stranger"]
        for seed, run in enumerate(runs):
            code = ended(
                forked(lambda run=run, seed=seed: upslope([*TRAIN.split(), "--seed", str(seed), "--out", str(run)]), work / "output")
            )
            if code:
                raise SystemExit(f"the run failed: {said(work / 'output')}")
        for kind, (usual, _) in kinds.items():
            if args.only and not any(word in kind for word in args.only):
                continue
            those: list[Record] = []
            for index in range(math.ceil(usual * args.count / 1000)):
                made = read_back(kind, index, runs[0], work, index % 5 == 4) if kind in KINDS else go_on(kind, index, *runs, work)
                those.append(made)
            records += those
            right, silent = (sum(record[name] for record in those) for name in ("right", "silent"))
            print(f"{kind:<40}{right:>5} of {len(those)}{'' if not silent else f', {silent} silent'}", flush=True)
    found = {"silent": sum(record["silent"] for record in records)}
    table = {kind: sum(record["kind"] == kind for record in records) for kind in kinds}
    return finish("damaged_checkpoints", records, args.out, every=25, protocol=PROTOCOL, settings=TRAIN, kinds=table, found=found)


if __name__ == "__main__":
    raise SystemExit(main())
