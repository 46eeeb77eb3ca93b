"""What a run in the language world says and records of its passes: precision, attention, dropout; and who may start one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from tests.cli.conftest import Command, good
from tests.cli.test_bad_input import one_line
from tests.cli.test_language_bad_input import GRPO, SHORT
from upslope import Run, UsageError
from upslope.cli.command import check_alone
from upslope.language import machine
from upslope.language.tiny import character_tokenizer


@pytest.fixture
def bloom(tmp_path: Path) -> Path:
    """A folder of a model that cannot share attention, with dropout in its configuration."""
    tokenizer = character_tokenizer()
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=4, hidden_dropout=0.1)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    return tmp_path / "bloom"


def test_the_plan_says_how_passes_run_and_evaluate_takes_the_same_precision(cli: Command, bloom: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    answer = cli("train", "grpo", "--model", bloom, "--task", "addition", *SHORT, "--max-tokens", "3", "--out", "run")
    assert answer.code == 0, answer
    assert "passes in bfloat16" in answer.out
    assert "  attention: plain, one row at a time, because " in answer.out
    assert "  dropout: off, though the model's configuration says hidden_dropout 0.1: what samples" in answer.out
    assert json.loads(Path("run/config.json").read_text())["policy"]["compute_dtype"] == "bfloat16"
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: False)  # as if on another processor
    assert Run.load("run").policy.compute_dtype == torch.bfloat16


def test_the_tiny_model_is_packed_in_float32(cli: Command):
    answer = good(cli(*GRPO, *SHORT, "--out", "run"))
    assert "  attention: packed\n" in answer.out and "dropout" not in answer.out
    assert "  update: GRPO.objective in PyTorch: nothing of this LanguagePolicy is compiled\n" in answer.out
    assert json.loads(Path("run/config.json").read_text())["policy"]["compute_dtype"] == "float32"


@pytest.mark.parametrize(
    "closing, words", [("+", "ends a turn with '+', which is no single token"), ("", "writes nothing behind a turn"), ("<eos>", None)]
)
def test_a_template_without_a_token_for_the_end_of_a_turn_is_said(cli: Command, bloom: Path, closing: str, words: str | None):
    tokenizer = character_tokenizer()
    closing = closing.replace("<eos>", tokenizer.eos_token)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + closing + "{% endfor %}"
    tokenizer.save_pretrained(bloom)
    out = good(cli("train", "grpo", "--model", bloom, "--task", "addition", *SHORT, "--max-tokens", "3", "--out", "run")).out
    assert ("chat template: it" in out) == (words is not None)
    if words is not None:
        sampled = f"answers are recorded and sampled up to {tokenizer.eos_token!r} instead"
        assert f"  chat template: it {words}; where prompts are messages, {sampled}\n" in out


@pytest.mark.filterwarnings("always:chat template")
def test_a_template_whose_end_of_a_turn_is_not_found_is_said(cli: Command, bloom: Path):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | length }}{% endfor %}"
    tokenizer.save_pretrained(bloom)
    answer = cli("train", "grpo", "--model", bloom, "--task", "addition", *SHORT, "--max-tokens", "3", "--out", "run")
    assert answer.code == 0, answer
    assert "  chat template: how it ends a turn was not found, " in answer.out and "writes nothing" not in answer.out
    assert answer.err.count("upslope: warning: chat template: how it ends a turn was not found") == 1


def test_a_tokenizer_that_panics_is_said_in_one_line(cli: Command, bloom: Path):
    file, hard = bloom / "tokenizer.json", "1" * 60
    made = json.loads(file.read_text())
    made["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(1|1|11)+$"}, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps(made))
    Path("data.jsonl").write_text("".join(json.dumps({"prompt": f"{n}{hard}+", "answer": "1"}) + "\n" for n in range(4)))
    for flags in ([], ["--long-prompts", "drop"]):
        answer = cli("train", "grpo", "--model", bloom, "--task", "data.jsonl", *SHORT, "--max-tokens", "3", *flags, "--out", "run")
        assert answer.code == 2 and "data.jsonl, line " in answer.err, answer
        assert ": the tokenizer refuses this text (" in one_line(answer.err), answer


@pytest.mark.parametrize("command", [["ppo", "CartPole-v1"], ["grpo", "--model", "tiny", "--task", "addition"]])
def test_one_of_several_processes_is_refused(cli: Command, monkeypatch: pytest.MonkeyPatch, command: list[str]):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli("train", *command, "--help").code == 0
    answer = cli("train", *command, "--out", "run")
    line = one_line(answer.err)
    assert answer.code == 2
    assert "WORLD_SIZE=2" in line and "start upslope by itself" in line and not Path("run").exists()
    assert one_line(cli("resume", "run").err).startswith("upslope: resume: started as one of WORLD_SIZE=2 processes")


STEP_OF_ONE = {"SLURM_NTASKS": "8", "SLURM_NPROCS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    "environment, name",
    [
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS=8"),  # srun -n 8 upslope train …
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "PMI_SIZE=2"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2"),
        ({"WORLD_SIZE": "1", "HOROVOD_SIZE": "4"}, "HOROVOD_SIZE=4"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, None),  # a shell of salloc
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, None),  # a script of sbatch
        (STEP_OF_ONE, None),  # srun --pty bash, a step of srun -n 1
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1", "WORLD_SIZE": ""}, None),
    ],
)
def test_launchers_of_several_processes(environment: dict[str, str], name: str | None):
    if name is None:
        return check_alone("train", environment)
    with pytest.raises(UsageError, match=f"started as one of {name} processes .* unset {name.partition('=')[0]} where each"):
        check_alone("train", environment)


def test_a_step_too_small_for_the_weights_is_said(cli: Command):
    few = ["--iterations", "2", "--batch-size", "2", "--eval-episodes", "2"]
    answer = good(cli("train", "sft", "--model", "tiny", "--task", "addition", *few, "--learning-rate", "1e-12", "--out", "run"))
    assert answer.out.count("of the weights: its steps are smaller") == 1
    assert "raise the learning rate (1e-12)" in answer.out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert all(row["weights_moved"] < 0.01 for row in rows)
