"""What an objective depends on besides its batch: looked at to see whether a trace still holds, and put back where a trace moved it."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from torch import Tensor, nn

from upslope.records import HasObjective

Watched = tuple[Callable[[Any], Any], Any, Any]  # how to read something, its name, and what it was


def watch(x: Any, depth: int = 3) -> Iterator[Watched]:
    """What a trace depends on of an object and may change: its attributes, a function's code and what it closes over."""
    inside: list[tuple[Callable[[Any], Any], Any]] = []
    if isinstance(x, MethodType):
        inside = [(partial(getattr, x), name) for name in ("__func__", "__self__")]
    elif isinstance(x, FunctionType):
        inside = [(partial(getattr, x), "__code__"), *((partial(getattr, cell), "cell_contents") for cell in x.__closure__ or ())]
    elif isinstance(x, partial):
        inside = [(partial(getattr, x), name) for name in ("func", "args", "keywords")]
    elif isinstance(x, (list, tuple)):
        inside = [(x.__getitem__, i) for i in range(len(cast("list[Any]", x)))]
    elif not isinstance(x, (type, CodeType, ModuleType, Tensor, nn.Module)):
        known: dict[Any, Any] = cast("dict[Any, Any]", x) if isinstance(x, dict) else getattr(x, "__dict__", {})
        inside = [(known.get, name) for name in known]
    for read, key in inside:
        yield read, key, read(key)
        if depth:
            yield from watch(read(key), depth - 1)


def watch_called(algorithm: HasObjective, called: dict[CodeType, dict[str, Any]]) -> Iterator[Watched]:
    """What the functions of a trace look up: global names, what stands in modules and classes, and the algorithm's methods."""
    seen = set[tuple[int, str]]()

    def look_up(owner: Any, names: tuple[str, ...]) -> Iterator[Watched]:
        space: Any = owner if isinstance(owner, dict) else vars(owner)
        for name in names:
            place = id(owner if isinstance(owner, type) else space), name
            if name in space and place not in seen:
                seen.add(place)
                value = space[name]
                yield partial(of_class, owner) if isinstance(owner, type) else space.get, name, value
                if not isinstance(value, (ModuleType, type)):
                    yield from watch(value, 1)
                elif not fixed(value.__name__ if isinstance(value, ModuleType) else value.__module__):
                    yield from look_up(value, names)

    for code, names in called.items():
        classes = type(algorithm).__mro__[:-1]
        for owner in classes if fixed(names.get("__name__", "")) else (names, *classes):
            yield from look_up(owner, code.co_names)


def of_class(kind: type, name: str) -> Any:
    return vars(kind).get(name)


def fixed(module: str | None) -> bool:
    """Whether nobody changes this module's functions and numbers while a run goes on."""
    root = (module or "").partition(".")[0]
    return root in ("upslope", "torch", "numpy") or root in sys.stdlib_module_names


def within_reach(algorithm: HasObjective) -> dict[CodeType, dict[str, Any]]:
    """The user's functions that an objective may call, with the global names that they see: those that these name."""
    found = dict[CodeType, dict[str, Any]]()
    ahead: list[Any] = [x for kind in type(algorithm).__mro__ if not fixed(kind.__module__) for x in vars(kind).values()]
    ahead += vars(algorithm).values() if hasattr(algorithm, "__dict__") else ()
    while ahead:
        x = ahead.pop()
        x = x.func if isinstance(x, partial) else x.__func__ if isinstance(x, (MethodType, staticmethod, classmethod)) else x
        if isinstance(x, FunctionType) and not fixed(x.__module__) and x.__code__ not in found:
            found[x.__code__] = x.__globals__
            ahead += [x.__globals__.get(name) for name in x.__code__.co_names]
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                ahead += [cell.cell_contents for cell in x.__closure__ or ()]
    return found


class Kept:
    """What a call of an objective could change, as it is now."""

    def __init__(self, algorithm: HasObjective) -> None:
        self.watched = [*watch(algorithm), *watch_called(algorithm, within_reach(algorithm))]
        self.contents = [(x, x.copy()) for x in {id(x): x for _, _, x in self.watched if type(x) in (list, dict, set)}.values()]

    def put_back(self) -> str:
        """Make everything what it was; the name of something that was not, '' where all was."""
        changed = ""
        for now, before in self.contents:
            if not same_items(now, before):
                changed = changed or f"a {type(now).__name__}"
                now.clear()
                (now.extend if isinstance(now, list) else now.update)(before)
        for read, key, value in self.watched:
            if read(key) is not value:
                changed = changed or ("a variable of an outer function" if key == "cell_contents" else str(key))
                owner: Any = read.args[0] if isinstance(read, partial) else cast(Any, read).__self__
                with contextlib.suppress(AttributeError, TypeError):  # what cannot be set: what belongs to a class, for one
                    owner.__setitem__(key, value) if isinstance(owner, dict) else setattr(owner, key, value)
        return changed


def same_items(x: Any, y: Any) -> bool:
    if len(x) != len(y) or isinstance(x, set):
        return x == y
    pairs: Iterable[tuple[Any, Any]] = zip(x.items(), y.items(), strict=True) if isinstance(x, dict) else zip(x, y, strict=True)
    return all(a is b if isinstance(x, list) else a[0] is b[0] and a[1] is b[1] for a, b in pairs)
