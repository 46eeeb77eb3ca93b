"""``upslope variance``: the table, the files, what is exact, and what cannot be asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Command, good
from upslope.studies.estimators import ESTIMATORS
from upslope.studies.variance import Measurement
from upslope.studies.variance_run import mark

FEW = ("--samples", "8", "--critic-samples", "4", "--reference-samples", "8")
EVERY = ("reinforce-to-go", "reinforce-to-go-baseline", "a2c:0.95", "ppo:0.9", "grpo", "dr-grpo", "rloo", "off-policy-vtrace")


def test_on_cartpole(cli: Command) -> None:
    words = good(cli("variance", "CartPole-v1", "--estimators", *EVERY, "--group-size", "4", *FEW)).out
    assert "8 estimators on the same 8 episodes" in words and "gradient of the discounted J, 8 other episodes" in words
    rows = [line.split() for line in words.splitlines() if line.startswith(EVERY)]
    assert [row[0] for row in rows] == list(EVERY)
    folder = Path("runs/variance-CartPole-v1-0")
    assert sorted(path.name for path in folder.iterdir()) == ["variance.json", "variance.png"]
    fields = json.loads((folder / "variance.json").read_text())
    assert fields["samples"] == 8 and fields["group_size"] == 4 and len(fields["rows"]) == 8 and fields["gamma"] == 0.99
    by_name = {row["estimator"]: row for row in fields["rows"]}
    assert all(0 <= row["variance_interval"][0] < row["variance"] and row["seconds"] > 0 for row in fields["rows"])
    assert by_name["off-policy-vtrace"]["effective_sample_size"] == pytest.approx(1.0) and by_name["rloo"]["effective_sample_size"] is None
    with Image.open(folder / "variance.png") as picture:
        assert picture.size[0] == 1800


def test_on_the_corridor_the_reference_is_exact(cli: Command) -> None:
    """At p = ½, J = 2 (p − 2) / (p (1 − p)) has dJ/dp = 8 and dp/dθ = ±¼; the table's two preferences make that 2√2."""
    asked = ("upslope/ShortCorridor-v0", "--gamma", "1", "--estimators", "reinforce-to-go", "reinforce-to-go-baseline", "a2c:0")
    fields = json.loads(good(cli("variance", *asked, "--samples", "64", "--out", "a/b", "--json")).out)
    assert fields["reference"] == "exact" and fields["reference_length"] == pytest.approx(8**0.5, rel=1e-5)  # float32 policy
    to_go, baseline, one_step = fields["rows"]
    assert not to_go["biased"] and not baseline["biased"] and one_step["biased"]  # one value for three states
    assert one_step["variance"] < baseline["variance"] < 0.7 * to_go["variance"]  # the critic was fitted to begin with
    assert json.loads(Path("a/b/variance.json").read_text()) == fields


def test_what_the_message_about_endless_problems_advises_works(cli: Command) -> None:
    words = ("upslope/Ring-v0", "--estimators", "reinforce-to-go", *FEW[:4], "--gamma", "0.9", "--objective", "discounted", "--json")
    assert json.loads(good(cli("variance", *words)).out)["reference"] == "exact"


def test_a_trained_policy_and_samples_of_another(cli: Command, trained: Path) -> None:
    asked = ("--policy", trained, "--behavior", "uniform", "--estimators", "off-policy-per-decision", "a2c")
    fields = json.loads(good(cli("variance", "CartPole-v1", *asked, *FEW, "--json")).out)
    weighted, plain = fields["rows"]
    assert 0.0 < weighted["effective_sample_size"] < 1.0 and plain["effective_sample_size"] is None


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "variance: expected ENV_ID"),
        (["CartPole-v1", "--estimators", "reinforse-to-go"], "unknown estimator 'reinforse-to-go': did you mean 'reinforce-to-go'?"),
        (["CartPole-v1", "--estimators"], "--estimators: expected TEXT ..., found nothing"),
        (["CartPole-v1", "--estimators", "a2c:2"], "--estimators: expected λ in [0, 1] after a2c:, found '2'"),
        (["CartPole-v1", "--estimators", "rloo:0.5"], "--estimators: rloo has no λ; leave :0.5 out"),
        (["CartPole-v1", "--estimators", "rloo", "rloo"], "--estimators: rloo is named twice"),
        (["CartPole-v1", "--samples", "1"], "--samples: expected an integer from 2 to 1000000, found 1"),
        (
            ["CartPole-v1", "--samples", "12", "--estimators", "rloo"],
            "--samples: expected a multiple of the group size 8, at least 16, found 12",
        ),
        (["CartPole-v1", "--group-size", "1", "--estimators", "rloo"], "--group-size: expected an integer from 2 to 1000000, found 1"),
        (["CartPole-v1", "--gamma", "1.5"], "--gamma: expected a number in [0, 1], found 1.5"),
        (["CartPole-v1", "--objective", "average"], "--objective: unknown value 'average'"),
        (["CartPole-v1", "--critic-samples", "-1"], "--critic-samples: expected an integer from 0 to 1000000, found -1"),
        (["CartPole-v1", "--reference-samples", "1"], "--reference-samples: expected an integer from 2 to 1000000, found 1"),
        (["CartPole-v1", "--seed", "-1"], "--seed: expected an integer from 0 to 4294967295, found -1"),
        (["CartPole-v1", "--seed", "99999999999999999999"], "--seed: expected an integer of at most 1e+15, found '9999"),
        (["CartPole-v1", "--samples", "99999999999999"], "--samples: expected an integer from 2 to 1000000, found 9999"),
        (["CartPole-v1", "--behavior", "uniform"], "--behavior: it takes the samples of estimators with importance weights"),
        (["CartPole-v1", "--policy", "nowhere"], "run folder nowhere: there is no such folder"),
        (["CartPole-v9"], "unknown environment 'CartPole-v9'"),
        (["upslope/Ring-v0", "--gamma", "1", *FEW[:4]], "--gamma: 1 in upslope/Ring-v0, which this policy may never end"),
        (["upslope/Ring-v0", "--objective", "undiscounted", *FEW[:4]], "--objective: undiscounted in upslope/Ring-v0, which this policy"),
        (["CartPole-v1", "--out", "full"], "--out: full exists and is not empty"),
    ],
)
def test_bad_input(cli: Command, words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    answer = cli("variance", *words)
    assert answer.code == 2 and answer.out == "" and answer.err.startswith(f"upslope: {message}") and answer.err.count("\n") == 1
    assert "unrolled" not in answer.err
    assert not Path("runs").exists()


def test_a_policy_without_a_critic_or_for_another_environment(cli: Command, trained: Path) -> None:
    answer = cli("variance", "Acrobot-v1", "--policy", trained, *FEW)
    assert answer.code == 2 and "it was made for observation_space" in answer.err
    cli(
        "train",
        "grpo",
        "CartPole-v1",
        "--total-steps",
        "64",
        "--num-groups",
        "1",
        "--group-size",
        "2",
        "--out",
        "g",
        "--quiet",
        "--no-fast",
    )
    answer = cli("variance", "CartPole-v1", "--policy", "g", "--estimators", "a2c", *FEW)
    assert answer.code == 2 and answer.err.startswith("upslope: --estimators: a2c needs a critic, and the policy has none")


def test_marks() -> None:
    row = {"estimator": "x", "variance": 1.0, "variance_interval": (0.5, 2.0), "relative_variance": 1.0, "cosine": 1.0}
    row |= {"cosine_interval": (1.0, 1.0), "seconds": 0.1, "bias_by_chance": 1.0}
    cases = [(0.5, None, ""), (1.5, None, " *"), (1.5, 0.5, " *"), (1.5, 0.1, " ?")]
    assert [mark(Measurement(**row, bias=bias, effective_sample_size=size)) for bias, size, _ in cases] == [shown for *_, shown in cases]


def test_on_a_line_a_cosine_is_a_sign_and_may_be_unknown(cli: Command) -> None:
    """The policy of the short corridor has one free direction, so that by chance an unbiased estimator's mean points backwards."""
    answer = good(cli("variance", "upslope/ShortCorridor-v0", "--samples", "32", "--seed", "2", "--out", "corridor"))
    rows = json.loads(Path("corridor/variance.json").read_text())["rows"]
    assert any(row["cosine"] < 0 for row in rows) and not any(row["cosine"] < 0 and row["direction_known"] for row in rows)
    assert "  ? (-1.000 to 1.000)" in answer.out and "  -1.000 (" not in answer.out and "cosine ?: so few samples" in answer.out


def test_help_names_every_estimator(cli: Command) -> None:
    out = good(cli("variance", "--help")).out
    assert all(name in out for name in ESTIMATORS) and "--critic-samples" in out
