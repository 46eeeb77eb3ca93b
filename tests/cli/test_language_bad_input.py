"""Mistakes with language models: exit code 2, one line on stderr that says what to do, no folder; faults while running exit with 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.test_bad_input import one_line

TINY = ["--model", "tiny", "--task", "addition"]
JSONL = ["train", "grpo", "--model", "tiny", "--task"]
GRPO = ["train", "grpo", *TINY]
SMALL = ["--num-prompts", "2", "--group-size", "2", "--num-minibatches", "1"]
SHORT = ["--iterations", "1", *SMALL, "--warm-start", "0", "--eval-episodes", "4"]


def rewarded(name: str) -> list[str]:
    return [*GRPO, *SHORT, "--reward", f"language_rewards:{name}", "--reward-timeout", "0.1"]


FILES = {
    "good.jsonl": '{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n',
    "empty.jsonl": "",
    "broken.jsonl": '{"prompt": "a", "answer": "b"}\n{"prompt": \n',
    "list.jsonl": "[1, 2]\n",
    "noprompt.jsonl": '{"question": "a", "answer": "b"}\n',
    "numberprompt.jsonl": '{"prompt": 3, "answer": "b"}\n',
    "emptyprompt.jsonl": '{"prompt": "", "answer": "b"}\n',
    "ragged.jsonl": '{"prompt": "a", "answer": "b"}\n{"prompt": "c"}\n',
    "noanswer.jsonl": '{"prompt": "a"}\n{"prompt": "b"}\n',
    "messages.jsonl": '{"prompt": [{"role": "user", "content": "hi"}], "answer": "b"}\n' * 2,
    "badmessages.jsonl": '{"prompt": [{"content": "hi"}], "answer": "b"}\n',
    "long.jsonl": json.dumps({"prompt": "1" * 1200, "answer": "b"}) + "\n" + json.dumps({"prompt": "2" * 1200, "answer": "b"}) + "\n",
    "equal.jsonl": '{"prompt": "a", "chosen": "x", "rejected": "x"}\n',
    "halfpair.jsonl": '{"prompt": "a", "chosen": "x"}\n',
    "emptypair.jsonl": '{"prompt": "a", "chosen": "", "rejected": "x"}\n',
    "implicit.jsonl": '{"chosen": "2+2=4", "rejected": "2+2=5"}\n',
    "completion.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n',
    "nolabel.jsonl": '{"prompt": "a", "completion": "x"}\n',
    "textlabel.jsonl": '{"prompt": "a", "completion": "x", "label": "yes"}\n',
    "surrogate.jsonl": '{"prompt": "a", "answer": "b"}\n{"prompt": "\\ud800 a", "answer": "b"}\n',
    "unknown.jsonl": '{"prompt": "a", "answer": "b"}\n{"prompt": "\\u00e9", "answer": "b"}\n',
    "unknownpair.jsonl": '{"prompt": "a", "chosen": "x", "rejected": "y"}\n{"prompt": "a", "chosen": "x", "rejected": "\\u00e9"}\n',
    "latelong.jsonl": "".join(json.dumps({"prompt": str(n) * (1200 if n == 150 else 1), "answer": "b"}) + "\n" for n in range(300)),
    "notes.txt": "hello\n",
}

CASES: dict[str, tuple[list[str], str]] = {
    # which algorithm, model, task
    "misspelled algorithm": (["train", "grop", *TINY], "unknown algorithm 'grop': did you mean 'grpo'?"),
    "flags first": (["train", *TINY], "expected ALGORITHM first"),
    "environment and model": (["train", "ppo", "CartPole-v1", *TINY], "never both"),
    "environment for grpo": (["train", "grpo", "CartPole-v1", *TINY], "never both"),
    "a2c on text": (["train", "a2c", *TINY], "unknown algorithm 'a2c'"),
    "no task": (["train", "grpo", "--model", "tiny"], "task: expected addition, copy, sums"),
    "misspelled task": ([*JSONL, "adition"], "did you mean 'addition'?"),
    "option that the task lacks": ([*GRPO, "--task-kwargs", '{"digit": 3}'], "did you mean 'digits'?"),
    "misspelled flag": ([*GRPO, "--group-sice", "8"], "did you mean '--group-size'?"),
    "flag of another algorithm": (["train", "rloo", *TINY, "--preference", "dpo"], "a setting of dpo, not of rloo"),
    "another name of a flag": (["train", "rloo", *TINY, "--beta", "0.1"], "did you mean '--kl-coef'?"),
    "model that is not there": (["train", "grpo", "--model", "./nowhere", "--task", "addition"], "there is no such folder"),
    "model that is a file": (["train", "grpo", "--model", "./notes.txt", "--task", "addition"], "this is a file"),
    "folder without a model": (["train", "grpo", "--model", "./hollow", "--task", "addition"], "it has no config.json"),
    "model with a damaged config": (["train", "grpo", "--model", "./damaged", "--task", "addition"], "cannot be loaded"),
    "adapters on a fresh model": ([*GRPO, "--lora-rank", "4"], "lora_rank: the tiny model"),
    "smollm2 that was not written": (["train", "grpo", "--model", "smollm2", "--task", "sums"], "upslope model smollm2 --out smollm2"),
    "half a character": ([*JSONL, "surrogate.jsonl"], "surrogate.jsonl, line 2: it holds a lone surrogate"),
    "a character without a token": ([*JSONL, "unknown.jsonl"], "unknown.jsonl, line 2: the tokenizer has no token for 'é'"),
    "a character without a token, imitated or held out": (
        ["train", "sft", "--model", "tiny", "--task", "unknown.jsonl"],
        "unknown.jsonl, line 2: the tokenizer has no token for 'é'",
    ),
    "a character without a token, in a pair": (
        ["train", "dpo", "--model", "tiny", "--pairs", "unknownpair.jsonl"],
        "unknownpair.jsonl, line 2: the tokenizer has no token for 'é'",
    ),
    "one long prompt among many": ([*JSONL, "latelong.jsonl"], "latelong.jsonl, line 151: its 3600 tokens and 256 for the completion"),
    "what to do with a long prompt": ([*JSONL, "latelong.jsonl"], "which begins with '150150150150', take fewer --max-tokens, or --long-"),
    "nothing but long prompts": ([*JSONL, "long.jsonl", "--long-prompts", "drop"], "all 1 are too long for the model's context of 1024"),
    "another way with long prompts": ([*JSONL, "long.jsonl", "--long-prompts", "fold"], "unknown value 'fold': choose one of cut, drop"),
    "nothing held out and a goal": (
        [*JSONL, "good.jsonl", "--task-kwargs", '{"held_out_fraction": 0}', "--until-accuracy", "0.5"],
        "until_accuracy: nothing is held out",
    ),
    "tokens as text": ([*JSONL, "good.jsonl", "--task-kwargs", '{"max_tokens": "5"}'], "max_tokens: expected an integer ≥ 1, found '5'"),
    # numbers
    "no prompts": ([*GRPO, "--num-prompts", "0"], "num_prompts: expected an integer ≥ 1"),
    "empty groups": ([*GRPO, "--group-size", "0"], "group_size: expected an integer ≥ 1"),
    "groups of one": ([*GRPO, *SHORT, "--group-size", "1"], "group"),
    "no tokens": ([*GRPO, "--max-tokens", "0"], "max_tokens: expected an integer ≥ 1"),
    "no temperature": ([*GRPO, "--temperature", "0"], "temperature: expected a number ≥ 0.01, found 0;"),
    "hardly any temperature": ([*GRPO, "--temperature", "1e-6"], "expected a number ≥ 0.01, found 1e-06; for the most likely text"),
    "negative KL": ([*GRPO, "--kl-coef", "-1"], "kl_coef"),
    "no iterations": ([*GRPO, "--iterations", "0"], "iterations: expected an integer ≥ 1"),
    "a negative interval of evaluations": ([*GRPO, "--eval-every", "-1"], "eval_every: expected an integer ≥ 0, found -1"),
    "a goal that nobody looks at": ([*GRPO, "--eval-every", "0", "--until-accuracy", "0.5"], "eval_every: found 0, which is never"),
    "impossible warm start": ([*GRPO, "--warm-start", "2"], "warm_start: expected a share from 0 to 1"),
    "longer than the context": ([*GRPO, "--max-tokens", "4000"], "exceed the model's context"),
    "k1 in the objective": ([*GRPO, "--kl-coef", "0.1", "--kl-estimator", "k1"], "k1"),
    "k3 in the reward": ([*GRPO, "--kl-coef", "0.1", "--kl-placement", "reward"], "k3"),
    "sequence ratio over steps": ([*GRPO, "--ratio", "sequence", "--average-over", "steps"], "average_over"),
    "refill with a KL": ([*GRPO, "--refill", "2", "--kl-coef", "0.1"], "refill"),
    "penalty longer than the completion": ([*GRPO, "--overlong-buffer", "50"], "overlong_buffer"),
    "label smoothing of one half": (["train", "dpo", *TINY, "--label-smoothing", "0.5"], "label_smoothing"),
    "negative beta": (["train", "dpo", *TINY, "--beta", "-1"], "beta: expected a number > 0"),
    "warm start without answers": ([*JSONL, "noanswer.jsonl", "--reward", "length:3", "--warm-start", "0.5"], "answers to imitate"),
    # data
    "file that is not there": ([*JSONL, "none.jsonl"], "none.jsonl"),
    "file of another kind": ([*JSONL, "notes.txt"], "ends in .jsonl"),
    "empty file": ([*JSONL, "empty.jsonl"], "empty.jsonl"),
    "malformed line": ([*JSONL, "broken.jsonl"], "line 2"),
    "line that is a list": ([*JSONL, "list.jsonl"], "line 1"),
    "line without a prompt": ([*JSONL, "noprompt.jsonl"], "prompt"),
    "prompt that is a number": ([*JSONL, "numberprompt.jsonl"], "prompt"),
    "empty prompt": ([*JSONL, "emptyprompt.jsonl"], "prompt is empty"),
    "missing column": ([*JSONL, "ragged.jsonl"], "answer"),
    "no answers and no reward": ([*JSONL, "noanswer.jsonl"], "no column answer"),
    "messages without a chat template": ([*JSONL, "messages.jsonl"], "it has no chat template"),
    "message without a role": ([*JSONL, "badmessages.jsonl"], "role"),
    "prompt longer than the context": ([*JSONL, "long.jsonl"], "exceed the model's context"),
    "pairs that are equal": (["train", "dpo", "--model", "tiny", "--pairs", "equal.jsonl"], "line 1"),
    "pair without its other half": (["train", "dpo", "--model", "tiny", "--pairs", "halfpair.jsonl"], "rejected is missing"),
    "pairs without a prompt": (
        ["train", "dpo", "--model", "tiny", "--pairs", "implicit.jsonl"],
        "line 1: prompt is missing, found 'chosen', 'rejected': both begin with \"2+2=\"; put what was asked into prompt",
    ),
    "completions without a reward": ([*JSONL, "completion.jsonl"], "no column answer"),
    "empty completion": (["train", "reward-model", "--model", "tiny", "--pairs", "emptypair.jsonl"], "chosen is empty"),
    "kto without a label": (["train", "kto", "--model", "tiny", "--pairs", "nolabel.jsonl"], "label"),
    "kto with a label in words": (["train", "kto", "--model", "tiny", "--pairs", "textlabel.jsonl"], "label"),
    "pairs that are not there": (["train", "dpo", "--model", "tiny", "--pairs", "none.jsonl"], "none.jsonl"),
    # rewards
    "reward that does not exist": (rewarded("raise"), "did you mean 'raises'?"),
    "reward module that does not exist": ([*GRPO, "--reward", "nowhere:score"], "no module named 'nowhere'"),
    "reward that is no function": (rewarded("not_a_function"), "expected a function"),
    "unknown built-in": ([*GRPO, "--reward", "exact-macth"], "did you mean 'exact-match'?"),
    "built-in without its argument": ([*GRPO, "--reward", "contains"], "contains"),
    "weight that is no number": ([*GRPO, "--reward", "language_rewards:ones=much"], "expected a number after ="),
    "column that the data lacks": (rewarded("needs_color"), "needs the column 'color'"),
    "no time for a reward": ([*GRPO, "--reward-timeout", "0"], "reward_timeout: expected a number > 0"),
    # other commands
    "evaluate on an environment": (["evaluate", "told", "--env", "CartPole-v1"], "this run trained a language model"),
    "evaluate on a misspelled task": (["evaluate", "told", "--task", "adition"], "did you mean 'addition'?"),
    "play text": (["play", "told", "--out", "x.gif"], "language model"),
    "export without a folder": (["export", "told"], "--out: expected the folder to write"),
    "export onto a file": (["export", "told", "--out", "notes.txt"], "is a file"),
    "export what is not there": (["export", "nowhere", "--out", "x"], "there is no such folder"),
    "chat with nothing": (["chat"], "chat: expected RUN"),
    "chat with no room": (["chat", "told", "--max-tokens", "0"], "--max-tokens: expected an integer ≥ 1"),
    "unknown model to write": (["model", "smollm3"], "did you mean 'smollm2'?"),
    "model into a full folder": (["model", "smollm2", "--out", "told"], "exists and is not empty"),
}

FAULTS: dict[str, tuple[list[str], str]] = {
    "reward that raises": (rewarded("raises"), "the judge is on strike"),
    "reward that hangs": (rewarded("hangs"), "took too long"),
    "reward of the wrong length": (rewarded("too_few"), "returned 1 values for 4 completions"),
    "reward that is not a number": (rewarded("not_a_number"), "nan"),
    "reward in words": (rewarded("words"), "good"),
    "reward that is no list": (rewarded("nothing"), "expected a list"),
    "reward that never scores": (rewarded("never"), "none of 4 completions got a score"),
}


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished language run; copy it before changing it."""
    from upslope.cli.main import main

    folder = tmp_path_factory.mktemp("told") / "run"
    assert main([*GRPO, *SHORT, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def there(cli: Command, told: Path) -> Command:
    """``cli`` in a folder with every file of these tests."""
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("hollow").mkdir()
    Path("damaged").mkdir()
    Path("damaged/config.json").write_text('{"model_type": ')
    shutil.copytree(told, "told")
    return cli


@pytest.mark.parametrize("argv, expected", CASES.values(), ids=CASES.keys())
def test_known_before_the_first_step(there: Command, argv: list[str], expected: str):
    answer = there(*argv)
    assert answer.code == 2, answer
    assert expected in one_line(answer.err), answer.err
    assert answer.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize("argv, expected", FAULTS.values(), ids=FAULTS.keys())
def test_faults_while_running(there: Command, argv: list[str], expected: str):
    answer = there(*argv, "--quiet", "--out", "failed")
    assert answer.code == 1, answer
    assert expected in one_line(answer.err), answer.err
    summary = json.loads(Path("failed/summary.json").read_text())
    assert summary["status"] == "failed" and expected in summary["error"]
    assert (Path("failed") / "policy" / "config.json").exists()  # the model as it was is kept


def test_there_are_enough_cases():
    assert len(CASES) + len(FAULTS) >= 40
