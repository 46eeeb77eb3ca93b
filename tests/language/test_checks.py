"""Built-in rewards, their names and weights on the command line; reading numbers and tags."""

from decimal import Decimal

import pytest

from upslope.errors import UsageError
from upslope.language.checks import as_number, builtin, is_answer, last_number, tagged, text_of
from upslope.language.rewards import parse_weight, reward_from


def lengths(*, completions, **_):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("module:function=0.5", ("module:function", 0.5)),
        ("module:function", ("module:function", 1.0)),
        ("exact-match=2", ("exact-match", 2.0)),
        ("contains:a=-1e-1", ("contains:a", -0.1)),
        ("regular-expression:a=b", ("regular-expression:a=b", 1.0)),
        ("regular-expression:a=b=3", ("regular-expression:a=b", 3.0)),
    ],
)
def test_a_weight_follows_the_last_equals_sign(text, expected):
    assert parse_weight(text) == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ("module:function=half", "expected a number after =, as in module:function=0.5, found 'half'"),
        ("module:function=", "found ''"),
        ("exact-match=x", "expected a number after ="),
        ("=1", "a name is missing"),
        ("", "a name is missing"),
        ("module:function=nan", "its weight is a finite number"),
        ("module:function=inf", "its weight is a finite number"),
    ],
)
def test_a_bad_weight_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        parse_weight(text)


@pytest.mark.parametrize(
    "text, completion, answer, expected",
    [
        ("exact-match", " 46\n", 46, 1.0),
        ("exact-match", "46.0", "46", 0.0),
        ("answer", "so 46.", "46.0", 1.0),
        ("answer", "so Paris", "Paris", 0.0),
        ("answer", "so <answer>Paris</answer>", "Paris", 1.0),
        ("answer", "46 <answer>45</answer>", "46", 0.0),
        ("numeric-answer", "12 + 34 = 1,046", "1046", 1.0),
        ("numeric-answer", "<answer>46</answer> (of 50)", 46, 1.0),
        ("numeric-answer:sum", "<sum>46</sum> 3", 46, 1.0),
        ("numeric-answer", "nothing", 46, 0.0),
        ("numeric-answer", "46", "Paris", None),
        ("regular-expression:^a.*z$", "a\nz", None, 1.0),
        ("regular-expression:^a.*z$", "a\ny", None, 0.0),
        ("contains:reward", "A Reward!", None, 1.0),
        ("contains:reward", "a re-ward", None, 0.0),
        ("contains:a:b", "a:b", None, 1.0),
        ("length:4", "abcd", None, 1.0),
        ("length:4", "abc", None, 0.75),
        ("length:4", "abcdefghij", None, 0.0),
        ("max-length:3", "abc", None, 1.0),
        ("max-length:3", "abcd", None, 0.0),
        ("format-tags", "<answer>x</answer>", None, 1.0),
        ("format-tags", "<answer> </answer>", None, 0.0),
        ("format-tags:think,answer", "<think>x</think><answer>y</answer>", None, 1.0),
        ("format-tags:think,answer", "<answer>y</answer>", None, 0.0),
    ],
)
def test_built_in_rewards(text, completion, answer, expected):
    reward = builtin(text)
    for form in (completion, [{"role": "assistant", "content": completion}]):
        assert reward(prompts=["p"], completions=[form], answer=[answer]) == [expected]


@pytest.mark.parametrize(
    "text, words",
    [
        ("exact-mach", "did you mean 'exact-match'"),
        ("function", "unknown reward 'function'"),
        ("contains", "an argument is missing: write contains:ARGUMENT"),
        ("contains:", "an argument is missing"),
        ("exact-match:5", "it takes no argument, found '5'"),
        ("regular-expression:(", "is not a regular expression"),
        ("length:many", "expected a number of characters, 1 or more, found 'many'"),
        ("length:0", "1 or more, found '0'"),
        ("max-length:-3", "1 or more"),
        ("format-tags:<a>", "expected a tag's name"),
    ],
)
def test_a_bad_name_is_refused(text, words):
    with pytest.raises(UsageError) as caught:
        reward_from(text, lambda name: lengths)
    assert words in str(caught.value)


def test_anything_else_is_loaded_by_the_caller():
    asked = []
    assert reward_from("my.module:function", lambda text: asked.append(text) or lengths) is lengths
    assert asked == ["my.module:function"] and reward_from("max-length:3", asked.append).__name__ == "max-length:3"
    with pytest.raises(UsageError, match="expected a function, found 3 of type int"):
        reward_from("module:three", lambda text: 3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "text, number, whole",
    [
        ("46", "46", True),
        (" -7 ", "-7", True),
        ("+.5", "0.5", True),
        ("1,234.50", "1234.5", True),
        ("1e3", "1000", True),
        ("100000000000000000000000001", "100000000000000000000000001", True),
        ("10-4", "4", False),
        ("−5", "-5", True),
        ("10−4", "4", False),
        ("–5", "-5", True),
        ("1e−5", "0.00001", True),
        ("it is \\boxed{–5}", "-5", False),
        ("it is ‑5", "-5", False),
        ("3–5", "5", False),
        ("page‑5", "5", False),
        ("it is 46.", "46", False),
        ("...46", "46", False),
        ("1,2", "2", False),
        ("$5", "5", False),
        ("٤٦", None, False),
        ("none", None, False),
        ("", None, False),
    ],
)
def test_the_last_number(text, number, whole):
    assert last_number(text) == (None if number is None else Decimal(number))
    assert as_number(text) == (Decimal(number) if whole and number else None)


def test_large_numbers_are_compared_exactly():
    assert not is_answer("100000000000000000000000001", "100000000000000000000000000")
    assert is_answer("0.10", 0.1)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<answer> a </answer>", "a"),
        ("<answer>a</answer><answer>b</answer>", "b"),
        ("<answer>a</answer><answer>", "a"),
        ("<answer><answer>b</answer>", "b"),
        ("</answer><answer>", None),
        ("a</answer>", None),
        ("", None),
    ],
)
def test_the_last_tag(text, expected):
    assert tagged(text) == expected


@pytest.mark.parametrize("completion", [3, None, ["a"], [{"role": "assistant"}], {"content": "a"}])
def test_a_completion_that_is_neither_text_nor_messages(completion):
    with pytest.raises(UsageError, match="a completion is a string or a list of messages"):
        text_of(completion)
