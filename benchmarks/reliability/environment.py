"""What is around a run: folders that cannot be written to, disks that are full, terminals and locales of every kind.

python benchmarks/reliability/environment.py                     # about four minutes; read-only and full disks as root, on Linux
python benchmarks/reliability/environment.py --only locale
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import SOURCE, Record, ended, finish, forked, harness, said

from upslope.cli.main import main as upslope
from upslope.errors import UsageError
from upslope.run.load import Run

SMALL = "--num-envs 2 --num-steps 16 --num-minibatches 2 --num-epochs 1 --total-steps 320 --eval-episodes 2 --checkpoint-every 0"
TRAIN = f"train ppo CartPole-v1 {SMALL}"
TINY = "--model tiny --task copy --iterations 1 --num-prompts 2 --group-size 2 --num-minibatches 1 --warm-start 0 --eval-episodes 2 --quiet"
NEW_NAMESPACE, READ_ONLY, REMOUNT, BIND, PRIVATE = 0x20000, 1, 32, 4096, (1 << 18) | (1 << 14)
PROTOCOL = (
    "`read-only`: commands in a folder of a file system that is mounted read-only. Right: what need not write there works (exit code 0); "
    "what must, ends with exit code 1 or 2 and one line that names what cannot be written and why; nothing changes. `full disk`: the same "
    "on a file system with no room, or with too little: one line that names the file and the cause, nothing temporary is left, and what a "
    "run had written can be read; with room again `upslope resume` goes on to the end. `locale`: a short run in a fresh process with the "
    "environment changed as said (`set`), or the streams closed: exit code 0, the run is finished and no Python error is printed; where "
    "that cannot be, exit code 1 or 2 and one line."
)


@dataclass(frozen=True)
class Case:
    name: str
    words: str
    works: bool = False
    says: str = ""


READ_ONLY_CASES = (
    Case("train", TRAIN, says="runs"),
    Case("train, a folder of its own", f"{TRAIN} --out new", says="folder"),
    Case("train, elsewhere", f"{TRAIN} --quiet --out {{elsewhere}}/run", works=True),
    Case("evaluate", "evaluate run --episodes 2", works=True),
    Case("play", "play run --max-steps 20", says="play.gif"),
    Case("play, elsewhere", "play run --max-steps 20 --out {elsewhere}/a.gif", works=True),
    Case("record", "record run --steps 64 --out a.safetensors", says="a.safetensors"),
    Case("plot", "plot run", says="comparison.png"),
    Case("resume", "resume stopped", says="stopped"),
    Case("resume, to a larger budget", "resume run --total-steps 1000", says="run"),
    Case("replay", "replay run --iteration 2", says="replay"),
    Case("export", "export text --out model", says="folder"),
    Case("chat", "chat text --greedy --max-tokens 2", works=True),
    Case("variance", "variance CartPole-v1 --samples 16", says="runs"),
)
FULL_CASES = (
    Case("train, from the start", f"{TRAIN} --quiet --out {{full}}/run"),
    Case("train, after a while", f"{TRAIN} --quiet --total-steps 20000 --out {{full}}/run"),
    Case("resume", "resume {full}/stopped --quiet --total-steps 20000"),
    Case("play", "play run --max-steps 200 --out {full}/a.gif"),
    Case("record", "record run --steps 50000 --out {full}/a.safetensors"),
    Case("export", "export text --out {full}/model"),
    Case("plot", "plot run --out {full}/a.png"),
)


@dataclass(frozen=True)
class Around:
    """A run in a fresh process: variables that are set (None: unset), or a shell that starts it otherwise (``{run}``)."""

    name: str
    set: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    shell: str = "{run}"
    works: bool = True
    folder: str = "here"


AROUND = (
    Around("ascii", {"PYTHONIOENCODING": "ascii"}),
    Around("latin-1", {"PYTHONIOENCODING": "latin-1"}),
    Around("C locale", {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Around("POSIX locale", {"LC_ALL": "POSIX"}),
    Around("a locale that is not there", {"LC_ALL": "xx_YY.nothing", "LANG": "xx"}),
    Around("20 columns", {"COLUMNS": "20", "LINES": "5"}),
    Around("columns that are no number", {"COLUMNS": "many"}),
    Around("a dumb terminal", {"TERM": "dumb"}),
    Around("no terminal", {"TERM": None}),
    Around("a terminal of 20 columns", {"TERM": "xterm"}, "script -qec 'stty cols 20; {run}' /dev/null"),
    Around("no color", {"NO_COLOR": "1"}),
    Around("color", {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}),
    Around("stdin closed", {}, "{run} <&-"),
    Around("stdout closed", {}, "{run} >&-"),
    Around("stderr closed", {}, "{run} 2>&-"),
    Around("all closed", {}, "{run} <&- >&- 2>&-"),
    Around("stdout full", {}, "{run} >/dev/full", works=False),
    Around("stderr full", {}, "{run} 2>/dev/full"),
    Around("no home", {"HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None}),
    Around("a home that is not there", {"HOME": "/nowhere/home", "XDG_CACHE_HOME": None}),
    Around("a home that is a file", {"HOME": "/dev/null", "XDG_CACHE_HOME": None}),
    Around("no folder for temporary files", {"TMPDIR": "/nowhere", "TEMP": "/nowhere", "TMP": "/nowhere"}),
    Around("umask 777", {}, "umask 777; {run}", works=os.geteuid() == 0),
    Around("umask 077", {}, "umask 077; {run}"),
    Around("an empty environment", {}, "env -i PYTHONPATH=$PYTHONPATH {run}"),
    Around("warnings as errors", {"PYTHONWARNINGS": "error"}),
    Around("without assertions", {"PYTHONOPTIMIZE": "2"}),
    Around("another drawing backend", {"MPLBACKEND": "module://nowhere"}),
    Around("threads that are no number", {"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "0"}),
    Around("a folder with a strange name", {}, folder="a b\u00e9\u2028$(x)"),
    Around("a folder whose name is no text", {}, folder="\udcff\udcfe"),
    Around("a folder that is gone", {}, "rmdir $PWD; {run}", works=False),
)


def one_line(text: str) -> bool:
    lines = [line for line in text.splitlines() if not line.startswith(("upslope: warning: ", "upslope: note: "))]
    return len(lines) == 1 and lines[0].startswith("upslope: ") and "UPSLOPE_TRACEBACK" not in lines[0]


def prepare(folder: Path) -> int:
    """A run of each world, and one that was stopped."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        codes = [upslope(words.split()) for words in (f"{TRAIN} --out run", f"train grpo {TINY} --out text")]
    shutil.copytree("run", "stopped")
    Path("stopped/summary.json").unlink()
    newest = max(Path("stopped/checkpoints").glob("iteration-*"))
    for path in [path for path in Path("stopped/checkpoints").glob("iteration-*") if path == newest]:
        shutil.rmtree(path)
    return sum(codes)


# ------------------------------------------------------------------------------------------------------------------- mounts


def mount(what: str, where: Path, kind: str | None, flags: int, data: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [None if text is None else os.fsencode(text) for text in (what, str(where), kind)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), None if data is None else data.encode()):
        raise OSError(ctypes.get_errno(), "mount", str(where))


def own_mounts() -> None:
    """Mounts of this process are from now on its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), None, PRIVATE)


def can_mount() -> bool:
    def tries() -> int:
        own_mounts()
        return 0

    with tempfile.TemporaryDirectory() as folder:
        return ended(forked(tries, Path(folder))) == 0


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def faults_of(case: Case, code: int, text: str) -> list[str]:
    if case.works:
        return [] if code == 0 else [f"exit code {code}: {text[-200:]}"]
    found = [] if code in (1, 2) else [f"exit code {code}"]
    if not one_line(text):
        found.append(f"it says: {text[-300:]}")
    return found if case.says in text else [*found, f"it does not name {case.says}: {text[-300:]}"]


def read_only(case: Case, folder: Path, output: Path) -> Record:
    words = case.words.format(elsewhere=output).split()

    def work() -> int:
        own_mounts()
        mount(str(folder), folder, None, BIND)
        mount("none", folder, None, REMOUNT | BIND | READ_ONLY)
        os.chdir(folder)
        sys.stdin = io.StringIO("hello\n")
        return upslope(words)

    before = tree(folder)
    code = ended(forked(work, output))
    found = faults_of(case, code, said(output)) + ([] if tree(folder) == before else ["something changed"])
    return {"name": f"read-only: {case.name}", "words": case.words, "code": code, "said": said(output)[-200:], "faults": found}


def full(case: Case, folder: Path, output: Path) -> Record:
    """The disk has room for some files of a run and not for all; from the start it has none."""
    place = output / "full"
    place.mkdir(parents=True)
    words = case.words.format(full=place).split()
    none_at_all = "from the start" in case.name or case.name in ("play", "record", "export", "plot")

    def work() -> int:
        own_mounts()
        mount("tmpfs", place, "tmpfs", 0, f"size={'4k' if none_at_all else '400k'}")
        if "stopped" in case.words:
            shutil.copytree(folder / "stopped", place / "stopped")
        if none_at_all:
            (place / "filler").write_bytes(bytes(4096))
        os.chdir(folder)
        code = ended(forked(lambda: os.chdir(folder) or upslope(words), output / "first"))
        found = faults_of(case, code, text := said(output / "first"))
        if "No space left on device" not in text or str(place) not in text:
            found.append(f"it does not name the file and the cause: {text[-300:]}")
        found += [f"{path.name} is left" for path in place.rglob("*.partial")]
        run = next((place / name for name in ("run", "stopped") if (place / name / "config.json").exists()), None)
        if run is not None:
            with contextlib.suppress(OSError):
                mount("none", place, None, REMOUNT, "size=64m")
            found += gone_on(run, output)
        (output / "verdict").write_text(json.dumps([code, text[-200:], found]))
        return 0

    if code := ended(forked(work, output)):
        return {"name": f"full disk: {case.name}", "code": code, "faults": [f"the script failed: {said(output)[-300:]}"]}
    code, text, found = json.loads((output / "verdict").read_text())
    return {"name": f"full disk: {case.name}", "words": case.words, "code": code, "said": text, "faults": found}


def gone_on(run: Path, output: Path) -> list[str]:
    """What is wrong with a run for which there was no room, and with going on with it."""
    try:
        rows = Run.load(run).metrics()
    except UsageError as error:
        return [str(error)]
    if not rows:
        return []
    code = ended(forked(lambda: upslope(["resume", str(run), "--quiet", "--total-steps", "20000"]), output / "resume"))
    status = (Run.load(run).summary or {}).get("status")
    return [] if (code, status) == (0, "finished") else [f"resume: exit code {code}, {status}: {said(output / 'resume')[-200:]}"]


# ---------------------------------------------------------------------------------------------------- terminals and locales


def around(case: Around, output: Path) -> Record:
    folder = output / case.folder
    folder.mkdir(parents=True)
    run = f"{sys.executable} -m upslope {TRAIN} --eval-every 100 --out {output}/run"
    if "gone" in case.name:
        run = f"{sys.executable} -m upslope {TRAIN}"
    changes = {"PYTHONPATH": str(SOURCE), **case.set}
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    command = case.shell.replace("{run}", run)
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, check=False, timeout=300)
    text, shown = done.stderr.decode(errors="replace"), done.stdout.decode(errors="replace")
    found = [] if "Traceback" not in text + shown else [f"a traceback: {(text + shown)[-300:]}"]
    status = None
    with contextlib.suppress(UsageError, OSError):
        status = (Run.load(output / "run").summary or {}).get("status")
    if case.works:
        if (done.returncode, status) != (0, "finished"):
            found.append(f"exit code {done.returncode}, {status}: {text[-300:]}")
    elif done.returncode not in (1, 2) or not one_line(text):
        found.append(f"exit code {done.returncode}: {text[-300:]}")
    return {"name": f"locale: {case.name}", "set": dict(case.set), "code": done.returncode, "said": text[-200:], "faults": found}


def records(only: list[str], work: Path) -> Iterator[Record]:
    folder = work / "folder"
    folder.mkdir()
    if code := ended(forked(lambda: prepare(folder), work / "prepare")):
        raise SystemExit(f"{code}: {said(work / 'prepare')}")
    mounts = can_mount()
    todo: list[tuple[str, Callable[[Path], Record]]] = []
    if mounts:
        todo += [(f"read-only: {case.name}", lambda out, case=case: read_only(case, folder, out)) for case in READ_ONLY_CASES]
        todo += [(f"full disk: {case.name}", lambda out, case=case: full(case, folder, out)) for case in FULL_CASES]
    else:
        print("no file system can be mounted here (it takes root, on Linux): read-only folders and full disks are left out")
    todo += [(f"locale: {case.name}", lambda out, case=case: around(case, out)) for case in AROUND]
    for index, (name, judge) in enumerate(todo):
        if not only or any(word in name for word in only):
            yield judge(work / str(index))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cases with one of these words in their names")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "environment.json")
    args = parser.parse_args()
    for name in ("upslope.cli.train", "upslope.cli.resume", "upslope.run.session", "upslope.language", "upslope.run.drawing"):
        importlib.import_module(name)
    found: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        for record in records(args.only, Path(temporary)):
            record["right"] = not record["faults"]
            print(
                f"{'ok ' if record['right'] else 'BAD'} {record['name']:<50}{record['code']:>4}  {'; '.join(record['faults'])[:500]}",
                flush=True,
            )
            found.append(record)
    counts = {
        kind: sum(record["right"] for record in found if record["name"].startswith(kind)) for kind in ("read-only", "full disk", "locale")
    }
    return finish("environment", found, args.out, protocol=PROTOCOL, found=counts)


if __name__ == "__main__":
    raise SystemExit(main())
