"""Policies end to end: every observation space with every action space, masks, single and batched, saving, own networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.control.test_spaces import SPACES, batch_of
from upslope import PPO, control, train
from upslope.control.heads import Gaussian
from upslope.control.images import Image
from upslope.control.networks import CNN, MLP
from upslope.control.policy import ActorCritic, CNNPolicy, MLPPolicy, policy_for, policy_from_description
from upslope.errors import RunFault, UsageError
from upslope.records import Evaluation, Sample

VECTOR, DISCRETE = spaces.Box(-1, 1, (4,)), spaces.Discrete(3)
BOX = spaces.Box(np.float32([-1, -2]), np.float32([1, 3]))
ACTIONS: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (spaces.Discrete(3, start=2), {}),
    "multi-discrete": (spaces.MultiDiscrete([3, 2]), {}),
    "multi-binary": (spaces.MultiBinary(3), {}),
    "gaussian": (BOX, {}),
    "gaussian, std by state": (BOX, {"state_dependent_std": True}),
    "squashed": (BOX, {"distribution": "squashed"}),
    "beta": (BOX, {"distribution": "beta"}),
}
EVERY = pytest.mark.parametrize("action", ACTIONS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


# -------------------------------------------------------------------------------------------------- sampling and scoring


@pytest.mark.parametrize("observation", SPACES)
@EVERY
def test_scores_are_those_of_the_draw_for_every_pair_of_spaces(observation: str, action: str) -> None:
    """The ratio on recorded data is one, in whichever shape the data comes back."""
    action_space, options = ACTIONS[action]
    policy = policy_for((SPACES[observation], action_space), hidden_sizes=(16,), **options)
    _, batch = batch_of(SPACES[observation], 6)
    inputs = policy.inputs(batch)
    sample = policy.sample(inputs, generator=generator())
    assert sample.action.shape == (6, *policy.head.stored_shape)
    assert sample.log_prob.shape == (6,) and sample.value is not None and sample.value.shape == (6,)
    assert not sample.log_prob.requires_grad and not sample.value.requires_grad
    recorded = {**inputs, "action": sample.action}
    for lead in ((6,), (2, 3), (6, 1), (1, 2, 3)):
        shaped = {name: tensor.reshape(*lead, *tensor.shape[1:]) for name, tensor in recorded.items()}
        again = policy(**shaped)
        assert again.value is not None
        for scored, drawn in ((again.log_prob, sample.log_prob), (again.value, sample.value)):
            assert scored.shape == lead
            torch.testing.assert_close(scored.reshape(6), drawn, rtol=1e-5, atol=1e-5)
        assert again.entropy.shape == lead
        torch.testing.assert_close(policy.distribution(**shaped).log_prob(shaped["action"]), again.log_prob, rtol=0, atol=0)
    value = policy.value(inputs)
    assert value is not None and not value.requires_grad
    torch.testing.assert_close(value, sample.value, rtol=1e-5, atol=1e-5)


@EVERY
def test_every_parameter_learns(action: str) -> None:
    action_space, options = ACTIONS[action]
    for space in (VECTOR, SPACES["nested"]):
        policy = policy_for((space, action_space), hidden_sizes=(8,), **options)
        _, batch = batch_of(space, 5)
        inputs = policy.inputs(batch)
        scored = policy.evaluate(**inputs, action=policy.sample(inputs, generator=generator()).action)
        assert scored.value is not None and (scored.value == 0).all()  # until the last layer has moved
        with torch.no_grad():
            policy.network.critic.get_parameter("2.weight" if isinstance(policy, MLPPolicy) else "weight").fill_(0.1)  # pyright: ignore
        scored = policy.evaluate(**inputs, action=policy.sample(inputs, generator=generator()).action)
        (scored.log_prob.sum() + scored.value.sum()).backward()
        for name, parameter in policy.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@EVERY
def test_actions_fit_the_environment_and_greedy_ones_do_not_change(action: str) -> None:
    action_space, options = ACTIONS[action]
    policy = MLPPolicy.for_envs((VECTOR, action_space), **options)
    observation = rows(5)
    for greedy in (True, False):
        batch, state = policy.act(observation, greedy=greedy, generator=generator(), state="kept")
        single, _ = policy.act(observation[0], greedy=greedy, generator=generator())
        assert state == "kept" and len(batch) == 5
        assert all(action_space.contains(row) for row in batch) and action_space.contains(single)
    greedy_batch = policy.act(observation)[0]
    torch.manual_seed(1)
    np.testing.assert_array_equal(policy.act(observation)[0], greedy_batch)
    for index in range(5):
        np.testing.assert_allclose(policy.act(observation[index])[0], greedy_batch[index], rtol=1e-5, atol=1e-6)


def test_act_draws_from_the_generator_it_is_given() -> None:
    policy = MLPPolicy.for_envs((VECTOR, DISCRETE))
    draws = [policy.act(rows(200), greedy=False, generator=generator(seed))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    assert set(draws[0]) == {0, 1, 2}


@pytest.mark.parametrize("observation", SPACES)
def test_one_observation_acts_like_a_batch_of_one(observation: str) -> None:
    policy = policy_for((SPACES[observation], DISCRETE), hidden_sizes=(16,))
    singles, batch = batch_of(SPACES[observation], 4)
    together = policy.act(batch)[0]
    assert [int(policy.act(single)[0]) for single in singles] == together.tolist()


def test_a_scalar_box_action_is_an_array() -> None:
    policy = MLPPolicy.for_envs((VECTOR, spaces.Box(-1, 1, ())))
    single = policy.act(rows(1)[0])[0]
    assert isinstance(single, np.ndarray) and single.shape == () and policy.act(rows(3))[0].shape == (3,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY
def test_a_policy_on_another_device_draws_the_same_actions(action: str) -> None:
    action_space, options = ACTIONS[action]
    policy = MLPPolicy.for_envs((VECTOR, action_space), normalize_observation=True, **options)
    moved = policy.frozen().to("cuda")
    one, other = (p.sample(p.inputs(rows(64)), generator=generator()) for p in (policy, moved))
    assert other.action.device.type == "cuda"
    torch.testing.assert_close(other.action.cpu(), one.action, rtol=1e-4, atol=1e-4)  # another device rounds otherwise
    np.testing.assert_allclose(moved.act(rows(64))[0], policy.act(rows(64))[0], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------------- masks


def test_masked_actions_are_neither_drawn_nor_greedy() -> None:
    policy = MLPPolicy.for_envs((VECTOR, DISCRETE))
    observation = rows(300)
    mask = np.random.default_rng(0).random((300, 3)) < 0.5
    mask[np.arange(300), np.random.default_rng(1).integers(0, 3, 300)] = True
    inputs = policy.inputs(observation, action_mask=mask.astype(np.int8))  # Gymnasium's masks are int8
    assert inputs["action_mask"].dtype == torch.bool
    sample = policy.sample(inputs, generator=generator())
    assert mask[np.arange(300), sample.action].all()
    scored = policy.evaluate(**inputs, action=sample.action)
    torch.testing.assert_close(scored.log_prob, sample.log_prob, rtol=0, atol=1e-6)
    counts = torch.from_numpy(mask).sum(-1)
    assert (scored.entropy <= counts.log() + 1e-6).all() and (scored.entropy[counts == 1] == 0).all()
    for greedy in (True, False):
        chosen = policy.act(observation, action_mask=mask, greedy=greedy, generator=generator())[0]
        assert mask[np.arange(300), chosen].all()
    assert mask[0, int(policy.act(observation[0], action_mask=mask[0])[0])]


def test_the_forms_of_a_multi_discrete_mask_agree() -> None:
    policy = MLPPolicy.for_envs((VECTOR, spaces.MultiDiscrete([3, 2])))
    first, second = np.array([[1, 0, 1], [0, 1, 0]], np.int8), np.array([[0, 1], [1, 1]], np.int8)
    by_env = np.empty(2, object)
    by_env[:] = [(first[0], second[0]), (first[1], second[1])]
    forms = [np.concatenate([first, second], 1), (first, second), by_env]
    masks = [policy.inputs(rows(2), action_mask=form)["action_mask"] for form in forms]
    assert masks[0].tolist() == [[True, False, True, False, True], [False, True, False, True, True]]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    for single in ((first[0], second[0]), forms[0][0]):
        chosen = policy.act(rows(2)[0], action_mask=single)[0]
        assert chosen[0] != 1 and chosen[1] == 1


def test_a_state_without_a_legal_action_is_a_fault() -> None:
    policy = MLPPolicy.for_envs((VECTOR, DISCRETE))
    with pytest.raises(RunFault, match="no action is legal in environment 1"):
        policy.inputs(rows(2), action_mask=[[1, 0, 0], [0, 0, 0]])
    multi = MLPPolicy.for_envs((VECTOR, spaces.MultiDiscrete([3, 2])))
    with pytest.raises(RunFault, match="no action is legal in environment 0"):
        multi.inputs(rows(1), action_mask=[[1, 1, 1, 0, 0]])


def test_wrong_masks_are_refused() -> None:
    policy = MLPPolicy.for_envs((VECTOR, DISCRETE))
    for wrong in (np.ones((2, 4)), np.ones(3), np.ones((3, 3))):
        with pytest.raises(UsageError, match=r"action_mask: expected shape \(2, 3\)"):
            policy.inputs(rows(2), action_mask=wrong)
    with pytest.raises(UsageError, match="needs a Discrete or MultiDiscrete"):
        MLPPolicy.for_envs((VECTOR, BOX)).inputs(rows(2), action_mask=np.ones((2, 4)))


# ---------------------------------------------------------------------------------------------------------- construction


def test_parameters_come_in_the_order_of_the_fast_paths() -> None:
    policy = MLPPolicy.for_envs((VECTOR, BOX), hidden_sizes=(8, 6), normalize_observation=True)
    shapes = [tuple(parameter.shape) for parameter in policy.parameters()]
    network = [(8, 4), (8,), (6, 8), (6,)]
    assert shapes == [*network, (2, 6), (2,), *network, (1, 6), (1,), (2,)]
    own = [*policy.actor.parameters(), *policy.critic.parameters(), policy.log_std]  # pyright: ignore[reportOptionalMemberAccess]
    assert all(a is b for a, b in zip(policy.parameters(), own, strict=True))
    assert isinstance(policy.head, Gaussian) and policy.activation == "tanh"
    assert MLPPolicy.for_envs((VECTOR, DISCRETE)).log_std is None
    assert MLPPolicy.for_envs((VECTOR, BOX), state_dependent_std=True).log_std is None


def test_initial_weights_are_orthogonal_with_the_stated_gains() -> None:
    policy = MLPPolicy.for_envs((VECTOR, DISCRETE), hidden_sizes=(32, 32))
    for network, last in ((policy.actor, 0.01), (policy.critic, 0.0)):
        assert network is not None
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        for layer, gain in zip(layers, (2**0.5, 2**0.5, last), strict=True):
            singular = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-5, atol=1e-6)
            assert layer.bias is not None and (layer.bias == 0).all()


@pytest.mark.parametrize("space", ["vector", "nested"])
def test_the_seed_fixes_the_weights_and_the_global_state_stays(space: str) -> None:
    before = torch.get_rng_state()
    make = [policy_for((SPACES[space], BOX), seed=seed, normalize_observation=True) for seed in (3, 3, 4)]
    own = [ActorCritic(OwnNetwork, (VECTOR, DISCRETE), seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    for one, same, other in (make, own):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_networks_alone_draw_from_their_own_generator_too() -> None:
    def make(seed: int) -> list[nn.Module]:
        return [MLP(4, 2, seed=seed), CNN({"image": Image((3, 36, 36), None)}, 2, 2, hidden_sizes=(8,), seed=seed)]

    before = torch.get_rng_state()
    first = make(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    for one, same, other in zip(first, make(3), make(4), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_no_hidden_layer_is_a_linear_policy() -> None:
    policy = MLPPolicy.for_envs((VECTOR, DISCRETE), hidden_sizes=())
    assert [tuple(p.shape) for p in policy.parameters()] == [(3, 4), (3,), (1, 4), (1,)]


def test_without_a_critic_there_is_no_value() -> None:
    for space in (VECTOR, SPACES["image"]):
        policy = policy_for((space, DISCRETE), critic=False)
        inputs = policy.inputs(batch_of(space, 3)[1])
        sample = policy.sample(inputs, generator=generator())
        assert sample.value is None and policy.value(inputs) is None
        assert policy.evaluate(**inputs, action=sample.action).value is None


@pytest.mark.parametrize("side", [16, 20, 35, 36, 64, 84])
def test_images_of_every_size(side: int) -> None:
    space = spaces.Box(0, 255, (side, side + 3, 3), np.uint8)
    policy = CNNPolicy.for_envs((space, DISCRETE), hidden_sizes=(8,))
    assert isinstance(policy.network, CNN)
    assert policy.act(batch_of(space, 2)[1])[0].shape == (2,)


def test_pixels_reach_the_network_between_zero_and_one() -> None:
    policy = CNNPolicy.for_envs((SPACES["image"], DISCRETE), hidden_sizes=(8,))
    seen: list[Tensor] = []
    policy.network.trunks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # pyright: ignore
    inputs = policy.inputs(batch_of(SPACES["image"], 2)[1])
    policy.sample(inputs)
    assert inputs["image"].dtype == torch.uint8
    assert seen[0].dtype == torch.float32 and 0.9 < float(seen[0].max()) <= 1 and float(seen[0].min()) >= 0


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("vector", {"hidden_sizes": (64, 0)}, "hidden_sizes: expected positive integers"),
    ("vector", {"hidden_sizes": (64.0,)}, "hidden_sizes: expected positive integers"),
    ("vector", {"activation": "tahn"}, "did you mean 'tanh'"),
    ("vector", {"distribution": "betta"}, "did you mean 'beta'"),
    ("vector", {"reward_gamma": 2.0, "normalize_reward": True}, "gamma: expected"),
    ("image", {"normalize_observation": True}, "normalize_observation"),
]


@pytest.mark.parametrize(("space", "options", "words"), WRONG, ids=str)
def test_wrong_options_are_refused_in_one_line(space: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        policy_for((SPACES[space], DISCRETE), **options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_other_policy_is_named_where_this_one_does_not_fit() -> None:
    with pytest.raises(UsageError, match="has images; use CNNPolicy"):
        MLPPolicy.for_envs((SPACES["nested"], DISCRETE))
    with pytest.raises(UsageError, match="taken for an image; use MLPPolicy, or image='yes'"):
        CNNPolicy.for_envs((VECTOR, DISCRETE))
    with pytest.raises(UsageError, match="action space Text"):
        MLPPolicy.for_envs((VECTOR, spaces.Text(3)))


# --------------------------------------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize("observation", ["vector", "nested", "tuple"])
@EVERY
def test_a_policy_comes_back_from_json_and_safetensors(observation: str, action: str, tmp_path: Path) -> None:
    action_space, options = ACTIONS[action]
    policy = policy_for(
        (SPACES[observation], action_space), hidden_sizes=(8,), seed=5, normalize_observation=True, normalize_reward=True, **options
    )
    _, batch = batch_of(SPACES[observation], 4)
    policy.inputs(batch, update=True)
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator())
    save_file(policy.state_dict(), tmp_path / "policy.safetensors")
    description = json.loads(json.dumps(policy.describe(), allow_nan=False))
    again = policy_from_description(description)
    again.load_state_dict(load_file(tmp_path / "policy.safetensors"))
    assert type(again) is type(policy) and again.describe() == policy.describe()
    np.testing.assert_array_equal(again.act(batch)[0], policy.act(batch)[0])
    inputs = policy.inputs(batch)
    assert all(torch.equal(again.inputs(batch)[name], inputs[name]) for name in inputs)
    one, two = (p.sample(inputs, generator=generator(1)) for p in (policy, again))
    assert torch.equal(one.action, two.action) and torch.equal(one.log_prob, two.log_prob)
    assert one.value is not None and two.value is not None and torch.equal(one.value, two.value)


def test_every_option_is_in_the_description() -> None:
    options: dict[str, Any] = {
        "hidden_sizes": [5],
        "activation": "relu",
        "critic": False,
        "distribution": "squashed",
        "epsilon": None,
        "image": "no",
        "state_dependent_std": True,
        "log_std": -0.5,
        "scale_actions": False,
        "normalize_observation": True,
        "normalize_reward": True,
        "normalize_value": False,
        "reward_gamma": 0.9,
        "seed": 7,
    }
    description = MLPPolicy.for_envs((VECTOR, BOX), **options).describe()
    assert description.pop("class") == "MLPPolicy"
    assert {**description, **options} == description and len(description) == len(options) + 2


def test_a_description_from_before_actions_were_scaled_acts_as_it_did() -> None:
    policy = MLPPolicy.for_envs((VECTOR, spaces.Box(100, 200, (1,))), seed=3)
    old = {name: value for name, value in policy.describe().items() if name != "scale_actions"}
    again = policy_from_description(old)
    again.load_state_dict(policy.state_dict())
    observation = np.full(VECTOR.shape, 0.5, np.float32)
    assert policy.act(observation)[0] == pytest.approx(150, abs=5) and again.act(observation)[0] == 100
    assert policy_from_description(again.describe()).act(observation)[0] == 100
    assert policy_from_description(policy.describe()).head == policy.head


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class": "MLPolicy"}, "did you mean 'MLPPolicy'"),
        ({"class": None}, "unknown policy class"),
        ({"observation_space": None}, "space description: damaged"),
        ({"colour": "red"}, "colour"),
        ({"hidden_sizes": None}, "hidden_sizes"),
        ({"action_space": ...}, "'action_space' is missing"),
    ],
    ids=str,
)
def test_a_damaged_description_is_one_line(change: dict[str, Any], words: str) -> None:
    description = {**MLPPolicy.for_envs((VECTOR, DISCRETE)).describe(), **change}
    with pytest.raises(UsageError) as error:
        policy_from_description({key: value for key, value in description.items() if value is not ...})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_frozen_is_a_copy_that_does_not_learn() -> None:
    policy = MLPPolicy.for_envs((VECTOR, BOX))
    frozen = policy.frozen()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1)
    fresh = MLPPolicy.for_envs((VECTOR, BOX))
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(frozen.parameters(), fresh.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in policy.parameters())
    inputs = policy.inputs(rows(4))
    assert not frozen.evaluate(**inputs, action=frozen.sample(inputs).action).log_prob.requires_grad


# ------------------------------------------------------------------------------------------------------------ own networks


class OwnNetwork(nn.Module):
    def __init__(self, num_inputs: int, num_parameters: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(num_inputs, 16), nn.ReLU(), nn.Dropout(0.5))
        self.actor, self.critic = nn.Linear(16, num_parameters), nn.Linear(16, 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        assert observation.dim() == 2
        hidden = self.body(observation)
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


@EVERY
def test_a_network_of_one_s_own(action: str) -> None:
    action_space, options = ACTIONS[action]
    policy = ActorCritic(OwnNetwork, (VECTOR, action_space), **options)
    inputs = policy.inputs(rows(6))
    sample = policy.sample(inputs, generator=generator())
    recorded = {name: tensor.reshape(2, 3, *tensor.shape[1:]) for name, tensor in {**inputs, "action": sample.action}.items()}
    scored = policy(**recorded)
    assert scored.log_prob.shape == scored.entropy.shape == scored.value.shape == (2, 3)
    torch.testing.assert_close(scored.log_prob.reshape(6), sample.log_prob, rtol=1e-5, atol=1e-5)


def test_dropout_is_off_when_acting_and_when_learning() -> None:
    policy = ActorCritic(OwnNetwork, (VECTOR, DISCRETE))
    inputs = policy.inputs(rows(6))
    sample = policy.sample(inputs, generator=generator())
    policy.train()
    torch.testing.assert_close(policy.evaluate(**inputs, action=sample.action).log_prob, sample.log_prob, rtol=0, atol=1e-6)


def test_a_made_network_and_parameters_alone_are_fine_too() -> None:
    network = nn.Linear(4, 3)
    policy = ActorCritic(network, (VECTOR, DISCRETE))
    assert policy.network is network and policy.sample(policy.inputs(rows(2))).value is None


def test_a_network_sees_one_image_or_a_dict_of_parts() -> None:
    seen: list[Any] = []

    class Looking(nn.Module):
        def forward(self, inputs: Any) -> Tensor:
            seen.append(inputs)
            return torch.zeros(len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs), 3)

    assert ActorCritic(Looking(), (SPACES["image"], DISCRETE)).input_size == (3, 36, 40)
    assert seen[-1].shape == (3, 3, 36, 40) and seen[-1].dtype == torch.uint8
    policy = ActorCritic(Looking(), (SPACES["nested"], DISCRETE))
    assert policy.input_size == {"observation": 5, "image/camera": (3, 36, 36), "image/inner/1/gray": (1, 20, 20)}
    assert {name: tuple(t.shape) for name, t in seen[-1].items()} == {
        "observation": (3, 5),
        "image/camera": (3, 3, 36, 36),
        "image/inner/1/gray": (3, 1, 20, 20),
    }


def test_a_network_of_the_wrong_shape_is_refused_before_the_first_step() -> None:
    class Unsqueezed(OwnNetwork):
        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.body(observation)
            return self.actor(hidden), self.critic(hidden)

    with pytest.raises(UsageError, match=r"network Unsqueezed: expected a value of shape \(N,\), found \(3, 1\)"):
        ActorCritic(Unsqueezed, (VECTOR, DISCRETE))
    with pytest.raises(UsageError, match=r"network Linear: expected parameters of shape \(N, 3\) for Discrete\(3\), found \(3, 2\)"):
        ActorCritic(nn.Linear(4, 2), (VECTOR, DISCRETE))


def test_a_network_of_one_s_own_is_never_imported_from_a_file() -> None:
    policy = ActorCritic(OwnNetwork, (VECTOR, DISCRETE), seed=3)
    description = json.loads(json.dumps(policy.describe()))
    with pytest.raises(UsageError, match=r"made with the network .*test_policies:OwnNetwork: pass it as network="):
        policy_from_description(description)
    again = policy_from_description(description, network=OwnNetwork)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))


class BarePolicy(nn.Module):
    """Nothing of the library's: the two methods that the protocol asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(4, 3)  # two logits and a value

    def _both(self, observation: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        output = self.network(observation)
        return torch.distributions.Categorical(logits=output[..., :2]), output[..., 2]

    @torch.no_grad()
    def sample(self, inputs: Any, *, generator: torch.Generator | None = None) -> Sample:
        distribution, value = self._both(inputs["observation"])
        action = torch.multinomial(distribution.probs, 1, generator=generator).squeeze(-1)
        return Sample(action=action, log_prob=distribution.log_prob(action), value=value)

    def evaluate(self, *, observation: Tensor, action: Tensor) -> Evaluation:
        distribution, value = self._both(observation)
        return Evaluation(log_prob=distribution.log_prob(action), entropy=distribution.entropy(), value=value)


@pytest.mark.parametrize("kind", ["network", "bare"])
def test_policies_of_one_s_own_train(kind: str) -> None:
    """The update itself asserts that the ratio is one on its first minibatch."""
    envs = control.make("CartPole-v1", num_envs=2, seed=0)
    policy = ActorCritic(OwnNetwork, envs) if kind == "network" else BarePolicy()
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    state = train(PPO(), policy, control.Steps(envs, num_steps=16), iterations=2, seed=0)
    envs.close()
    assert state.total_steps > 0
    assert all(not torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))


@pytest.mark.parametrize("greedy", [True, False])
def test_a_state_in_which_the_network_allows_no_action_is_an_error(greedy):
    class Hopeless(nn.Linear):
        def forward(self, x):
            return super().forward(x).masked_fill(x[..., :1] > 0.5, -torch.inf)

    policy = ActorCritic(Hopeless, (spaces.Box(-1, 1, (3,)), spaces.Discrete(4)))
    assert 0 <= policy.act(np.zeros(3, np.float32), greedy=greedy)[0] < 4
    with pytest.raises(RunFault, match="gives no action a probability"):
        policy.act(np.ones((2, 3), np.float32), greedy=greedy)


@pytest.mark.parametrize(
    ("space", "observation", "named"),
    [
        (spaces.Discrete(3, start=1), 0, r"observation: 0 is not in Discrete\(3, start=1\)"),
        (spaces.Discrete(3), 3, r"observation: 3 is not in Discrete\(3\)"),
        (spaces.Discrete(3), 1.9, r"observation: 1\.9 is not in Discrete\(3\)"),
        (spaces.MultiDiscrete([2, 3]), [0, -1], r"observation: -1 is not in MultiDiscrete"),
        (spaces.MultiDiscrete([2, 3]), [2, 0], r"observation: 2 is not in MultiDiscrete"),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": -1}, r"observation\['a'\]: -1 is not in Discrete\(2\)"),
    ],
)
def test_act_answers_for_no_state_but_those_of_its_space(space, observation, named):
    policy = MLPPolicy.for_envs((space, spaces.Discrete(2)))
    with pytest.raises(UsageError, match=named):
        policy.act(observation)
