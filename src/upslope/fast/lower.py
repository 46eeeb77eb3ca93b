"""The graph of an objective as three functions in the kernels' subset of Python (:mod:`upslope.fast.translate`).

``before`` takes the sums over a minibatch that a step's terms need (of an advantage that is normalized, say), ``block`` adds some rows to
all other sums and says what each step's share of the objective is differentiated by log π, entropy and value, ``after`` makes the
objective and what it reports from the sums. All have the same arguments: the number of rows, their ``order``, the batch's ``columns``,
``numbers`` (:data:`FIXED` ones, the settings in the graph, the sums of ``before``), ``each`` (what the kernels know of each row of a block,
and the derivatives), ``sums`` and ``values``.
"""

from collections.abc import Iterable

from upslope.fast import layout as at
from upslope.fast.graph import OPERATIONS, Node, NotLowered, derivatives, in_order, node, where
from upslope.fast.trace import Graph

NETWORK = {"log_prob": at.LOG_PROB, "entropy": at.ENTROPY, "value": at.VALUE}
FIXED = ("rows", "scale")  # the numbers of a minibatch: its rows, and by how many times it is smaller than the batch
MAIN = 100  # the pass in which the policy is evaluated; the passes before it are numbered from 0
PARAMETERS = "rows: int, order: Integers, columns: Table, numbers: Doubles, each: Doubles, sums: Doubles, values: Doubles"
MASK = Node("column", value="mask", row=True, flag=True)
FUNCTIONS = ("before", "block", "after")


class Lowered:
    """An objective in Python (``text``), and where everything stands: ``columns``, ``constants``, ``sums``, ``metrics``."""

    def __init__(self, recorded: Graph) -> None:
        slopes = {leaf.op: slope for leaf, slope in derivatives(recorded.objective).items() if leaf.op in NETWORK}
        self.results = [recorded.objective, *recorded.metrics.values()]
        self.metrics, self.called = list(recorded.metrics), recorded.called
        watched = [] if recorded.log_ratio is None else [where(MASK, node("abs", recorded.log_ratio), 0.0)]
        sums = [x for x in in_order(self.results) if x.op == "total"]
        roots = [*slopes.values(), *watched, *(part for x in sums for part in x.inputs)]
        early = [x for x in in_order(roots) if x.op == "total"]
        order = in_order([*self.results, *roots])
        self.passes = passes(order)
        if any(self.passes[x] > MAIN for x in roots):
            raise NotLowered("what it computes of a step depends on a sum over the minibatch that moves with the policy")
        self.uses = {x.op for x in order if x.op in NETWORK}
        self.kinds = {x.value: "Flags" if x.flag else "Floats" for x in [*order, MASK] if x.op == "column"}
        self.columns = sorted(self.kinds)
        self.constants = [x for x in order if x.op == "constant"]
        late = [x for x in sums if x not in early]
        self.places = {x: f"numbers[{len(FIXED) + i}]" for i, x in enumerate([*self.constants, *early])}
        self.places |= {x: f"sums[{1 + i}]" for i, x in enumerate(late)}
        self.num_numbers, self.num_sums = len(FIXED) + len(self.constants) + len(early), 1 + len(late)
        stores = {f"each[j + {(NETWORK[op] + at.SLOPES) * at.BLOCK}]": slope for op, slope in slopes.items()}
        self.text = "\n".join([self.before(early), self.block(late, stores, watched), self.after()])

    def before(self, sums: list[Node]) -> str:
        """One loop over the minibatch for each pass."""
        function = Function(self, "before")
        function.lines += [f"{self.places[x]} = 0.0" for x in sums]
        for number in sorted({self.passes[x] for x in sums}):
            function.loop([x for x in sums if self.passes[x] == number])
        return str(function)

    def block(self, sums: list[Node], stores: dict[str, Node], watched: list[Node]) -> str:
        function = Function(self, "block")
        function.loop(sums, stores, watched)
        return str(function)

    def after(self) -> str:
        function = Function(self, "after")
        for i, x in enumerate(self.results):
            function.lines.append(f"values[{i}] = {function.value(x)}")
        return str(function)


def passes(order: Iterable[Node]) -> dict[Node, int]:
    """In which pass over the rows a node is known; a sum in the one behind its terms'."""
    found: dict[Node, int] = {}
    for x in order:
        found[x] = max((found[part] for part in x.inputs), default=MAIN if x.op in NETWORK else 0) + (x.op == "total")
    return found


class Function:
    """The source of a function. What is the same for all rows is computed before a loop; the same expression is written once."""

    def __init__(self, lowered: Lowered, name: str) -> None:
        self.places, self.name = lowered.places, name
        self.lines = [f"{column}: {lowered.kinds[column]} = columns[{i}]" for i, column in enumerate(lowered.columns)]
        self.known: dict[object, str] = {}
        self.row_lines: list[str] = []
        self.known_of_row: dict[object, str] = {}
        self.counter = 0

    def __str__(self) -> str:
        return "\n    ".join([f"def {self.name}({PARAMETERS}) -> None:", *self.lines])

    def new(self, text: str, row: bool = False) -> str:
        """A name for an expression."""
        known, lines = (self.known_of_row, self.row_lines) if row else (self.known, self.lines)
        if text not in known:
            self.counter += 1
            known[text] = f"x{self.counter}"
            lines.append(f"x{self.counter} = {text}")
        return known[text]

    def value(self, x: Node) -> str:
        """A node's name, or its number; it is computed first where it is not known yet."""
        if x.op == "literal":
            return repr(x.value)
        if x.op == "detached":
            return self.value(x.inputs[0])
        known = self.known_of_row if x.row else self.known
        if x not in known:
            known[x] = self.new(self.expression(x), x.row)
        return known[x]

    def expression(self, x: Node) -> str:
        if x in self.places:
            return self.places[x]
        if x.op in FIXED:
            return f"numbers[{FIXED.index(x.op)}]"
        if x.op in NETWORK:
            return f"each[j + {NETWORK[x.op] * at.BLOCK}]"
        if x.op == "column":
            return f"{x.value}[row] != 0" if x.flag else f"float({x.value}[row])"
        return OPERATIONS[x.op].text.format(*map(self.value, x.inputs))

    def loop(self, sums: list[Node], stores: dict[str, Node] | None = None, largest: Iterable[Node] = ()) -> None:
        """Add every row to the sums, store what is to be stored, and keep the largest of a number in ``sums[0]``."""
        self.row_lines, self.known_of_row = ["row = order[j]"], {}
        kept = [*((self.places[x], x.inputs[0], "{0} + {1}") for x in sums), *(("sums[0]", x, "max({0}, {1})") for x in largest)]
        names = [(f"total{i}", place) for i, (place, _, _) in enumerate(kept)]
        for (name, _), (_, x, text) in zip(names, kept, strict=True):
            self.row_lines.append(f"{name} = {text.format(name, self.value(x))}")
        for place, x in (stores or {}).items():
            self.row_lines.append(f"{place} = {self.value(x)}")
        self.lines += [f"{name} = {place}" for name, place in names]
        self.lines += ["for j in range(rows):", *(f"    {line}" for line in self.row_lines)]
        self.lines += [f"{place} = {name}" for name, place in names]
