"""Flags made from dataclasses: what words become, which words are refused, what help says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope import PPO
from upslope import functional as F
from upslope.cli.flags import default_text, documented, field_docs, flags_of, parse
from upslope.errors import UsageError
from upslope.run.settings import function_name, replaced, settings_of, to_json


def double(x: float) -> float:
    return 2 * x


def triple(x: float) -> float:
    return 3 * x


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    """how
    fast"""
    times: Callable[[float], float] = double
    """a function"""
    CHOICES: ClassVar[dict[str, dict[str, Any]]] = {"times": {"double": double, "triple": triple}}


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 1
    """how many"""
    sizes: tuple[int, ...] | None = (64, 64)
    clip: float | tuple[float, float] = 0.2
    limit: float | None = None
    kind: Literal["left", "right"] = "left"
    on: bool = True
    path: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


FLAGS = flags_of(settings_of(Outer())).values()


@pytest.mark.parametrize(
    "words, values",
    [
        ("", {}),
        ("--count 3", {"count": 3}),
        ("--count=3", {"count": 3}),
        ("--count 1e6", {"count": 1_000_000}),
        ("--count 1_000", {"count": 1000}),
        ("--count -3", {"count": -3}),
        ("--rate -1e-3", {"rate": -1e-3}),
        ("--sizes 32", {"sizes": (32,)}),
        ("--sizes 32 16 8", {"sizes": (32, 16, 8)}),
        ("--sizes none", {"sizes": None}),
        ("--clip 0.1", {"clip": 0.1}),
        ("--clip 0.2 0.28", {"clip": (0.2, 0.28)}),
        ("--limit 0.5 --limit none", {"limit": None}),
        ("--kind right", {"kind": "right"}),
        ("--no-on", {"on": False}),
        ("--no-on --on", {"on": True}),
        ("--path a/b", {"path": Path("a/b")}),
        ("--times triple", {"times": triple}),
        ("--times math:sqrt", {"times": __import__("math").sqrt}),
    ],
)
def test_values(words: str, values: dict[str, Any]):
    assert parse(words.split(), FLAGS) == ([], values)


def test_json_objects():
    assert parse(["--options", '{"a": [1, {"b": true}]}'], FLAGS)[1] == {"options": {"a": [1, {"b": True}]}}


def test_a_flag_takes_only_what_it_can_read():
    assert parse(["--sizes", "32", "16", "ppo", "CartPole-v1", "--clip", "0.1", "0.2", "x"], FLAGS)[0] == ["ppo", "CartPole-v1", "x"]


def test_words_after_two_dashes_are_plain():
    assert parse(["--count", "2", "--", "--sizes"], FLAGS) == (["--sizes"], {"count": 2})


@given(st.integers(-(10**12), 10**12), st.floats(-3e38, 3e38), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_what_is_shown_can_be_typed(count: int, rate: float, clip: tuple[float, float]):
    words = ["--count", str(count), "--rate", repr(rate), "--clip", *map(repr, clip)]
    assert parse(words, FLAGS)[1] == {"count": count, "rate": rate, "clip": clip}


def test_nested_settings_are_replaced_where_they_live():
    changed = replaced(Outer(), {"rate": 0.5, "count": 2})
    assert changed == Outer(count=2, inner=Inner(rate=0.5))
    unchanged = Outer()
    assert replaced(unchanged, {"else": 1}) is unchanged


def test_a_name_that_two_dataclasses_share_is_refused():
    with pytest.raises(UsageError, match="rate: this setting is a field of both Inner and Inner"):
        settings_of(Inner(), Outer())


def test_help_comes_from_the_string_under_the_field():
    assert field_docs(Inner) == {"rate": "how fast", "times": "a function"}
    assert {flag.name: documented(flag).help for flag in FLAGS}["count"] == "how many"


def test_every_setting_of_the_library_has_help():
    from upslope import A2C, REINFORCE
    from upslope.run.control_settings import EnvSettings, EpisodesSettings, PolicySettings, RunSettings, StepsSettings
    from upslope.run.folder import Output

    for part in (PPO(), A2C(), REINFORCE(), EnvSettings(), EpisodesSettings(), Output(), PolicySettings(), RunSettings(), StepsSettings()):
        for flag in flags_of(settings_of(part)).values():
            assert documented(flag).help, f"{type(part).__name__}.{flag.name} has no help"


def test_defaults_are_shown_as_one_would_type_them():
    texts = {flag.name: default_text(flag) for flag in FLAGS}
    assert texts["sizes"] == "64 64" and texts["limit"] == "none" and texts["times"] == "double" and texts["clip"] == "0.2"


def test_functions_are_named():
    import functools

    assert function_name(F.clipped_surrogate, PPO, "surrogate") == "clipped"
    assert function_name(double, PPO, "surrogate") == "tests.cli.test_flags:double"
    partial = functools.partial(F.clipped_surrogate, dual_clip=3.0)
    assert function_name(partial, PPO, "surrogate") == "partial(clipped, dual_clip=3.0)"
    assert to_json(PPO(clip_range=(0.2, 0.28)))["clip_range"] == [0.2, 0.28]
    assert to_json(PPO())["update"]["schedule"] == "constant"


@pytest.mark.parametrize("words", ["--count", "--count x", "--clip", "--kind up", "--on=1", "--options {", "--nothing", "--times half"])
def test_refused(words: str):
    with pytest.raises(UsageError):
        parse(words.split(), FLAGS)
