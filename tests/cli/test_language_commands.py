"""Language commands end to end, in-process: train, evaluate, chat, export, plot, and what the folder holds."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Command, good
from tests.cli.test_bad_input import one_line
from tests.cli.test_language_bad_input import GRPO, SHORT, SMALL, told  # noqa: F401  # the fixture
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


def test_a_run_that_was_killed_between_two_renames(cli: Command):
    """Where a file system cannot swap folders, the old one is moved aside for the new one: what stood aside is what everyone reads."""
    good(cli(*GRPO, *SHORT, "--iterations", "2", "--eval-every", "1", "--quiet", "--out", "run"))
    evaluate = ["evaluate", "run", "--task", "addition", "--episodes", "4", "--json"]
    before = [good(cli(*evaluate, "--policy", which)).out for which in ("final", "best")]
    for name in ("policy", "best_policy"):
        Path("run", name).rename(f"run/.{name}.0123456789abcdef.replaced")
    assert [good(cli(*evaluate, "--policy", which)).out for which in ("final", "best")] == before
    good(cli("export", "run", "--out", "exported"))
    good(cli("train", "grpo", "--model", "run", "--task", "addition", *SHORT, "--iterations", "1", "--quiet", "--out", "on"))
    Path("run/.policy.0123456789abcdef.replaced").rename("run/lost")
    assert "run/policy" in one_line(cli(*evaluate).err)


def test_an_interval_of_0_is_no_evaluation_before_the_end(cli: Command):
    """As on environments."""
    out = good(cli(*GRPO, *SHORT, "--iterations", "2", "--eval-every", "0", "--out", "run")).out
    run = Run.load("run")
    assert run.summary is not None and run.summary["accuracy"] is not None and run.summary["best_accuracy"] is None
    assert run.summary["accuracy_before"] is None and "held-out problems answered right" in out
    assert all("evaluation_accuracy" not in row for row in run.metrics()) and not Path("run/best_policy").exists()


def try_next(cli: Command, said: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run every command that a run has printed at its end, the long ones with a small budget; their names."""
    lines = said.split("try next:\n")[1].splitlines()
    commands = [shlex.split(line.split("    ")[0].removeprefix("  upslope ")) for line in lines if line.startswith("  upslope ")]
    budget = {"train": [*SHORT, "--quiet"], "evaluate": ["--episodes", "4"]}
    for words in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("12+34=\n"))
        good(cli(*words, *budget.get(words[0], [])))
    return [words[0] for words in commands]


@pytest.mark.parametrize("algorithm", ALL)
def test_every_sampling_algorithm_trains_and_what_it_advises_runs(cli: Command, algorithm: str, monkeypatch: pytest.MonkeyPatch):
    answer = good(cli("train", algorithm, "--model", "tiny", "--task", "addition", *SHORT, "--out", "a run"))
    assert Run.load("a run").algorithm == algorithm
    assert try_next(cli, answer.out, monkeypatch) == ["chat", "evaluate", "export"]


@pytest.mark.parametrize("algorithm", RECORDED)
def test_every_algorithm_on_recorded_texts_trains_and_what_it_advises_runs(cli: Command, algorithm: str, monkeypatch: pytest.MonkeyPatch):
    flags = ["--iterations", "2", "--batch-size", "8", "--warm-start", "0", "--eval-episodes", "4", "--out", "run"]
    answer = good(cli("train", algorithm, "--model", "tiny", "--task", "addition", *flags))
    summary = Run.load("run").summary
    assert summary is not None and (summary.get("preference_accuracy") is not None) == (algorithm in ("dpo", "reward-model"))
    expected = ["evaluate", "train", "export"] if algorithm == "reward-model" else ["chat", "evaluate", "export"]
    assert try_next(cli, answer.out, monkeypatch) == expected


WORLDS: dict[str, tuple[str, list[str], list[str]]] = {
    "dpo on pairs": ("dpo", ["--pairs", "pairs.jsonl"], ["chat", "evaluate", "export"]),
    "a reward model of pairs": ("reward-model", ["--pairs", "pairs.jsonl"], ["evaluate", "export"]),
    "pairs and others held out": ("dpo", ["--pairs", "more.jsonl"], ["chat", "evaluate", "export"]),
    "pairs beside a task": ("dpo", ["--pairs", "pairs.jsonl", "--task", "addition"], ["chat", "evaluate", "export"]),
    "kto on labels": ("kto", ["--pairs", "labels.jsonl"], ["chat", "export"]),
    "completions to imitate": ("sft", ["--task", "said.jsonl"], ["chat", "evaluate", "export"]),
    "one problem": ("sft", ["--task", "t.jsonl"], ["chat", "export"]),
    "three problems": ("dpo", ["--task", "three.jsonl"], ["chat", "evaluate", "export"]),
    "a reward of one's own": ("grpo", ["--task", "prompts.jsonl", "--reward", "language_rewards:ones"], ["chat", "evaluate", "export"]),
    "a built-in reward": ("grpo", ["--task", "prompts.jsonl", "--reward", "contains:1=0.5"], ["chat", "evaluate", "export"]),
}


@pytest.mark.parametrize(("algorithm", "data", "expected"), WORLDS.values(), ids=WORLDS.keys())
def test_what_a_run_on_data_of_one_s_own_advises_runs(
    cli: Command, algorithm: str, data: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    files = {
        "pairs.jsonl": [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}, {"prompt": "1+2=", "chosen": "3", "rejected": "2"}],
        "more.jsonl": [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}],
        "more.test.jsonl": [{"prompt": "2+2=", "chosen": "4", "rejected": "3"}],
        "labels.jsonl": [{"prompt": "1+1=", "completion": "2", "label": True}, {"prompt": "1+1=", "completion": "3", "label": False}],
        "said.jsonl": [{"prompt": f"2+{n}=", "completion": str(2 + n)} for n in range(3)],
        "t.jsonl": [{"prompt": "2+2=", "answer": "4"}],
        "three.jsonl": [{"prompt": f"2+{n}=", "answer": str(2 + n)} for n in range(3)],
        "prompts.jsonl": [{"prompt": f"2+{n}="} for n in range(4)],
    }
    for name, rows in files.items():
        Path(name).write_text("\n".join(map(json.dumps, rows)))
    sizes = [*SMALL, "--max-tokens", "4"] if algorithm == "grpo" else []
    answer = good(cli("train", algorithm, "--model", "tiny", *data, *sizes, "--iterations", "1", "--eval-episodes", "4", "--out", "run"))
    assert "warm start" not in answer.out  # nobody asked for one, and no built-in task is trained on
    assert try_next(cli, answer.out, monkeypatch) == expected
    if algorithm in ("dpo", "reward-model") and "three.jsonl" not in data:
        beside = "more.jsonl" in data or "addition" in data
        assert ("held-out pair" in answer.out) == beside


def test_the_warm_start_ends_where_its_target_is_reached_and_is_not_repeated(cli: Command):
    """A model that was warmed is not warmed again: neither because a file of settings says so, nor where it was asked for and is met."""
    easy = ["--task-kwargs", '{"digits": 1}', *SMALL, "--iterations", "1", "--eval-episodes", "8", "--warm-start", "0.1"]
    first = good(cli("train", "grpo", "--model", "tiny", "--task", "addition", *easy, "--warm-start-batch", "64", "--out", "run")).out
    assert "warm start: imitates right answers until 10%" in first and " of training problems right after " in first
    goes_on = ["train", "grpo", "--config", "run", "--model", "run"]
    assert "warm start" not in good(cli(*goes_on, "--out", "more")).out
    assert Run.load("more").config["settings"]["warm_start"] == 0.0
    asked = good(cli(*goes_on, "--warm-start", "0.05", "--out", "again")).out
    assert "warm start: not needed" in asked
    summary = Run.load("again").summary
    assert summary is not None and summary["warm_start_seconds"] == 0.0
    missed = good(cli(*goes_on, "--warm-start", "1", "--warm-start-iterations", "3", "--out", "missed")).out
    assert "it ended after 3 steps, short of 100%" in missed


def test_a_plain_model_folder_is_measured_and_exported(cli: Command, told: Path):  # noqa: F811
    """What a run holds, and what export writes, are models' folders: they need a task, and no run."""
    good(cli("export", told / "policy", "--out", "plain"))
    flags = ["--task", "addition", "--episodes", "8", "--json"]
    expected = json.loads(good(cli("evaluate", told, *flags)).out)
    for folder in ("plain", told / "policy"):
        found = json.loads(good(cli("evaluate", folder, *flags)).out)
        assert {name: found[name] for name in ("accuracy", "reward_mean", "length_mean")} == {
            name: expected[name] for name in ("accuracy", "reward_mean", "length_mean")
        }
    assert "plain on addition, greedy: 8 held-out problems" in good(cli("evaluate", "plain", *flags[:4])).out
    Path("p.jsonl").write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"}))
    found = json.loads(good(cli("evaluate", "plain", "--pairs", "p.jsonl", "--json")).out)
    assert found["pairs"] == 1 and found["ranked_by"] == "log_prob"
    for words, expected_words in {
        ("evaluate", "plain"): "plain is a model's folder and no run, so say what to measure it on: --task addition",
        ("evaluate", "plain", "--task", "addition", "--pairs", "p.jsonl"): "never both",
    }.items():
        answer = cli(*words)
        assert answer.code == 2 and expected_words in answer.err, answer


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
    assert found.keys() == {
        "accuracy", "accuracy_interval", "reward_mean", "format_rate", "length_mean", "episodes", "policy", "iteration", "total_steps",
        "planned_iterations", "finished",
    }  # fmt: skip
    assert found["policy"] == "final" and found["iteration"] == found["planned_iterations"] == len(Run.load(told).metrics())
    assert found["episodes"] == 8 and 0 <= found["accuracy_interval"][0] <= found["accuracy_interval"][1] <= 1
    assert found == json.loads(good(cli("evaluate", told, "--episodes", "8", "--json")).out)
    assert "held-out problems" in good(cli("evaluate", told, "--episodes", "8")).out


def test_what_uses_an_unfinished_policy_says_so(cli: Command, told: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    shutil.copytree(told, "killed")
    Path("killed/summary.json").unlink()
    caution = Run.load("killed").caution()
    assert "iterations (the run was killed, or is still going on)" in caution
    monkeypatch.setattr("sys.stdin", io.StringIO("1+1=\n"))
    for words in (["chat", "killed", "--max-tokens", "1"], ["export", "killed", "--out", "out"]):
        answer = cli(*words)
        assert answer.code == 0 and answer.err == f"upslope: note: final {caution}\n", answer


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
    asked = cli("evaluate", "own", "--json")  # the recorded module is not imported, unless the caller names it
    assert asked.code == 2 and "trained with language_rewards:ones" in asked.err and "--reward language_rewards:ones" in asked.err
    assert json.loads(good(cli("evaluate", "own", "--reward", "language_rewards:ones", "--json")).out)["accuracy"] is not None
    assert json.loads(good(cli("evaluate", "own", "--reward", "answer", "--json")).out)["reward_mean"] is not None
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"}))
    good(cli("train", "dpo", "--model", "tiny", "--pairs", "pairs.jsonl", "--iterations", "1", "--quiet", "--out", "dpo"))


def test_long_prompts_are_left_out_or_cut_and_counted_in_the_plan(cli: Command):
    rows = [{"prompt": str(n % 10) * (1100 if n in (3, 7) else 2), "answer": str(n % 10)} for n in range(12)]
    Path("long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("long.test.jsonl").write_text(
        json.dumps({"prompt": "3" * 1200, "answer": "3"}) + "\n" + json.dumps({"prompt": "1", "answer": "1"})
    )
    train = ["train", "grpo", "--model", "tiny", "--task", "long.jsonl", "--max-tokens", "4", *SHORT]
    said = good(cli(*train, "--long-prompts", "drop", "--out", "dropped")).out
    assert "10 problems to train on, 1 held out" in said and "3 prompts too long for the model's context of 1,024 tokens: left out" in said
    said = good(cli(*train, "--long-prompts", "cut", "--out", "cut")).out
    assert "12 problems to train on, 2 held out" in said and "3 prompts too long for the model's context of 1,024 tokens: cut" in said
    assert json.loads(good(cli("evaluate", "dropped", "--json")).out)["episodes"] == 1
    assert json.loads(good(cli("evaluate", "dropped", "--long-prompts", "cut", "--json")).out)["episodes"] == 2
    answer = cli("evaluate", "dropped", "--long-prompts", "error")
    assert answer.code == 2 and "long.test.jsonl, line 1: its 1200 tokens and 4 for the completion" in answer.err


def test_help_with_a_task_shows_its_preset(cli: Command):
    page = good(cli("train", "grpo", "--model", "tiny", "--task", "addition", "--help")).out
    assert "(default 0.0005)" in page and "--kl-estimator {k1,k2,k3}" in page and "how a row is compared with its group" in page
    for name in ("chat", "export", "model"):
        assert f"usage: upslope {name}" in good(cli(name, "--help")).out


def test_plot_compares_language_runs(cli: Command, told: Path):  # noqa: F811
    good(cli("plot", told, "--out", "all.png"))
    assert Path("all.png").stat().st_size > 1000
