"""Settings as dataclasses, as flat names and as JSON: what the command line, ``config.json`` and Python share.

A setting is a field of a frozen dataclass. Nested dataclasses (an algorithm's ``update``) are flattened, so every
setting has one name (``learning_rate``); a name that two dataclasses share would be ambiguous and is refused.
Functions are written as the name under which the library ships them (the class's ``CHOICES``), or as ``module:name``.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from upslope.errors import UsageError, require, unknown
from upslope.modules import hidden_by, import_named

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One field of one (possibly nested) dataclass: its flat ``name``, the class that owns it, its current value."""

    name: str
    owner: type
    value: Any


def settings_of(*instances: Any) -> dict[str, Setting]:
    """Every setting of these dataclass instances by its flat name, nested dataclasses included."""
    found: dict[str, Setting] = {}
    for setting in (s for instance in instances for s in _walk(instance)):
        if setting.name in found:
            owners = f"{found[setting.name].owner.__name__} and {setting.owner.__name__}"
            raise UsageError(f"{setting.name}: this setting is a field of both {owners}; rename one of them")
        found[setting.name] = setting
    return found


def _values(instance: Any) -> dict[str, Any]:
    """The fields that its constructor takes."""
    return {field.name: getattr(instance, field.name) for field in fields(instance) if field.init}


def _is_settings(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _walk(instance: Any) -> Iterator[Setting]:
    for name, value in _values(instance).items():
        if _is_settings(value):
            yield from _walk(value)
        else:
            yield Setting(name, instance.__class__, value)


def replaced(instance: T, values: Mapping[str, Any]) -> T:
    """A copy with the fields named in ``values`` changed, wherever they are nested; other names are not looked at."""
    changes: dict[str, Any] = {}
    for name, current in _values(instance).items():
        if _is_settings(current):
            changed = replaced(current, values)
            changes |= {} if changed is current else {name: changed}
        elif name in values:
            changes[name] = values[name]
    copied: Any = instance
    return replace(copied, **changes) if changes else instance


def check_names(values: Iterable[str], known: Iterable[str], kind: str = "setting") -> None:
    names = set(known)
    for name in values:
        if name not in names:
            raise unknown(kind, name, names)


def to_json(value: Any) -> Any:
    """Dataclasses become objects, tuples lists, paths strings, functions their names."""
    if _is_settings(value):
        owner: type = value.__class__
        items = _values(value).items()
        return {n: function_name(v, owner, n) if callable(v) and not is_dataclass(v) else to_json(v) for n, v in items}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in cast("list[Any]", value)]
    return value if isinstance(value, str | int | float | None) else str(value)


SECTIONS = ("algorithm", "collector", "policy", "env", "task", "settings", "update")
"""Mappings of a ``config.json`` that hold settings; every other one is the value of a setting."""


def flattened(config: Mapping[str, Any], prefix: str = "", *, values_whole: bool = False) -> dict[str, Any]:
    """Nested settings as ``{"algorithm.update.learning_rate": 0.003, …}``; with ``values_whole`` a value that is a mapping stays one."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and (name in SECTIONS or not values_whole):
            flat |= flattened(cast("Mapping[str, Any]", value), f"{prefix}{name}.", values_whole=values_whole)
        else:
            flat[prefix + name] = value
    return flat


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a ``config.json`` by their flat names; what is already flat stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key in SECTIONS:
            flat |= flat_config(cast("Mapping[str, Any]", value))
        elif key not in ("format_version", "versions", "world", "env_id", "name", "needs", "goal", "earlier_budgets"):
            flat[key] = value
    return flat


def choices(owner: type, name: str) -> dict[str, Any]:
    """The functions that the library ships for a field, by the names that the command line knows (``CHOICES``)."""
    return getattr(owner, "CHOICES", {}).get(name, {})


def plain_value(value: Any, owner: type, name: str) -> Any:
    """What JSON or a caller gave as what the field holds: functions from their names, tuples from lists, paths from text."""
    if isinstance(value, str) and choices(owner, name):
        return load_function(value, owner, name)
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    return Path(value) if name in PATHS and isinstance(value, str) else value


def check_kinds(values: Mapping[str, Any], known: Mapping[str, Setting]) -> None:
    """Refuse values of a file that are of another kind than their fields.

    Raises:
        UsageError: the first one, with what is expected.
    """
    for name, value in values.items():
        owner = known[name].owner if name in known else object  # what is not is said elsewhere, with the nearest name
        if not owner.__module__.startswith("upslope.") or (value is None and known[name].value is None):
            continue  # the kinds of a user's own settings are the user's
        hint = str | None if choices(owner, name) else typing.get_type_hints(owner)[name]
        expected = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
        require(fits(value, hint), f"{name}: expected {expected}, found {value!r:.80} in the configuration")


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is what a field of this type is written as."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    if origin is tuple:
        items = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else None
        return items is not None and all(map(fits, items, options[:1] * len(items) if options[1:] == (...,) else options))
    if hint in (int, float):
        most = MAX_REAL if isinstance(value, float) else 2**63 - 1
        return isinstance(value, int | float) and abs(value) <= most and (hint is float or float(value).is_integer())
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if origin is Callable or hint in (str, Path):  # functions by their names
        return isinstance(value, str)
    return value is None if hint is types.NoneType else value in (0, 1) if hint is bool else True


MAX_INTEGER, MAX_REAL = 10**15 - 1, 3e38
"""The second is about the largest number of single precision, in which everything is computed."""

COLONS = ("device", "init", "pairs", "data", "model", "reference", "task")
"""Settings whose text may hold a colon and is never the name of something to import."""


def check_imports_nothing(values: Mapping[str, Any], source: str, imports: Callable[[str, str], bool] = lambda name, text: True) -> None:
    """Raise :class:`UsageError` for a ``module:name`` among settings that a file holds: importing runs code, so the caller must say it.

    ``imports(name, text)`` may spare texts that look like one and are none.
    """
    for name, value in values.items():
        texts: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
        for text in texts:
            if isinstance(text, str) and ":" in text and name not in COLONS and imports(name, text):
                again = " ".join([f"--{name.replace('_', '-')}", *map(str, texts)])
                why = "a module is never imported because a file says so"
                raise UsageError(f"{name}: {source} names {text}, and {why}; say {again} to import it")


PATHS = ("init", "pairs", "data")  # settings that are paths and text in JSON


def function_name(function: Callable[..., Any], owner: type, name: str) -> str:
    """The name under which the library ships a field's function, else ``module:name``."""
    for choice, shipped in choices(owner, name).items():
        if shipped is function:
            return choice
    if isinstance(function, functools.partial):
        bound = ", ".join([*map(repr, function.args), *(f"{key}={value!r}" for key, value in function.keywords.items())])
        return f"partial({function_name(function.func, owner, name)}, {bound})"
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def load_function(text: str, owner: type, name: str) -> Callable[..., Any]:
    """A shipped function by name, or the function that ``module:name`` names; raises :class:`UsageError`."""
    shipped = choices(owner, name)
    if ":" in text:
        function = load_object(text, name)
        require(callable(function), f"expected a function for {name}, found {text!r}, which is of type {type(function).__name__}")
        check_takes(function, shipped.values(), f"{name} {text}")
        return function
    if text not in shipped:
        raise unknown(name, text, [*shipped, "module:function"])
    return shipped[text]


def check_takes(function: Callable[..., Any], shipped: Iterable[Any], what: str) -> None:
    """Raise :class:`UsageError` for a function that cannot be called as those are that the library ships in its place.

    What all of them need is what it is called with; where that is not known, nothing is said.
    """
    try:
        needed = [positional(other) for other in shipped]
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin nothing is known
        return
    if not needed:
        return
    fewest = min(needed, key=len)
    try:
        signature.bind(*fewest)
    except TypeError as error:
        raise UsageError(f"{what}: it takes {signature}, and is called with ({', '.join(fewest)}): {error}") from error


def positional(function: Any) -> list[str]:
    """The parameters that must be given."""
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in plain and p.default is p.empty]


def instance_of(found: Any, what: str, hint: str) -> Any:
    """What a name stands for, made with every default where it is a class; UsageError, which ends with the hint, where that fails."""
    try:
        return found() if isinstance(found, type) else found
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what} cannot be made without arguments ({error}); {hint}") from error


def load_object(text: str, what: str) -> Any:
    """Import ``module`` of ``module:name`` and return its ``name``; raises :class:`UsageError` with what went wrong."""
    module_name, _, name = text.partition(":")
    module = import_named(module_name, f"{what} {text!r}")
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise unknown(f"name in module {module_name}", name, public or ["(it has no public name)"], hidden_by(module))
    return getattr(module, name)
