"""A stream gives true successors in every autoreset mode, and an online method learns through it from the command line's parts."""

import math

import gymnasium
import numpy as np
import pytest
import torch

from tests.control.worlds import MODES, Counting, Critic, Loop, Ruled, side_by_side
from upslope import PPO, Ascent, ContinuingActorCritic, Diverged, OnlineActorCritic, UsageError, control, train


def stream(env=Counting, mode=MODES[0], **options):
    return control.Stream(side_by_side([env], mode), **options)


@pytest.mark.parametrize("mode", MODES)
def test_successors_are_true_and_reset_steps_are_not_seen(mode):
    played, policy = stream(mode=mode), Critic()
    for episode, (length, terminates) in enumerate([(3, True), (5, False), (2, True), (4, False)]):
        for t in range(length):
            inputs = played.observe(policy)
            assert inputs["observation"].tolist() == [[t, 0, episode]]
            answer = played.step(policy, played.act(policy, inputs))
            assert answer.next_inputs["observation"].tolist() == [[t + 1, 0, episode]]
            assert answer.reward == 1.0 + 0.5 * (t + 1)
            last = t == length - 1
            assert (answer.terminated, answer.truncated, answer.ended) == (last and terminates, last and not terminates, last)
    metrics = played.metrics()
    assert (metrics["num_episodes"], metrics["episode_length"]) == (4, 3.5)
    assert played.metrics() == {"num_episodes": 0.0}


@pytest.mark.parametrize("mode", MODES)
def test_action_masks_follow_the_state(mode):
    played = stream(Ruled, mode)
    policy = control.MLPPolicy.for_envs(played.envs, hidden_sizes=(4,), seed=0)
    state = OnlineActorCritic().start(policy)
    metrics = OnlineActorCritic().learn(policy, played, state)  # Ruled raises on an illegal action
    assert metrics["episode_length"] == 4


@pytest.mark.parametrize("mode", MODES)
def test_everything_is_legal_in_a_terminal_state(mode):
    """Not what is legal where the next episode starts."""
    played = stream(Ruled, mode)
    policy = control.MLPPolicy.for_envs(played.envs, hidden_sizes=(4,), seed=0)
    for t in range(8):
        inputs = played.observe(policy)
        assert inputs["action_mask"].tolist() == [[a == t % 4 % 3 for a in range(3)]]
        step = played.step(policy, played.act(policy, inputs))
        legal = [True] * 3 if step.ended else [a == (t + 1) % 4 % 3 for a in range(3)]
        assert step.ended == (t % 4 == 3) and step.next_inputs["action_mask"].tolist() == [legal]


def test_the_return_that_scales_rewards_starts_anew_after_every_kind_of_end():
    played = stream(num_steps=13)
    policy = control.MLPPolicy.for_envs(played.envs, normalize_reward=True, seed=0)
    OnlineActorCritic().learn(policy, played, OnlineActorCritic().start(policy))
    returns, gamma = [], policy.reward_normalizer.gamma
    for length in (3, 5, 2, 4):  # ended and cut by turns
        discounted = 0.0
        for t in range(length):
            discounted = gamma * discounted + 1.0 + 0.5 * (t + 1)
            returns.append(discounted)
    moments = policy.reward_normalizer.moments
    assert float(moments.mean) == pytest.approx(np.mean(returns[:13]), rel=1e-6)  # float32 or better
    assert float(moments.var) == pytest.approx(np.var(returns[:13]), rel=1e-6)


def test_running_moments_take_in_each_observation_once():
    played = stream(num_steps=13)  # episodes of 3 and 5 and 2 steps, then three more: 13 observations acted on, and the next
    policy = control.MLPPolicy.for_envs(played.envs, normalize_observation=True, normalize_reward=True, seed=0)
    OnlineActorCritic().learn(policy, played, OnlineActorCritic().start(policy))
    seen = [[t, 0, e] for e, length in enumerate((3, 5, 2, 4)) for t in range(length)][:14]
    np.testing.assert_allclose(policy.observation_normalizer.moments.mean.numpy(), np.mean(seen, 0), atol=1e-6)  # float32 sums
    assert int(policy.reward_normalizer.moments.count) == 13


def test_the_seed_decides_a_run():
    def parameters(seed):
        envs = control.make("CartPole-v1", 1, seed)
        policy = control.MLPPolicy.for_envs(envs, hidden_sizes=(8,), seed=seed)
        train(OnlineActorCritic(trace_decay=0.5), policy, control.Stream(envs, 50, seed=seed), total_steps=150, seed=seed)
        return torch.cat([p.detach().reshape(-1) for p in policy.parameters()])

    assert torch.equal(parameters(0), parameters(0))
    assert not torch.equal(parameters(0), parameters(1))


def test_a_continuing_task_that_is_cut_goes_on():
    played = stream(Loop, num_steps=2000)
    policy = control.MLPPolicy.for_envs(played.envs, hidden_sizes=(4,), seed=0)
    algorithm = ContinuingActorCritic(average_reward_rate=0.05, value_learning_rate=0.0)
    assert algorithm.learn(policy, played, algorithm.start(policy))["average_reward"] == pytest.approx(1.0, abs=1e-5)  # float32


def test_several_environments_are_refused():
    with pytest.raises(UsageError, match=r"^num_envs: .* plays in 1 environment, found 2"):
        control.Stream(side_by_side([Counting, Counting]))


def test_a_method_and_a_collector_that_do_not_fit_are_refused():
    envs = control.make("CartPole-v1")
    policy = control.MLPPolicy.for_envs(envs)
    with pytest.raises(UsageError, match=r"^collect: OnlineActorCritic .* needs control.Stream\(envs\), found Steps"):
        train(OnlineActorCritic(), policy, control.Steps(envs, 8), iterations=1)
    with pytest.raises(UsageError, match=r"^collect: PPO learns from recordings .* found Stream"):
        train(PPO(), policy, control.Stream(envs), iterations=1)


class Paying(gymnasium.Env):
    """±2,500 for an action above or below 0.3, one step an episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert np.isfinite(action).all(), "the policy is lost"
        return np.zeros(2, np.float32), 2500.0 if action[0] > 0.3 else -2500.0, True, False, {}


def test_a_policy_that_is_lost_acts_no_more_and_ends_the_run():
    collect = stream(Paying, num_steps=512)
    policy = control.MLPPolicy.for_envs(collect.envs)
    with pytest.raises(Diverged, match=r"^diverged: the policy's log-probability of its action is not finite"):
        train(OnlineActorCritic(learning_rate=1.0, value_learning_rate=1e-2), policy, collect, iterations=2)


@pytest.mark.parametrize("online", [True, False])
def test_no_iteration_ends_with_a_parameter_that_is_not_finite(online):
    """The last step of all may overflow, and no objective comes behind it; what is not trained may be infinite."""

    class Overflowing(OnlineActorCritic):
        def learn(self, policy, stream, state):
            found = super().learn(policy, stream, state)
            policy.network.actor[0].weight.data[0] = math.inf
            return found

    class Leaping(Ascent):
        def __call__(self, algorithm, policy, batch, state):
            found = super().__call__(algorithm, policy, batch, state)
            policy.network.actor[0].weight.data[0] = math.nan
            return found

    collect = stream(num_steps=4) if online else control.Steps(side_by_side([Counting], MODES[0]), num_steps=4)
    policy = control.MLPPolicy.for_envs(collect.envs)
    policy.limit = torch.nn.Parameter(torch.tensor(-math.inf), requires_grad=False)
    train(OnlineActorCritic() if online else PPO(), policy, collect, iterations=1)
    with pytest.raises(Diverged, match=r"^diverged: network\.actor\.0\.weight is not finite after iteration 1"):
        train(Overflowing() if online else PPO(update=Leaping()), policy, collect, iterations=1)
