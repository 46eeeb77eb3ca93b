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
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any

from upslope.fast.expressions import ELEMENTS, LIBM, TYPES, Expressions, Signature, Value


class Module:
    """Functions in LLVM's language, each translated when it is first met; ``str(module)`` is the text."""

    def __init__(self, *entries: Callable[..., Any]) -> None:
        self.entries, self.signatures = entries, dict[Callable[..., Any], Signature]()
        self.text = [f"declare double @{name}({', '.join(['double'] * (1 + (name == 'pow')))})" for name in LIBM.values()]
        self.text += ["declare float @llvm.sqrt.f32(float)", "declare double @llvm.fabs.f64(double)"]
        for entry in entries:
            self.add(entry)

    def add(self, function: Callable[..., Any]) -> Signature:
        """Translate a function, and what it calls before it."""
        if function not in self.signatures:
            translation = Translation(self, function)
            signature = self.signatures[function] = translation.signature
            linkage = "" if function in self.entries else "internal "
            parameters = ", ".join(f"{TYPES[kind]} %{name}" for name, kind in translation.parameters.items())
            lines = "\n".join(["entry:", *translation.slots, *translation.body])
            self.text.append(f"define {linkage}{signature.result_type} @{signature.name}({parameters}) nounwind {{\n{lines}\n}}")
        return self.signatures[function]

    def __str__(self) -> str:
        return "\n".join(self.text)


class Translation(Expressions):
    """One function."""

    def __init__(self, module: Module, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        super().__init__(function.__name__, function.__globals__, module.add)
        self.parameters = {item.arg: ast.unparse(item.annotation) if item.annotation else "int" for item in tree.args.args}
        self.loops: list[tuple[str, str]] = []
        self.results: tuple[str, ...] = ()
        for name, kind in self.parameters.items():
            self.assign(name, Value(kind, f"%{name}"))
        self.block(tree.body)
        self.body.append("unreachable" if self.results else "ret void")

    @property
    def signature(self) -> Signature:
        """Known once the function is translated; the subset has no recursion."""
        return Signature(self.name, tuple(self.parameters.values()), self.results)

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
