"""Collectors and policies: action masks, and what a policy of the user's own may and may not return."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from tests.control.worlds import MODES, Counting, Critic, Loop, Ruled, make_counting, side_by_side
from upslope import PPO, RunFault, UsageError, control, train
from upslope import functional as F
from upslope.records import Evaluation, Sample

# -------------------------------------------------------------------------------------------------------------- action masks


@pytest.mark.parametrize("mode", MODES)
def test_only_legal_actions_are_taken_and_masks_are_recorded(mode):
    envs = side_by_side([Ruled] * 3, mode)
    rollout = control.Steps(envs, 13)(control.MLPPolicy.for_envs(envs))
    real = rollout.mask
    time = rollout.inputs["observation"][..., 0].long()
    expected = torch.nn.functional.one_hot(time % 3, 3).bool()
    assert torch.equal(rollout.inputs["action_mask"][real], expected[real])
    assert torch.equal(rollout.inputs["action"][real], time[real] % 3)
    assert rollout.inputs["action_mask"][~real].all()


def test_missing_masks_mean_that_everything_is_legal():
    envs = side_by_side([Ruled, lambda: Ruled(silent=True)])
    envs.reset()
    assert envs.action_mask.tolist() == [[True, False, False], [True, True, True]]
    envs.step(np.zeros(2, np.int64))
    assert envs.action_mask.tolist() == [[False, True, False], [True, True, True]]


def test_a_mask_that_comes_late_leaves_earlier_steps_free():
    class Late(Ruled):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], {}

    envs = side_by_side([lambda: Late(rule=lambda time: np.arange(3) >= (time > 0))])
    rollout = control.Steps(envs, 3)(control.MLPPolicy.for_envs(envs))
    assert rollout.inputs["action_mask"][0].tolist() == [[True] * 3, [False, True, True], [False, True, True]]


def test_masks_of_several_factors():
    rule = [1, 0, 0, 1, 1]
    envs = side_by_side([lambda: Ruled(spaces.MultiDiscrete([2, 3]), lambda time: rule)] * 2)
    rollout = control.Steps(envs, 3)(control.MLPPolicy.for_envs(envs))
    assert rollout.inputs["action_mask"].tolist() == [[[bool(x) for x in rule]] * 3] * 2
    assert (rollout.inputs["action"][..., 0] == 0).all()
    assert (rollout.inputs["action"][..., 1] > 0).all()


@pytest.mark.parametrize(
    "space, rule, message",
    [
        (None, [0, 0, 0], "action_mask allows no action in environment 0"),
        (None, [1, 1], "action_mask has 2 entries, the action space has 3 choices"),
        (spaces.MultiDiscrete([2, 3]), [1, 1, 0, 0, 0], "action_mask allows no action in environment 0"),
        (spaces.Box(-1, 1, (1,)), [1], "masks are for Discrete and MultiDiscrete actions"),
    ],
)
def test_bad_masks(space, rule, message):
    envs = side_by_side([lambda: Ruled(space, lambda time: rule)])
    with pytest.raises(RunFault, match=message):
        envs.reset()


# ----------------------------------------------------------------------------------------------------------- a user's policy


def test_a_policy_without_a_critic_has_no_values():
    class Actor(Critic):
        def evaluate(self, **inputs):
            return dataclasses.replace(super().evaluate(**inputs), value=None)

    rollout = control.Steps(make_counting(), 4)(Actor())
    assert rollout.value is None
    assert rollout.next_value is None


@pytest.mark.parametrize("mode", MODES)
def test_a_value_per_row_must_be_one_number(mode):
    policy = Critic(lambda observation: observation[..., :1])
    with pytest.raises(UsageError, match=r"value of shape \(3, 5, 1\) for a recording of shape \(3, 5\)"):
        control.Steps(make_counting(mode), 4)(policy)


def test_a_log_prob_per_row_must_be_one_number():
    class Broad(Critic):
        def sample(self, inputs, **kwargs):
            sample = super().sample(inputs, **kwargs)
            return Sample(action=sample.action, log_prob=sample.log_prob[:, None])

    with pytest.raises(UsageError, match=r"log_prob of shape \(3, 4, 1\) for a recording of shape \(3, 4\)"):
        control.Steps(make_counting(), 4)(Broad())


@pytest.mark.parametrize(
    "action, message",
    [
        (torch.tensor([0, 2, 1]), "sample returned actions 0 to 2"),
        (torch.tensor([0, -1, 1]), "sample returned actions -1 to 1"),
        (torch.tensor([0.0, 0.5, 1.0]), "float32"),
        (torch.zeros(3, 1, dtype=torch.int64), r"an action of shape \(3, 1\), the environments take \(3,\)"),
    ],
)
def test_an_action_that_does_not_exist_is_refused(action, message):
    class Wild(Critic):
        def sample(self, inputs, **kwargs):
            return Sample(action=action, log_prob=torch.zeros(3))

    with pytest.raises(UsageError, match=message):
        control.Steps(make_counting(), 4)(Wild())


def test_actions_are_counted_from_the_spaces_start():
    class Shifted(Counting):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Discrete(2, start=5)

        def step(self, action):
            assert self.action_space.contains(action)
            return super().step(action)

    control.Steps(side_by_side([Shifted]), 10)(Critic())


def test_a_box_action_is_clipped_for_the_environment_and_stored_as_drawn():
    class Wide(Critic):
        def sample(self, inputs, **kwargs):
            action = torch.full((len(inputs["observation"]), 1), 7.0)
            return Sample(action=action, log_prob=torch.zeros(len(action)))

        def evaluate(self, observation, action):
            return super().evaluate(observation, action[..., 0].long() * 0)

    envs = control.make("Pendulum-v1", 2)
    sent = []
    original = envs.vector.step
    envs.vector.step = lambda action: (sent.append(action), original(action))[1]
    rollout = control.Steps(envs, 3)(Wide())
    assert (rollout.inputs["action"] == 7).all()
    assert (np.array(sent) == 2).all()


class UsualNames(nn.Module):
    """Layers called as everybody calls them: none of them is a method of a policy."""

    def __init__(self):
        super().__init__()
        self.act, self.head, self.value, self.inputs = nn.Tanh(), nn.Linear(8, 2), nn.Linear(8, 1), nn.Linear(4, 8)

    def logits_and_value(self, observation):
        features = self.act(self.inputs(observation))
        return self.head(features), self.value(features).squeeze(-1)

    def sample(self, inputs, *, generator=None):
        logits, value = self.logits_and_value(inputs["observation"])
        action = F.categorical_sample(logits, generator)
        return Sample(action=action, log_prob=F.categorical_log_prob(logits, action), value=value)

    def evaluate(self, observation, action, action_mask=None):
        logits, value = self.logits_and_value(observation)
        return Evaluation(log_prob=F.categorical_log_prob(logits, action), entropy=F.categorical_entropy(logits), value=value)

    def distribution(self, observation):
        return torch.distributions.Categorical(logits=self.logits_and_value(observation)[0])


def test_a_policy_of_ones_own_may_use_the_usual_names():
    envs = control.make("CartPole-v1", 2)
    policy = UsualNames()
    train(PPO(), policy, control.Steps(envs, 8), iterations=2)
    assert control.evaluate(policy, "CartPole-v1", episodes=2).episodes == 2  # greedy by the mode of torch's own distribution


@pytest.mark.parametrize("mode", MODES)
def test_a_policy_that_takes_action_masks_gets_them_for_successors_too(mode):
    class Masked(Critic):
        def __init__(self):
            super().__init__(value=lambda observation: observation[..., 0])
            self.logits = nn.Parameter(torch.zeros(3))

        def sample(self, inputs, *, generator=None):
            logits = self.logits.expand(len(inputs["observation"]), 3)
            action = F.categorical_sample(logits, generator, inputs["action_mask"])
            return Sample(action=action, log_prob=F.categorical_log_prob(logits, action, inputs["action_mask"]))

        def evaluate(self, observation, action, action_mask):
            logits = self.logits.expand(*action.shape, 3)
            log_prob = F.categorical_log_prob(logits, action, action_mask)
            entropy = F.categorical_entropy(logits, action_mask)
            return Evaluation(log_prob=log_prob, entropy=entropy, value=self.value_function(observation))

    envs = side_by_side([Ruled] * 2, mode)
    rollout = control.Steps(envs, 9)(Masked())
    assert rollout.next_value[rollout.mask].max() == 4.0  # that of the state behind the last step


def test_finished_rows_do_not_reach_the_running_moments():
    envs = side_by_side([lambda: Loop(2), lambda: Loop(30)])
    policy = control.MLPPolicy.for_envs(envs, normalize_observation=True)
    rollout = control.Episodes(envs)(policy)
    assert int(rollout.mask.sum()) == 32
    assert int(policy.observation_normalizer.moments.count) == 32


def test_an_own_collector_may_call_the_policy():
    envs = control.make("CartPole-v1", 2)
    policy = control.MLPPolicy.for_envs(envs)
    inner = control.Steps(envs, 4)

    def collect(actor):
        rollout = inner(actor)
        actor(**rollout.inputs)
        return rollout

    train(PPO(), policy, collect, iterations=1)
