"""Recorded data: what a file holds, that a rollout from it is the one that was played, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from safetensors.torch import save_file

from tests.control.worlds import MODES, Counting
from upslope import OffPolicyGradient, UsageError, control, train
from upslope.control import Dataset, Envs, MLPPolicy, RandomPolicy, Recorded, record
from upslope.control.make import make


def counting(mode, num_envs=3):
    return Envs(SyncVectorEnv([lambda which=i: Counting(which) for i in range(num_envs)], autoreset_mode=mode), env_id="Counting")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_rollout_from_a_file_is_the_one_that_was_played(mode, tmp_path):
    """The same policy in the same environments, once played by a collector and once recorded, saved, read and collected."""
    with counting(mode) as envs:
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(8,), seed=3)
        played = control.Steps(envs, 11, seed=7)(policy)
    with counting(mode) as envs:
        data = record(envs, policy, 11, seed=7)
    data.save(tmp_path / "steps.safetensors")
    found = Recorded(tmp_path / "steps.safetensors")(policy)
    for name in ("reward", "terminated", "truncated", "mask", "behavior_log_prob", "first_step"):
        assert torch.equal(getattr(found, name), getattr(played, name)), name
    for name in ("value", "next_value"):  # products of matrices round by the number of rows
        torch.testing.assert_close(getattr(found, name), getattr(played, name), rtol=0, atol=2e-6)
    assert all(torch.equal(found.inputs[name], tensor) for name, tensor in played.inputs.items())
    assert data.episodes() == (played.metrics["num_episodes"], pytest.approx(played.metrics["episode_return"]))


def test_rows_are_shuffled_and_every_row_comes_once_before_any_comes_again():
    with counting(MODES[1], 4) as envs:
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(8,))
        data = record(envs, policy, 9)
    whole, some = Recorded(data)(policy), Recorded(data, num_rows=2, seed=1)
    passes = []
    for _ in range(2):
        seen = []
        for _ in range(2):
            rollout = some(policy)
            rows = [int(x) for x in rollout.inputs["observation"][:, 0, 1]]  # the environment's number
            # replaced successors go with their rows; products of matrices round by the number of rows
            assert torch.allclose(rollout.next_value, whole.next_value[rows], rtol=0, atol=1e-6)
            assert torch.equal(rollout.reward, whole.reward[rows])
            seen += rows
        assert sorted(seen) == [0, 1, 2, 3]
        passes.append(seen)
    scaled = Recorded(data, reward_scale=0.5)(policy)
    assert torch.equal(scaled.reward, 0.5 * whole.reward)


class Rich(gymnasium.Env):
    """A Dict observation, three actions of which one is forbidden in every other step."""

    def __init__(self):
        self.observation_space = spaces.Dict({"x": spaces.Box(-1, 1, (2,), np.float32), "k": spaces.Discrete(3)})
        self.action_space = spaces.Discrete(3)
        self.time = 0

    def seen(self):
        legal = np.array([1, 1, self.time % 2], np.int8)
        return {"x": np.full(2, self.time / 10, np.float32), "k": self.time % 3}, {"action_mask": legal}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.seen()

    def step(self, action):
        self.time += 1
        observation, info = self.seen()
        return observation, float(action), self.time == 4, False, info


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_dict_observations_and_action_masks(mode, tmp_path):
    with Envs(SyncVectorEnv([Rich, Rich], autoreset_mode=mode), env_id="Rich") as envs:
        data = record(envs, RandomPolicy(envs), 10)
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(8,))
    data.save(tmp_path / "rich.safetensors")
    rollout = Recorded(Dataset.load(tmp_path / "rich.safetensors"))(policy)
    legal = rollout.inputs["action_mask"].gather(-1, rollout.inputs["action"].unsqueeze(-1)).squeeze(-1)
    assert legal[rollout.mask].all()
    count = rollout.inputs["action_mask"].sum(-1)
    assert torch.allclose(rollout.behavior_log_prob[rollout.mask], -count.double().log().float()[rollout.mask])
    train(OffPolicyGradient(), policy, Recorded(data), iterations=2)


def test_random_actions_of_a_box_have_their_density():
    with make("Pendulum-v1", 4, 0) as envs:
        data = record(envs, RandomPolicy(envs), 50)
        assert data.scaled and torch.allclose(data.tensors["behavior_log_prob"], torch.full((4, 50), -np.log(2.0)).float())
        assert 0.75 < data.tensors["action"].abs().max() <= 1.0
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(8,), normalize_observation=True)
        squashed = MLPPolicy.for_envs(envs, distribution="squashed")
        scaled = MLPPolicy.for_envs(envs, normalize_reward=True)
    rollout = Recorded(data)(policy)
    seen = data.tensors["observation"].flatten(0, 1).double()
    assert torch.allclose(policy.observation_normalizer.moments.mean, seen.mean(0))
    assert torch.equal(Recorded(data)(policy).inputs["observation"], rollout.inputs["observation"])  # taken once
    with pytest.raises(UsageError, match="data: its actions were drawn by Gaussian, the policy draws by SquashedGaussian"):
        Recorded(data)(squashed)
    with pytest.raises(UsageError, match="normalize_reward: recorded rewards"):
        Recorded(data)(scaled)
    unbounded = (spaces.Box(-1, 1, (1,)), spaces.Box(-np.inf, np.inf, (1,)))
    with pytest.raises(UsageError, match="without bounds there is no uniform distribution"):
        RandomPolicy(unbounded)


class Reaching(gymnasium.Env):
    """Actions in [100, 200] × [−∞, ∞] × [−1, ∞] × [0.001, 0.003]; the reward says what the environment was given."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(np.float32([100, -np.inf, -1, 0.001]), np.float32([200, np.inf, np.inf, 0.003]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action[0]), False, False, {}


def test_actions_recorded_in_the_environments_units_are_read_in_the_policys_and_back(tmp_path):
    """A file of before there were units says what it always did, and what a policy without them records means the same."""
    with Envs(SyncVectorEnv([Reaching, Reaching]), env_id="Reaching") as envs:
        own = MLPPolicy.for_envs(envs, hidden_sizes=(8,), seed=3)
        raw = MLPPolicy.for_envs(envs, hidden_sizes=(8,), seed=3, scale_actions=False)
        scaled = record(envs, own, 30, seed=7)
        before = record(envs, raw, 30, seed=7)
    before.save(tmp_path / "before.safetensors")
    old = Dataset.load(changed(before, tmp_path / "old.safetensors", header={"format_version": 1}, absent=("scaled",)))
    assert scaled.scaled and not before.scaled and not old.scaled
    shift = np.log(50) + np.log(0.001)  # Σ log half_range
    for data in (before, old, Dataset.load(tmp_path / "before.safetensors")):
        assert torch.equal(Recorded(data)(raw).inputs["action"], data.tensors["action"])
        rollout = Recorded(data)(own)
        stored, drawn = data.tensors["action"].double(), rollout.inputs["action"].double()
        expected = torch.stack([(stored[..., 0] - 150) / 50, stored[..., 1], stored[..., 2], (stored[..., 3] - 0.002) / 0.001], -1)
        assert torch.allclose(drawn, expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(rollout.behavior_log_prob, data.tensors["behavior_log_prob"] + shift, rtol=1e-5)
    back = Recorded(scaled)(raw)
    given = back.inputs["action"][..., 0].clamp(100, 200)
    assert torch.allclose(given, scaled.tensors["reward"], rtol=1e-6) and given.std() > 10
    assert torch.allclose(back.behavior_log_prob, scaled.tensors["behavior_log_prob"] - shift, rtol=1e-5)


@pytest.fixture(scope="module")
def data():
    with counting(MODES[1]) as envs:
        return record(envs, RandomPolicy(envs), 8, about={"note": "made for a test"})


def changed(data, path, drop=(), header=None, absent=(), **tensors):
    """A file with fields changed, past the checks of :class:`Dataset`."""
    data.save(path)
    found = {name: tensor.contiguous() for name, tensor in {**data.tensors, **tensors}.items() if name not in drop}
    about = {"format_version": 1, "observation_space": None, "action_space": None}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about |= json.loads(file.metadata()["upslope"])
    about = {name: value for name, value in {**about, **(header or {})}.items() if name not in absent}
    save_file(found, path, {"upslope": json.dumps(about)})
    return path


def put(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


BAD = {
    "missing": (lambda d: {"drop": ("reward", "behavior_log_prob")}, "fields are missing: behavior_log_prob, reward"),
    "no observation": (lambda d: {"drop": ("observation",)}, "fields are missing: observation"),
    "no successor": (lambda d: {"drop": ("successor",)}, "fields are missing: successor"),
    "too short": (
        lambda d: {"behavior_log_prob": d["behavior_log_prob"][:, :-1]},
        r"behavior_log_prob: expected shape \[3, 8\], found \[3, 7\]",
    ),
    "no last observation": (
        lambda d: {"observation": d["observation"][:, :-1]},
        r"observation: expected shape \[3, 9, 3\], found \[3, 8, 3\]",
    ),
    "never taken": (
        lambda d: {"behavior_log_prob": put(d["behavior_log_prob"], (0, 1), -torch.inf)},
        r"behavior_log_prob: expected finite numbers, found -inf at index \[0, 1\]; an action that was taken has a probability above 0",
    ),
    "probabilities": (
        lambda d: {"behavior_log_prob": d["behavior_log_prob"].exp()},
        "expected logarithms of probabilities, at most 0, found 0.5",
    ),
    "NaN reward": (
        lambda d: {"reward": put(d["reward"], (1, 0), torch.nan)},
        r"reward: expected finite numbers, found nan at index \[1, 0\]",
    ),
    "NaN observation": (
        lambda d: {"observation": put(d["observation"], (1, 0, 2), torch.nan)},
        "observation: expected finite numbers, found nan",
    ),
    "flags as numbers": (lambda d: {"terminated": d["terminated"].float()}, "terminated: expected dtype bool, found float32"),
    "unknown action": (lambda d: {"action": put(d["action"], (2, 0), 2)}, r"action: 2 at index \[2, 0\] is outside Discrete\(2\)"),
    "real actions": (lambda d: {"action": d["action"].float()}, "action: expected integers"),
    "nothing real": (
        lambda d: {"mask": d["mask"] & False, **{k: torch.zeros_like(d[k]) for k in ("reward", "terminated", "truncated")}},
        "every step is masked",
    ),
    "rewarded reset": (lambda d: {"mask": put(d["mask"], (0, 0), False)}, "masked"),
    "successor beyond": (lambda d: {"successor_at": d["successor_at"] + 100}, "successor_at: expected rows and columns within"),
    "successor of nothing": (
        lambda d: {"successor_at": d["successor_at"] * 0},
        r"successor_at: no episode ended at row and column \[0, 0\]",
    ),
    "successors without a place": (lambda d: {"drop": ("successor_at",)}, "fields are missing: successor_at"),
    "before the beginning": (lambda d: {"first_step": d["first_step"] - 1}, "first_step: expected integers ≥ 0"),
    "half a step": (lambda d: {"first_step": d["first_step"].float()}, "first_step: expected integers ≥ 0"),
    "a mask for three": (
        lambda d: {"action_mask": torch.ones(3, 9, 3, dtype=torch.bool)},
        r"action_mask: expected shape \[3, 9, 2\], found \[3, 9, 3\]",
    ),
    "a forbidden action": (
        lambda d: {"action_mask": torch.zeros(3, 9, 2, dtype=torch.bool)},
        "action: the one at row 0, column 0 is not legal by its action_mask",
    ),
    "no version": (lambda d: {"header": {"format_version": None}}, "newer upslope"),
    "damaged space": (lambda d: {"header": {"action_space": {"type": "Disc"}}}, "space description"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_told_in_one_line(case, data, tmp_path):
    change, message = BAD[case]
    path = changed(data, tmp_path / "bad.safetensors", **change(data.tensors))
    with pytest.raises(UsageError, match=message) as caught:
        Recorded(path)
    assert str(caught.value).startswith(f"data: {path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_mask_is_left_out_only_where_no_reset_step_can_be(mode, tmp_path):
    """Only environments that are reset by a step of their own record such steps; the file must not be read as if it had none."""
    with counting(mode) as envs:
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(8,))
        whole = record(envs, policy, 8)
    path = changed(whole, tmp_path / "no-mask.safetensors", drop=("mask",))
    if whole.tensors["mask"].all():
        found, expected = Recorded(path)(policy), Recorded(whole)(policy)
        assert torch.equal(found.mask, expected.mask) and torch.equal(found.next_value, expected.next_value)
    else:
        with pytest.raises(
            UsageError, match="mask: it is missing and the end at row 0, column 2 is not in successor_at, so column 3 may be"
        ):
            Recorded(path)


def test_an_end_in_the_last_column_has_nothing_behind_it(tmp_path):
    with counting(MODES[0], 1) as envs:
        whole = record(envs, RandomPolicy(envs), 3)
    assert whole.tensors["terminated"][0, -1] or whole.tensors["truncated"][0, -1]
    assert Dataset.load(changed(whole, tmp_path / "one", drop=("mask",))).num_steps == 3


def test_a_truncated_step_needs_its_true_successor(data, tmp_path):
    """Its value would else be that of the next episode's start; what a terminated one led to is worth nothing."""
    at = data.tensors["successor_at"]
    truncated = data.tensors["truncated"][tuple(at.T)]
    without = [{name: data.tensors[name][kept] for name in ("successor", "successor_at")} for kept in (truncated, ~truncated)]
    assert Dataset.load(changed(data, tmp_path / "terminated", **without[0])).num_steps == data.num_steps
    row, column = at[truncated][0].tolist()
    with pytest.raises(UsageError, match=f"successor_at: the end at row {row}, column {column} is not in successor_at, so what the trunc"):
        Dataset.load(changed(data, tmp_path / "truncated", **without[1]))


def test_files_that_are_no_data_sets(data, tmp_path):
    with pytest.raises(UsageError, match="data: there is no file"):
        Recorded(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is a folder; name the file"):
        Recorded(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="is no safetensors file"):
        Recorded(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(UsageError, match="its header has no 'upslope'"):
        Recorded(tmp_path / "other")
    whole = tmp_path / "whole"
    data.save(whole)
    assert Dataset.load(whole).about["note"] == "made for a test"
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(UsageError, match="is no safetensors file"):
        Recorded(tmp_path / "cut")
    with pytest.raises(UsageError, match="num_rows: expected an integer from 1 to 3"):
        Recorded(data, num_rows=4)
    for options in ({"num_rows": 1.5}, {"reward_scale": float("nan")}, {"reward_scale": "a"}, {"seed": -1}, {"data": None}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}: expected"):
            Recorded(**{"data": data, **options})
    with pytest.raises(UsageError, match="reward: expected a tensor, found NoneType"):
        replace(data, tensors={**data.tensors, "reward": None})
    with make("CartPole-v1", 1, 0) as envs, pytest.raises(UsageError, match="data: it was recorded in Counting with observation_space"):
        Recorded(data)(MLPPolicy.for_envs(envs))
