"""A run's folder, its files and what is said while it is written."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.cli.conftest import SHORT, TRAIN, Command, good
from upslope import Run
from upslope.run.config import RunConfig
from upslope.run.folder import RunFolder, default_path, finite_or_none, json_line
from upslope.run.report import Live, Meter, Plain, amount, progress_for

PROMISED = {
    "algorithm", "env_id", "seed", "total_steps", "train_seconds", "wall_seconds", "steps_per_second", "return_mean", "return_std",
    "return_interval", "episodes", "solved",
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_holds_what_is_promised(trained: Path):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "policy.json", "policy.safetensors", "best_policy.safetensors", "curve.png", "summary.json",
        "checkpoints", ".lock",
    }  # fmt: skip
    summary = json.loads((trained / "summary.json").read_text())
    assert summary.keys() >= PROMISED
    assert (summary["algorithm"], summary["env_id"], summary["seed"], summary["episodes"]) == ("ppo", "CartPole-v1", 0, 2)
    low, high = summary["return_interval"]
    assert low <= summary["return_mean"] <= high
    assert summary["solved"] is False and summary["solved_at"] == 475
    assert summary["wall_seconds"] >= summary["train_seconds"] > 0
    assert summary["steps_per_second"] == pytest.approx(summary["total_steps"] / summary["train_seconds"], rel=1e-9)


def test_total_steps_rounds_up_to_whole_iterations(trained: Path):
    rows = Run.load(trained).metrics()
    steps = [row["total_steps"] for row in rows]
    assert steps[-2] < 128 <= steps[-1] < 128 + 32
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert Run.load(trained).summary["total_steps"] == steps[-1]  # type: ignore[index]


def test_reset_rows_are_not_counted(cli: Command):
    good(cli("train", "ppo", "faulty:walk", "--out", "run", "--total-steps", "100", *SHORT, "--seed", "1"))
    first = Run.load("run").metrics()[0]
    # 16 columns of episodes of 10 steps: one reset in each of the two environments
    assert first["total_steps"] == 30


def test_metrics_speak_of_evaluations(trained: Path):
    rows = Run.load(trained).metrics()
    evaluated = [row for row in rows if "evaluation_return" in row]
    assert [row["total_steps"] // 64 for row in evaluated] == [1, 2]
    assert Run.load(trained).summary["best_return"] == max(row["evaluation_return"] for row in evaluated)  # type: ignore[index]
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_config_holds_every_setting_and_the_versions(trained: Path):
    config = Run.load(trained).config
    assert config["algorithm"]["name"] == "ppo" and config["algorithm"]["update"]["schedule"] == "linear"  # from the preset
    assert config["algorithm"]["update"]["num_minibatches"] == 2  # from the flag
    assert config["collector"] == {"num_envs": 2, "num_steps": 16}
    assert config["versions"].keys() >= {"upslope", "torch", "gymnasium", "numpy", "python"}
    run = RunConfig.from_config(config)
    assert run.config() == {key: value for key, value in config.items() if key not in ("format_version", "versions", "goal")}


def test_default_folders_are_numbered_when_taken(cli: Command):
    for _ in range(3):
        good(cli(*TRAIN, "--total-steps", "32", "--quiet", "--seed", "4"))
    assert sorted(p.name for p in Path("runs").iterdir()) == ["ppo-CartPole-v1-4", "ppo-CartPole-v1-4-2", "ppo-CartPole-v1-4-3"]
    assert default_path("ppo", "mine:make/it", 1) == Path("runs/ppo-make-it-1")


def test_the_same_seed_gives_the_same_run(cli: Command):
    for out in ("a", "b"):
        good(cli(*TRAIN, "--total-steps", "96", "--quiet", "--out", out))
    drop = ("train_seconds", "steps_per_second")
    a, b = ([{k: v for k, v in row.items() if k not in drop} for row in Run.load(out).metrics()] for out in ("a", "b"))
    assert a == b
    assert Path("a/policy.safetensors").read_bytes() == Path("b/policy.safetensors").read_bytes()


def test_an_empty_folder_may_be_given(cli: Command):
    Path("empty").mkdir()
    good(cli(*TRAIN, "--total-steps", "32", "--quiet", "--out", "empty"))
    assert Path("empty/summary.json").exists()


def test_files_are_written_whole(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", tmp_path)
    folder.write_json("a.json", {"x": float("nan"), "y": [1.0, float("inf")], "z": {"w": 2}})
    assert json.loads((tmp_path / "run/a.json").read_text()) == {"x": None, "y": [1.0, None], "z": {"w": 2}}
    folder.append("metrics.jsonl", [{"x": 1}])
    folder.append("metrics.jsonl", [{"x": -math.inf}])
    folder.close()
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"x": 1}\n{"x": null}\n'
    assert finite_or_none((1, "a", math.nan)) == [1, "a", None]


def test_a_line_cut_off_at_the_end_is_left_out(cli: Command, copied: Path):
    text = (copied / "metrics.jsonl").read_text()
    (copied / "metrics.jsonl").write_text(text[:-20])
    assert len(Run.load(copied).metrics()) == text.count("\n") - 1


# ----------------------------------------------------------------------------------------------------------- what is said


def test_the_plan_is_told_in_words(cli: Command):
    out = good(cli("train", "ppo", "CartPole-v1", "--total-steps", "256", "--until-return", "475", "--eval-episodes", "2", "--no-fast")).out
    assert "8 environments × 64 steps = 512 transitions per iteration, 10 epochs of 8 minibatches of 64" in out
    assert "at most 256 steps, rounded up to whole iterations; ends once the greedy policy returns 475 or more" in out
    assert "over 2 fresh episodes, twice in a row" in out
    assert "tanh policy with hidden layers 64 × 64, 9,155 parameters" in out
    assert "256 steps (100%) · return " in out or "248 steps" in out or "steps (100%)" in out
    assert "finished without reaching 475" in out and "95 % interval" in out and "upslope play runs/ppo-CartPole-v1-0" in out


def test_quiet_is_silent(cli: Command):
    assert good(cli(*TRAIN, "--total-steps", "32", "--quiet")).out == ""


def test_a_terminal_gets_a_live_line():
    pytest.importorskip("rich")
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = progress_for(Meter({"total_steps": 100}), quiet=False, stream=stream)
    assert isinstance(progress, Live) and isinstance(progress_for(Meter({"total_steps": 1}), False, io.StringIO()), Plain)
    row = {"iteration": 1, "total_steps": 50, "train_seconds": 0.1, "episode_return": 12.0, "num_episodes": 1.0, "approx_kl": 0.01}
    progress.update(row)
    progress.close()
    assert "50 steps (50%) · return 12.0 · 500 steps/s · approx KL 0.010" in stream.getvalue()


def test_help_pages(cli: Command):
    overview = good(cli("--help")).out
    assert all(name in overview for name in ("train", "evaluate", "play", "plot", "list"))
    assert good(cli()).out == overview
    for name in ("train", "evaluate", "play", "plot", "list"):
        assert "usage: upslope " + name in good(cli(name, "--help")).out
    page = good(cli("train", "ppo", "CartPole-v1", "--help")).out
    assert "--clip-range X [X]" in page and "step size of Adam (default 0.003)" in page and "--num-envs N" in page
    assert "discount factor (default 0.99)" in good(cli("train", "ppo", "--help")).out
    assert "--returns {to-go," in good(cli("train", "reinforce", "--help")).out
    assert all(len(line) <= 120 for line in page.splitlines())
    assert good(cli("--version")).out.startswith("upslope ")


def test_list_shows_algorithms_and_presets(cli: Command):
    out = good(cli("list")).out
    assert "Proximal policy optimization" in out
    for task in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "LunarLander-v3", "HalfCheetah-v5", "Humanoid-v5"):
        assert task in out


def test_lines_hold_what_json_cannot_as_null():
    assert json_line({"a": float("nan"), "b": [1.5, float("inf")], "c": MappingProxyType({"d": "é"})}) == (
        '{"a": null, "b": [1.5, null], "c": {"d": "é"}}\n'
    )
    assert json_line({"a": 1.5, "b": None}) == '{"a": 1.5, "b": null}\n'


def test_time_left_counts_from_the_first_iteration(monkeypatch):
    clock = iter([60.0, 70.0])  # a first iteration after a minute of warm start; the second took ten seconds
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    meter = Meter({"iterations": 5})
    meter.update({"iteration": 1})
    assert meter.left() == ""
    meter.update({"iteration": 2})
    assert meter.left() == "0:30 left"
    meter.update({"iteration": 5})
    assert meter.left() == ""


@pytest.mark.parametrize(
    "image, words, kind", [("auto", "an image, 3 × 20 × 20", "CNNPolicy"), ("no", "1,200 numbers (20 × 20 × 3, flat", "MLPPolicy")]
)
def test_what_an_observation_is_taken_for_is_said_and_kept(cli: Command, image: str, words: str, kind: str):
    flags = ["--image", image, "--hidden-sizes", "8", "--total-steps", "32", "--out", "run", *SHORT]
    answer = good(cli("train", "ppo", "faulty:screen", *flags))
    assert f"observation: {words}" in answer.out
    assert type(Run.load("run").policy).__name__ == kind and Run.load("run").config["policy"]["image"] == image
    good(cli("evaluate", "run", "--env", "faulty:screen", "--episodes", "2"))
    out = cli("train", "ppo", "faulty:screen", "--init", "run", "--image", image, *SHORT)
    assert out.code == 2 and "leave out --image" in out.err


@pytest.mark.parametrize("number, text", [(0, "0.0"), (500, "500.0"), (-146.21, "-146.2"), (1.95e-5, "1.95e-05"), (2.0019e10, "2.002e+10")])
def test_a_return_of_any_size_is_read(number: float, text: str):
    assert amount(number) == text
