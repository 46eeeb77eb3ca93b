"""Five hundred malformed requests, over all commands: one line, exit code 2, and not a file is touched.

python benchmarks/reliability/bad_input.py                       # about five minutes
python benchmarks/reliability/bad_input.py --only "damaged" "train" --count 2000
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Record, ended, finish, forked, fresh, harness, said

from upslope.cli.main import COMMANDS
from upslope.cli.main import main as upslope
from upslope.cli.train import PAGES

SMALL = "--num-envs 2 --num-steps 16 --num-minibatches 2 --num-epochs 1 --total-steps 64 --eval-episodes 2 --quiet"
TINY = "--model tiny --task copy --iterations 1 --num-prompts 2 --group-size 2 --num-minibatches 1 --warm-start 0 --eval-episodes 2 --quiet"
LIMIT, MEMORY = 60, 16 << 30
"""Seconds that a request may take, and bytes of address space."""
PROTOCOL = (
    "A table of kinds × flags × commands (`kinds`, `commands`: how many of each), of which so many are drawn, at least one of each flag "
    "and of each kind. Each is a command line given to `upslope` in a process that has imported it, in a folder with a run of each "
    "world, their files damaged where the case says so; every `fresh`-th in a process of its own. Right: exit code 2, nothing on "
    "stdout, on stderr one line that begins with `upslope: ` and neither is nor mentions a traceback, and every file and folder is what "
    "it was, byte for byte."
)
DEEP = '{"a":' * 3000 + "1" + "}" * 3000
VALUES = {
    "N": ("", "x", "nan", "inf", "1.5", "1e30", "99999999999999999999", "١٢x", "-1", "1e15", "0x10", "1 2", "--", "\udcff"),
    "X": ("", "x", "nan", "inf", "-inf", "-1e400", "1e300", "1,5", "0x1p3", "\x1b[31m1"),
    "PATH": ("", "a" * 5000, "\udcff/\x00"),
    "JSON": ("", "{", "[]", "null", "1", '{"a": NaN}', '{"a": 1e999}', DEEP, "\ufeff{}", "{'a': 1}"),
    "module": ("", "zzz zzz", ":", "os:", ":f", ".x:y", "nowhere:f", "os:nope", "exits:f", "fails:f", "wrong:f", "a" * 5000, "os.path:sep"),
    "{": ("", "zzz zzz", "\x1b]0;t\x07", "a" * 5000),
}
"""Values that nobody can mean, by what a flag takes."""
NAMES = (
    "",
    " ",
    "a" * 5000,
    "nowhere",
    "../nowhere",
    "\udcff",
    ":",
    "nowhere:f",
    "--",
    "-",
    "--=",
    "--x=1",
    "/dev/null",
    "\x00",
    "notes.txt",
)
"""What is no name of anything."""
MODULES = {
    "exits.py": "import sys\nsys.exit(0)\n",
    "fails.py": "raise OSError('no\\nport')\n",
    "wrong.py": "def f(:\n",
    "deep.py": "def f():\n    f()\nf()\n",
    "own.py": "number = 3\ntext = 'a'\ndef f(): return 3\ndef none(): return None\ndef quits(): raise SystemExit(0)\n",
    "bytes.py": "\x00",
}
"""Modules that lie in the current folder."""

WRONG_WORLDS = """
PPO --init text
PPO --init text/policy
PPO --init notes.txt
PPO --init empty
PPO --config text
PPO --config empty
PPO --config notes.txt
PPO --data run
train off-policy CartPole-v1 --data text
train off-policy CartPole-v1 --data notes.txt
train off-policy Pendulum-v1 --data steps.safetensors
train ppo Pendulum-v1 --init run
PPO --out run
PPO --out notes.txt
PPO --out notes.txt/x
PPO --resume auto
PPO --resume auto --out text
PPO --resume auto --out empty/../run --seed 5
GRPO --model run
GRPO --config run
GRPO --task nope
GRPO --task notes.txt
GRPO --task text
GRPO --reference run
GRPO --num-prompts 1e9
GRPO --group-size 1e9
GRPO --max-tokens 1e9
GRPO --eval-episodes 1e9
GRPO --iterations 1e15
GRPO --lora-rank 4
train dpo TINY --batch-size 1e9
train sft TINY --batch-size 1e9
PPO --num-envs 1e9
PPO --num-steps 1e9
PPO --num-epochs 1e9
PPO --hidden-sizes 1e9
PPO --total-steps 1e30
PPO --eval-episodes 1e15
PPO --num-minibatches 1e9
PPO --seed 1e12
PPO --checkpoint-iterations 0
PPO --max-episode-steps 0
PPO --max-episode-steps 1e15
PPO --device cuda:99
PPO --device meta
PPO --gamma 2
PPO --reward-scale 1e-300
PPO --reward-scale 0
PPO --learning-rate -1
PPO --clip-range -1
train grpo CartPole-v1 --num-groups 1e9
train grpo CartPole-v1 --group-size 1e9
train reinforce CartPole-v1 --num-episodes 1e12
train sarsa CartPole-v1 --num-tilings 1e9
train sarsa CartPole-v1 --num-steps 1e12
train ppo CartPole-v1 --features tiles
evaluate text --env CartPole-v1
evaluate run --task copy
evaluate run --env Pendulum-v1
evaluate run --episodes 1e15
evaluate run --max-episode-steps 1e15
evaluate text --episodes 1e9
evaluate text --max-tokens 1e9
evaluate empty
evaluate notes.txt
evaluate run/config.json
evaluate text/policy --task nope
play text
play run --max-steps 1e15
play run --out a.avi
play run --out notes.txt/a.gif
play run --out run
play run --env own:f
record text --out a
record run --steps 1e15 --out a.safetensors
record run --out run
record run --out nowhere/a.safetensors
record CartPole-v1 --out a.safetensors
plot empty
plot run --out a.txt
plot run --out notes.txt/a.png
chat run
chat empty
chat notes.txt
chat text --max-tokens 1e9
chat text --temperature 0
export run --out a
export text
export text --out notes.txt
export text --out run
export nowhere --out a
model smollm3
model smollm2 --out notes.txt
resume text/policy
resume empty
resume run
resume text
resume run --total-steps 10
resume run --iterations 100
resume text --total-steps 1000000
resume run --out run
replay run
replay run --iteration 1e5
replay text --iteration 99
replay run --iteration 0
replay run --iteration 1 --out run
replay empty --iteration 1
variance CartPole-v1 --policy text
variance CartPole-v1 --policy nowhere
variance Pendulum-v1 --policy run
variance CartPole-v1 --estimators nope
ladder bandit --seeds 1e9
ladder nope
reproduce sb-0
reproduce sb-13.1 --runs 1e15
check os:path
check own:number
check own:text
check nowhere:f
check own:nope
check os:system
list x
verify-resume ppo CartPole-v1 --kill-at 9
verify-resume ppo CartPole-v1 --stop-after 0
verify-resume ppo own:f
verify-resume grpo --model tiny --task nope
"""
"""Requests of which one word cannot be; ``PPO``, ``GRPO`` and ``TINY`` stand for short runs."""


@dataclass(frozen=True)
class Case:
    """A command line, and what is done to the folder before."""

    kind: str
    words: tuple[str, ...]
    plant: Callable[[Path], None] | None = None
    must: str = ""
    """cases that have the same are alike: one of them is always drawn"""
    says: str = field(default="", kw_only=True)


def takes(flag: Any) -> str | None:
    """Which of :data:`VALUES` are wrong for a flag."""
    metavar = flag.kind.metavar
    if flag.is_switch:
        return None
    if "module:function" in metavar:
        return "module"
    parts = metavar.replace("[", " ").replace("|", " ").split()
    return next((kind for kind in VALUES if metavar.startswith(kind) or kind in parts), None)


def flags() -> Iterator[Case]:
    """Every flag of every command with every wrong value."""
    trains = [("control", name, "CartPole-v1") for name in ("ppo", "trpo", "off-policy", "grpo", "sarsa", "reinforce", "all-actions")]
    pages: list[tuple[list[str], list[Any]]] = []
    seen: set[str] = set()
    for world, name, task in trains:
        found = [flag for flag in PAGES[world].flags(name).values() if flag.name not in seen]
        seen |= {flag.name for flag in found}
        pages.append((["train", name, task], found))
    pages[0][1].extend(PAGES["control"].outputs)
    seen = set()
    for name in ("grpo", "dpo", "sft", "kto"):
        found = [flag for flag in PAGES["language"].flags(name).values() if flag.name not in seen]
        seen |= {flag.name for flag in found}
        pages.append((["train", name, "--model", "tiny", "--task", "copy"], found))
    others = ("evaluate run", "play run", "record run", "plot run", "resume run", "replay run", "variance CartPole-v1", "ladder bandit")
    for words in (*others, "reproduce sb-13.1", "check own:f", "chat text", "export text", "model smollm2"):
        command, rest = words.split()[0], words.split()
        pages.append((rest, list(importlib.import_module(f"upslope.cli.{command}").COMMAND.flags)))
    pages.append((["verify-resume", "ppo", "CartPole-v1"], list(importlib.import_module("upslope.cli.verify_resume").FLAGS)))
    for words, found in pages:
        for flag in found:
            kind = takes(flag)
            for value in VALUES.get(kind or "", ()):
                yield Case(f"value of {kind}", (*words, f"{flag.option}={value}"), must=f"{words[0]} {flag.option}")
            if flag.is_switch:
                yield Case("a switch with a value", (*words, f"{flag.option}=yes"), must="a switch with a value")
            yield Case("no value", (*words, flag.option, "--nothing"), must=f"no value {words[0]}")


def names() -> Iterator[Case]:
    """Every command with names of nothing, and with too many words."""
    for command in COMMANDS:
        for name in NAMES:
            if command in ("list", "train", "verify-resume") or (command, name) in (("model", "--"), ("record", "-"), ("variance", "-")):
                continue
            yield Case("a name of nothing", (command, name), must=f"name {command}")
        yield Case("a flag of nothing", (command, "run", "--no-such-flag"), must=command)
        if command != "plot":
            yield Case("too many words", (command, "run", "text", "three", "four"), must=command)
    for first in ("train", "verify-resume"):
        for words in (
            ("ppo",),
            ("ppo", ""),
            ("ppo", "Nope-v0"),
            ("pp0", "CartPole-v1"),
            ("ppo", "CartPole-v1", "x"),
            ("grpo", "--model", "no"),
        ):
            yield Case("no such method or task", (first, *words), must=f"{first} {words[:1]}")


def worlds() -> Iterator[Case]:
    """Runs of the other world, folders that are none, counts beyond reason."""
    short = {"PPO": f"train ppo CartPole-v1 {SMALL}", "GRPO": f"train grpo {TINY}", "TINY": TINY}
    for line in WRONG_WORLDS.strip().splitlines():
        words = [part for word in line.split() for part in short.get(word, word).split()]
        yield Case("of another world, missing, beyond reason", tuple(words), must=line)


def modules() -> Iterator[Case]:
    """Modules of one's own that are wrong, wherever one is named."""
    for name in (
        *(Path(file).stem + ":f" for file in MODULES),
        "own:number",
        "own:none",
        "own:quits",
        "own:nope",
        "own",
        "os:path",
        "own:text",
    ):
        for line in (
            f"train ppo {name} {SMALL}", f"train {name} CartPole-v1", f"train ppo CartPole-v1 {SMALL} --surrogate {name}",
            f"train ppo CartPole-v1 {SMALL} --schedule {name}",
            f"train grpo {TINY} --reward {name}", f"train ppo CartPole-v1 {SMALL} --logger {name}",
            f"check {name}", f"evaluate run --env {name}", f"play run --env {name}", f"resume stopped --env {name}",
        ):  # fmt: skip
            called = name in ("own:quits", "own:f", "own:none") and (line.startswith("check") or "--reward" in line)
            if not called:  # what is called and then answers nonsense is a fault while running
                yield Case("a module that is wrong", tuple(line.split()), must=f"module {name} {line.split()[0]}")


def changed(name: str, *keys: str, value: Any) -> Callable[[Path], None]:
    """One value of a JSON file changed, or removed (``...``)."""

    def plant(folder: Path) -> None:
        path = folder / name
        content = inner = json.loads(path.read_text())
        for key in keys[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value
        path.write_text(json.dumps(content))

    return plant


def content(name: str, what: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(what((folder / name).read_bytes())) and None


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "cut off": lambda old: old[: len(old) // 2],
    "of bytes": lambda old: b"\xff\xfe\x00" * 100,
    "of brackets": lambda old: b"[" * 100_000,
    "of null": lambda old: b"null",
    "of text": lambda old: b"hello",
    "of zeros": lambda old: bytes(len(old)),
}


def damaged() -> Iterator[Case]:
    """Files of a run that are damaged, missing, or say what cannot be, for every command that reads them."""
    readers = {
        "run": ("evaluate run --episodes 1", "play run --out a.gif --max-steps 2",
                "record run --steps 8 --out a.safetensors", "resume run --total-steps 128",
                f"train ppo CartPole-v1 {SMALL} --init run", "variance CartPole-v1 --policy run"),
        "text": ("evaluate text --episodes 1", "chat text --greedy", "export text --out a", f"train grpo {TINY} --model text"),
    }  # fmt: skip
    parts = {
        "run": ("config.json", "policy.json", "policy.safetensors"),
        "text": ("config.json", "policy/config.json", "policy/model.safetensors", "policy/tokenizer.json"),
    }
    for run, lines in readers.items():
        for file in parts[run]:
            for how, what in SPOILED.items():
                for line in lines:
                    if ("resume" in line and file != "config.json") or ("--model" in line and file == "config.json"):
                        continue  # which does not read it
                    yield Case(f"a file {how}", tuple(line.split()), content(f"{run}/{file}", what), f"{run} {file} {how}")
            for line in lines:
                if ("resume" not in line or file == "config.json") and ("--model" not in line or file != "config.json"):
                    yield Case(
                        "a file missing",
                        tuple(line.split()),
                        lambda folder, file=f"{run}/{file}": (folder / file).unlink(),
                        f"{run} {file}",
                    )
    for how, what in SPOILED.items():
        if how != "cut off":  # half a last line is left out
            yield Case(f"a file {how}", ("plot", "run"), content("run/metrics.jsonl", what), f"metrics {how}")
        yield Case(
            f"a file {how}",
            ("train", "off-policy", "CartPole-v1", "--data", "steps.safetensors"),
            content("steps.safetensors", what),
            f"data {how}",
        )
        yield Case(
            f"a file {how}", tuple(f"train ppo CartPole-v1 {SMALL} --config run/config.json".split()), content("run/config.json", what), how
        )
    wrong: tuple[Any, ...] = (None, [], {}, -1, 1e30, "x" * 5000, "\x1b[31m", True, 1.5)
    for keys in (("algorithm",), ("algorithm", "name"), ("collector",), ("settings",), ("env",),
                 ("env_id",), ("world",), ("format_version",),
                 ("env", "env_kwargs"), ("policy",)):  # fmt: skip
        for value in (..., *wrong):
            fine = (keys[-1] in ("collector", "settings", "policy", "env_kwargs", "env") and value == {}) or (
                keys == ("format_version",) and value in (True, -1)
            )
            if not fine:
                yield Case(
                    "a setting that cannot be",
                    ("resume", "run", "--total-steps", "128"),
                    changed("run/config.json", *keys, value=value),
                    ".".join(keys),
                )
    for keys in (("class",), ("observation_space",), ("action_space",), ("hidden_sizes",), ("activation",), ("observation_space", "shape")):
        for value in (..., *wrong):
            yield Case(
                "a policy that cannot be",
                ("evaluate", "run", "--episodes", "1"),
                changed("run/policy.json", *keys, value=value),
                ".".join(keys),
            )
    for key in ("lerning_rate", "num_envs", "gamma", "surrogate", "hidden_sizes", "fast", "seed", "env_kwargs"):
        for value in wrong:
            plain = f"train ppo CartPole-v1 {SMALL} --config settings.json"
            words = " ".join(word for word in plain.split() if word not in ("--num-envs", "2") or key != "num_envs")
            if not ((key, value) in (("fast", True), ("env_kwargs", {})) or (key == "hidden_sizes" and value in ([], None))):
                plant = lambda folder, key=key, value=value: (folder / "settings.json").write_text(json.dumps({key: value})) and None  # noqa: E731
                yield Case("a file of settings that cannot be", tuple(words.split()), plant, f"settings {key}")


def tree(folder: Path) -> dict[str, Any]:
    """Everything in a folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*") if "__pycache__" not in p.parts}


def prepare(folder: Path) -> None:
    """Runs of both worlds, recorded steps, modules, and what is no run."""
    os.chdir(folder)
    for words in (
        f"train ppo CartPole-v1 {SMALL} --out run",
        f"train grpo {TINY} --out text",
        "record CartPole-v1 --random --steps 64 --out steps.safetensors",
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            if upslope(words.split()):
                raise SystemExit(f"{words}: failed")
    shutil.copytree("run", "stopped")
    Path("stopped/summary.json").unlink()
    changed("stopped/config.json", "env_id", value="own:f")(folder)
    Path("empty").mkdir()
    Path("notes.txt").write_text("notes\n")
    for name, text in MODULES.items():
        Path(name).write_text(text)


def late(number: int, frame: object) -> None:
    raise TimeoutError(f"it took more than {LIMIT} s")


def answer(words: tuple[str, ...]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    modules, path = set(sys.modules), list(sys.path)
    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = upslope(list(words))
    except BaseException:
        return 70, out.getvalue(), err.getvalue() + traceback.format_exc()
    finally:
        signal.alarm(0)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if Path(f"{name}.py").exists():
                del sys.modules[name]
    return code, out.getvalue(), err.getvalue()


def in_fresh(words: tuple[str, ...], folder: Path, output: Path) -> tuple[int, str, str]:
    with fresh(words, output, cwd=folder) as process:
        code = process.wait(timeout=2 * LIMIT)
    return code, (output / "out").read_text(errors="replace"), said(output) + "\n"


def faults_of(code: int, out: str, err: str) -> list[str]:
    found = [f"exit code {code}"] if code != 2 else []
    if out:
        found.append(f"stdout: {out[:80]!r}")
    if err.count("\n") != 1 or not err.startswith("upslope: "):
        found.append(f"{err.count(chr(10))} lines")
    if any(word in err for word in ("Traceback", "UPSLOPE_TRACEBACK", "unexpected exception")):
        found.append("it speaks of a traceback")
    if len(err) > 1200:
        found.append(f"a line of {len(err)} characters")
    return found


def drawn(cases: list[Case], count: int) -> list[Case]:
    """So many, one of each that must be, the rest by chance."""
    number, musts, rest = random.Random(0), dict[str, Case](), list[Case]()
    for case in number.sample(cases, len(cases)):
        if case.must not in musts:
            musts[case.must] = case
        else:
            rest.append(case)
    return [*musts.values(), *rest][:count]


def show(word: str) -> str:
    return word if len(word) < 60 else f"{word[:40]}… ({len(word)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cases with one of these words in their kind or their words")
    parser.add_argument("--count", type=int, default=500, help="how many are drawn")
    parser.add_argument("--fresh", type=int, default=25, help="every so many of them in a fresh process")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "bad_input.json")
    args = parser.parse_args()
    args.out = args.out.absolute()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cases = [*flags(), *names(), *worlds(), *modules(), *damaged()]
    table = len(cases)
    cases = [case for case in cases if not args.only or any(word in f"{case.kind} {' '.join(case.words)}" for word in args.only)]
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        if ended(forked(lambda: prepare(work) or 0, Path(temporary) / "prepare")):
            raise SystemExit(said(Path(temporary) / "prepare"))
        os.chdir(work)
        for name in ("upslope.cli.train", "upslope.run.session", "upslope.control", "upslope.language", "upslope.run.drawing"):
            importlib.import_module(name)
        chosen = drawn(cases, args.count)
        whole = Path(temporary) / "whole"
        shutil.copytree(work, whole)
        for index, case in enumerate(chosen):
            if case.plant is not None:
                case.plant(work)
            before = tree(work)
            own = args.fresh and index % args.fresh == 0 and not any("\x00" in w or "\udcff" in w for w in case.words)
            code, out, err = in_fresh(case.words, work, Path(temporary) / "output") if own else answer(case.words)
            found, after = faults_of(code, out, err), tree(work)
            if changes := sorted(name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)):
                found.append(f"touched: {', '.join(str(Path(name).relative_to(work)) for name in changes[:4])}")
            if case.plant is not None or changes:
                shutil.rmtree(work)
                shutil.copytree(whole, work)
                os.chdir(work)
            shown = " ".join(map(show, case.words)).encode("unicode_escape").decode()
            if found:
                print(f"BAD {case.kind} ({case.must[:80]}): {shown}\n      {'; '.join(found)}\n      {err.strip()[-300:]!r}", flush=True)
            records.append(
                {
                    "kind": case.kind,
                    "words": shown,
                    "like": case.must[:80],
                    "fresh": bool(own),
                    "said": ascii(err.strip()[-200:]),
                    "faults": found,
                    "right": not found,
                }
            )
        os.chdir(temporary)
    kinds, commands = ({key: 0 for record in records for key in [key_of(record)]} for key_of in (kind_of, command_of))
    for record in records:
        kinds[kind_of(record)] += 1
        commands[command_of(record)] += 1
    return finish(
        "bad_input", records, args.out, every=20, protocol=PROTOCOL, table=table, fresh=args.fresh, kinds=kinds, commands=commands
    )


def kind_of(record: Record) -> str:
    return record["kind"]


def command_of(record: Record) -> str:
    return record["words"].split()[0]


if __name__ == "__main__":
    raise SystemExit(main())
