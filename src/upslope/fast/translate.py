"""A few hundred lines of Python as machine code: the subset that the kernels are written in, as LLVM's intermediate language.

The subset: ``int``, ``float``, and the pointers and registers of :mod:`upslope.fast.registers`; assignment, arithmetic,
comparison, ``and or not``, ``x if c else y``, ``if``, ``for … in range``, ``continue``, ``break``, ``return``, calls of
functions written in the same subset, and ``min max abs math.*``. Parameters are annotated; every other type follows. A
number written in the source takes the type of what it meets, as in NumPy. Anything else is refused when it is translated.

Why not numba, which compiles far more: it costs each process 0.7 s before the first cached function has run (its own import,
its registries, SciPy), and these kernels 8 s when they are not cached. LLVM alone costs 0.05 s and 0.4 s.
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
import struct
import textwrap
from collections.abc import Callable
from types import FunctionType, ModuleType
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
    "None": "void",
}
"""The subset's types and LLVM's. ``single`` is a float32 number, as it comes from memory."""
ELEMENTS = {"Floats": ("single", "float"), "Doubles": ("float", "double"), "Integers": ("int", "i64"), "Flags": ("int", "i8")}
"""What stands at a pointer: its type, and LLVM's in memory."""
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


class Module:
    """Functions in LLVM's language, each translated when it is first met; ``str(module)`` is the text."""

    def __init__(self, *entries: Callable[..., Any]) -> None:
        self.signatures: dict[Callable[..., Any], Signature] = {}
        self.text = [f"declare double @{name}({', '.join(['double'] * (1 + (name == 'pow')))})" for name in LIBM.values()]
        self.text += ["declare float @llvm.sqrt.f32(float)", "declare double @llvm.fabs.f64(double)"]
        for entry in entries:
            self.add(entry, linkage="")

    def add(self, function: Callable[..., Any], linkage: str = "internal ") -> Signature:
        """Translate a function, and what it calls before it."""
        if function not in self.signatures:
            translation = Translation(self, function)
            signature = self.signatures[function] = translation.signature
            parameters = ", ".join(f"{TYPES[kind]} %{name}" for name, kind in translation.parameters.items())
            lines = "\n".join(["entry:", *translation.slots, *translation.body])
            self.text.append(f"define {linkage}{signature.result_type} @{signature.name}({parameters}) nounwind {{\n{lines}\n}}")
        return self.signatures[function]

    def __str__(self) -> str:
        return "\n".join(self.text)


class Translation:
    """One function: every variable is a slot on the stack, which LLVM turns into registers."""

    def __init__(self, module: Module, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        self.module, self.name, self.globals = module, function.__name__, function.__globals__
        self.parameters = {item.arg: ast.unparse(item.annotation) if item.annotation else "int" for item in tree.args.args}
        self.variables: dict[str, str] = {}
        self.slots: list[str] = []
        self.body: list[str] = []
        self.loops: list[tuple[str, str]] = []
        self.counter = 0
        self.results: tuple[str, ...] = ()
        for name, kind in self.parameters.items():
            self.assign(name, Value(kind, f"%{name}"))
        self.block(tree.body)
        self.body.append("unreachable" if self.results else "ret void")

    @property
    def signature(self) -> Signature:
        """Known once the function is translated; the subset has no recursion."""
        return Signature(self.name, tuple(self.parameters.values()), self.results)

    # ---- writing instructions

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
        if value.type == "number":
            value = self.cast(value, type(value.text).__name__)
        if name not in self.variables:
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
            return self.new("Register", f"shufflevector {TYPES['Register']} {first.text}, {TYPES['Register']} poison, <{WIDTH} x i32> zeroinitializer")
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

    # ---- statements

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            try:
                getattr(self, f"do_{type(statement).__name__}")(statement)
            except (AttributeError, KeyError) as error:
                raise TypeError(f"{self.name}: not in the kernels' subset of Python: {ast.unparse(statement)}") from error

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.value(node.value)

    def do_Assign(self, node: ast.Assign) -> None:
        (target,) = node.targets
        if isinstance(target, ast.Tuple):
            values = [self.value(v) for v in node.value.elts] if isinstance(node.value, ast.Tuple) else self.unpacked(node.value)
            for item, value in zip(target.elts, values, strict=True):
                self.assign_to(item, value)
        else:
            self.assign_to(target, self.value(node.value))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        read = ast.parse(ast.unparse(node.target), mode="eval").body
        self.assign_to(node.target, self.value(ast.BinOp(read, node.op, node.value)))

    def do_If(self, node: ast.If) -> None:
        yes, no, after = self.label("then"), self.label("else"), self.label("after")
        self.branch(self.value(node.test), yes, no, yes)
        self.block(node.body)
        self.jump(f"br label %{after}", no)
        self.block(node.orelse)
        self.jump(f"br label %{after}", after)

    def do_For(self, node: ast.For) -> None:
        assert isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Call)
        bounds = [self.cast(self.value(argument), "int") for argument in node.iter.args]
        start, stop, step = [Value("int", "0"), *bounds, Value("int", "1")] if len(bounds) == 1 else [*bounds, Value("int", "1")][:3]
        name = node.target.id
        test, body, again, after = (self.label(hint) for hint in ("test", "body", "again", "after"))
        self.assign(name, start)
        self.jump(f"br label %{test}", test)
        inside = self.new("bool", f"icmp slt i64 {self.read(name).text}, {stop.text}")
        self.branch(inside, body, after, body)
        self.loops.append((again, after))
        self.block(node.body)
        self.loops.pop()
        self.jump(f"br label %{again}", again)
        self.assign(name, self.new("int", f"add nsw i64 {self.read(name).text}, {step.text}"))
        self.jump(f"br label %{test}", after)

    def do_Continue(self, node: ast.Continue) -> None:
        self.jump(f"br label %{self.loops[-1][0]}")

    def do_Break(self, node: ast.Break) -> None:
        self.jump(f"br label %{self.loops[-1][1]}")

    def do_Return(self, node: ast.Return) -> None:
        parts = [] if node.value is None else node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        values = [self.value(part) for part in parts]
        if not self.results:
            self.results = tuple(v.type if v.type != "number" else type(v.text).__name__ for v in values)
        values = [self.cast(value, kind) for value, kind in zip(values, self.results, strict=True)]
        if len(values) < 2:
            self.jump(f"ret {TYPES[values[0].type]} {values[0].text}" if values else "ret void")
            return
        whole = Value("", "poison")
        for i, value in enumerate(values):
            whole = self.new("", f"insertvalue {self.signature.result_type} {whole.text}, {TYPES[value.type]} {value.text}, {i}")
        self.jump(f"ret {self.signature.result_type} {whole.text}")

    def assign_to(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.assign(target.id, value)
            return
        assert isinstance(target, ast.Subscript)
        pointer = self.value(target.value)
        kind, memory = ELEMENTS[pointer.type]
        if (value.type, kind) == ("float", "single"):
            value = self.new("single", f"fptrunc double {value.text} to float")
        self.body.append(f"store {memory} {self.cast(value, kind).text}, ptr {self.address(pointer, self.value(target.slice))}")

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
        return self.new("bool", f"{'icmp ' + verbs[0] if x.type in ('int', 'bool') else 'fcmp ' + verbs[1]} {TYPES[x.type]} {x.text}, {y.text}")

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
        signature = self.module.add(function)
        given = [self.cast(argument, kind) for argument, kind in zip(arguments, signature.parameters, strict=True)]
        line = f"call {signature.result_type} @{signature.name}({', '.join(f'{TYPES[a.type]} {a.text}' for a in given)})"
        if signature.results:
            return self.new("", line).text, signature
        self.body.append(line)
        return "", signature

    # ---- the operations of upslope.fast.registers

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


def constant(number: Any, kind: str) -> str:
    """A number written in the source, as LLVM writes it in a type."""
    if kind in ("int", "bool"):
        if number != int(number):
            raise TypeError(f"{number} where an integer is expected")
        return str(int(number))
    exact = number if kind == "float" else struct.unpack("f", struct.pack("f", number))[0]
    text = f"0x{struct.unpack('>Q', struct.pack('>d', exact))[0]:016X}"
    return "<" + ", ".join([f"float {text}"] * WIDTH) + ">" if kind == "Register" else text
