"""What an objective computes, as a graph of numbers: one for each step of a batch, or one for the whole of it.

A :class:`Node` is an operation of :data:`OPERATIONS` on other nodes. Each operation has two lines: how Python writes it, and its
derivative as PyTorch defines it (half of it to each side of a tie, nothing beyond a clamp). :func:`derivatives` walks a graph
backwards and gives the derivative as more nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class NotLowered(Exception):
    """What was asked for has no compiled form, or a batch or a state is not what the kernels take; the message says why to a user."""


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """``op`` on ``inputs``. A leaf's ``value`` is what it stands for: a column's name, a number, a tensor that holds one."""

    op: str
    inputs: tuple[Node, ...] = ()
    value: Any = None
    row: bool = False  # whether there is one for each step
    flag: bool = False  # whether it is true or false
    moves: bool = False  # whether the gradient goes through it

    def __add__(self, other: Any) -> Node:
        return node("add", self, other)

    def __sub__(self, other: Any) -> Node:
        return node("subtract", self, other)

    def __mul__(self, other: Any) -> Node:
        return node("multiply", self, other)

    def __truediv__(self, other: Any) -> Node:
        return node("divide", self, other)

    def __neg__(self) -> Node:
        return node("negate", self)


def literal(number: float) -> Node:
    """A number that belongs to a formula, unlike a setting, which may change."""
    return Node("literal", value=float(number))


def as_node(x: Node | float) -> Node:
    return x if isinstance(x, Node) else literal(x)


def as_number(x: Node | float) -> Node:
    """0 or 1 for what is true or false."""
    found = as_node(x)
    return Node("number", (found,), row=found.row) if found.flag else found


def as_flag(x: Node) -> Node:
    if not x.flag:
        raise NotLowered("it takes the bits of numbers apart")
    return x


def node(op: str, *inputs: Node | float) -> Node:
    """An operation on nodes and plain numbers; which of the inputs are numbers and which flags is the operation's to say."""
    kind = OPERATIONS[op]
    if f"{{{len(inputs) - 1}}}" not in kind.text or f"{{{len(inputs)}}}" in kind.text:
        raise TypeError(f"{op} of {len(inputs)}")
    given = tuple(as_flag(as_node(x)) if i < kind.flags else as_number(x) for i, x in enumerate(inputs))
    moves = kind.slopes is not None and torch.is_grad_enabled() and any(x.moves for x in given)
    return Node(op, given, row=any(x.row for x in given), flag=kind.flag, moves=moves)


def where(condition: Node, yes: Node | float, no: Node | float) -> Node:
    return node("where", condition, yes, no)


def total(x: Node) -> Node:
    x = as_number(x)
    return Node("total", (x,), moves=x.moves and torch.is_grad_enabled()) if x.row else x * Node("rows")


def detached(x: Node) -> Node:
    """The same number, through which no gradient goes."""
    return Node("detached", (x,), row=x.row, flag=x.flag)


class Operation(NamedTuple):
    """``text`` is Python for the inputs ``{0}``, ``{1}``, …; ``slopes(g, y, *inputs)`` the inputs' shares of a slope g of the
    result y. The first ``flags`` inputs, and with ``flag`` the result, are true or false."""

    text: str
    slopes: Callable[..., Sequence[Node | None]] | None = None
    flag: bool = False
    flags: int = 0


def half_at_ties(a: Node, b: Node, g: Node, better: str) -> tuple[Node, Node]:
    tie = where(node("eq", a, b), g * 0.5, 0.0)
    return where(node(better, a, b), g, tie), where(node(better, b, a), g, tie)


def slope_of_power(g: Node, y: Node, a: Node, b: Node) -> tuple[Node, Node]:
    by_base = where(node("eq", b, 0.0), 0.0, g * (b * node("pow", a, b - 1.0)))
    return by_base, where(node("eq", a, 0.0), 0.0, g * (y * node("log", a)))


COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
OPERATIONS: dict[str, Operation] = {
    "add": Operation("{0} + {1}", lambda g, y, a, b: (g, g)),
    "subtract": Operation("{0} - {1}", lambda g, y, a, b: (g, -g)),
    "multiply": Operation("{0} * {1}", lambda g, y, a, b: (g * b, g * a)),
    "divide": Operation("{0} / {1}", lambda g, y, a, b: (g / b, -(g * y / b))),
    "negate": Operation("-{0}", lambda g, y, a: (-g,)),
    "exp": Operation("math.exp({0})", lambda g, y, a: (g * y,)),
    "expm1": Operation("math.expm1({0})", lambda g, y, a: (g * (y + 1.0),)),
    "log": Operation("math.log({0})", lambda g, y, a: (g / a,)),
    "log1p": Operation("math.log1p({0})", lambda g, y, a: (g / (a + 1.0),)),
    "sqrt": Operation("math.sqrt({0})", lambda g, y, a: (g / (y * 2.0),)),
    "pow": Operation("math.pow({0}, {1})", slope_of_power),
    "tanh": Operation("math.tanh({0})", lambda g, y, a: (g * (literal(1.0) - y * y),)),
    "sin": Operation("math.sin({0})", lambda g, y, a: (g * node("cos", a),)),
    "cos": Operation("math.cos({0})", lambda g, y, a: (-(g * node("sin", a)),)),
    "abs": Operation("abs({0})", lambda g, y, a: (where(node("gt", a, 0.0), g, where(node("lt", a, 0.0), -g, 0.0)),)),
    "maximum": Operation("choose({1} != {1}, {1}, choose({0} <= {1}, {1}, {0}))", lambda g, y, a, b: half_at_ties(a, b, g, "gt")),
    "minimum": Operation("choose({1} != {1}, {1}, choose({0} >= {1}, {1}, {0}))", lambda g, y, a, b: half_at_ties(a, b, g, "lt")),
    "where": Operation("choose({0}, {1}, {2})", lambda g, y, c, a, b: (None, where(c, g, 0.0), where(c, 0.0, g)), flags=1),
    **{name: Operation(f"{{0}} {sign} {{1}}", flag=True) for name, sign in COMPARISONS.items()},
    **{name: Operation(f"{{0}} {sign} {{1}}", flag=True, flags=2) for name, sign in {"and": "&", "or": "|", "xor": "!="}.items()},
    "not": Operation("not {0}", flag=True, flags=1),
    "number": Operation("float({0})", flags=1),
}
"""The operations that have a compiled form; in ``maximum`` and ``minimum`` NaN wins."""


def in_order(outputs: Iterable[Node]) -> list[Node]:
    """Every node that the outputs are made of, each behind its inputs."""
    found: dict[Node, None] = {}

    def visit(x: Node) -> None:
        if x not in found:
            for part in x.inputs:
                visit(part)
            found[x] = None

    for output in outputs:
        visit(output)
    return list(found)


def derivatives(output: Node) -> dict[Node, Node]:
    slopes: dict[Node, Node] = {output: literal(1.0)}
    with torch.no_grad():
        for x in reversed(in_order([output])):
            g = slopes.get(x)
            if g is None or not x.moves or not x.inputs:
                continue
            shares = [g] if x.op == "total" else OPERATIONS[x.op].slopes(g, x, *x.inputs)  # pyright: ignore[reportOptionalCall]
            for part, share in zip(x.inputs, shares, strict=True):
                if part.moves and share is not None:
                    if share.row and not part.row:
                        raise NotLowered("what it computes of a step depends on a sum over the minibatch that moves with the policy")
                    slopes[part] = slopes[part] + share if part in slopes else share
    return {x: g for x, g in slopes.items() if not x.inputs}
