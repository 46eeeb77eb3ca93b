"""An iteration again: what it saw, whether it is the same, and runs that stopped because nothing was finite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Command, good
from upslope import Run
from upslope.run.config import RunConfig
from upslope.run.folder import Output
from upslope.run.replay import replay

SMALL = {"num_envs": 2, "num_steps": 16, "hidden_sizes": (4,), "eval_episodes": 2, "total_steps": 192}
MODULE = """
from dataclasses import dataclass
from upslope import PPO

@dataclass(frozen=True, kw_only=True)
class Fragile(PPO):
    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        return value if batch.behavior_log_prob.mean() < -0.69 else value * float("nan"), metrics
"""


@pytest.fixture(scope="module")
def ppo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "run"
    RunConfig.of("ppo", "CartPole-v1", num_minibatches=2, num_epochs=1, eval_every=64, **SMALL).run(Output(out=path, quiet=True))
    return path


@pytest.mark.parametrize("iteration", [1, 3, 7])
def test_an_iteration_again_is_the_same_to_the_bit_and_leaves_the_folder_alone(ppo: Path, iteration: int):
    before = {path: path.read_bytes() for path in ppo.rglob("*") if path.is_file()}
    run = Run.load(ppo)
    found = replay(run, RunConfig.from_config(run.config), iteration)
    assert (found.differs, found.start) == ([], 0 if iteration == 1 else 1)
    assert len(found.compared) > 12
    assert before == {path: path.read_bytes() for path in ppo.rglob("*") if path.is_file()}
    assert found.tensors["batch/advantage"].shape == found.tensors["ratio"].shape
    moved = {name.partition("/")[2] for name in found.tensors if name.startswith("gradient/")}
    assert moved == {name for name, _ in run.policy.named_parameters()}
    assert any(bool((found.tensors[f"after/{name}"] != found.tensors[f"before/{name}"]).any()) for name in moved)


def test_the_last_one_ends_at_the_saved_policy_and_its_gradient_is_that_of_the_objective(ppo: Path):
    run = Run.load(ppo)
    config = RunConfig.from_config(run.config)
    found = replay(run, config, 7)
    saved = run.policy.state_dict()
    assert all(torch.equal(found.tensors[f"after/{name}"], tensor) for name, tensor in saved.items())
    policy = run.policy.requires_grad_(True)
    observation, action = found.tensors["batch/inputs/observation"], found.tensors["batch/inputs/action"]
    again = policy.evaluate(observation=observation, action=action).log_prob.detach() - found.tensors["batch/behavior_log_prob"]
    assert torch.allclose(again.exp(), found.tensors["ratio"])
    # at ratio 1 the clipped surrogate's slope is the policy gradient's: Σ w A ∇log π
    policy.load_state_dict({name: found.tensors[f"before/{name}"] for name in saved})
    log_prob = policy.evaluate(observation=observation, action=action).log_prob
    (slope,) = torch.autograd.grad(
        (found.tensors["batch/weight"] * found.tensors["batch/advantage"] * log_prob).sum(), policy.actor[0].weight
    )
    assert config.algorithm.entropy_coef == 0.0
    assert torch.allclose(slope, found.tensors["gradient/network.actor.0.weight"], atol=1e-6)


@pytest.mark.parametrize("method", ["actor-critic", "trpo", "reinforce"])
def test_other_methods(method: str, tmp_path: Path):
    taken = {"actor-critic": ("num_steps", "total_steps"), "trpo": SMALL, "reinforce": ("num_envs", "hidden_sizes", "total_steps")}[method]
    RunConfig.of(method, "CartPole-v1", **{name: SMALL[name] for name in taken}).run(Output(out=tmp_path / "run", quiet=True))
    run = Run.load(tmp_path / "run")
    found = replay(run, RunConfig.from_config(run.config), 2)
    assert found.differs == [] and found.compared
    assert ("ratio" in found.tensors) == (method != "actor-critic")


def test_a_language_run(tmp_path: Path):
    settings = {"warm_start_iterations": 60, "iterations": 4, "eval_episodes": 2, "group_size": 4, "num_prompts": 8, "max_tokens": 3}
    RunConfig.of("grpo", model="tiny", task="addition", **settings).run(Output(out=tmp_path / "run", quiet=True))
    run = Run.load(tmp_path / "run")
    found = replay(run, RunConfig.from_config(run.config), 3)
    assert found.differs == []
    assert {"batch/advantage", "batch/inputs/completion_ids", "ratio"} <= found.tensors.keys()


def test_the_command_writes_what_it_saw_and_a_difference_is_exit_code_1(ppo: Path, tmp_path: Path, cli: Command):
    answer = good(cli("replay", ppo, "--iteration", "4", "--out", tmp_path / "seen.safetensors"))
    assert "iteration 4 again, from the checkpoint of iteration 1:" in answer.out and "equal to the bit" in answer.out
    assert "batch/advantage" in load_file(tmp_path / "seen.safetensors")
    rows = [json.loads(line) for line in (ppo / "metrics.jsonl").read_text().splitlines()]
    rows[3]["entropy"] += 1e-9
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "config.json").write_bytes((ppo / "config.json").read_bytes())
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = cli("replay", copy, "--iteration", "4")
    assert answer.code == 1 and "from the beginning: not the same: metrics: entropy" in answer.out


def test_what_cannot_be_played_again(ppo: Path, cli: Command):
    for words in (["--iteration", "8"], []):
        answer = cli("replay", ppo, *words)
        assert answer.code == 2 and "iteration: expected one of this run's iterations, 1 to 7, found" in answer.err


def test_a_run_that_diverged_leaves_a_capsule_that_repeats_it(tmp_path: Path, cli: Command):
    (tmp_path / "fragile.py").write_text(MODULE)
    words = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "2", "--total-steps", "6400", "--out", "run"]
    answer = cli("train", "fragile:Fragile", "CartPole-v1", *words)
    assert answer.code == 1 and "diverged: objective is not finite" in answer.err
    (capsule,) = (tmp_path / "run").glob("capsule-*")
    recorded = json.loads((capsule / "capsule.json").read_text())
    assert recorded["iteration"] == Run.load(tmp_path / "run").metrics()[-1]["iteration"] + 1 > 2
    assert f"`upslope replay run/{capsule.name}` repeats the iteration that diverged" in answer.out
    answer = good(cli("replay", capsule, "--algorithm", "fragile:Fragile"))
    assert "from the checkpoint of iteration 1: it fails as recorded" in answer.out and recorded["error"] in answer.out
    batch = load_file(capsule / "batch.safetensors")
    batch["batch/advantage"][0] += 1.0
    save_file(batch, capsule / "batch.safetensors")
    answer = cli("replay", capsule, "--algorithm", "fragile:Fragile")
    assert answer.code == 1 and "the minibatch that failed: batch/advantage" in answer.out
    for iteration in ("next", 0, -5, True, 2**70):
        (capsule / "capsule.json").write_text(json.dumps({"format_version": 1, "iteration": iteration, "error": "it failed"}))
        answer = cli("replay", capsule, "--algorithm", "fragile:Fragile")
        assert answer.code == 2 and "capsule.json is damaged: it names no iteration of this run and no error" in answer.err


@pytest.mark.parametrize("said", ["x", None, 2**70, True, [1]])
def test_how_far_a_run_came_is_not_taken_from_a_damaged_summary(said: object, ppo: Path, tmp_path: Path, cli: Command):
    run = Path(shutil.copytree(ppo, tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "iterations": said}))
    assert "iteration 3 again" in good(cli("replay", run, "--iteration", "3")).out
    assert "1 to 7, found 8" in cli("replay", run, "--iteration", "8").err
