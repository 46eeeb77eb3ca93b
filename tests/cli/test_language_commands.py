"""Language commands end to end, in-process: train, evaluate, chat, export, plot, and what the folder holds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Command, good
from tests.cli.test_language_bad_input import GRPO, SHORT, told  # noqa: F401  # the fixture
from upslope import Run

ALL = ["grpo", "dr-grpo", "dapo", "gspo", "cispo", "reinforce-pp", "rloo", "reinforce", "ppo"]
RECORDED = ["sft", "dpo", "kto", "reward-model"]
SUMMARY = {
    "algorithm",
    "model",
    "task",
    "seed",
    "total_steps",
    "train_seconds",
    "wall_seconds",
    "accuracy",
    "accuracy_interval",
    "reward_mean",
}


def test_what_a_run_says_and_writes(cli: Command):
    answer = good(cli(*GRPO, *SHORT, "--iterations", "2", "--eval-every", "1", "--out", "run"))
    assert "2 prompts × 2 completions = 4 completions of at most 4 tokens per iteration" in answer.out
    assert "held-out problems answered right" in answer.out and "upslope chat run" in answer.out
    folder = Path("run")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY and summary["iterations"] == 2 and summary["status"] == "finished"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and "evaluation_accuracy" in rows[0] and rows[0].keys() >= {"reward", "dead_groups", "completion_length"}
    kept = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert len(kept) == 8 and kept[0].keys() >= {"iteration", "prompt", "answer", "completion", "score", "rewards", "finish_reason"}
    assert (folder / "curve.png").stat().st_size > 1000
    assert {path.name for path in (folder / "policy").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("algorithm", ALL)
def test_every_sampling_algorithm_trains(cli: Command, algorithm: str):
    good(cli("train", algorithm, "--model", "tiny", "--task", "addition", *SHORT, "--quiet", "--out", "run"))
    assert Run.load("run").algorithm == algorithm


@pytest.mark.parametrize("algorithm", RECORDED)
def test_every_algorithm_on_recorded_texts_trains(cli: Command, algorithm: str):
    flags = ["--iterations", "2", "--batch-size", "8", "--warm-start", "0", "--eval-episodes", "4", "--quiet", "--out", "run"]
    good(cli("train", algorithm, "--model", "tiny", "--task", "addition", *flags))
    summary = Run.load("run").summary
    assert summary is not None and (summary.get("preference_accuracy") is not None) == (algorithm in ("dpo", "reward-model"))


def test_kl_to_a_reference(cli: Command):
    """Placement and estimator by name; the reference is the policy as training starts, so its KL begins at 0."""
    for flags in (["--kl-coef", "0.1"], ["--kl-coef", "0.1", "--kl-estimator", "k1", "--kl-placement", "reward"]):
        folder = f"run{len(flags)}"
        good(cli(*GRPO, *SHORT, *flags, "--quiet", "--out", folder))
        assert Run.load(folder).metrics()[0]["reference_kl"] == pytest.approx(0.0, abs=1e-9)
    good(cli("train", "ppo", "--model", "tiny", "--task", "addition", *SHORT, "--reference-kl-coef", "0.1", "--quiet", "--out", "ppo"))
    assert "reference_kl" in Run.load("ppo").metrics()[0]


def test_evaluate_prints_one_object(cli: Command, told: Path):  # noqa: F811
    found = json.loads(good(cli("evaluate", told, "--task", "addition", "--episodes", "8", "--json")).out)
    assert found.keys() == {"accuracy", "accuracy_interval", "reward_mean", "format_rate", "length_mean", "episodes"}
    assert found["episodes"] == 8 and 0 <= found["accuracy_interval"][0] <= found["accuracy_interval"][1] <= 1
    assert found == json.loads(good(cli("evaluate", told, "--episodes", "8", "--json")).out)
    assert "held-out problems" in good(cli("evaluate", told, "--episodes", "8")).out


def test_chat_reads_lines(cli: Command, told: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO("12+34=\n1+1=\n\nnot read\n"))
    assert len(good(cli("chat", told, "--greedy", "--max-tokens", "4")).out.splitlines()) == 2


def test_an_exported_model_is_an_ordinary_one(cli: Command, told: Path):  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    good(cli("export", told, "--out", "plain"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained("plain"), AutoTokenizer.from_pretrained("plain")
    policy = Run.load(told).policy
    ids = torch.tensor([policy.encode("12+34=")])
    assert tokenizer("12+34=")["input_ids"] == ids[0].tolist()
    torch.testing.assert_close(model(ids).logits, policy.model(ids).logits)
    assert "exists and is not empty" in cli("export", told, "--out", "plain").err
    good(cli("export", told, "--out", "half", "--bfloat16"))
    assert json.loads(Path("half/config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained("half").dtype == torch.bfloat16


def test_training_goes_on_from_a_run(cli: Command, told: Path):  # noqa: F811
    good(cli("train", "rloo", "--model", told, "--task", "addition", *SHORT, "--quiet", "--out", "more"))
    good(cli("train", "grpo", "--model", told, "--task", "addition", *SHORT, "--quiet", "--lora-rank", "2", "--out", "adapted"))
    good(cli("evaluate", "adapted", "--episodes", "4", "--json"))


def test_a_reward_model_is_a_reward(cli: Command):
    good(
        cli(
            "train",
            "reward-model",
            "--model",
            "tiny",
            "--task",
            "addition",
            "--iterations",
            "2",
            "--batch-size",
            "8",
            "--warm-start",
            "0",
            "--quiet",
            "--out",
            "judge",
        )
    )
    good(cli(*GRPO, *SHORT, "--reward", "judge=0.5", "--reward", "exact-match", "--quiet", "--out", "run"))
    assert Run.load("run").metrics()[0].keys() >= {"reward/judge", "reward/exact-match"}
    answer = cli(*GRPO, *SHORT, "--reward", "run")
    assert answer.code == 2 and "expected the run of a reward-model" in answer.err


def test_files_of_problems_and_pairs(cli: Command):
    lines = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
    Path("sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--max-tokens", "4", *SHORT, "--quiet", "--out"]
    good(cli("train", "grpo", "--model", "tiny", "--task", "sums.jsonl", *flags, "run"))
    good(cli("train", "grpo", "--model", "tiny", "--task", "sums.jsonl", "--reward", "language_rewards:ones", *flags, "own"))
    assert json.loads(good(cli("evaluate", "own", "--json")).out)["accuracy"] is not None  # the recorded module is not imported
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"}))
    good(cli("train", "dpo", "--model", "tiny", "--pairs", "pairs.jsonl", "--iterations", "1", "--quiet", "--out", "dpo"))


def test_help_with_a_task_shows_its_preset(cli: Command):
    page = good(cli("train", "grpo", "--model", "tiny", "--task", "addition", "--help")).out
    assert "(default 0.0005)" in page and "--kl-estimator {k1,k2,k3}" in page and "how a row is compared with its group" in page
    for name in ("chat", "export", "model"):
        assert f"usage: upslope {name}" in good(cli(name, "--help")).out


def test_plot_compares_language_runs(cli: Command, told: Path):  # noqa: F811
    good(cli("plot", told, "--out", "all.png"))
    assert Path("all.png").stat().st_size > 1000
