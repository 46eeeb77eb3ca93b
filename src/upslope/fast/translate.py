"""Python as machine code: the small subset that kernels and objectives are written in, as LLVM's intermediate language.

The subset: ``int``, ``float``, ``bool``, and the pointers and registers of :mod:`upslope.fast.registers`; assignment, arithmetic,
comparison, ``and or not``, ``x if c else y``, ``if``, ``for … in range``, ``return``, calls of functions written in the same subset, and
``min max abs float math.*``. Parameters are annotated, and what is read from a table of addresses; every other type follows. A number
written in the source takes the type of what it meets, as in NumPy. Anything else is refused when it is translated.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import struct
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from upslope.fast import registers
from upslope.fast.layout import WIDTH

POINTERS = {
    "Floats": ("single", "float"),
    "Doubles": ("float", "double"),
    "Integers": ("int", "i64"),
    "Flags": ("int", "i8"),
    "Table": ("Address", "ptr"),
}
"""What stands at a pointer: its type, and LLVM's in memory."""
TYPES = {"int": "i64", "bool": "i1", "single": "float", "float": "double", "Register": f"<{WIDTH} x float>", "Lanes": f"<{WIDTH} x i1>"}
TYPES |= dict.fromkeys(("Address", *POINTERS), "ptr")
"""The subset's types and LLVM's. ``single`` is a float32 number, as it comes from memory; an annotation says what is at an ``Address``."""
RANK = {"number": 0, "bool": 1, "int": 2, "single": 3, "float": 4, "Register": 5}
"""Of two operands both take the later type."""
WIDENED = {"bool int": "zext", "bool float": "uitofp", "int single": "sitofp", "int float": "sitofp", "single float": "fpext"}
WHOLE = {"Add": "add", "Sub": "sub", "Mult": "mul", "FloorDiv": "sdiv", "Mod": "srem", "BitAnd": "and", "BitOr": "or"}
WHOLE |= {"Lt": "slt", "LtE": "sle", "Gt": "sgt", "GtE": "sge", "Eq": "eq", "NotEq": "ne"}
"""What an operator is on integers; ``//`` is of those that are not negative."""
FLOATING = {"Add": "fadd", "Sub": "fsub", "Mult": "fmul", "Div": "fdiv"}
FLOATING |= {"Lt": "olt", "LtE": "ole", "Gt": "ogt", "GtE": "oge", "Eq": "oeq", "NotEq": "une"}
INTRINSICS = {abs: "llvm.fabs.f64", math.sqrt: "llvm.sqrt.f64"}
LIBRARY = {getattr(math, name): name for name in ("exp", "expm1", "log", "log1p", "pow", "tanh", "sin", "cos")} | INTRINSICS
DECLARATIONS = [
    *(f"declare double @{name}({'double, double' if name == 'pow' else 'double'})" for name in LIBRARY.values()),
    "declare float @llvm.sqrt.f32(float)",
]


class Value(NamedTuple):
    """An operand: its type and LLVM's text for it; of type ``number`` for one written in the source, then the number itself."""

    type: str
    text: Any


def argument_list(values: Iterable[Value]) -> str:
    return ", ".join(f"{TYPES[value.type]} {value.text}" for value in values)


def structure(kinds: tuple[str, ...]) -> str:
    """LLVM's type for what a function returns: nothing, one value, or several."""
    types = [TYPES[kind] for kind in kinds] or ["void"]
    return types[0] if len(types) == 1 else f"{{ {', '.join(types)} }}"


class Module:
    """Functions in LLVM's language, each translated when it is first met; ``str(module)`` is the text.

    Sums may be reordered and fused with products; with ``exact`` only fused. NaN and infinity stay what they are, so that divergence shows.
    """

    def __init__(self, *entries: Callable[..., Any], exact: bool = False) -> None:
        self.entries, self.signatures = entries, dict[Callable[..., Any], Translation]()
        scalar = "contract " if exact else "contract reassoc nsz "
        self.flags = {"single": scalar, "float": scalar, "Register": "contract "}
        self.text = DECLARATIONS[:]
        for entry in entries:
            self.add(entry)

    def add(self, function: Any) -> Translation:
        """Translate a function, and what it calls before it."""
        if function not in self.signatures:
            tree: Any = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
            self.signatures[function] = self.define(tree, function.__globals__, internal=function not in self.entries)
        return self.signatures[function]

    def define(self, tree: ast.FunctionDef, names: dict[str, Any], *, internal: bool = False) -> Translation:
        """Translate a function in whose module these names stand for something."""
        done = Translation(self, tree, names)
        linkage, done.name = ("internal ", f"inner.{done.name}") if internal else ("", done.name)  # a tanh of ours is not the library's
        parameters = ", ".join(f"{TYPES[kind]} %{name}" for name, kind in done.parameters.items())
        lines = "\n".join(["entry:", *done.slots, *done.body])
        self.text.append(f"define {linkage}{structure(done.results)} @{done.name}({parameters}) nounwind {{\n{lines}\n}}")
        return done

    def __str__(self) -> str:
        return "\n".join(self.text)


def text_of(source: str) -> str:
    """Functions that are only a text, exact, in LLVM's language."""
    module = Module(exact=True)
    for function in ast.parse(source).body:
        module.define(cast(ast.FunctionDef, function), {"choose": registers.choose, "math": math, "inf": math.inf, "nan": math.nan})
    return str(module)


def constant(number: Any, kind: str) -> str:
    """A number written in the source, as LLVM writes it in a type."""
    if kind in ("int", "bool"):
        if not isinstance(number, int):
            raise TypeError(f"{number} where an integer is expected")
        return str(int(number))
    exact = number if kind == "float" else struct.unpack("f", struct.pack("f", number))[0]
    text = f"0x{struct.unpack('>Q', struct.pack('>d', exact))[0]:016X}"
    return "<" + ", ".join([f"float {text}"] * WIDTH) + ">" if kind == "Register" else text


class Translation:
    """One function. Every variable is a slot on the stack, which LLVM turns into registers."""

    def __init__(self, module: Module, tree: ast.FunctionDef, names: dict[str, Any]) -> None:
        self.module, self.name, self.names = module, tree.name, names
        self.variables, self.counter = dict[str, str](), 0
        self.slots, self.body = list[str](), list[str]()
        self.parameters = {item.arg: ast.unparse(item.annotation) if item.annotation else "int" for item in tree.args.args}
        self.results: tuple[str, ...] = ()
        for name, kind in self.parameters.items():
            self.assign(name, Value(kind, f"%{name}"))
        self.block(tree.body)
        self.body.append("unreachable" if self.results else "ret void")

    # ---- instructions

    def new(self, kind: str, line: str) -> Value:
        self.counter += 1
        self.body.append(f"%.{self.counter} = {line}")
        return Value(kind, f"%.{self.counter}")

    def labels(self, *hints: str) -> list[str]:
        self.counter += 1
        return [f"{hint}.{self.counter}" for hint in hints]

    def jump(self, line: str, following: str = "") -> None:
        """End the present block and begin the next."""
        self.body += [line, f"{following or self.labels('next')[0]}:"]

    def assign(self, name: str, value: Value) -> None:
        """The first assignment gives a variable its type."""
        if name not in self.variables:
            value = self.typed(value)
            self.variables[name] = value.type
            self.slots.append(f"%{name}.slot = alloca {TYPES[value.type]}")
        kind = self.variables[name]
        self.body.append(f"store {TYPES[kind]} {self.cast(value, kind).text}, ptr %{name}.slot")

    def read(self, name: str) -> Value:
        kind = self.variables[name]
        return self.new(kind, f"load {TYPES[kind]}, ptr %{name}.slot")

    def cast(self, value: Value, kind: str) -> Value:
        """The value in another type; only what loses nothing, but for numbers written in the source and conditions."""
        if value.type == kind:
            return value
        if value.type == "number":
            return Value(kind, constant(value.text, kind))
        if kind == "bool":
            verb = "icmp ne" if value.type == "int" else "fcmp une"
            return self.new(kind, f"{verb} {TYPES[value.type]} {value.text}, {constant(0, value.type)}")
        if kind == "Register" and value.type in ("single", "float"):
            first = self.new(kind, f"insertelement {TYPES[kind]} poison, float {self.call_single(value).text}, i32 0")
            return self.new(kind, f"shufflevector {TYPES[kind]} {first.text}, {TYPES[kind]} poison, <{WIDTH} x i32> zeroinitializer")
        if (widening := WIDENED.get(f"{value.type} {kind}")) is None:
            raise TypeError(f"{self.name}: {value.type} where {kind} is expected")
        return self.new(kind, f"{widening} {TYPES[value.type]} {value.text} to {TYPES[kind]}")

    def typed(self, value: Value) -> Value:
        """A number written in the source, in the type that Python gives it."""
        return self.cast(value, type(value.text).__name__) if value.type == "number" else value

    def together(self, x: Value, y: Value) -> tuple[Value, Value]:
        """Both operands in the later of their types."""
        kind = max(x.type, y.type, key=RANK.__getitem__)
        if kind in ("number", "int"):
            kind = "float" if any(v.type == "number" and isinstance(v.text, float) for v in (x, y)) else "int"
        return self.cast(x, kind), self.cast(y, kind)

    def address(self, pointer: Value, index: Value) -> str:
        line = f"getelementptr {POINTERS[pointer.type][1]}, ptr {pointer.text}, i64 {self.cast(index, 'int').text}"
        return self.new(pointer.type, line).text

    # ---- statements

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            try:
                getattr(self, f"do_{type(statement).__name__}")(statement)
            except (AssertionError, AttributeError, KeyError, ValueError) as error:
                raise TypeError(f"{self.name}: not in the kernels' subset of Python: {ast.unparse(statement)}") from error

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.value(node.value)

    def do_Assign(self, node: ast.Assign) -> None:
        (target,) = node.targets
        if isinstance(target, ast.Tuple):
            values = list(map(self.value, node.value.elts)) if isinstance(node.value, ast.Tuple) else self.results_of(node.value)
            for item, value in zip(target.elts, values, strict=True):
                self.assign_to(item, value)
        else:
            self.assign_to(target, self.value(node.value))

    def do_AnnAssign(self, node: Any) -> None:
        value, kind = self.value(node.value), ast.unparse(node.annotation)
        self.assign(node.target.id, Value(kind, value.text) if value.type == "Address" else self.cast(value, kind))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        read = ast.parse(ast.unparse(node.target), mode="eval").body
        self.assign_to(node.target, self.value(ast.BinOp(read, node.op, node.value)))

    def assign_to(self, target: Any, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.assign(target.id, value)
            return
        pointer = self.value(target.value)
        kind, memory = POINTERS[pointer.type]
        if (value.type, kind) == ("float", "single"):
            value = self.call_single(value)
        self.body.append(f"store {memory} {self.cast(value, kind).text}, ptr {self.address(pointer, self.value(target.slice))}")

    def do_If(self, node: ast.If) -> None:
        yes, no, after = self.labels("then", "else", "after")
        self.jump(f"br i1 {self.cast(self.value(node.test), 'bool').text}, label %{yes}, label %{no}", yes)
        self.block(node.body)
        self.jump(f"br label %{after}", no)
        self.block(node.orelse)
        self.jump(f"br label %{after}", after)

    def do_For(self, node: Any) -> None:
        assert node.iter.func.id == "range"
        bounds = [self.cast(self.value(argument), "int") for argument in node.iter.args]
        start, stop, step = ([Value("int", "0")] * (len(bounds) == 1) + bounds + [Value("int", "1")])[:3]
        name, (test, body, after) = node.target.id, self.labels("test", "body", "after")
        self.assign(name, start)
        self.jump(f"br label %{test}", test)
        inside = self.new("bool", f"icmp slt i64 {self.read(name).text}, {stop.text}")
        self.jump(f"br i1 {inside.text}, label %{body}, label %{after}", body)
        self.block(node.body)
        self.assign(name, self.new("int", f"add nsw i64 {self.read(name).text}, {step.text}"))
        self.jump(f"br label %{test}", after)

    def do_Return(self, node: ast.Return) -> None:
        parts = [] if node.value is None else node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        values = [self.typed(self.value(part)) for part in parts]
        self.results = self.results or tuple(value.type for value in values)
        values = [self.cast(value, kind) for value, kind in zip(values, self.results, strict=True)]
        if len(values) < 2:
            self.jump(f"ret {argument_list(values) or 'void'}")
            return
        whole = Value("", "poison")
        for i, value in enumerate(values):
            whole = self.new("", f"insertvalue {structure(self.results)} {whole.text}, {argument_list([value])}, {i}")
        self.jump(f"ret {structure(self.results)} {whole.text}")

    # ---- expressions

    def value(self, node: ast.expr) -> Value:
        return getattr(self, f"of_{type(node).__name__}")(node)

    def meaning(self, node: Any) -> Any:
        """What a name that is not a variable stands for: a function or a constant of the kernel's module."""
        if isinstance(node, ast.Attribute):
            return getattr(self.meaning(node.value), node.attr)
        return self.names[node.id] if node.id in self.names else getattr(builtins, node.id)

    def of_Constant(self, node: ast.Constant) -> Value:
        return Value("bool", str(node.value).lower()) if isinstance(node.value, bool) else Value("number", node.value)

    def of_Name(self, node: ast.Name) -> Value:
        return self.read(node.id) if node.id in self.variables else Value("number", self.meaning(node))

    def of_Attribute(self, node: ast.Attribute) -> Value:
        return Value("number", self.meaning(node))

    def of_Subscript(self, node: ast.Subscript) -> Value:
        pointer = self.value(node.value)
        kind, memory = POINTERS[pointer.type]
        loaded = self.new(kind, f"load {memory}, ptr {self.address(pointer, self.value(node.slice))}")
        return self.new("int", f"zext i8 {loaded.text} to i64") if memory == "i8" else loaded

    def of_UnaryOp(self, node: ast.UnaryOp) -> Value:
        operand = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return self.new("bool", f"xor i1 {self.cast(operand, 'bool').text}, true")
        assert isinstance(node.op, ast.USub)
        if operand.type == "number":
            return Value("number", -operand.text)
        return self.new(operand.type, f"{'sub i64 0,' if operand.type == 'int' else f'fneg {TYPES[operand.type]}'} {operand.text}")

    def of_BinOp(self, node: ast.BinOp) -> Value:
        op, (x, y) = type(node.op).__name__, self.together(self.value(node.left), self.value(node.right))
        if x.type == "int" and op == "Div":
            x, y = self.cast(x, "float"), self.cast(y, "float")
        verb = WHOLE[op] if x.type in ("int", "bool") else f"{FLOATING[op]} {self.module.flags[x.type]}"
        return self.new(x.type, f"{verb} {TYPES[x.type]} {x.text}, {y.text}")

    def of_Compare(self, node: ast.Compare) -> Value:
        (right,) = node.comparators
        return self.compared(type(node.ops[0]), *self.together(self.value(node.left), self.value(right)))

    def compared(self, op: type[ast.cmpop], x: Value, y: Value) -> Value:
        verb = f"icmp {WHOLE[op.__name__]}" if x.type in ("int", "bool") else f"fcmp {FLOATING[op.__name__]}"
        return self.new("Lanes" if x.type == "Register" else "bool", f"{verb} {TYPES[x.type]} {x.text}, {y.text}")

    def of_BoolOp(self, node: ast.BoolOp) -> Value:
        """The right side is not looked at where the left decides: it may not exist."""
        *before, chosen = node.values
        for test in reversed(before):
            yes, no = (chosen, ast.Constant(False)) if isinstance(node.op, ast.And) else (ast.Constant(True), chosen)
            chosen = ast.IfExp(test, yes, no)
        return self.value(chosen)

    def of_IfExp(self, node: ast.IfExp) -> Value:
        (name,) = self.labels("chosen")
        yes, no = (ast.Assign([ast.Name(name)], value) for value in (node.body, node.orelse))
        self.do_If(ast.If(node.test, [yes], [no]))
        return self.read(name)

    def of_Call(self, node: ast.Call) -> Value:
        function, arguments = self.meaning(node.func), [self.value(argument) for argument in node.args]
        name = getattr(function, "__name__", "")
        if getattr(registers, name, None) is function and hasattr(self, f"call_{name}"):
            return getattr(self, f"call_{name}")(*arguments)
        if function in (min, max):
            x, y = self.together(*arguments)
            return self.call_choose(self.compared(ast.Lt if function is min else ast.Gt, y, x), y, x)
        if function is float:
            return self.cast(arguments[0], "float")
        if function is math.isfinite:
            return self.compared(ast.Lt, self.library(abs, arguments), Value("float", constant(math.inf, "float")))
        if function in LIBRARY:
            return self.library(function, arguments)
        results = self.call(function, arguments)
        return results[0] if results else Value("", "")

    def results_of(self, node: Any) -> list[Value]:
        return self.call(self.meaning(node.func), [self.value(argument) for argument in node.args])

    def library(self, function: Callable[..., Any], arguments: list[Value]) -> Value:
        return self.new("float", f"call double @{LIBRARY[function]}({argument_list(self.cast(x, 'float') for x in arguments)})")

    def call(self, function: Callable[..., Any], arguments: list[Value]) -> list[Value]:
        called = self.module.add(function)
        kind = structure(called.results)
        given = [self.cast(argument, kind) for argument, kind in zip(arguments, called.parameters.values(), strict=True)]
        line = f"call {kind} @{called.name}({argument_list(given)})"
        if not called.results:
            self.body.append(line)
            return []
        whole = self.new(called.results[0], line)
        parts = enumerate(called.results) if len(called.results) > 1 else ()
        return [self.new(part, f"extractvalue {kind} {whole.text}, {i}") for i, part in parts] or [whole]

    # ---- the operations of upslope.fast.registers

    def call_invoke(self, function: Value, *arguments: Value) -> Value:
        self.body.append(f"call void {function.text}({argument_list(arguments)})")
        return Value("", "")

    def call_shift(self, pointer: Value, count: Value) -> Value:
        return Value(pointer.type, self.address(pointer, count))

    def call_load(self, pointer: Value, index: Value) -> Value:
        return self.new("Register", f"load {TYPES['Register']}, ptr {self.address(pointer, index)}, align 4")

    def call_store(self, pointer: Value, index: Value, register: Value) -> Value:
        value = self.cast(register, "Register")
        self.body.append(f"store {argument_list([value])}, ptr {self.address(pointer, index)}, align 4")
        return Value("", "")

    def call_fill(self, pointer: Value, index: Value) -> Value:
        return self.cast(self.new("single", f"load float, ptr {self.address(pointer, index)}"), "Register")

    def call_spread(self, number: Value) -> Value:
        return self.cast(number, "Register")

    def call_choose(self, condition: Value, yes: Value, no: Value) -> Value:
        yes, no = self.together(yes, no)
        return self.new(yes.type, f"select {argument_list((condition, yes, no))}")

    def call_single(self, x: Value) -> Value:
        if x.type in ("number", "single"):
            return self.cast(x, "single")
        return self.new("single", f"fptrunc double {self.cast(x, 'float').text} to float")

    def call_square_root(self, x: Value) -> Value:
        return self.new("single", f"call float @llvm.sqrt.f32(float {self.cast(x, 'single').text})")
