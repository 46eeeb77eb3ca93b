"""Kernels and objectives as machine code: compiled by LLVM for this processor once, then loaded from a file.

The file lies beside Python's compiled files (or in the user's cache folder where that cannot be written) and is
named by a hash of its source, of LLVM's version and of the processor, so that a stale one is never used; what it
holds is checked against its hash. Without llvmlite :func:`library` is None and everything runs on PyTorch.
"""

import contextlib
import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from upslope.fast import kernels

TRANSLATOR = ("layout", "registers", "translate")
SOURCES = (*TRANSLATOR, "networks", "formulas", "kernels")
ENTRY_POINTS: tuple[Callable[..., Any], ...] = (kernels.update, kernels.differentiate, kernels.clip_and_step, kernels.step)
"""The kernels that Python calls."""
CTYPES = {"int": ctypes.c_int64, "bool": ctypes.c_bool}
DIGEST = 32  # bytes of the hash that the file begins with


class Library:
    """The compiled entry points; calls release the interpreter lock. ``step`` takes addresses, the others also what has one."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine  # owns the memory that they stand in
        *others, self.step = map(self.entry, ENTRY_POINTS)
        self.update, self.differentiate, self.clip_and_step = map(taking_addresses, others)

    def entry(self, kernel: Callable[..., Any]) -> Callable[..., None]:
        types = [CTYPES.get(kind, ctypes.c_void_p) for name, kind in kernel.__annotations__.items() if name != "return"]
        return ctypes.CFUNCTYPE(None, *types)(self.engine.get_function_address(kernel.__name__))


def taking_addresses(function: Callable[..., None]) -> Callable[..., None]:
    """A function of addresses and numbers, to which tensors, arrays and None may be given."""

    def address(x: Any) -> Any:
        return x.data_ptr() if isinstance(x, Tensor) else x.ctypes.data if isinstance(x, np.ndarray) else x

    return lambda *arguments: function(*map(address, arguments))


@cache
def library() -> Library | None:
    """The compiled kernels, or None where LLVM is not installed or cannot serve this machine."""

    try:
        return Library(loaded("kernels", source_of(*SOURCES), lambda translate: str(translate.Module(*ENTRY_POINTS))))
    except (ImportError, RuntimeError, OSError):  # errors of LLVM: a processor or system that it has no code generator for
        return None


@cache
def functions(source: str, *names: str) -> tuple[Any, tuple[int, ...]]:
    """Functions in the kernels' subset of Python as machine code: what owns its memory, and their addresses."""

    engine = loaded("objective", source_of(*TRANSLATOR) + source.encode(), lambda translate: translate.text_of(source))
    return engine, tuple(map(engine.get_function_address, names))


def source_of(*modules: str) -> bytes:
    return b"\0".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in modules)


def loaded(name: str, source: bytes, text: Callable[[Any], str]) -> Any:
    """The machine code of a source in memory, its addresses known: from its file, else made from its ``text`` in LLVM's language.

    ``text`` makes that with :mod:`upslope.fast.translate`, which is loaded for it.
    """
    import llvmlite.binding as llvm

    machine = target_machine(llvm)
    path = cache_folder() / f"{name}-{fingerprint(llvm, source)}.bin"
    if (code := read_code(path)) is None:
        from upslope.fast import translate  # a dear import, and seldom needed: mostly the file is there

        code = write_code(path, machine_code(llvm, machine, text(translate)))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def target_machine(llvm: Any) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)


def fingerprint(llvm: Any, source: bytes) -> str:
    """A name for everything that machine code depends on."""
    host = (llvm.llvm_version_info, llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    return hashlib.sha256(source + b"\0" + repr(host).encode()).hexdigest()[:24]


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$UPSLOPE_CACHE_DIR`` if set, else beside this file, else in the user's cache folder."""
    if chosen := os.environ.get("UPSLOPE_CACHE_DIR"):
        return Path(chosen)
    beside = Path(__file__).parent / "__pycache__"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upslope"


def read_code(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code = content[DIGEST:]
    return code if hashlib.sha256(code).digest() == content[:DIGEST] else None


def write_code(path: Path, code: bytes) -> bytes:
    """Keep machine code for the next process, whole or not at all; a folder that cannot be written costs only time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    return code


def machine_code(llvm: Any, machine: Any, text: str) -> bytes:
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.loop_unrolling = False  # the tiles of a product are unrolled as far as there are registers
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)
