"""Command-line flags made from dataclass fields: ``num_envs: int = 8`` becomes ``--num-envs 8``.

Written here rather than taken from a library because start-up time is part of what we measure, and because an error
must be one line with the nearest name. A flag takes its type from the annotation, its default from the instance and its
help from the string under the field; the source is read for that only when help is asked for.
"""

import ast
import functools
import inspect
import itertools
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from upslope.errors import UsageError, require, unknown
from upslope.run.settings import MAX_INTEGER, MAX_REAL, Setting, choices, function_name, load_function

Values = Sequence[str]


@dataclass(frozen=True)
class Kind:
    """How a flag's values are read: between ``least`` and ``most`` words (None: any number), through ``parse``."""

    parse: Callable[[Values], Any]
    metavar: str
    least: int = 1
    most: int | None = 1


@dataclass(frozen=True)
class Flag:
    """One option of a command."""

    name: str
    kind: Kind
    default: Any = None
    help: str = ""
    owner: type | None = None

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Takes no value: ``--quiet``, ``--no-fast``."""
        return self.kind.most == 0


# ------------------------------------------------------------------------------------------------- values from words


def integer(words: Values) -> int:
    """``8``, ``1_000``, ``1e6``; beyond :data:`MAX_INTEGER` it is a typing error."""
    text = words[0].replace("_", "")
    try:
        found = int(text)
    except ValueError:
        number = real([text], "an integer")
        found = int(number)
        if number != found:
            raise ValueError(f"expected an integer, found {words[0]!r}") from None
    if abs(found) > MAX_INTEGER:
        raise ValueError(f"expected an integer of at most {MAX_INTEGER:.0e}, found {words[0]!r}")
    return found


def between(least: int, most: int | None = None) -> Kind:

    def parse(words: Values) -> int:
        found = integer(words)
        if found < least or (most is not None and found > most):
            high = "" if most is None else f" and at most {most:,}" if least else f" to {most}"
            raise ValueError(f"expected an integer {f'≥ {least}' if least or most is None else f'from {least}'}{high}, found {found}")
        return found

    return Kind(parse, "N")


def real(words: Values, what: str = "a number") -> float:
    """``0.2``, ``3e-4``; nan, infinities and what single precision cannot hold are refused."""
    try:
        number = float(words[0])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected {what}, found {words[0]!r}")
    if abs(number) > MAX_REAL:
        raise ValueError(f"expected {what} of at most {MAX_REAL:g}, found {words[0]!r}")
    return number


def path(words: Values) -> Path:
    if not words[0] or "\0" in words[0]:
        raise ValueError(f"expected a path, found {words[0]!r}")
    return Path(words[0])


def not_json(text: str) -> Any:
    """Python's ``json`` reads NaN and Infinity, which are no JSON and could not be written again."""
    raise ValueError(f"expected a JSON object of finite numbers, found {text}")


def json_object(words: Values) -> dict[str, Any]:
    expected = "expected a JSON object such as '{\"continuous\": true}', found"
    try:
        value = json.loads(words[0], parse_constant=not_json)
    except json.JSONDecodeError as error:
        raise ValueError(f"{expected} {words[0]!r} ({error.msg})") from None
    except RecursionError:
        raise ValueError("expected a JSON object, found one that is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{expected} {words[0]!r}")
    return value


TEXT = Kind(lambda words: words[0], "TEXT")
PATH = Kind(path, "PATH")
SWITCH = Kind(lambda _: True, "", 0, 0)
INTEGER = Kind(integer, "N")
REAL = Kind(real, "X")
BASIC: dict[Any, Kind] = {int: INTEGER, float: REAL, str: TEXT, Path: PATH, bool: SWITCH, dict: Kind(json_object, "JSON")}


def kind_of(annotation: Any, owner: type, name: str) -> Kind:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in BASIC or origin is dict:
        return BASIC[origin or annotation]
    if origin is Literal:
        return one_of([str(a) for a in arguments])
    if origin in (typing.Union, types.UnionType):
        return union([kind_of(a, owner, name) for a in arguments if a is not type(None)], optional=type(None) in arguments)
    if origin is tuple:
        return several(kind_of(arguments[0], owner, name), None if arguments[-1] is Ellipsis else len(arguments))
    if callable(annotation) or origin is not None:
        return Kind(lambda words: load_function(words[0], owner, name), "{" + ",".join([*choices(owner, name), "module:function"]) + "}")
    raise TypeError(f"{owner.__name__}.{name}: no flag can be made from {annotation!r}")


def one_of(names: Sequence[str]) -> Kind:

    def parse(words: Values) -> str:
        if words[0] not in names:
            raise unknown("value", words[0], names)
        return words[0]

    return Kind(parse, "{" + ",".join(names) + "}")


SEED, COUNT = between(0, 2**32 - 1), between(1, 10**6)
POLICY = Flag("policy", one_of(("final", "best")), "final", "the final policy, or that of the best evaluation on the way")
"""Which policy of a run a command takes."""
ENV_KWARGS = Flag("env_kwargs", BASIC[dict], None, "arguments of the environment that are other than in training")


def several(kind: Kind, count: int | None) -> Kind:
    """Exactly ``count`` values, or (None) one or more; ``none`` is the empty tuple there."""

    def parse(words: Values) -> tuple[Any, ...]:
        return () if count is None and list(words) == ["none"] else tuple(kind.parse([word]) for word in words)

    metavar = f"{kind.metavar} ..." if count is None else " ".join([kind.metavar] * count)
    return Kind(parse, metavar, count or 1, count)


def union(kinds: Sequence[Kind], optional: bool) -> Kind:
    """The first kind that takes this many words; ``none`` where None is allowed."""

    def parse(words: Values) -> Any:
        if optional and list(words) == ["none"]:
            return None
        for kind in kinds:
            if kind.least <= len(words) and (kind.most is None or len(words) <= kind.most):
                return kind.parse(words)
        raise ValueError(f"expected {metavar}, found {len(words)} values")

    if kinds == [INTEGER, REAL]:
        kinds = [REAL]
    metavar = "|".join(dict.fromkeys(kind.metavar for kind in kinds)) + ("|none" if optional else "")
    if len(kinds) > 1 and all(set(kind.metavar.split()) == {kinds[0].metavar} for kind in kinds):
        metavar = f"{kinds[0].metavar} [{kinds[0].metavar}]" + ("|none" if optional else "")
    most = None if any(kind.most is None for kind in kinds) else max(kind.most or 0 for kind in kinds)
    return Kind(parse, metavar, min(kind.least for kind in kinds), most)


# ----------------------------------------------------------------------------------------------- flags from dataclasses


def flags_of(settings: Mapping[str, Setting]) -> dict[str, Flag]:
    return {s.name: Flag(s.name, kind_of(types_of(s.owner)[s.name], s.owner, s.name), s.value, owner=s.owner) for s in settings.values()}


@functools.cache
def types_of(owner: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    except NameError as error:
        raise UsageError(f"{owner.__name__}: the type of a field is not known, {error}; import it outside of TYPE_CHECKING") from error


@functools.cache
def field_docs(owner: type) -> dict[str, str]:
    """The string literals that stand under the fields of a dataclass, by field, inherited ones included."""
    docs: dict[str, str] = {}
    for cls in reversed([c for c in owner.__mro__ if c is not object]):
        try:
            tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef)), [])
        for pair in itertools.pairwise(body):
            match pair:
                case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                    docs[name] = " ".join(text.split())
    return docs


def documented(flag: Flag) -> Flag:
    return flag if flag.help or flag.owner is None else replace(flag, help=field_docs(flag.owner).get(flag.name, ""))


def default_text(flag: Flag) -> str:
    """A default as one would type it."""
    value = flag.default
    if flag.is_switch:
        return "on" if value else "off"
    if callable(value) and flag.owner is not None:
        return function_name(value, flag.owner, flag.name)
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------- parsing


def parse(words: Sequence[str], flags: Iterable[Flag], positionals: int | None = None) -> tuple[list[str], dict[str, Any]]:
    """Positional words, and the values of the flags that were given, by name.

    ``--flag value``, ``--flag=value``, ``--flag a b`` for flags of several values (as many words as are values),
    ``--switch`` and ``--no-switch``. ``positionals`` is how many plain words the command takes at most (None: any number).
    """
    table = {flag.option: flag for flag in flags}
    switches = {"--no-" + flag.option[2:]: flag for flag in table.values() if flag.is_switch}
    plain: list[str] = []
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            plain += rest
            break
        if not word.startswith("-") or is_number(word) or word == "-":
            plain.append(word)
            continue
        option, equals, attached = word.partition("=")
        flag = table.get(option) or switches.get(option)
        if flag is None:
            raise unknown("flag", option, [*table, *switches])
        if flag.is_switch:
            require(not equals, f"{option}: it takes no value, found {attached!r}")
            values[flag.name] = option in table
            continue
        value = value_of(flag, [attached] if equals else take(rest, flag))
        repeats = flag.kind.most is None and isinstance(values.get(flag.name), tuple)
        values[flag.name] = (*values[flag.name], *value) if repeats else value  # --reward a --reward b is --reward a b
    if positionals is not None and len(plain) > positionals:
        raise UsageError(f"unexpected {plain[positionals]!r}: flags start with --, and a flag takes no more values than its help says")
    return plain, values


def take(rest: list[str], flag: Flag) -> list[str]:
    """Remove from ``rest`` the words that belong to a flag: its first ones always, further ones while they are values."""
    found: list[str] = []
    while rest and (flag.kind.most is None or len(found) < flag.kind.most):
        word = rest[0]
        if word.startswith("-") and not is_number(word):
            break
        if len(found) >= flag.kind.least:
            try:
                flag.kind.parse([*found, word])
            except ValueError:
                break
        found.append(rest.pop(0))
    return found


def value_of(flag: Flag, words: list[str]) -> Any:
    """The value that the words stand for; raises :class:`UsageError` that names the flag."""
    require(len(words) >= flag.kind.least, f"{flag.option}: expected {flag.kind.metavar}, found nothing")
    try:
        return flag.kind.parse(words)
    except ValueError as error:
        raise UsageError(f"{flag.option}: {error}") from None


def is_number(word: str) -> bool:
    """Whether a word that starts with a minus sign is a negative number and no flag."""
    try:
        float(word)
    except ValueError:
        return False
    return True
