"""What the kernels are written in: pointers, 16-lane registers and their operations, on NumPy arrays.

The kernels are ordinary Python. Called as they are, a pointer is a one-dimensional NumPy array and a register an array of
16 float32 numbers: slow, but inspectable, and the reference that the translation is tested against. Translated
(:mod:`upslope.fast.translate`), a pointer is an address and a register is what the processor has: one AVX-512 register,
two of AVX2, four of SSE or NEON. Nothing is bounds-checked then, so the sizes are the caller's care.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from upslope.fast.layout import WIDTH

Floats: TypeAlias = Any
"""Address of float32 numbers."""
Doubles: TypeAlias = Any
"""Address of float64 numbers."""
Integers: TypeAlias = Any
"""Address of int64 numbers."""
Flags: TypeAlias = Any
"""Address of uint8 numbers."""
Table: TypeAlias = Any
"""Address of addresses."""
Register: TypeAlias = Any
"""``WIDTH`` float32 numbers side by side; arithmetic on them is lane by lane, and a plain number stands for a register of it."""


def invoke(function: Any, *arguments: Any) -> None:
    """Call a function that is known by its address only."""
    function(*arguments)


def shift(pointer: Any, count: int) -> Any:
    """The pointer moved on by ``count`` entries."""
    return pointer[count:]


def load(pointer: Floats, index: int) -> Register:
    """The ``WIDTH`` numbers that start at ``pointer[index]``."""
    return pointer[index : index + WIDTH].copy()


def store(pointer: Floats, index: int, register: Register) -> None:
    """Write ``WIDTH`` numbers from ``pointer[index]`` on."""
    pointer[index : index + WIDTH] = register


def fill(pointer: Floats, index: int) -> Register:
    """``pointer[index]`` in every lane."""
    return np.full(WIDTH, pointer[index], np.float32)


def spread(number: float) -> Register:
    """The number in every lane."""
    return np.full(WIDTH, number, np.float32)


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """``yes`` where the condition holds, else ``no``; lane by lane for registers. Both are there, unlike those of ``yes if … else no``."""
    return np.where(condition, yes, no)


def at_least(register: Register, bound: Register) -> Register:
    """``bound`` where ``register < bound``, else the register: NaN stays NaN."""
    return choose(register < bound, bound, register)


def at_most(register: Register, bound: Register) -> Register:
    """``bound`` where ``register > bound``, else the register: NaN stays NaN."""
    return choose(register > bound, bound, register)


def where_positive(condition: Register, register: Register) -> Register:
    """The register where ``condition > 0``, else 0."""
    return choose(condition > 0, register, spread(0.0))


def single(x: float) -> Any:
    """The number rounded to float32."""
    return np.float32(x)


def square_root(x: Any) -> Any:
    """``√x`` of a float32 number, in float32."""
    return np.sqrt(x)
