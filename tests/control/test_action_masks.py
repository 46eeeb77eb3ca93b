"""Action masks by every convention: ``info["action_mask"]``, a method ``action_masks()``, ``observation["action_mask"]``."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from tests.control.worlds import MODES, Masked, side_by_side
from upslope import RunFault, UsageError, control
from upslope.control.action_masks import ActionMasks
from upslope.control.guard import masked_by_observation
from upslope.records import Sample

SOURCES = {"info": None, "method": "action_masks()", "observation": 'observation["action_mask"]'}


def envs_of(convention, kind, mode):
    """Three environments, made by the library or by the user."""
    if kind == "plain":
        return side_by_side([lambda: Masked(convention)] * 3, mode)
    return control.make(Masked, 3, vectorization=kind, autoreset_mode=mode, env_kwargs={"convention": convention})


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("convention", SOURCES)
@pytest.mark.parametrize("kind", ["sync", "async", "plain"])
def test_only_legal_actions_are_taken(convention, kind, mode):
    with envs_of(convention, kind, mode) as envs:
        assert envs.mask_source == SOURCES[convention]
        policy = control.policy_for(envs, seed=1)
        rollout = control.Steps(envs, 20)(policy)  # an illegal action raises
        data = control.record(envs, policy.frozen(), 15)
    real = rollout.mask
    place = rollout.inputs["observation"][..., -1].long()
    expected = (torch.arange(4) - place.unsqueeze(-1)) % 4 < 2
    assert torch.equal(rollout.inputs["action_mask"][real], expected[real])
    assert rollout.inputs["action_mask"][~real].all() and len(set(rollout.inputs["action"][real].tolist())) == 4
    assert data.tensors["action_mask"].any(-1).all()
    again = control.Recorded(data)(policy)
    assert again.inputs["action_mask"].gather(-1, again.inputs["action"].unsqueeze(-1)).squeeze(-1)[again.mask].all()


def cut(convention):
    """Cut off after five of its six steps: action 1 and the next one would be legal then."""
    return TimeLimit(Masked(convention), 5)


class Legal(torch.nn.Module):
    """Plays the first legal action; its value of a state is which actions are legal there, as a binary number."""

    def __init__(self, envs):
        super().__init__()
        self.envs = envs

    def inputs(self, observation, *, action_mask=None, update=False):
        return {"action_mask": torch.from_numpy(np.array(action_mask))}

    def sample(self, inputs, *, generator=None):
        return Sample(action=inputs["action_mask"].int().argmax(-1), log_prob=torch.zeros(len(inputs["action_mask"])))

    def value(self, inputs):
        return (inputs["action_mask"] * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum(-1)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("convention", SOURCES)
@pytest.mark.parametrize("kind", ["sync", "async", "plain"])
def test_what_is_legal_behind_a_truncation(convention, kind, mode):
    """A method that looks at the next state's actions sees those of the state where the episode was cut off."""
    if kind == "plain":
        envs = side_by_side([lambda: cut(convention)] * 2, mode)
    else:
        envs = control.make(Masked, 2, vectorization=kind, autoreset_mode=mode, env_kwargs={"convention": convention}, max_episode_steps=5)
    with envs:
        rollout = control.Steps(envs, 14)(Legal(envs))
    legal = {t: sum(2 ** (a % 4) for a in (t, t + 1)) for t in range(6)}  # at time t
    value, after = rollout.value[rollout.mask].tolist(), rollout.next_value[rollout.mask].tolist()
    times = [t % 5 for _ in range(2) for t in range(int(rollout.mask[0].sum()))]
    assert value == [legal[t] for t in times] and after == [legal[t + 1] for t in times]
    assert rollout.truncated.sum() >= 4 and not rollout.terminated.any()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("convention", SOURCES)
def test_what_is_legal_behind_a_truncation_in_a_stream(convention, mode):
    played = control.Stream(side_by_side([lambda: cut(convention)], mode))
    policy, ended = Legal(played.envs), 0
    for t in range(12):
        step = played.step(policy, played.act(policy, played.observe(policy)))
        assert step.next_inputs["action_mask"].tolist() == [[(a - (t % 5 + 1)) % 4 < 2 for a in range(4)]]
        ended += step.truncated
    assert ended == 2


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("legal", [lambda: 1 / 0, lambda: np.zeros(4, bool), lambda: [1, 0]])
def test_an_environment_that_cannot_say_what_is_legal_behind_a_truncation(legal, mode):
    class Silent(Masked):
        def legal(self):
            return legal() if self.time == 5 else super().legal()

    envs = side_by_side([lambda: TimeLimit(Silent(), 5)], mode)
    rollout = control.Steps(envs, 12)(Legal(envs))
    assert rollout.next_value[rollout.truncated].tolist() == [15.0, 15.0]


@pytest.mark.parametrize("convention", SOURCES)
def test_an_evaluation_plays_legally(convention):
    policy = control.policy_for(control.make(Masked, env_kwargs={"convention": convention}), seed=1)
    for greedy in (True, False):
        result = control.evaluate(policy, Masked, episodes=5, num_envs=3, greedy=greedy, env_kwargs={"convention": convention})
        assert result.returns == (6.0,) * 5
    whole = control.evaluate(policy, lambda: SyncVectorEnv([lambda: Masked(convention)] * 3), episodes=4)
    assert whole.returns == (6.0,) * 4


def test_whole_episodes_play_legally():
    with control.make(Masked, 2, env_kwargs={"convention": "observation"}) as envs:
        rollout = control.Episodes(envs, 5)(control.policy_for(envs))
        assert rollout.metrics["num_episodes"] == 5
        stream = control.make(Masked, 1)
        policy, collect = control.policy_for(stream), control.Stream(stream)
        for _ in range(15):
            collect.step(policy, collect.act(policy, collect.observe(policy)))


def test_a_loaded_policy_finds_the_mask_in_the_observation():
    env = Masked("observation")
    policy = control.policy_for(env, seed=1)
    observation, _ = env.reset()
    for _ in range(6):
        observation, *_ = env.step(policy.act(observation)[0])  # an illegal action raises
    policy.act(observation)  # nothing is legal behind the end, and nothing is asked of it


def vector_of(rows, space=None):
    """Masks as a vector environment gives them."""
    return ActionMasks(space or spaces.Discrete(3), len(rows)).read({"action_mask": rows}).tolist()


def test_what_a_mask_may_be():
    assert vector_of([np.array([1, 0, 1], np.int8), [True, False, True], (0.0, 1.0, 1.0)]) == [[True, False, True]] * 2 + [
        [False, True, True]
    ]
    factors = spaces.MultiDiscrete([2, 3])
    forms = [[1, 0, 0, 1, 1], ([1, 0], [0, 1, 1]), [np.array([True, False]), np.array([False, True, True])]]
    for form in forms:  # sb3-contrib concatenates, Gymnasium's sample takes a tuple
        found = np.empty(1, object)
        found[0] = form
        assert vector_of(found, factors) == [[True, False, False, True, True]]


@pytest.mark.parametrize(
    "mask, message",
    [
        ([1, 1, 1], "action_mask has 3 entries, the action space has 4 choices"),
        ([0, -np.inf, 0, 0], "action_mask holds -inf, expected booleans, or 1 for legal and 0 for illegal"),
        ([1, 2, 0, 0], "action_mask holds 2, expected booleans"),
        (None, "action_mask has 1 entries, the action space has 4 choices"),
        (["a", "b", "c", "d"], "action_mask holds a, expected booleans"),
        ([0, 0, 0, 0], "action_mask allows no action in environment 0"),
    ],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_mask_that_does_not_fit_is_one_line(mask, message, vectorization):
    class Wrong(Masked):
        def legal(self):
            return mask

    with control.make(Wrong, 2, vectorization=vectorization) as envs, pytest.raises(RunFault) as caught:
        envs.reset()
    line = str(caught.value)
    assert line.startswith("environment 'Wrong', reset: ") and message in line and "\n" not in line
    assert "allows no action" in line or line.endswith("; it comes from action_masks()")


def test_a_method_that_raises_and_masks_of_other_actions():
    class Raising(Masked):
        def legal(self):
            raise KeyError("rules")

    with pytest.raises(RunFault, match=r"environment 'Raising' raised KeyError in action_masks\(\): 'rules'"):
        control.make(Raising).reset()
    for space in (spaces.Box(-1, 1, (1,)), spaces.MultiBinary(2)):
        with pytest.raises(RunFault, match="masks are for Discrete and MultiDiscrete actions, not"):
            control.make(Masked, env_kwargs={"action_space": space}).reset()


def test_masks_in_the_observation_must_fit_the_actions():
    def found(mask, actions):
        return masked_by_observation(spaces.Dict(action_mask=mask, x=spaces.Box(0, 1, (2,))), actions)

    for mask in (spaces.Box(0, 1, (4,), np.int8), spaces.MultiBinary(4), spaces.MultiDiscrete([2] * 4)):
        assert found(mask, spaces.Discrete(4)) and found(mask, spaces.MultiDiscrete([2, 2]))
        assert not found(mask, spaces.Box(-1, 1, (4,)))  # a number of the observation like any other
        with pytest.raises(UsageError, match=r'observation\["action_mask"\] is .*, the action space has 3 choices'):
            found(mask, spaces.Discrete(3))
    assert not masked_by_observation(spaces.MultiBinary(4), spaces.Discrete(4))


class Whole(VectorEnv):
    """A vector environment of the user's own, whose parts nobody can reach."""

    def __init__(self, convention, mode):
        self._parts = parts = SyncVectorEnv([lambda: Masked(convention)] * 3, autoreset_mode=mode)
        self.num_envs, self.metadata, self.reset, self.step = 3, parts.metadata, parts.reset, parts.step
        self.single_observation_space, self.single_action_space = parts.single_observation_space, parts.single_action_space
        if convention == "method":
            self.action_masks = lambda: np.stack([env.legal() for env in parts.envs])


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("convention", SOURCES)
def test_a_vector_environment_of_ones_own(convention, mode):
    envs = control.Envs(Whole(convention, mode))
    assert envs.mask_source == SOURCES[convention]
    control.Steps(envs, 20)(control.policy_for(envs, seed=1))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_only_looks_like_a_mask_is_named_once(vectorization, capfd):
    class Almost(Masked):
        def answer(self):
            return super().answer()[0], {"legal_actions": [0, 1]}

    words = 'environment Almost: info["legal_actions"] looks like an action mask and is not used as one; call it "action_mask"'
    envs = control.make(Almost, 2, vectorization=vectorization, env_kwargs={"convention": "none"})
    with envs, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        envs.reset()
        envs.reset()
    said = [str(item.message) for item in caught] + capfd.readouterr().err.splitlines()
    assert len(said) == 1 and words in said[0] and envs.action_mask is None


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_method_is_not_asked_behind_an_end(mode):
    class Over(Masked):
        def legal(self):
            if self.time == 6:
                raise IndexError("the game is over")
            return super().legal()

    envs = side_by_side([Over] * 2, mode)
    assert control.Steps(envs, 15)(control.policy_for(envs)).metrics["num_episodes"] == 4
