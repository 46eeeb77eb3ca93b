"""Collectors: what a rollout holds, where recordings go on, whole episodes without preference, normalization."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.control.worlds import MODES, Counting, Critic, Loop, SeededLength, make_counting, side_by_side
from upslope import PPO, RunFault, UsageError, control, train


def test_shapes_and_types():
    envs = control.make("CartPole-v1", 5)
    policy = control.MLPPolicy.for_envs(envs)
    collect = control.Steps(envs, 7)
    rollout = collect(policy)
    assert (collect.num_envs, collect.num_steps, collect.transitions) == (5, 7, 35)
    assert {name: (tuple(x.shape), x.dtype) for name, x in rollout.inputs.items()} == {
        "observation": ((5, 7, 4), torch.float32),
        "action": ((5, 7), torch.int64),
    }
    for name in ("reward", "behavior_log_prob", "value", "next_value"):
        assert getattr(rollout, name).shape == (5, 7)
        assert getattr(rollout, name).dtype == torch.float32
    assert rollout.first_step.tolist() == [0] * 5
    assert not any(t.requires_grad for t in (rollout.value, rollout.behavior_log_prob, *rollout.inputs.values()))


def test_log_probs_and_values_are_the_policys_own():
    envs = control.make("CartPole-v1", 5)
    policy = control.MLPPolicy.for_envs(envs, seed=1)
    rollout = control.Steps(envs, 40)(policy)
    scored = policy.evaluate(**rollout.inputs)
    # float32, computed row by row and as one batch
    torch.testing.assert_close(scored.log_prob, rollout.behavior_log_prob, rtol=0, atol=1e-6)
    torch.testing.assert_close(scored.value, rollout.value, rtol=0, atol=1e-6)
    torch.testing.assert_close(rollout.next_value[:, :-1], rollout.value[:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_two_short_recordings_equal_one_long_one(mode):
    long = control.Steps(make_counting(mode), 14)(Critic())
    collect = control.Steps(make_counting(mode), 7)
    first, second = collect(Critic()), collect(Critic())
    for name in ("reward", "terminated", "truncated", "mask", "value", "next_value"):
        whole = torch.cat([getattr(first, name), getattr(second, name)], 1)
        torch.testing.assert_close(whole, getattr(long, name), rtol=0, atol=0)
    for name, tensor in long.inputs.items():
        torch.testing.assert_close(torch.cat([first.inputs[name], second.inputs[name]], 1), tensor, rtol=0, atol=0)
    assert first.metrics["num_episodes"] + second.metrics["num_episodes"] == long.metrics["num_episodes"]


@pytest.mark.parametrize("mode", MODES)
def test_first_step_counts_what_lies_behind(mode):
    """The observation's count says it: at a row's first real step it is what ``first_step`` must be."""
    collect = control.Steps(make_counting(mode), 5)
    for _ in range(6):
        rollout = collect(Critic())
        for i in range(3):
            column = int(rollout.mask[i].nonzero()[0])
            assert rollout.first_step[i] == rollout.inputs["observation"][i, column, 0]


def test_metrics_are_means_over_the_episodes_that_ended():
    metrics = control.Steps(make_counting(), 6)(Critic()).metrics
    lengths = [3, 5, 2]  # what follows a reset row is still under way in the sixth column
    assert metrics["num_episodes"] == 3
    assert metrics["episode_length"] == np.mean(lengths)
    assert metrics["episode_return"] == np.mean([sum(1 + 0.5 * t for t in range(1, n + 1)) for n in lengths])
    assert control.Steps(make_counting(), 1)(Critic()).metrics == {"num_episodes": 0.0, "reward_per_step": 1.5}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_episodes", [None, 3, 5, 9])
def test_episodes_are_whole_and_exactly_as_many(mode, num_episodes):
    envs = make_counting(mode)
    collect = control.Episodes(envs, num_episodes)
    for _ in range(2):
        before = [env.episode for env in envs.vector.envs]
        rollout = collect(Critic())
        ended = rollout.terminated | rollout.truncated
        count = num_episodes or 3
        assert ended.sum() == count == rollout.metrics["num_episodes"]
        assert [int(n) for n in ended.sum(1)] == [count // 3 + (i < count % 3) for i in range(3)]
        assert rollout.first_step.tolist() == [0, 0, 0]
        total = 0
        for i in range(3):
            played = rollout.inputs["observation"][i][rollout.mask[i]]
            lengths = [Counting.lengths[(i + before[i] + 1 + e) % 4] for e in range(int(ended[i].sum()))]
            assert played[:, 0].tolist() == [t for n in lengths for t in range(n)]
            assert ended[i][rollout.mask[i]].nonzero().flatten().tolist() == (np.cumsum(lengths) - 1).tolist()
            total += sum(lengths)
        assert int(rollout.mask.sum()) == total
        assert rollout.metrics["episode_length"] == total / count
        assert (rollout.reward[~rollout.mask] == 0).all()
        assert ended[:, -1].any()  # no column longer than the longest row


def test_episodes_do_not_prefer_short_ones():
    """A quarter of the episodes has 40 steps, the others 2: the mean length is 11.5, and of the first 8 to finish it is 2."""
    collect = control.Episodes(control.make(SeededLength, 8, seed=0), 80)
    lengths = [collect(Critic(lambda o: o[..., 0])).metrics["episode_length"] for _ in range(5)]
    # 400 episodes with a standard deviation of 16.5: four standard errors are 3.3
    assert np.mean(lengths) == pytest.approx(11.5, abs=3.3)


def test_an_environment_without_end_is_told():
    collect = control.Episodes(side_by_side([lambda: Loop(limit=10**9)]), max_episode_steps=50)
    with pytest.raises(RunFault, match="did not end within 50 steps"):
        collect(Critic(lambda o: o[..., 0]))


@pytest.mark.parametrize("arguments", [{"num_steps": 0}, {"num_steps": -3}, {"num_steps": 2.5}])
def test_steps_refuses_what_is_not_a_size(arguments):
    with pytest.raises(UsageError, match="num_steps: expected an integer ≥ 1"):
        control.Steps(make_counting(), **arguments)


def test_episodes_refuses_fewer_than_one_each():
    with pytest.raises(UsageError, match="at least one for each of the 3 environments, found 2"):
        control.Episodes(make_counting(), 2)
    with pytest.raises(UsageError, match=r"envs: expected what control\.make returns"):
        control.Episodes("CartPole-v1")


# ------------------------------------------------------------------------------------------------------------- normalization


def test_observations_are_folded_in_once_and_stored_as_acted_on():
    envs = make_counting()
    policy = control.MLPPolicy.for_envs(envs, normalize_observation=True)
    moments = policy.observation_normalizer.moments
    seen = []
    original = policy.sample

    def sample(inputs, **kwargs):
        seen.append(inputs["observation"].clone())
        return original(inputs, **kwargs)

    policy.sample = sample
    collect = control.Steps(envs, 9)
    rollout = collect(policy)
    assert float(moments.count) == 27  # and not once more for the final observations
    torch.testing.assert_close(rollout.inputs["observation"], torch.stack(seen, 1), rtol=0, atol=0)
    plain = control.Steps(make_counting(), 9)(Critic()).inputs["observation"].reshape(-1, 3).double()
    torch.testing.assert_close(moments.mean, plain.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(moments.var, plain.var(0, unbiased=False), rtol=0, atol=1e-12)
    collect(policy)
    assert float(moments.count) == 54


def test_rewards_are_normalized_and_statistics_are_not():
    envs = make_counting()
    policy = control.MLPPolicy.for_envs(envs, normalize_reward=True, reward_gamma=0.9)
    rollout = control.Steps(envs, 40)(policy)
    raw = control.Steps(make_counting(), 40)(Critic())
    assert rollout.metrics == raw.metrics
    running, returns = [], np.zeros(3)
    for t in range(40):  # the definition, step by step
        for i in range(3):
            if raw.mask[i, t]:
                returns[i] = 0.9 * returns[i] + float(raw.reward[i, t])
                running.append(returns[i])
                returns[i] *= 1 - float(raw.terminated[i, t] | raw.truncated[i, t])
    scale = np.sqrt(np.var(running) + 1e-8)
    np.testing.assert_allclose(rollout.reward, (raw.reward / scale).clamp(-10, 10), atol=1e-6)


def test_scaled_and_clipped_rewards_leave_the_statistics_alone():
    def play(**options):
        return control.Steps(control.Envs(make_counting().vector, **options), 12)(Critic())

    plain, scaled, clipped = play(), play(reward_scale=0.1), play(clip_reward=True)
    assert scaled.metrics == clipped.metrics == plain.metrics
    torch.testing.assert_close(scaled.reward, plain.reward * 0.1, rtol=0, atol=1e-7)
    torch.testing.assert_close(clipped.reward, plain.mask.float(), rtol=0, atol=0)


def test_fresh_episodes_forget_the_running_return():
    policy = control.MLPPolicy.for_envs(make_counting(), normalize_reward=True, reward_gamma=1.0)
    envs = make_counting()
    control.Steps(envs, 1)(policy)  # every episode is under way
    policy.reward_normalizer.moments.var.fill_(1.0)
    policy.reward_normalizer.moments.count.zero_()
    control.Episodes(envs)(policy)
    returns = [total for i in range(3) for n in [Counting.lengths[(i + 1) % 4]] for total in np.cumsum(1 + 0.5 * np.arange(1, n + 1))]
    assert float(policy.reward_normalizer.moments.mean) == pytest.approx(np.mean(returns), abs=1e-12)


@pytest.mark.parametrize(
    "collector", [lambda envs: control.Steps(envs, 4), control.Episodes, lambda envs: control.GroupedEpisodes(envs, 3)]
)
def test_a_policy_that_cannot_draw_is_refused_in_one_line(collector):
    policy = Critic()
    policy.sample = None
    with pytest.raises(UsageError, match=r"^policy: Critic has no sample; expected sample\(inputs, \*, generator\) -> Sample, by which"):
        train(PPO(), policy, collector(make_counting()), iterations=1)


def test_whoever_draws_and_scores_may_play():
    """``parameters`` are the update's affair."""
    policy = Critic()
    rollout = control.Steps(make_counting(), 4)(SimpleNamespace(sample=policy.sample, evaluate=policy.evaluate))
    assert rollout.mask.shape == (3, 4) and rollout.value is not None
