"""The defaults learn where actions or rewards have unusual scales."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import nn

from tests.fast.cases import close_to_rounding, make_batch, make_policy
from upslope import A2C, PPO, REINFORCE, TRPO, OffPolicyGradient, OnlineActorCritic, UsageError, control, train
from upslope.control import ActorCritic, CNNPolicy, Envs, LinearPolicy, MLPPolicy, evaluate, policy_from_description
from upslope.control.normalize import MIN_STD, ValueScale
from upslope.fast.twins import fast_update
from upslope.run.config import RunConfig
from upslope.updates import Ascent


class Follow(gymnasium.Env):
    """20 steps; the best action is 0.6 of the half range from the middle, in the direction and size of what is seen; 0 is best."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, low: float, high: float, offset: float = 0.0) -> None:
        self.offset = offset
        self.action_space = spaces.Box(low, high, (1,))
        low, high = (high - 2 if np.isinf(low) else low), (low + 2 if np.isinf(high) else high)
        self.middle, self.half_range = (low + high) / 2, (high - low) / 2

    def see(self):
        self.seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def step(self, action):
        self.time += 1
        error = (float(action[0]) - self.middle) / self.half_range - 0.6 * float(self.seen[0])
        return self.see(), self.offset - abs(error), False, self.time >= 20, {}


@pytest.mark.parametrize("bounds", [(-1, 1), (100, 200), (-1e-3, 1e-3), (-5e6, -4e6), (1000, np.inf), (-np.inf, -7)], ids=str)
@pytest.mark.parametrize("fast", [True, False])
def test_actions_of_any_range_are_learned_alike(bounds: tuple[float, float], fast: bool) -> None:
    """Random actions return −10, the middle −6."""
    low, high = bounds
    with Envs(SyncVectorEnv([lambda: Follow(low, high)] * 8), env_id="Follow") as envs:
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(16,), seed=0)
        algorithm = PPO(gamma=0.9, update=Ascent(learning_rate=1e-2, num_epochs=4, num_minibatches=4))
        train(algorithm, policy, control.Steps(envs, 64, seed=0), iterations=12, seed=0, fast=fast)
    assert evaluate(policy, lambda: Follow(low, high), episodes=10).return_mean > -3.5


METHODS = {
    "ppo": PPO(update=Ascent(learning_rate=3e-3, num_epochs=3, num_minibatches=2)),
    "a2c": A2C(),
    "reinforce": REINFORCE(),
    "trpo": TRPO(),
    "off-policy": OffPolicyGradient(update=Ascent(learning_rate=1e-3, num_minibatches=4)),
}


def trained(algorithm: Any, reward_scale: float, fast: bool) -> MLPPolicy:
    with control.make("CartPole-v1", 4, 0, reward_scale=reward_scale) as envs:
        policy = MLPPolicy.for_envs(envs, hidden_sizes=(16,), seed=0)
        train(algorithm, policy, control.Steps(envs, 32, seed=0), iterations=4, seed=0, fast=fast)
    return policy


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fast", [True, False])
def test_the_scale_of_rewards_changes_no_bit(name: str, fast: bool) -> None:
    """A power of two scales a float exactly: whatever is not in units of the returns would show."""
    plain, observation = trained(METHODS[name], 1.0, fast), torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    value = plain.value({"observation": observation})
    assert value is not None and value.std() > 1e-3
    for scale in (2.0**20, 2.0**-10):
        policy = trained(METHODS[name], scale, fast)
        for one, other in zip(policy.parameters(), plain.parameters(), strict=True):
            assert torch.equal(one, other)
        torch.testing.assert_close(policy.value({"observation": observation}), scale * value)


def test_an_offset_of_rewards_is_learned_alike() -> None:
    found = []
    for offset in (0.0, 1e4):
        with Envs(SyncVectorEnv([lambda plus=offset: Follow(-1, 1, plus)] * 8), env_id="Follow") as envs:
            policy = MLPPolicy.for_envs(envs, hidden_sizes=(16,), seed=0)
            algorithm = PPO(gamma=0.9, update=Ascent(learning_rate=1e-2, num_epochs=4, num_minibatches=4))
            train(algorithm, policy, control.Steps(envs, 64, seed=0), iterations=12, seed=0)
        assert policy.value_scale is not None
        assert float(policy.value_scale.mean) == pytest.approx(offset / 0.1, abs=10)  # 1 + γ + γ² + …: cut episodes go on
        found.append(evaluate(policy, lambda: Follow(-1, 1), episodes=10).return_mean)
    assert min(found) > -3.5


def test_values_stay_what_they_are_when_their_units_move() -> None:
    generator = torch.Generator().manual_seed(0)
    for policy, inputs in (
        (make_policy(), {"observation": torch.randn(20, 4, generator=generator)}),
        (image_policy(), {"image": torch.rand(5, 1, 8, 8, generator=generator)}),
    ):
        scale = policy.value_scale
        assert scale is not None
        policy.follow_returns(5.0 + torch.randn(30, generator=generator))  # this one starts from a critic that says something
        for returns in (1e3 * torch.randn(40, generator=generator) - 7e3, 1e-2 * torch.randn(9, generator=generator)):
            before = policy.value(inputs)
            mean, std = float(scale.mean), float(scale.std)
            policy.follow_returns(returns)
            assert (float(scale.mean), float(scale.std)) != (mean, std)
            torch.testing.assert_close(policy.value(inputs), before, rtol=1e-5, atol=1e-5 * float(scale.std))


def image_policy() -> CNNPolicy:
    space = spaces.Box(0, 1, (1, 8, 8), np.float32)
    policy = CNNPolicy.for_envs((space, spaces.Discrete(2)), hidden_sizes=(8,), image="yes")
    with torch.no_grad():
        policy.network.critic.weight.normal_(generator=torch.Generator().manual_seed(1))  # pyright: ignore
    return policy


def test_moments_of_the_returns() -> None:
    """The first batches count alike; nothing but zeros says nothing, one number gives a mean, and what is not finite moves nothing."""
    scale, y = ValueScale(), torch.tensor([-1.0, 0.0, 2.0])
    assert scale.count == 0 and torch.equal(scale(y), y)
    for nothing in (torch.zeros(5), torch.tensor([1.0, torch.nan])):
        scale.follow(nothing, None)
        assert scale.count == 0
    batches = [torch.tensor([1.0, 5.0]), torch.tensor([9.0, 13.0]), torch.tensor([-4.0, 0.0])]
    for batch in batches:
        scale.follow(batch, None)
    seen = torch.cat(batches).double()
    assert float(scale.mean) == pytest.approx(float(seen.mean())) and float(scale.std) == pytest.approx(float(seen.std(correction=0)))
    assert torch.allclose(scale(y), y * float(seen.std(correction=0)) + float(seen.mean()))
    alike = ValueScale()
    alike.follow(torch.full((4,), 3.0), None)
    assert float(alike.mean) == 3.0 and float(alike.std) == pytest.approx(3.0 * MIN_STD)


@pytest.mark.parametrize("kind", ["readable", "compiled", "dense", "own network"])
def test_a_critic_far_off_does_not_shorten_the_actors_step(kind: str) -> None:
    """One norm for both would leave the actor a millionth of its gradient: then Adam's eps decides."""

    def moved(value_coef: float) -> torch.Tensor:
        policy: Any = own_policy() if kind == "own network" else make_policy()
        batch = own_batch(policy) if kind == "own network" else make_batch(policy)
        surrogate: dict[str, Any] = (
            {"surrogate": lambda new, old, advantage, mask, clip: (new - old).exp() * advantage} if kind == "dense" else {}
        )
        algorithm = PPO(value_coef=value_coef, update=Ascent(learning_rate=0.1, max_grad_norm=0.01, eps=1e-2), **surrogate)
        update = algorithm.update if kind == "readable" else fast_update(algorithm, policy)
        assert update is not None
        actor = [p for p in policy.parameters() if not any(p is q for q in policy.critic_parameters())]
        before = torch.cat([p.detach().reshape(-1) for p in actor]).clone()
        update(algorithm, policy, batch, algorithm.update.start(policy, seed=0))
        return torch.cat([p.detach().reshape(-1) for p in actor]) - before

    assert close_to_rounding(moved(1e4), moved(0.25)) and float(moved(0.25).abs().max()) > 1e-3


class Separate(nn.Module):
    def __init__(self, size: int, num_parameters: int) -> None:
        super().__init__()
        self.actor, self.critic = (nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, n)) for n in (num_parameters, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.actor(x), self.critic(x).squeeze(-1)


class Trunk(Separate):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.actor(x), self.critic[2](self.actor[1](self.actor[0](x))).squeeze(-1)


def own_policy(network: type[nn.Module] = Separate) -> ActorCritic:
    return ActorCritic(network, (spaces.Box(-1, 1, (4,)), spaces.Discrete(3)), seed=3)


def own_batch(policy: ActorCritic) -> Any:
    like = make_batch(make_policy())
    inputs = {"observation": like.inputs["observation"]}
    sample = policy.sample(inputs, generator=torch.Generator().manual_seed(0))
    log_prob = sample.log_prob.where(like.mask, 0.0)
    return replace(like, inputs={**inputs, "action": sample.action}, behavior_log_prob=log_prob, value=sample.value)


def test_what_only_the_critic_has() -> None:
    own = own_policy()
    assert [id(p) for p in own.critic_parameters()] == [id(p) for p in own.network.critic.parameters()]  # pyright: ignore
    own.network.critic[0].weight.requires_grad_(False)  # pyright: ignore
    assert len(own.critic_parameters()) == 3
    assert own_policy(Trunk).critic_parameters() == ()
    assert image_policy().critic_parameters() == ()
    box = (spaces.Box(-1, 1, (4,)), spaces.Discrete(3))
    assert MLPPolicy.for_envs(box, critic=False).critic_parameters() == () and len(make_policy().critic_parameters()) == 6
    assert make_policy(normalize_value=False).critic_parameters() == LinearPolicy.for_envs(box, features="linear").critic_parameters() == ()


def test_units_are_saved_and_a_policy_from_before_has_none() -> None:
    policy = make_policy()
    policy.follow_returns(torch.tensor([100.0, 300.0]))
    again = policy_from_description(policy.describe())
    again.load_state_dict(policy.state_dict())
    inputs = {"observation": torch.randn(6, 4)}
    assert torch.equal(again.value(inputs), policy.value(inputs))  # pyright: ignore
    old = policy_from_description({name: value for name, value in policy.describe().items() if name != "normalize_value"})
    assert old.value_scale is None and "value_scale.mean" not in old.state_dict()
    assert copy.deepcopy(policy).value_scale is not policy.value_scale


def test_online_methods_refuse_a_critic_that_has_units() -> None:
    policy = make_policy()
    OnlineActorCritic().start(policy)
    policy.follow_returns(torch.tensor([100.0, 300.0]))
    with pytest.raises(UsageError, match="start from a policy made with normalize_value=False"):
        OnlineActorCritic().start(policy)


def test_a_configuration_from_before_actions_were_scaled_means_what_it_did() -> None:
    config = RunConfig.of("ppo", "Pendulum-v1").config()
    assert RunConfig.from_config(config).policy.scale_actions
    del config["policy"]["scale_actions"]
    assert not RunConfig.from_config(config).policy.scale_actions


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (100.0, 200.0), (-1e-3, 1e-3), (1000.0, np.inf), (-np.inf, 0.0)])
def test_first_actions_are_within_the_bounds(bounds: tuple[float, float]) -> None:
    """Where many are clipped, means learn to overshoot."""
    low, high = bounds
    policy = control.MLPPolicy((spaces.Box(-1, 1, (3,)), spaces.Box(low, high, (1,))), seed=0)
    observation = torch.zeros(4000, 3)
    action = policy.head.to_env(policy.sample({"observation": observation}, generator=torch.Generator().manual_seed(0)).action)
    edge = 1e-6 * (high - low) if np.isfinite(high - low) else 0.0
    inside = ((action > low + edge) & (action < high - edge)).mean()
    assert 0.98 < inside < 1.0
