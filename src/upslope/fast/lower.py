"""The graph of an objective as three functions in LLVM's language.

``before`` takes the sums over a minibatch that a step's terms need (of an advantage that is normalized, say), ``block`` adds some rows to
all other sums and says what each step's share of the objective is differentiated by log π, entropy and value, ``after`` makes the
objective and what it reports from the sums. All have the same arguments: the number of rows, their ``order``, the batch's ``columns``,
``numbers`` (:data:`FIXED` ones, the settings in the graph, the sums of ``before``), ``each`` (what the kernels know of each row of a block,
and the derivatives), ``sums`` and ``values``.
"""

from __future__ import annotations

from collections.abc import Iterable

from upslope.fast import layout as at
from upslope.fast.expressions import constant
from upslope.fast.graph import OPERATIONS, Node, NotLowered, differentiate, in_order
from upslope.fast.trace import Recorded

NETWORK = {"log_prob": at.LOG_PROB, "entropy": at.ENTROPY, "value": at.VALUE}
FIXED = ("rows", "scale")
"""The numbers of a minibatch: its rows, and by how many times it is smaller than the batch."""
MAIN = 100
"""The pass in which the policy is evaluated; the passes before it are numbered from 0."""
PARAMETERS = (
    "i64 %rows, ptr noalias %order, ptr noalias %columns, ptr noalias %numbers, ptr noalias %each, ptr noalias %sums, ptr noalias %values"
)
MASK = Node("column", value="mask", row=True, flag=True)
FUNCTIONS = ("before", "block", "after")
DECLARATIONS = "\n".join(
    f"declare double @{name}({', '.join(['double'] * count)}) nounwind willreturn memory(none)"
    for name, count in {
        **dict.fromkeys(("exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "llvm.sqrt.f64", "llvm.fabs.f64"), 1),
        "pow": 2,
        "llvm.maxnum.f64": 2,
    }.items()
)


class Lowered:
    """An objective in LLVM's language (``text``), and where everything stands: ``columns``, ``constants``, ``sums``, ``metrics``."""

    def __init__(self, recorded: Recorded) -> None:
        slopes = {leaf.op: slope for leaf, slope in differentiate(recorded.objective).items() if leaf.op in NETWORK}
        self.results = [recorded.objective, *recorded.metrics.values()]
        self.metrics = list(recorded.metrics)
        watched = [] if recorded.log_ratio is None else [recorded.log_ratio]
        sums = [x for x in in_order(self.results) if x.op == "total"]
        roots = [*slopes.values(), *watched, *(part for x in sums for part in x.inputs)]
        self.early = [x for x in in_order(roots) if x.op == "total"]
        order = in_order([*self.results, *roots])
        self.passes = passes(order)
        if any(self.passes[x] > MAIN for x in roots):
            raise NotLowered("what it computes of a step depends on a sum over the minibatch that moves with the policy")
        self.uses = {x.op for x in order if x.op in NETWORK}
        self.columns = sorted({x.value for x in order if x.op == "column"} | {MASK.value})
        self.constants = [x for x in order if x.op == "constant"]
        self.late = [x for x in sums if x not in self.early]
        self.places = {x: ("numbers", len(FIXED) + i) for i, x in enumerate([*self.constants, *self.early])}
        self.places |= {x: ("sums", 1 + i) for i, x in enumerate(self.late)}
        self.num_numbers, self.num_sums = len(FIXED) + len(self.constants) + len(self.early), 1 + len(self.late)
        targets = [(slope, NETWORK[op] + at.SLOPES) for op, slope in slopes.items()]
        self.text = "\n".join([DECLARATIONS, self.before(), self.block(targets, watched), self.after()])

    def before(self) -> str:
        """One loop over the minibatch for each pass."""
        body = Body(self, "before")
        for x in self.early:
            body.lines.append(f"store double 0.0, ptr {body.address('double', *body.place(x))}")
        for number in sorted({self.passes[x] for x in self.early}):
            body.loop([x for x in self.early if self.passes[x] == number], [], [])
        return str(body)

    def block(self, targets: list[tuple[Node, int]], watched: list[Node]) -> str:
        body = Body(self, "block")
        body.loop(self.late, targets, watched)
        return str(body)

    def after(self) -> str:
        body = Body(self, "after")
        for i, x in enumerate(self.results):
            body.lines.append(f"store double {body.value(x)}, ptr {body.address('double', '%values', str(i))}")
        return str(body)


def passes(order: Iterable[Node]) -> dict[Node, int]:
    """In which pass over the rows a node is known; a sum in the one behind its terms'."""
    found: dict[Node, int] = {}
    for x in order:
        found[x] = max((found[part] for part in x.inputs), default=MAIN if x.op in NETWORK else 0) + (x.op == "total")
    return found


class Body:
    """One function. What is the same for all rows is computed before a loop; the same instruction is written once."""

    def __init__(self, lowered: Lowered, name: str) -> None:
        self.lowered, self.name = lowered, name
        self.lines: list[str] = []
        self.row_lines: list[str] = []
        self.known: dict[object, str] = {}
        self.known_of_row: dict[object, str] = {}
        self.counter, self.label = 0, "entry"

    def __str__(self) -> str:
        return "\n".join([f"define void @{self.name}({PARAMETERS}) nounwind {{", "entry:", *self.lines, "ret void", "}"])

    def new(self, line: str, row: bool = False) -> str:
        """A value computed by an instruction."""
        known, lines = (self.known_of_row, self.row_lines) if row else (self.known, self.lines)
        if line not in known:
            self.counter += 1
            known[line] = f"%.{self.counter}"
            lines.append(f"%.{self.counter} = {line}")
        return known[line]

    def load(self, kind: str, pointer: str, index: str, row: bool = False) -> str:
        return self.new(f"load {kind}, ptr {self.address(kind, pointer, index, row)}", row)

    def address(self, kind: str, pointer: str, index: str, row: bool = False) -> str:
        return self.new(f"getelementptr {kind}, ptr {pointer}, i64 {index}", row)

    def value(self, x: Node) -> str:
        """The text of a node's value, which is computed first where it is not known yet."""
        known = self.known_of_row if x.row else self.known
        if x not in known:
            known[x] = self.leaf(x) if not x.inputs or x.op == "total" else self.operation(x)
        return known[x]

    def operation(self, x: Node) -> str:
        parts = [self.value(part) for part in x.inputs]
        if x.op == "held":
            return parts[0]
        if x.op in ("maximum", "minimum"):
            a, b = parts
            better = self.new(f"fcmp {'ugt' if x.op == 'maximum' else 'ult'} double {a}, {b}", x.row)
            chosen = self.new(f"select i1 {better}, double {a}, double {b}", x.row)
            missing = self.new(f"fcmp uno double {b}, {b}", x.row)
            return self.new(f"select i1 {missing}, double {b}, double {chosen}", x.row)
        return self.new(OPERATIONS[x.op].text.format(*parts), x.row)

    def leaf(self, x: Node) -> str:
        if x.op == "literal":
            return constant(x.value, "float")
        if x.op == "column":
            pointer = self.load("ptr", "%columns", str(self.lowered.columns.index(x.value)))
            if x.flag:
                return self.new(f"icmp ne i8 {self.load('i8', pointer, self.row, True)}, 0", True)
            return self.new(f"fpext float {self.load('float', pointer, self.row, True)} to double", True)
        if x.op in NETWORK:
            return self.load("double", "%each", self.new(f"add i64 {self.j}, {NETWORK[x.op] * at.BLOCK}", True), True)
        return self.load("double", *self.place(x))

    def place(self, x: Node) -> tuple[str, str]:
        """The array and the index of a number of the minibatch, a setting or a sum."""
        array, index = ("numbers", FIXED.index(x.op)) if x.op in FIXED else self.lowered.places[x]
        return f"%{array}", str(index)

    def loop(self, sums: list[Node], targets: list[tuple[Node, int]], watched: list[Node]) -> None:
        """Add every row to the sums, store the targets, and keep the largest size of what is watched on unmasked rows."""
        self.counter += 1
        n, self.row_lines, self.known_of_row = self.counter, [], {}
        self.j, self.row = f"%j.{n}", f"%row.{n}"
        for x in sums:
            value, pointer = self.value(x.inputs[0]), self.address("double", *self.place(x))
            self.keep(pointer, "fadd contract double {}, {}", value)
        for x, place in targets:
            pointer = self.address("double", "%each", self.new(f"add i64 {self.j}, {place * at.BLOCK}", True), True)
            self.row_lines.append(f"store double {self.value(x)}, ptr {pointer}")
        for x in watched:
            size = self.new(f"call double @llvm.fabs.f64(double {self.value(x)})", True)
            seen = self.new(f"select i1 {self.value(MASK)}, double {size}, double 0.0", True)
            self.keep(self.address("double", "%sums", "0"), "call double @llvm.maxnum.f64(double {}, double {})", seen)
        self.lines += [f"br label %test.{n}", f"test.{n}:", f"{self.j} = phi i64 [ 0, %{self.label} ], [ %next.{n}, %body.{n} ]"]
        self.lines += [f"%more.{n} = icmp slt i64 {self.j}, %rows", f"br i1 %more.{n}, label %body.{n}, label %done.{n}", f"body.{n}:"]
        self.lines += [f"%at.{n} = getelementptr i64, ptr %order, i64 {self.j}", f"{self.row} = load i64, ptr %at.{n}", *self.row_lines]
        self.lines += [f"%next.{n} = add i64 {self.j}, 1", f"br label %test.{n}", f"done.{n}:"]
        self.label = f"done.{n}"

    def keep(self, pointer: str, line: str, value: str) -> None:
        """Change a number in memory for each row."""
        self.counter += 2
        old, new = f"%.{self.counter - 1}", f"%.{self.counter}"
        self.row_lines += [
            f"{old} = load double, ptr {pointer}",
            f"{new} = {line.format(old, value)}",
            f"store double {new}, ptr {pointer}",
        ]
