"""An objective, run once on symbols: what it computes of each step, and the sums it takes, become a graph.

A :class:`Symbol` is a small tensor that knows the node that made it. ``algorithm.objective(policy, batch)`` is called with a batch of
them and a policy that has nothing but ``evaluate``. PyTorch hands every operation to :meth:`Symbol.__torch_function__`, which computes
it, so that shapes and errors are PyTorch's, and records it. What is not in :data:`RECORDERS`, a branch on a number, a policy asked
for more: each raises :class:`NotLowered` with the reason, and the objective then runs as it is written.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from math import inf
from types import CodeType, FrameType
from typing import Any, cast

import torch
from torch import Tensor

from upslope.fast.graph import Node, NotLowered, as_number, detached, in_order, literal, node, total, where
from upslope.records import ROW_AXES, Batch, Evaluation, HasObjective, Policy

SIZES = (5, 7)
"""Units of the batches that an objective is run on: what differs between the two graphs depends on the size of a minibatch."""
UNIT_SHAPE = (2, 3)  # rows and steps of a group
READS = frozenset(["bool", "float", "int", "index", "item", "tolist", "numpy", "repr", "format", "array", "contains"])
PLAIN = frozenset(("dim", "size", "__len__", "__hash__", "ndimension", "is_floating_point", "is_contiguous"))
"""What is no tensor and may be asked of one."""


class Symbol(Tensor):
    """A tensor with the ``node`` that made it; ``chosen`` is the flag of the steps that are left after ``x[flag]``."""

    node: Node
    chosen: Node | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return record_operation(func, func.__name__, args, kwargs or {})


def symbol(data: Tensor, made_by: Node, chosen: Node | None = None) -> Symbol:
    found = data.as_subclass(Symbol)
    found.node, found.chosen = made_by, chosen
    return found


def record_operation(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "__get__":
        return attribute(func, args[0])
    if name in PLAIN:
        return func(*args, **kwargs)
    if name == "numel" and args[0].node.row:
        return symbol(torch.tensor(float(func(*args))), number_of_steps(args[0]))
    called = name.strip("_")
    in_place = name.endswith("_") and not name.startswith("__")
    if in_place or (name.startswith("__") and called in READS) or not (called in RECORDERS or called in REDUCTIONS or called == "getitem"):
        raise NotLowered(refusal(called, in_place=in_place))
    given = [operand(x) for x in args], {key: operand(x) for key, x in kwargs.items()}
    rows = [x for x in (*args, *kwargs.values()) if isinstance(x, Symbol) and x.node.row]
    chosen = rows[0].chosen if rows else None
    result = func(*args, **kwargs)
    try:
        if called in REDUCTIONS:
            made = reduction(called, args[0], *args[1:], **kwargs)
        elif called == "getitem":
            made, chosen = given[0][0], flag_of_choice(args[0], given[0][1])
        else:
            made = RECORDERS[called](*given[0], **given[1])
            check_steps(called, result, rows)
    except TypeError as error:
        raise NotLowered(f"it calls {called}() in a form that is not compiled") from error
    made = made if result.requires_grad or not made.moves else detached(made)
    if made.flag != (result.dtype == torch.bool) or made.moves != result.requires_grad:
        raise NotLowered(f"it calls {called}() in a form that is not compiled")
    return symbol(result, made, chosen if made.row else None)


def check_steps(name: str, result: Tensor, rows: list[Symbol]) -> None:
    """Refuse what joins different steps: other masks, broadcasting."""
    same = all(x.chosen is rows[0].chosen and (x.shape == result.shape or name in SHAPING) for x in rows)
    if not same or (rows and result.numel() != Tensor.numel(rows[0])):
        raise NotLowered(f"{name}() joins different steps")


def attribute(func: Any, tensor: Symbol) -> Any:
    name = func.__self__.__name__
    if name == "data":
        return symbol(tensor.detach(), detached(tensor.node), tensor.chosen)
    found = func.__call__(tensor)
    if isinstance(found, Tensor):
        raise NotLowered(refusal(name))
    return found


def operand(x: Any) -> Any:
    """An argument as a node: a symbol's, that of a number or of a tensor that holds one; anything else as it is."""
    if isinstance(x, Symbol):
        if x.node.op == "opaque":
            raise NotLowered(f"it uses {x.node.value}")
        return x.node
    if isinstance(x, Tensor):
        if x.dim() > 0 or x.requires_grad:
            raise NotLowered("it uses a tensor that is not of the batch")
        return Node("constant", value=x)
    return Node("constant", value=float(x)) if type(x) in (int, float) else x


def refusal(called: str, *, in_place: bool = False) -> str:
    if in_place:
        return f"it changes a tensor in place ({called})"
    return f"it looks at a number while it runs ({called})" if called in READS else f"{called}() is not compiled"


# ---------------------------------------------------------------------------------------------------------------- operations


def simple(op: str) -> Callable[..., Node]:
    return lambda *inputs: node(op, *inputs)


def unchanged(x: Node, *arguments: Any, **options: Any) -> Node:
    """Another shape, another precision: the same number."""
    kinds = [kind for kind in (*arguments, *options.values()) if isinstance(kind, torch.dtype)]
    if any(not kind.is_floating_point for kind in kinds):
        raise TypeError("rounded")
    return as_number(x) if kinds else x


def clamp(x: Node, min: Any = None, max: Any = None) -> Node:
    """Not differentiated by its bounds."""
    y = as_number(x)
    for bound, outside in ((min, "lt"), (max, "gt")):
        if bound is not None:
            if bound.moves:
                raise TypeError
            y = where(node(outside, y, bound), bound, y)
    return y


def select_node(a: Node, b: Any, c: Any) -> Node:
    """``torch.where(condition, x, y)``, and ``x.where(condition, y)``."""
    if a.flag and isinstance(b, Node) and b.flag:
        raise TypeError
    return where(a, b, c) if a.flag else where(b, a, c)


def power(x: Node, exponent: Node) -> Node:
    value = exponent.value if isinstance(exponent.value, float) else None
    return x * x if value == 2.0 else node("sqrt", x) if value == 0.5 else node("pow", x, exponent)


def softplus(x: Node) -> Node:
    return node("maximum", x, 0.0) + node("log1p", node("exp", -node("abs", x)))


def mse_loss(x: Node, y: Node, size_average: None = None, reduce: None = None, reduction: str = "mean", weight: None = None) -> Node:
    if size_average is not None or reduce is not None or weight is not None or reduction != "none":
        raise TypeError
    return (x - y) * (x - y)


def flag_of_choice(x: Symbol, index: Any) -> Node:
    """The mask of ``x[mask]``."""
    if not (isinstance(index, Node) and index.flag and index.row) or x.chosen is not None:
        raise NotLowered("it picks single steps")
    return index


def number_of_steps(x: Symbol) -> Node:
    return Node("rows") if x.chosen is None else total(x.chosen)


def reduction(name: str, x: Symbol, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, correction: Any = 1) -> Node:
    """Sum, mean, variance or standard deviation over all steps."""
    shape = torch.Tensor.size(x)
    whole = dim is None or (len(shape) == 1 and type(dim) is int)
    if keepdim or dtype is not None or not whole:
        raise NotLowered(f"it takes the {name} of a part of the steps, or of each sequence")
    if not x.node.row:
        raise TypeError

    def summed(y: Node) -> Node:
        return total(y if x.chosen is None else where(x.chosen, y, 0.0))

    value, count = as_number(x.node), number_of_steps(x)
    if name == "sum":
        return summed(value)
    mean = summed(value) / count
    if name == "mean":
        return mean
    deviation = value - mean
    variance = summed(deviation * deviation) / (count - float(correction))
    return node("sqrt", variance) if name == "std" else variance


def relu(x: Node, inplace: bool = False) -> Node:
    if inplace:
        raise TypeError
    return where(node("gt", x, 0.0), x, 0.0)


REDUCTIONS = frozenset(("sum", "mean", "var", "std"))
SHAPING = frozenset(("flatten", "reshape", "view", "ravel", "squeeze", "view_as", "reshape_as"))
SIMPLE = """
    add sub:subtract subtract mul:multiply multiply div:divide divide true_divide:divide truediv:divide neg:negate negative:negate radd:add
    rmul:multiply exp expm1 log log1p sqrt tanh sin cos abs absolute:abs lt less:lt le gt greater:gt ge eq ne and or xor rand:and ror:or
    not invert:not logical_and:and logical_or:or logical_xor:xor logical_not:not bitwise_and:and bitwise_or:or bitwise_not:not
    maximum max:maximum minimum min:minimum
"""
RECORDERS: dict[str, Callable[..., Any]] = {
    **{called: simple(op or called) for called, _, op in (item.partition(":") for item in SIMPLE.split())},
    **dict.fromkeys((*SHAPING, "clone", "contiguous", "to", "expand_as"), unchanged),
    **dict.fromkeys(("float", "double"), as_number),
    "rsub": lambda a, b: node("subtract", b, a),
    "rdiv": lambda a, b: node("divide", b, a),
    "rpow": lambda a, b: power(b, a),
    "pow": power,
    "square": lambda x: x * x,
    "reciprocal": lambda x: literal(1.0) / x,
    "detach": detached,
    **dict.fromkeys(("clamp", "clip"), clamp),
    "clamp_min": lambda x, min: clamp(x, min),
    "clamp_max": lambda x, max: clamp(x, None, max),
    "where": select_node,
    "masked_fill": lambda x, mask, value: where(mask, value, x),
    "sigmoid": lambda x: node("tanh", x * 0.5) * 0.5 + 0.5,
    "softplus": softplus,
    **dict.fromkeys(("logsigmoid", "log_sigmoid"), lambda x: -softplus(-x)),
    "relu": relu,
    "mse_loss": mse_loss,
    "isnan": lambda x: node("ne", x, x),
    "isfinite": lambda x: node("lt", node("abs", x), inf),
    "zeros_like": lambda x: Node("literal", value=0.0, row=x.row),
    "ones_like": lambda x: Node("literal", value=1.0, row=x.row),
}
"""What is recorded, by the names that PyTorch gives its functions and methods."""


# ------------------------------------------------------------------------------------------------------------- the objective


@dataclass(frozen=True)
class Graph:
    """An objective as a graph: its value, what it reports, and ``log_ratio`` of each step where it says so."""

    objective: Node
    metrics: dict[str, Node]
    log_ratio: Node | None
    called: dict[CodeType, dict[str, Any]] = field(default_factory=dict)
    """the functions that ran, with the global names that they see"""

    def listing(self) -> list[Any]:
        order = in_order([self.objective, *self.metrics.values(), *([] if self.log_ratio is None else [self.log_ratio])])
        places = {x: i for i, x in enumerate(order)}
        values = [repr(float(x.value)) if x.op == "constant" else x.value for x in order]
        return [list(self.metrics), *((x.op, *map(places.__getitem__, x.inputs), v) for x, v in zip(order, values, strict=True))]


class TracedPolicy:
    """What an objective may ask of a policy: the evaluation of the batch, and the units of its critic."""

    def __init__(self, policy: Policy, inputs: dict[str, Tensor], evaluation: Evaluation) -> None:
        self._policy, self._inputs, self._evaluation = policy, inputs, evaluation

    def evaluate(self, **inputs: Tensor) -> Evaluation:
        if inputs.keys() != self._inputs.keys() or any(inputs[name] is not given for name, given in self._inputs.items()):
            raise NotLowered("it evaluates something else than the batch")
        return self._evaluation

    __call__ = evaluate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._policy, name)
        if name == "value_scale":
            return found
        raise NotLowered(f"it asks the policy for {name}")


def trace(algorithm: HasObjective, policy: Policy, batch: Batch, restored: Callable[[Tensor], Tensor] | None) -> Graph:
    """The objective of batches like this one. ``restored`` makes the policy's value from the critic's output; None without a critic.

    Raises :class:`NotLowered` for an objective that is not made of sums over steps of what is known about each.
    """
    before, profiler, called = torch.get_rng_state(), sys.getprofile(), dict[CodeType, dict[str, Any]]()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called[frame.f_code] = frame.f_globals

    try:
        one = trace_objective(algorithm, policy, batch, restored, SIZES[0])
        if profiler is None:  # else somebody measures, and what is noted here would be missing there
            sys.setprofile(note)
        other = trace_objective(algorithm, policy, batch, restored, SIZES[1])
    except (NotLowered, KeyboardInterrupt):
        raise
    except Exception as error:  # the readable objective will say it, if it is the user's
        raise NotLowered(f"it raises {type(error).__name__} without real numbers") from error
    finally:
        if profiler is None:
            sys.setprofile(None)
        torch.set_rng_state(before)
    if one.listing() != other.listing():
        raise NotLowered("it is not the same for minibatches of every size, or not the same each time")
    return replace(one, called=called)


def trace_objective(algorithm: HasObjective, policy: Policy, batch: Batch, restored: Callable[[Tensor], Tensor] | None, size: int) -> Graph:
    shape = (size, *UNIT_SHAPE[2 - ROW_AXES[batch.unit] :])
    generator = torch.Generator().manual_seed(size)

    def leaf(op: str, *, value: Any = None, moves: bool = False) -> Symbol:
        data = torch.randn(shape, generator=generator)
        return symbol(data.requires_grad_(moves), Node(op, value=value, row=True, moves=moves))

    def column(name: str, tensor: Tensor) -> Symbol:
        if tensor.shape != batch.mask.shape or tensor.dtype not in (torch.float32, torch.bool):
            return symbol(torch.zeros(shape), Node("opaque", value=f"batch.{name}"))
        if tensor.dtype == torch.bool:
            return symbol(torch.ones(shape, dtype=torch.bool), Node("column", value=name, row=True, flag=True))
        found = leaf("column", value=name)
        if name == "weight":
            found.node = found.node * Node("scale")
        return found

    tensors = {f.name: column(f.name, t) for f in fields(batch) if isinstance(t := getattr(batch, f.name), Tensor)}
    inputs: dict[str, Tensor] = {name: symbol(torch.zeros(shape), Node("opaque", value=f"batch.inputs[{name!r}]")) for name in batch.inputs}
    symbols = replace(batch, inputs=inputs, metrics={}, **tensors)
    value = None if restored is None else restored(leaf("value", moves=True))
    evaluation = Evaluation(log_prob=leaf("log_prob", moves=True), entropy=leaf("entropy", moves=True), value=value)
    traced: Any = TracedPolicy(policy, inputs, evaluation)
    found, metrics = algorithm.objective(traced, symbols)
    if not (isinstance(found, Symbol) and found.node.moves and not found.node.row):
        raise NotLowered("its value is not a sum over steps that moves with the policy")
    log_ratio = metrics.pop("log_ratio", None)
    reported = {name: operand(x) for name, x in metrics.items()}
    if any(not isinstance(x, Node) or x.row for x in reported.values()) or not (log_ratio is None or operand(log_ratio).row):
        raise NotLowered("it reports something else than numbers")
    return Graph(found.node, reported, None if log_ratio is None else cast(Symbol, log_ratio).node)
