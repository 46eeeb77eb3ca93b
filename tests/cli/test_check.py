"""``upslope check``: exit code 0 where there is no known mistake, 1 with the name of one, 2 for what cannot be checked."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Command, good


def test_a_broken_law_is_named(cli: Command) -> None:
    answer = cli("check", "own_check:reinforce")
    assert answer.code == 1 and answer.err == ""
    assert "BROKEN       missing discount weight: γ^t is missing" in answer.out
    fields = json.loads(cli("check", "own_check:reinforce", "--json").out)
    assert fields["mistake"] == "missing discount weight" and fields["findings"][0]["meaning"].startswith("γ^t is missing")
    assert fields["bias"].keys() == {"undiscounted", "discounted"} and fields["check"] == "own_check:reinforce"


def test_what_holds(cli: Command) -> None:
    assert "none of the mistakes that could be made here" in good(cli("check", "own_check:reinforce", "--gamma", "1")).out
    assert json.loads(good(cli("check", "own_check:reinforce", "--by-design", "missing discount weight", "--json")).out)["mistake"] is None
    assert "by design" in good(cli("check", "own_check:grpo")).out
    assert "this surrogate has none of the known mistakes" in good(cli("check", "upslope.functional:clipped_surrogate")).out


def test_a_surrogate(cli: Command) -> None:
    answer = cli("check", "own_check:reduced")
    assert answer.code == 1 and "BROKEN       surrogate: expected one value per step" in answer.out
    fields = json.loads(cli("check", "own_check:reduced", "--json").out)
    assert fields["mistake"] == "contract" and fields["contract"].startswith("surrogate: expected one value per step")
    assert json.loads(cli("check", "own_check:maximum", "--json").out)["mistake"] == "clip on the wrong side"
    fields = json.loads(cli("check", "own_check:short_names", "--json").out)
    assert fields["kind"] == "surrogate" and fields["mistake"] == "clip on the wrong side"


def test_an_algorithm_and_a_policy(cli: Command) -> None:
    answer = cli("check", "own_check:Mean")
    assert answer.code == 1 and "BROKEN       algorithm: the objective ignores batch.weight" in answer.out
    assert "BROKEN       mean of micro-batch means: " in answer.out
    fields = json.loads(cli("check", "own_check:Mean", "--json").out)
    assert fields["mistake"] == "mean of micro-batch means" and fields["contract"].startswith("algorithm: the objective ignores")
    answer = cli("check", "own_check:Metric")
    assert answer.code == 1 and answer.out.startswith("Metric: breaks its contract\n") and "metrics['kl'] is float" in answer.out
    assert json.loads(cli("check", "own_check:Metric", "--json").out)["mistake"] == "contract"
    assert json.loads(good(cli("check", "own_check:grpo", "--json")).out)["kind"] == "algorithm"
    assert "this policy has none of the known mistakes" in good(cli("check", "own_check:a_policy")).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected module:name, found nothing"),
        (("own_check",), "expected module:name, found own_check"),
        (("no_such_module:f",), "no module named 'no_such_module'"),
        (("own_check:reinforc",), "unknown name in module own_check 'reinforc': did you mean 'reinforce'?"),
        (("own_check:number",), "expected an algorithm or a function"),
        (("own_check:falls_over",), "falls_over: raised ZeroDivisionError (by 0) on a rollout of shape"),
        (("own_check:EstimateRaises",), "EstimateRaises: raised RuntimeError (boom) on a rollout of shape"),
        (("own_check:ObjectiveRaises",), "ObjectiveRaises: raised RuntimeError (bang) on a rollout of shape"),
        (("own_check:NoBatch",), "NoBatch.estimate: expected a Batch, found int"),
        (("own_check:OneColumn",), "OneColumn.estimate: batch.advantage: expected shape [3, 3], like the rollout's, found [3, 1]"),
        (("own_check:OneNumber",), "OneNumber.objective: expected (value, metrics), found"),
        (("own_check:no_policy",), "no_policy: raised ValueError (not today)"),
        (("own_check:three",), "name a function that returns (policy, inputs)"),
        (("own_check:three_and_inputs",), "three_and_inputs: expected (policy, inputs), found int as policy: it has no sample"),
        (("own_check:policy_and_three",), "inputs: expected a dictionary"),
        (("own_check:reinforce", "--kind", "policy"), "reinforce: raised TypeError"),
        (("upslope:SARSA",), "SARSA learns action values, which is no policy gradient"),
        (("own_check:NeedsMore",), "NeedsMore cannot be made without arguments"),
        (("own_check:grpo", "--kind", "policy"), "name a function that returns (policy, inputs)"),
        (("own_check:reduced", "--gamma", "0.9"), "--gamma: a surrogate has no such setting"),
        (("own_check:reinforce", "--by-design", "gama"), "unknown mistake 'gama'"),
        (("own_check:reinforce", "--kind", "polcy"), "--kind: unknown value 'polcy'"),
    ],
)
def test_bad_input(cli: Command, words: tuple[str, ...], message: str) -> None:
    answer = cli("check", *words)
    assert answer.code == 2 and answer.out == "" and message in answer.err and answer.err.count("\n") == 1


def test_json_is_json(cli: Command) -> None:
    answer = cli("check", "own_check:not_a_number", "--json")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert answer.code == 1 and json.loads(answer.out, parse_constant=refuse)["mistake"] == "not finite"


def test_help(cli: Command) -> None:
    assert "--off-policy" in good(cli("check", "--help")).out
