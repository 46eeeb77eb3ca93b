"""Expressions of the kernels' subset of Python in LLVM's language: types, constants, arithmetic, calls, register operations.

Statements and functions, and what the subset is, stand in :mod:`upslope.fast.translate`.
"""

from __future__ import annotations

import ast
import math
import operator
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from upslope.fast import registers
from upslope.fast.layout import WIDTH

TYPES = {
    "int": "i64",
    "bool": "i1",
    "single": "float",
    "float": "double",
    "Register": f"<{WIDTH} x float>",
    "Floats": "ptr",
    "Doubles": "ptr",
    "Integers": "ptr",
    "Flags": "ptr",
    "Table": "ptr",
    "None": "void",
}
"""The subset's types and LLVM's. ``single`` is a float32 number, as it comes from memory."""
ELEMENTS = {
    "Floats": ("single", "float"),
    "Doubles": ("float", "double"),
    "Integers": ("int", "i64"),
    "Flags": ("int", "i8"),
    "Table": ("", "ptr"),
}
"""What stands at a pointer: its type, and LLVM's in memory."""
POINTERS = {registers.floats: "Floats", registers.doubles: "Doubles", registers.integers: "Integers", registers.flags: "Flags"}
RANK = {"number": 0, "bool": 1, "int": 2, "single": 3, "float": 4, "Register": 5}
"""Of two operands both take the later type."""
ARITHMETIC: dict[type[ast.operator], tuple[str, str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", "fadd", operator.add),
    ast.Sub: ("sub", "fsub", operator.sub),
    ast.Mult: ("mul", "fmul", operator.mul),
    ast.Div: ("", "fdiv", operator.truediv),
    ast.FloorDiv: ("sdiv", "", operator.floordiv),  # of non-negative integers
    ast.Mod: ("srem", "", operator.mod),
}
COMPARISON: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("slt", "olt"),
    ast.LtE: ("sle", "ole"),
    ast.Gt: ("sgt", "ogt"),
    ast.GtE: ("sge", "oge"),
    ast.Eq: ("eq", "oeq"),
    ast.NotEq: ("ne", "une"),
}
LIBM = {math.exp: "exp", math.log: "log", math.expm1: "expm1", math.sqrt: "sqrt", math.pow: "pow"}
FLAGS = {"single": "contract reassoc nsz ", "float": "contract reassoc nsz ", "Register": "contract "}
"""Sums may be reordered and fused with products; NaN and infinity stay what they are, so that divergence shows."""


class Value(NamedTuple):
    """An operand: its type and LLVM's text for it; of type ``number`` for one written in the source, then the number itself."""

    type: str
    text: Any


class Signature(NamedTuple):
    """How a translated function is called."""

    name: str
    parameters: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def result_type(self) -> str:
        """LLVM's type for what it returns: nothing, one value, or a structure of several."""
        types = [TYPES[kind] for kind in self.results] or ["void"]
        return types[0] if len(types) == 1 else f"{{ {', '.join(types)} }}"


def constant(number: Any, kind: str) -> str:
    """A number written in the source, as LLVM writes it in a type."""
    if kind in ("int", "bool"):
        if not isinstance(number, int):
            raise TypeError(f"{number} where an integer is expected")
        return str(int(number))
    exact = number if kind == "float" else struct.unpack("f", struct.pack("f", number))[0]
    text = f"0x{struct.unpack('>Q', struct.pack('>d', exact))[0]:016X}"
    return "<" + ", ".join([f"float {text}"] * WIDTH) + ">" if kind == "Register" else text


class Expressions:
    """Writes instructions. Every variable is a slot on the stack, which LLVM turns into registers."""

    def __init__(self, name: str, globals_of_kernel: dict[str, Any], translated: Callable[[Callable[..., Any]], Signature]) -> None:
        self.name, self.globals, self.translated = name, globals_of_kernel, translated
        self.variables: dict[str, str] = {}
        self.slots: list[str] = []
        self.body: list[str] = []
        self.counter = 0

    def new(self, kind: str, line: str) -> Value:
        """A value computed by an instruction."""
        self.counter += 1
        self.body.append(f"%.{self.counter} = {line}")
        return Value(kind, f"%.{self.counter}")

    def label(self, hint: str) -> str:
        self.counter += 1
        return f"{hint}.{self.counter}"

    def jump(self, line: str, following: str | None = None) -> None:
        """End the present block and begin the next."""
        self.body += [line, f"{following or self.label('next')}:"]

    def branch(self, condition: Value, yes: str, no: str, following: str) -> None:
        self.jump(f"br i1 {self.cast(condition, 'bool').text}, label %{yes}, label %{no}", following)

    def assign(self, name: str, value: Value) -> None:
        """The first assignment gives a variable its type."""
        if name not in self.variables:
            if value.type == "number":
                value = self.cast(value, type(value.text).__name__)
            self.variables[name] = value.type
            self.slots.append(f"%{name}.slot = alloca {TYPES[value.type]}")
        kind = self.variables[name]
        self.body.append(f"store {TYPES[kind]} {self.cast(value, kind).text}, ptr %{name}.slot")

    def cast(self, value: Value, kind: str) -> Value:
        """The value in another type; only what loses nothing, but for numbers written in the source and conditions."""
        if value.type == kind:
            return value
        if value.type == "number":
            return Value(kind, constant(value.text, kind))
        if kind == "bool":
            zero = constant(0, value.type)
            return self.new("bool", f"{'icmp ne' if value.type == 'int' else 'fcmp une'} {TYPES[value.type]} {value.text}, {zero}")
        if kind == "Register" and value.type in ("single", "float"):
            narrow = value.text if value.type == "single" else self.new("single", f"fptrunc double {value.text} to float").text
            first = self.new("Register", f"insertelement {TYPES['Register']} poison, float {narrow}, i32 0")
            return self.new(
                "Register", f"shufflevector {TYPES['Register']} {first.text}, {TYPES['Register']} poison, <{WIDTH} x i32> zeroinitializer"
            )
        verb = {("bool", "int"): "zext", ("int", "float"): "sitofp", ("int", "single"): "sitofp", ("single", "float"): "fpext"}
        if (value.type, kind) not in verb:
            raise TypeError(f"{self.name}: {value.type} where {kind} is expected")
        return self.new(kind, f"{verb[value.type, kind]} {TYPES[value.type]} {value.text} to {TYPES[kind]}")

    def together(self, x: Value, y: Value) -> tuple[Value, Value]:
        """Both operands in the later of their types."""
        kind = max(x.type, y.type, key=RANK.__getitem__)
        if kind == "int" and any(v.type == "number" and isinstance(v.text, float) for v in (x, y)):
            kind = "float"
        return (x, y) if kind == "number" else (self.cast(x, kind), self.cast(y, kind))

    # ---- expressions

    def read(self, name: str) -> Value:
        kind = self.variables[name]
        return self.new(kind, f"load {TYPES[kind]}, ptr %{name}.slot")

    def address(self, pointer: Value, index: Value) -> str:
        memory = ELEMENTS[pointer.type][1]
        return self.new(pointer.type, f"getelementptr {memory}, ptr {pointer.text}, i64 {self.cast(index, 'int').text}").text

    def unpacked(self, node: ast.expr) -> list[Value]:
        """The results of a function that returns several."""
        assert isinstance(node, ast.Call)
        whole, signature = self.call(self.meaning(node.func), [self.value(argument) for argument in node.args])
        return [self.new(kind, f"extractvalue {signature.result_type} {whole}, {i}") for i, kind in enumerate(signature.results)]

    def meaning(self, node: ast.expr) -> Any:
        """What a name that is not a variable stands for: a function or a constant of the kernel's module."""
        if isinstance(node, ast.Attribute):
            owner = self.meaning(node.value)
            assert isinstance(owner, ModuleType)
            return getattr(owner, node.attr)
        assert isinstance(node, ast.Name)
        return self.globals[node.id] if node.id in self.globals else {"min": min, "max": max, "abs": abs}[node.id]

    def value(self, node: ast.expr) -> Value:
        return getattr(self, f"of_{type(node).__name__}")(node)

    def of_Constant(self, node: ast.Constant) -> Value:
        if isinstance(node.value, bool):
            return Value("bool", str(node.value).lower())
        return Value("number", node.value)

    def of_Name(self, node: ast.Name) -> Value:
        return self.read(node.id) if node.id in self.variables else Value("number", self.meaning(node))

    def of_Attribute(self, node: ast.Attribute) -> Value:
        return Value("number", self.meaning(node))

    def of_Subscript(self, node: ast.Subscript) -> Value:
        pointer = self.value(node.value)
        kind, memory = ELEMENTS[pointer.type]
        loaded = self.new(kind, f"load {memory}, ptr {self.address(pointer, self.value(node.slice))}")
        return self.new("int", f"zext i8 {loaded.text} to i64") if memory == "i8" else loaded

    def of_UnaryOp(self, node: ast.UnaryOp) -> Value:
        operand = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return self.new("bool", f"xor i1 {self.cast(operand, 'bool').text}, true")
        assert isinstance(node.op, ast.USub)
        if operand.type == "number":
            return Value("number", -operand.text)
        if operand.type == "int":
            return self.new("int", f"sub i64 0, {operand.text}")
        return self.new(operand.type, f"fneg {TYPES[operand.type]} {operand.text}")

    def of_BinOp(self, node: ast.BinOp) -> Value:
        integer, floating, fold = ARITHMETIC[type(node.op)]
        x, y = self.together(self.value(node.left), self.value(node.right))
        if x.type == "number":
            return Value("number", fold(x.text, y.text))
        if x.type == "int" and isinstance(node.op, ast.Div):
            x, y = self.cast(x, "float"), self.cast(y, "float")
        verb = integer if x.type == "int" else floating + " " + FLAGS[x.type]
        return self.new(x.type, f"{verb} {TYPES[x.type]} {x.text}, {y.text}")

    def of_Compare(self, node: ast.Compare) -> Value:
        (right,) = node.comparators
        x, y = self.together(self.value(node.left), self.value(right))
        verbs = COMPARISON[type(node.ops[0])]
        return self.new(
            "bool", f"{'icmp ' + verbs[0] if x.type in ('int', 'bool') else 'fcmp ' + verbs[1]} {TYPES[x.type]} {x.text}, {y.text}"
        )

    def of_BoolOp(self, node: ast.BoolOp) -> Value:
        """The right side is not looked at where the left decides: it may not exist."""
        name = self.label("chosen")
        after = self.label("after")
        for part in node.values[:-1]:
            condition = self.cast(self.value(part), "bool")
            self.assign(name, condition)
            more = self.label("more")
            self.branch(condition, *((more, after) if isinstance(node.op, ast.And) else (after, more)), more)
        self.assign(name, self.cast(self.value(node.values[-1]), "bool"))
        self.jump(f"br label %{after}", after)
        return self.read(name)

    def of_IfExp(self, node: ast.IfExp) -> Value:
        name, yes, no, after = (self.label(hint) for hint in ("chosen", "then", "else", "after"))
        self.branch(self.value(node.test), yes, no, yes)
        self.assign(name, self.value(node.body))
        self.jump(f"br label %{after}", no)
        self.assign(name, self.value(node.orelse))
        self.jump(f"br label %{after}", after)
        return self.read(name)

    def of_Call(self, node: ast.Call) -> Value:
        function, arguments = self.meaning(node.func), [self.value(argument) for argument in node.args]
        name = getattr(function, "__name__", "")
        if function in POINTERS:
            table, index = arguments
            return self.new(POINTERS[function], f"load ptr, ptr {self.address(table, index)}")
        if getattr(registers, name, None) is function:
            return getattr(self, f"register_{name}")(*arguments)
        if function in (min, max):
            x, y = self.together(*arguments)
            if x.type == "number":
                return Value("number", function(x.text, y.text))
            verb = ("icmp s" if x.type == "int" else "fcmp o") + ("lt" if function is min else "gt")
            better = self.new("bool", f"{verb} {TYPES[x.type]} {y.text}, {x.text}")
            return self.new(x.type, f"select i1 {better.text}, {TYPES[x.type]} {y.text}, {TYPES[x.type]} {x.text}")
        if function is abs or function is math.isfinite:
            size = self.new("float", f"call double @llvm.fabs.f64(double {self.cast(arguments[0], 'float').text})")
            infinity = constant(math.inf, "float")
            return size if function is abs else self.new("bool", f"fcmp one double {size.text}, {infinity}")
        if function in LIBM:
            doubles = ", ".join(f"double {self.cast(argument, 'float').text}" for argument in arguments)
            return self.new("float", f"call double @{LIBM[function]}({doubles})")
        text, signature = self.call(function, arguments)
        return Value(signature.results[0] if signature.results else "None", text)

    def call(self, function: Callable[..., Any], arguments: list[Value]) -> tuple[str, Signature]:
        """Call a function of the subset."""
        signature = self.translated(function)
        given = [self.cast(argument, kind) for argument, kind in zip(arguments, signature.parameters, strict=True)]
        line = f"call {signature.result_type} @{signature.name}({', '.join(f'{TYPES[a.type]} {a.text}' for a in given)})"
        if signature.results:
            return self.new("", line).text, signature
        self.body.append(line)
        return "", signature

    # ---- the operations of upslope.fast.registers

    def register_invoke(self, function: Value, *arguments: Value) -> Value:
        self.body.append(f"call void {function.text}({', '.join(f'{TYPES[a.type]} {a.text}' for a in arguments)})")
        return Value("None", "")

    def register_shift(self, pointer: Value, count: Value) -> Value:
        return Value(pointer.type, self.address(pointer, count))

    def register_load(self, pointer: Value, index: Value) -> Value:
        return self.new("Register", f"load {TYPES['Register']}, ptr {self.address(pointer, index)}, align 4")

    def register_store(self, pointer: Value, index: Value, register: Value) -> Value:
        text = self.cast(register, "Register").text
        self.body.append(f"store {TYPES['Register']} {text}, ptr {self.address(pointer, index)}, align 4")
        return Value("None", "")

    def register_fill(self, pointer: Value, index: Value) -> Value:
        return self.cast(self.new("single", f"load float, ptr {self.address(pointer, index)}"), "Register")

    def register_spread(self, number: Value) -> Value:
        return self.cast(number, "Register")

    def register_at_least(self, register: Value, bound: Value) -> Value:
        return self.bounded(register, bound, "olt")

    def register_at_most(self, register: Value, bound: Value) -> Value:
        return self.bounded(register, bound, "ogt")

    def bounded(self, register: Value, bound: Value, verb: str) -> Value:
        kind, limit = TYPES["Register"], self.cast(bound, "Register").text
        outside = self.new("", f"fcmp {verb} {kind} {register.text}, {limit}")
        return self.new("Register", f"select <{WIDTH} x i1> {outside.text}, {kind} {limit}, {kind} {register.text}")

    def register_where_positive(self, condition: Value, register: Value) -> Value:
        kind = TYPES["Register"]
        positive = self.new("", f"fcmp ogt {kind} {condition.text}, zeroinitializer")
        return self.new("Register", f"select <{WIDTH} x i1> {positive.text}, {kind} {register.text}, {kind} zeroinitializer")

    def register_single(self, x: Value) -> Value:
        if x.type == "number":
            return self.cast(x, "single")
        return x if x.type == "single" else self.new("single", f"fptrunc double {self.cast(x, 'float').text} to float")

    def register_square_root(self, x: Value) -> Value:
        return self.new("single", f"call float @llvm.sqrt.f32(float {self.cast(x, 'single').text})")
