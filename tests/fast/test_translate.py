"""The translation: what it accepts means what Python means, and everything else is refused."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.fast import native
from upslope.fast.layout import WIDTH
from upslope.fast.registers import (
    Doubles,
    Flags,
    Floats,
    Integers,
    at_least,
    at_most,
    fill,
    load,
    shift,
    single,
    spread,
    square_root,
    store,
    where_positive,
)
from upslope.fast.translate import Module

llvm = pytest.importorskip("llvmlite.binding")
FACTOR = 3


def compile_(function):
    """One function of the subset, called with arrays and numbers."""
    machine = native.target_machine(llvm)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(native.machine_code(llvm, machine, str(Module(function)))))
    engine.finalize_object()
    kinds = [kind for name, kind in function.__annotations__.items() if name != "return"]
    simple = {"int": ctypes.c_int64, "float": ctypes.c_double}
    call = ctypes.CFUNCTYPE(None, *(simple.get(kind, ctypes.c_void_p) for kind in kinds))(engine.get_function_address(function.__name__))

    def run(*arguments):
        call(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))

    run.engine = engine
    return run


def parity(n: int) -> float:
    if n % 2 == 0:
        return 1.0
    return -1.0


def both_ends(x: float, y: float) -> tuple[float, float]:
    return min(x, y), max(x, y)


def numbers(out: Doubles, a: int, b: int, x: float, y: float) -> None:
    out[0] = a + b * FACTOR - a // 7 + b % 5
    out[1] = x * y - x / (1.0 + y * y) + a
    out[2] = a / 4
    low, high = both_ends(x, y)
    out[3], out[4] = low, high
    out[5] = 1.0 if x < y and not a > b else -x
    out[6] = parity(a) + parity(b)
    out[7] = abs(x) + math.exp(-abs(y)) + math.log(1.0 + y * y) + math.sqrt(x * x) + math.expm1(x / 100.0)
    out[8] = 1.0 if x == y or a != b else 0.0
    total = 0
    for i in range(a):
        for j in range(i, 0 + b, 2):
            total += i * j if i != 3 and not i > b else 0
    out[9] = total
    out[10] = -a
    out[11] = min(a, b) + max(a, 2)
    out[12] = math.pow(1.0 + abs(x), 0.5)


COMPILED = {}


def compiled(function):
    if function not in COMPILED:
        COMPILED[function] = compile_(function)
    return COMPILED[function]


@given(st.integers(0, 40), st.integers(0, 40), st.floats(-50, 50), st.floats(-50, 50))
def test_arithmetic_and_control_flow(a, b, x, y):
    ours, theirs = np.zeros(13), np.zeros(13)
    compiled(numbers)(ours, a, b, x, y)
    numbers(theirs, a, b, x, y)
    np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-13)


def not_numbers(out: Doubles, x: float, y: float) -> None:
    out[0] = min(x, y)
    out[1] = max(x, y)
    out[2] = 1.0 if math.isfinite(x) else 0.0
    out[3] = 1.0 if x < y else 0.0
    out[4] = 1.0 if x != y else 0.0


@pytest.mark.parametrize("x,y", [(math.nan, 1.0), (1.0, math.nan), (math.inf, -math.inf), (-math.inf, 2.0), (0.0, 0.0)])
def test_nan_and_infinity_are_what_python_says(x, y):
    ours, theirs = np.zeros(5), np.zeros(5)
    compiled(not_numbers)(ours, x, y)
    not_numbers(theirs, x, y)
    np.testing.assert_array_equal(ours, theirs)


def registers_(x: Floats, y: Floats, flags: Flags, counts: Integers, n: int) -> None:
    for i in range(0, n, WIDTH):
        a, b = load(x, i), load(y, i)
        c = at_most(at_least(a, -0.5), 0.75) * b + 2.0 * a - b / (1.5 + a * a)
        store(y, i, where_positive(a, c) + fill(x, 0) - spread(0.25))
    half = shift(y, n)
    half[0] = square_root(single(2.0)) * x[1]
    half[1] = 0.1 + x[2] if flags[1] != 0 else 7.0
    counts[1] = counts[0] + flags[0]


def test_registers_and_memory():
    generator = np.random.default_rng(0)
    x = generator.standard_normal(2 * WIDTH).astype(np.float32)
    x[5] = np.nan
    y = generator.standard_normal(2 * WIDTH + 2).astype(np.float32)
    flags, counts = np.array([7, 1], np.uint8), np.array([5, 0])
    ours, theirs = (y.copy(), counts.copy()), (y.copy(), counts.copy())
    compiled(registers_)(x, ours[0], flags, ours[1], 2 * WIDTH)
    registers_(x, theirs[0], flags, theirs[1], 2 * WIDTH)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    assert np.array_equal(ours[1], theirs[1])


def guarded(out: Doubles, flags: Flags, present: int) -> None:
    out[0] = 1.0 if present != 0 and flags[0] != 0 else 2.0
    out[1] = 1.0 if present == 0 or flags[0] != 0 else 2.0


def test_the_right_side_of_and_and_or_is_not_looked_at_without_need():
    out = np.zeros(2)
    compiled(guarded)(out, np.zeros(0, np.uint8), 0)  # an address of nothing
    assert out.tolist() == [2.0, 1.0]


def with_while(out: Doubles) -> None:
    while out[0] < 1.0:
        out[0] += 1.0


def with_break(out: Doubles) -> None:
    for _ in range(3):
        break


def with_list(out: Doubles) -> None:
    out[0] = [1.0, 2.0][0]


def with_rounding(out: Doubles, x: float) -> None:
    n = 1
    n = x
    out[0] = n


def with_index(out: Doubles, x: float) -> None:
    out[0] = out[x]


@pytest.mark.parametrize("function", [with_while, with_break, with_list, with_rounding, with_index])
def test_what_is_not_in_the_subset_is_refused(function):
    with pytest.raises(TypeError, match=function.__name__):
        Module(function)
