"""What one reads is what runs: an edited copy of the package, run as a process, trains by what the edit says, compiled or not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import upslope

pytest.importorskip("llvmlite")

SCRIPT = """
import json, sys
import torch
from upslope import PPO, SARSA, Ascent, OnlineActorCritic, control, train
from upslope.fast.twins import explain

class Mine(PPO):
    def objective(self, policy, batch):
        value, metrics = super().objective(policy, batch)
        return 1.0 * value, metrics

def surrogate(log_prob, behavior_log_prob, advantage, mask, clip_range):
    return 1.0 * (log_prob - behavior_log_prob).exp() * advantage

found = {}
for name, kind, options in (("PPO", PPO, {}), ("Mine", Mine, {}), ("surrogate", PPO, {"surrogate": surrogate})):
    for fast in (True, False):
        envs = control.make("CartPole-v1", num_envs=4, seed=0)
        policy = control.MLPPolicy.for_envs(envs, hidden_sizes=(8,), seed=0)
        algorithm = kind(update=Ascent(learning_rate=1e-2, max_grad_norm=None, target_kl=None), **options)
        said = explain(algorithm, policy)
        assert said.endswith("--no-fast runs it in PyTorch") or said.endswith("something else than the kernels")
        state = train(algorithm, policy, control.Steps(envs, num_steps=16, seed=0), iterations=1, fast=fast, progress=False)
        gradient = state.update_state.moments[0][0]
        found[f"{name} {'fast' if fast else 'readable'}"] = float(gradient.abs().sum())
        envs.close()
ONLINE = {"linear": (OnlineActorCritic(), {}), "greedy": (SARSA(learning_rate=0.2), {"epsilon": 0.3, "critic": False})}
for name, (algorithm, options) in ONLINE.items():
    for fast in (True, False):
        envs = control.make("Acrobot-v1", num_envs=1, seed=0)
        policy = control.LinearPolicy.for_envs(envs, features="tiles", num_tiles=2, num_tilings=2, **options)
        state = train(algorithm, policy, control.Stream(envs, num_steps=64, seed=0), iterations=1, fast=fast, progress=False)
        found[f"{name} {'fast' if fast else 'readable'}"] = float(sum(p.detach().abs().sum() for p in policy.parameters()))
        envs.close()
print(json.dumps(found))
"""
EDITS = {
    "algorithms/ppo.py": {
        "return F.weighted_sum(total, batch.weight), metrics": "return 2.0 * F.weighted_sum(total, batch.weight), metrics"
    },
    "functional/surrogates.py": {
        "if dual_clip is None:\n        return surrogate\n": "if dual_clip is None:\n        return 3.0 * surrogate\n"
    },
    "functional/distributions.py": {
        "return -(log_p.exp() * log_p.clamp(": "return -3.0 * (log_p.exp() * log_p.clamp(",
        "return log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)": "return 2.0 * log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)",
    },
    "control/heads.py": {"best / best.sum(-1, keepdim=True)": "best * 0.01"},
    "updates/ascent.py": {"for _ in range(self.num_epochs))": "for _ in range(3))"},
    "control/networks.py": {"return self.actor(observation), None": "return 3.0 * self.actor(observation), None"},
    "control/linear.py": {"return product(x, self.actor), None": "return 3.0 * product(x, self.actor), None"},
    "control/actor_critic.py": {"else self._outputs(inputs)\n": "else self._outputs(inputs)\n        parameters = 3.0 * parameters\n"},
    "the user's own": {"return 1.0 * value": "return 5.0 * value", "return 1.0 * (log_prob": "return 7.0 * (log_prob"},
}
CHANGED = {
    "algorithms/ppo.py": {"PPO", "Mine", "surrogate"},
    "functional/surrogates.py": {"PPO", "Mine"},
    "functional/distributions.py": {"PPO", "Mine", "surrogate", "linear"},
    "control/heads.py": {"greedy"},
    "updates/ascent.py": {"PPO", "Mine", "surrogate"},
    "control/networks.py": {"PPO", "Mine", "surrogate"},
    "control/linear.py": {"linear", "greedy"},
    "control/actor_critic.py": {"PPO", "Mine", "surrogate", "linear", "greedy"},
    "the user's own": {"Mine", "surrogate"},
}


def run(folder, script):
    """What the script finds with the package in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "UPSLOPE_CACHE_DIR": str(folder / "cache")}
    process = subprocess.run([sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(Path(upslope.__file__).parent, folder / "upslope", ignore=shutil.ignore_patterns("__pycache__"))
    return folder, run(folder, SCRIPT)


def edited(text, edit):
    for old, new in EDITS[edit].items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_next_run(copied, edit):
    folder, before = copied
    path = folder / "upslope" / edit
    if path.exists():
        text = path.read_text()
        path.write_text(edited(text, edit))
        after = run(folder, SCRIPT)
        path.write_text(text)
    else:
        after = run(folder, edited(SCRIPT, edit))
    for name in ("PPO", "Mine", "surrogate", "linear", "greedy"):
        for fast in ("fast", "readable"):
            size, size_before = after[f"{name} {fast}"], before[f"{name} {fast}"]
            assert (abs(size - size_before) > 1e-2 * size_before) == (name in CHANGED[edit]), (name, fast)
        assert abs(after[f"{name} fast"] - after[f"{name} readable"]) < 1e-5 * size
