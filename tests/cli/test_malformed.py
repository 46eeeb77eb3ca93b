"""Every flag of every command with values that nobody can mean: exit code 2 and one line, before anything is made."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SHORT, Command, good
from tests.cli.test_bad_input import one_line
from upslope.cli.flags import Flag
from upslope.cli.train import PAGES

DEEP = '{"a":' * 3000 + "1" + "}" * 3000
WRONG = {
    "N": ("", "x", "nan", "1.5", "1e30", "99999999999999999999", "١٢x"),
    "X": ("", "x", "nan", "inf", "-1e400", "1e300"),
    "PATH": ("",),
    "JSON": ("", "{", "[]", "null", '{"a": NaN}', DEEP),
    "module": ("", "zzz zzz", ":", "os:", ":f", ".x:y", "nowhere:f", "os:nope"),
    "{": ("", "zzz zzz"),
}
OTHERS = (
    ["evaluate", "run"],
    ["play", "run"],
    ["record", "run"],
    ["plot", "run"],
    ["variance", "CartPole-v1"],
    ["ladder", "bandit"],
    ["reproduce", "sb-13.1"],
    ["check", "os:f"],
    ["chat", "run"],
    ["export", "run"],
    ["model", "smollm2"],
)


def wrong(flag: Flag) -> tuple[str, ...]:
    """Values that are always refused."""
    metavar = flag.kind.metavar
    if "module:function" in metavar:
        return WRONG["module"]
    kinds = [kind for kind in WRONG if metavar.startswith(kind) or kind in metavar.replace("[", " ").replace("|", " ").split()]
    return WRONG[kinds[0]] if kinds and not flag.is_switch else ()


def refused(cli: Command, words: list[str], flags: Any) -> int:
    """Try each flag with each of its wrong values; returns how many there were."""
    count = 0
    for flag in flags:
        for value in wrong(flag):
            answer = cli(*words, f"{flag.option}={value}")
            assert answer.code == 2 and answer.out == "", (flag.option, value[:40], answer)
            assert "UPSLOPE_TRACEBACK" not in one_line(answer.err), answer
            count += 1
    assert not list(Path().iterdir())
    return count


@pytest.mark.parametrize("name", ["ppo", "trpo", "off-policy", "grpo", "sarsa", "reinforce", "all-actions"])
def test_settings_of_a_method(cli: Command, name: str):
    page = PAGES["control"]
    known = {} if name == "ppo" else page.flags("ppo")  # shared settings are tried once
    flags = [flag for key, flag in page.flags(name).items() if key not in known] + (page.outputs if name == "ppo" else [])
    assert refused(cli, ["train", name, "CartPole-v1"], flags) > (150 if name == "ppo" else 0)


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_settings_of_a_language_model(cli: Command, name: str):
    pytest.importorskip("transformers")
    assert refused(cli, ["train", name, "--model", "tiny", "--task", "addition"], PAGES["language"].flags(name).values()) > 50


@pytest.mark.parametrize("words", OTHERS, ids=lambda words: words[0])
def test_flags_of_a_command(cli: Command, words: list[str]):
    refused(cli, words, importlib.import_module(f"upslope.cli.{words[0]}").COMMAND.flags)


@pytest.mark.parametrize("command", [words[0] for words in OTHERS])
def test_names_that_name_nothing(cli: Command, command: str):
    for name in ("", " ", "a" * 5000, "nowhere", "../nowhere", "\udcff", ":", "nowhere:f", "--", "-", "--=", "--x=1", "/dev/null"):
        if command == "model" and name == "--":
            continue
        answer = cli(command, name)
        assert answer.code == 2 and answer.out == "", (name[:40], answer)
        assert "UPSLOPE_TRACEBACK" not in one_line(answer.err), answer


CASES = {
    "steps without end": (
        ["train", "ppo", "CartPole-v1", "--total-steps", "1e14"],
        "total_steps: expected an integer ≥ 1 and at most 1e+12",
    ),
    "episodes without end": (
        ["train", "ppo", "CartPole-v1", "--eval-episodes", "1e9"],
        "eval_episodes: expected an integer ≥ 1 and at most",
    ),
    "evaluation without end": (["evaluate", "run", "--episodes", "1e9"], "--episodes: expected an integer ≥ 1 and at most 1,000,000"),
    "a seed beyond 32 bits": (["evaluate", "run", "--seed", "1e12"], "--seed: expected an integer from 0 to 4294967295"),
    "negative tiles": (
        ["train", "ppo", "CartPole-v1", "--num-tilings", "-1"],
        "num_tilings: expected an integer from 1 to 65536, found -1",
    ),
    "a factory that ends Python": (["train", "ppo", "faulty:ending"], "env 'faulty:ending' cannot be made: SystemExit"),
}


@pytest.mark.parametrize("words, expected", CASES.values(), ids=CASES.keys())
def test_values_that_are_refused_later(cli: Command, words: list[str], expected: str):
    answer = cli(*words)
    assert answer.code == 2 and expected in one_line(answer.err), answer


def test_a_run_of_the_other_world(cli: Command):
    pytest.importorskip("transformers")
    flags = ["--iterations", "1", "--num-prompts", "2", "--group-size", "2", "--num-minibatches", "1", "--warm-start", "0"]
    good(cli("train", "grpo", "--model", "tiny", "--task", "copy", *flags, "--eval-episodes", "2", "--quiet", "--out", "text"))
    good(cli("train", "ppo", "CartPole-v1", *SHORT, "--total-steps", "32", "--quiet", "--out", "control"))
    for words, expected in {
        ("train", "ppo", "CartPole-v1", "--init", "text"): "init: text holds a language model",
        ("train", "off-policy", "CartPole-v1", "--data", "text"): "data: text is a folder",
        ("train", "ppo", "CartPole-v1", "--config", "text"): "unknown key in text",
        ("train", "grpo", "--model", "control", "--task", "copy"): "control",
        ("train", "grpo", "--model", "tiny", "--task", "copy", "--config", "control"): "unknown key in control",
        ("play", "text"): "play: text holds a language model",
        ("record", "text", "--out", "a"): "record: text holds a language model",
        ("chat", "control"): "control",
        ("export", "control", "--out", "a"): "holds a control policy",
        ("evaluate", "text", "--env", "CartPole-v1"): "--env: this run trained a language model",
        ("evaluate", "control", "--task", "copy"): "--task: this run trained on an environment",
        ("variance", "CartPole-v1", "--policy", "text"): "text",
    }.items():
        answer = cli(*words)
        assert answer.code == 2 and expected in one_line(answer.err) and "UPSLOPE_TRACEBACK" not in answer.err, (words, answer)


def test_code_that_ends_python(cli: Command):
    answer = cli("train", "ppo", "faulty:walk", "--surrogate", "faulty:leaving", *SHORT, "--total-steps", "32", "--out", "run")
    assert answer.code == 1 and "sys.exit(0)" in one_line(answer.err)
    assert Path("run/summary.json").exists() or not Path("run").exists()
