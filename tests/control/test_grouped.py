"""Groups of episodes: equal starts, masks, flags, every autoreset mode, and environments that cannot start alike."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from tests.control.worlds import MODES, Counting, Critic, Loop, SeededLength, side_by_side
from upslope import GRPO, RLOO, Ascent, RunFault, UsageError, control, train
from upslope.fast.twins import fast_policy


class Staggered(Counting):
    """Starts where its seed says, and is as long as the place where it stands in the group makes it: 3, 5, 2, 4 steps."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.mark = self.np_random.random()
        return self.seen(), {}

    def seen(self):
        return np.array([self.time, getattr(self, "mark", 0.0), self.time], np.float32)

    def step(self, action):
        self.time += 1
        over = self.time == self.lengths[self.which % 4]
        return self.seen(), 1.0 + 0.5 * self.time, over and self.which % 2 == 0, over and self.which % 2 == 1, {}


def staggered(mode=AutoresetMode.NEXT_STEP, count: int = 8) -> control.Envs:
    return side_by_side([lambda i=i: Staggered(i) for i in range(count)], mode)


def first(rollout) -> torch.Tensor:
    return rollout.inputs["observation"][:, :, 0]


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_whole_episodes_masked_behind_their_end(mode):
    rollout = control.GroupedEpisodes(staggered(mode), 4)(Critic())
    lengths = torch.tensor([[3, 5, 2, 4]] * 2)
    assert rollout.unit == "group" and rollout.mask.shape == (2, 4, 5)
    assert torch.equal(rollout.mask, torch.arange(5) < lengths[..., None])
    ends = torch.arange(5) == lengths[..., None] - 1
    by_end = torch.tensor([True, False, True, False])[:, None]
    assert torch.equal(rollout.terminated, ends & by_end) and torch.equal(rollout.truncated, ends & ~by_end)
    assert torch.equal(rollout.reward, (1.0 + 0.5 * torch.arange(1, 6)) * rollout.mask)
    assert rollout.inputs["observation"].shape == (2, 4, 5, 3) and rollout.first_step.tolist() == [[0] * 4] * 2
    time = rollout.inputs["observation"][..., 0]
    assert torch.equal(time[rollout.mask], torch.arange(5.0).expand(2, 4, 5)[rollout.mask])
    assert rollout.num_steps == 28 and rollout.metrics["num_episodes"] == 8 and rollout.metrics["episode_length"] == 3.5
    # the critic sees the true successor of every last step, in every mode
    last = rollout.next_value[ends]
    length = lengths.flatten().float()
    torch.testing.assert_close(last, Critic().value_function(torch.stack([length, first(rollout)[..., 1].flatten(), length], -1)))


@pytest.mark.parametrize("mode", MODES)
def test_groups_start_alike_and_apart_from_one_another_call_after_call(mode):
    collect = control.GroupedEpisodes(staggered(mode), 4, seed=3)
    seen = [first(collect(Critic())) for _ in range(3)]
    for starts in seen:
        assert (starts == starts[:, :1]).all()
    assert len(torch.cat(seen)[:, 0, 1].unique()) == 6
    again = control.GroupedEpisodes(staggered(mode), 4, seed=3)
    assert all(torch.equal(first(again(Critic())), starts) for starts in seen)
    assert not torch.equal(first(control.GroupedEpisodes(staggered(mode), 4, seed=4)(Critic())), seen[0])


@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
def test_cartpole_starts_as_single_environments_do(vectorization):
    envs = control.make("CartPole-v1", 8, seed=0, vectorization=vectorization)
    with envs:
        collect = control.GroupedEpisodes(envs, 4, seed=1)
        policy = control.MLPPolicy.for_envs(envs, seed=0)
        rollouts = [collect(policy) for _ in range(2)]
    assert collect.max_steps == 500 and all(r.max_steps == 500 for r in rollouts)
    seeds = torch.randint(2**31, (2,), generator=torch.Generator().manual_seed(1)).tolist()
    for group, seed in enumerate(seeds):
        single, _ = gymnasium.make("CartPole-v1").reset(seed=seed)
        assert (first(rollouts[0])[group] == torch.from_numpy(single)).all()
    assert len(torch.cat([first(r)[:, 0] for r in rollouts])[:, 0].unique()) == 4
    assert len({tuple(row) for row in rollouts[0].inputs["action"][0].tolist()}) > 1  # the members act apart
    scored = policy.evaluate(**rollouts[1].inputs).log_prob
    # float32, computed row by row and as one batch
    torch.testing.assert_close(scored[rollouts[1].mask], rollouts[1].behavior_log_prob[rollouts[1].mask], rtol=0, atol=1e-6)


def test_the_compiled_policy_plays_the_same_episodes():
    pytest.importorskip("llvmlite")
    found = []
    for make in (lambda policy: policy, fast_policy):
        envs = control.make("CartPole-v1", 8, seed=0)
        found.append(control.GroupedEpisodes(envs, 4, seed=1)(make(control.MLPPolicy.for_envs(envs, critic=False, seed=0))))
    assert found[0].value is None
    assert torch.equal(found[0].inputs["action"], found[1].inputs["action"]) and torch.equal(found[0].mask, found[1].mask)


def test_what_an_environment_draws_later_comes_from_the_seed_too():
    """Members whose lengths are drawn at the reset are equally long."""
    mask = control.GroupedEpisodes(control.make(SeededLength, 40, seed=0), 2)(Critic(lambda o: o[..., 0])).mask
    assert torch.equal(mask[:, 0], mask[:, 1]) and len(mask.sum(-1).unique()) == 2


def test_observations_behind_an_end_do_not_reach_the_moments():
    envs = staggered()
    policy = control.MLPPolicy.for_envs(envs, normalize_observation=True)
    control.GroupedEpisodes(envs, 4)(policy)
    assert float(policy.observation_normalizer.moments.count) == 28


def test_an_unknown_length_and_a_given_one():
    envs = side_by_side([lambda: Loop(limit=5)] * 2)
    critic = Critic(lambda o: o[..., 0])
    rollout = control.GroupedEpisodes(envs, 2)(critic)
    assert rollout.max_steps is None
    with pytest.raises(UsageError, match="average_over: 'constant' divides by the longest"):
        RLOO().estimate(critic, rollout)
    assert control.GroupedEpisodes(envs, 2, max_steps=5)(critic).max_steps == 5
    with pytest.raises(RunFault, match="did not end within 4 steps"):
        control.GroupedEpisodes(envs, 2, max_steps=4)(critic)
    limited = SyncVectorEnv([lambda n=n: gymnasium.wrappers.TimeLimit(Loop(limit=99), n) for n in (6, 7)])
    assert control.GroupedEpisodes(control.Envs(limited), 2)(critic).max_steps == 7


class Forgetful(Loop):
    """Its first observation does not come from its seed."""

    count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Forgetful.count += 1
        return np.full(1, Forgetful.count / 100, np.float32), {}


class OneSeed(VectorEnv):
    """A vector environment that takes one seed for all."""

    def __init__(self) -> None:
        self.num_envs, self.metadata = 4, {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random((4, 1)).astype(np.float32), {}


@pytest.mark.parametrize(
    "make, group_size, message",
    [
        (staggered, 1, "group_size: expected an integer ≥ 2, found 1"),
        (staggered, 2.0, "group_size: expected an integer ≥ 2"),
        (staggered, 3, "group_size: 3 does not divide 8 environments; make 6 of them"),
        (staggered, 16, "group_size: 16 does not divide 8 environments; make 16 of them"),
        (lambda: control.Envs(staggered().vector, seeded=True), 4, "took its seed when it was made"),
        (lambda: control.Envs(OneSeed()), 4, "OneSeed takes one seed for all of its environments"),
        (lambda: side_by_side([Forgetful] * 4), 2, "its first observations differ after a reset with the same seed"),
    ],
    ids=["one", "fraction", "remainder", "too large", "envpool", "one seed", "forgetful"],
)
def test_what_cannot_be_grouped_is_told(make, group_size, message):
    with pytest.raises(UsageError, match=message):
        control.GroupedEpisodes(make(), group_size)(Critic(lambda o: o[..., 0]))


@pytest.mark.parametrize("algorithm", [GRPO, RLOO])
def test_both_learn_with_a_critic_that_they_leave_alone(algorithm):
    envs = control.make("CartPole-v1", num_envs=32, seed=0)
    policy = control.MLPPolicy.for_envs(envs, seed=0)
    critic = [p.detach().clone() for p in policy.critic.parameters()]
    update = Ascent(learning_rate=0.01, num_epochs=4, num_minibatches=2)
    state = train(algorithm(update=update), policy, control.GroupedEpisodes(envs, 8), iterations=12, seed=0)
    assert all(torch.equal(p, before) for p, before in zip(policy.critic.parameters(), critic, strict=True))
    assert state.metrics["episode_return"] > 60, state.metrics  # a random policy reaches 22
