"""A run that stops anywhere goes on from its state as if nothing had happened: every number of it, to the bit."""

import random
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from upslope import A2C, GRPO, NPG, PPO, REINFORCE, SARSA, TRPO, OnlineActorCritic, control
from upslope.control.memory import Made, first_difference, marks, remembered, set_back
from upslope.control.restore import frozen, stacked, unstacked
from upslope.run.checkpoints import read_checkpoint, write_checkpoint
from upslope.run.train import RunState, train
from upslope.run.verify import differences

ITERATIONS, STOP = 6, 3
LOW, HIGH = (-2.4, -3.0, -0.21, -3.5), (2.4, 3.0, 0.21, 3.5)


def parts(algorithm, env, collector, num_envs, vectorization, **shape):
    envs = control.make(env, num_envs=num_envs, seed=3, vectorization=vectorization)
    make = {"steps": control.Steps, "episodes": control.Episodes, "groups": control.GroupedEpisodes, "stream": control.Stream}[collector]
    size = {"steps": {"num_steps": 24}, "groups": {"group_size": 2}, "stream": {"num_steps": 60}}.get(collector, {})
    kind, shape = (control.LinearPolicy, shape) if collector == "stream" else (control.MLPPolicy, {"hidden_sizes": (8,), **shape})
    policy = kind.for_envs(envs, seed=1, **shape)
    return algorithm, policy, make(envs, **size, seed=5)


def whole_and_resumed(make, tmp_path: Path, fast: bool) -> tuple[dict, dict, control.Envs]:
    """The state after an uninterrupted run, and after one that stopped, went through files, and went on in new parts."""

    def run(**options) -> tuple[dict, control.Envs]:
        algorithm, policy, collect = make()
        try:
            state = train(algorithm, policy, collect, iterations=ITERATIONS, seed=2, fast=fast, **options).state_dict()
            return state, collect.envs
        finally:
            collect.envs.close()

    states = []

    def stop(state: RunState) -> bool:
        if state.iteration == STOP:
            states.append(write_checkpoint(tmp_path, STOP, state.state_dict()))
        return state.iteration == STOP

    whole, _ = run()
    run(callbacks=stop)
    return whole, *run(start=read_checkpoint(states[0]))


CASES = {
    "ppo": (PPO(), "CartPole-v1", "steps", 8, "auto", {}),
    "ppo adaptive": (PPO(kl_coef=0.5, adaptive_kl=0.01), "CartPole-v1", "steps", 3, "sync", {}),
    "ppo normalized": (PPO(), "Pendulum-v1", "steps", 2, "sync", {"normalize_observation": True, "normalize_reward": True}),
    "a2c apart": (A2C(), "Acrobot-v1", "steps", 2, "async", {}),
    "a2c discrete": (A2C(), "FrozenLake-v1", "steps", 2, "sync", {}),
    "reinforce": (REINFORCE(), "CartPole-v1", "episodes", 4, "sync", {}),
    "reinforce native": (REINFORCE(), "CartPole-v1", "episodes", 6, "auto", {}),
    "grpo": (GRPO(), "CartPole-v1", "groups", 4, "sync", {}),
    "trpo": (TRPO(), "CartPole-v1", "steps", 3, "sync", {}),
    "npg": (NPG(), "Pendulum-v1", "steps", 3, "sync", {}),
    "actor-critic": (OnlineActorCritic(trace_decay=0.8), "CartPole-v1", "stream", 1, "sync", {"feature_low": LOW, "feature_high": HIGH}),
    "sarsa": (SARSA(trace_decay=0.8), "MountainCar-v0", "stream", 1, "sync", {"epsilon": 0.1, "critic": False}),
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "readable"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_to_the_bit(case: str, fast: bool, tmp_path: Path):
    *arguments, shape = CASES[case]
    whole, resumed, envs = whole_and_resumed(lambda: parts(*arguments, **shape), tmp_path, fast)
    assert differences(whole, resumed) == []
    assert resumed["iteration"] == ITERATIONS
    assert envs.begun_anew == ""


class Walk(gymnasium.Env):
    """A random walk with everything in its observation and its actions that spaces can hold; it draws from ``source``."""

    observation_space = spaces.Dict({"place": spaces.Box(-50, 50, (2,)), "pair": spaces.Tuple((spaces.Discrete(7), spaces.MultiBinary(2)))})
    action_space = spaces.MultiDiscrete([2, 3])

    def __init__(self, source: str = "np_random"):
        self.source, self.place, self.count = source, np.zeros(2, np.float32), 0

    def draw(self) -> float:
        return random.random() if self.source == "random" else float(self.np_random.random())

    def look(self):
        return {"place": self.place.copy(), "pair": (self.count % 7, np.array([self.count % 2, 1], np.int8))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.count = np.full(2, self.draw(), np.float32), 0
        return self.look(), {}

    def step(self, action):
        self.count += 1
        self.place = np.clip(self.place + np.float32(0.1) * (np.asarray(action, np.float32) - 1) + np.float32(0.01 * self.draw()), -50, 50)
        return self.look(), float(self.place.sum()), bool(self.count >= 9), False, {}


class Tells(Walk):
    """The same, which says where it is."""

    def __init__(self):
        super().__init__("random")

    def get_state(self):
        return {"place": self.place, "count": self.count}

    def set_state(self, state):
        self.place, self.count = np.array(state["place"]), state["count"]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_of_ones_own_goes_on_in_the_middle_of_its_episode(vectorization: str, tmp_path: Path):
    make = lambda: parts(PPO(), Walk, "steps", 3, vectorization)  # noqa: E731
    whole, resumed, envs = whole_and_resumed(make, tmp_path, True)
    assert differences(whole, resumed) == []
    assert envs.begun_anew == ""


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_cannot_be_played_again_begins_anew_and_says_so(vectorization: str, tmp_path: Path):
    _, resumed, envs = whole_and_resumed(lambda: parts(PPO(), lambda: Walk("random"), "steps", 3, vectorization), tmp_path, True)
    assert "begin anew: played again, its episode has other rewards: it draws from other generators" in envs.begun_anew
    assert resumed["iteration"] == ITERATIONS
    if vectorization == "async":  # its processes did nothing wrong
        assert envs.restarts == 0


class Bandit(gymnasium.Env):
    """It always looks the same; what it pays is its own ``generator``'s, or, where it has ``levels``, less from episode to episode."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)

    def __init__(self, levels: bool = False, history: list | None = None):
        self.generator, self.levels, self.level, self.count = np.random.default_rng(0), levels, 0, 0
        self.history, self.seconds = history, [0.0]
        self.share, self.port, self.began, self.mode = np.float32(1.0), time.time_ns() % 10**9, time.time(), "easy"

    def reset(self, *, seed=None, options=None):
        self.level, self.count = self.level + 1, 0
        self.seconds.append(time.perf_counter())
        if self.history is not None:
            self.history.append(self.level)
        self.share, self.mode, self.port = self.share * np.float32(0.9), "hard" if self.level > 2 else "easy", self.port + 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        reward = 1.0 / self.level if self.levels else float(self.generator.normal())
        return np.zeros(1, np.float32), reward, bool(self.count >= 9), False, {}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_rewards_are_compared_where_observations_tell_nothing(vectorization: str, tmp_path: Path):
    _, _, envs = whole_and_resumed(lambda: parts(PPO(), Bandit, "steps", 3, vectorization), tmp_path, True)
    assert "its episode has other rewards: it draws from other generators, or remembers earlier episodes" in envs.begun_anew


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_an_environment_keeps_from_episode_to_episode_comes_back(wrapped: bool, vectorization: str, tmp_path: Path):
    env = lambda: Counting(Bandit(levels=True)) if wrapped else Bandit(levels=True)  # noqa: E731
    whole, resumed, envs = whole_and_resumed(lambda: parts(PPO(), env, "steps", 3, vectorization), tmp_path, True)
    assert envs.begun_anew == ""
    assert differences(whole, resumed) == []


def test_lists_that_remember_are_named_for_they_may_be_held_elsewhere_too(tmp_path: Path):
    _, resumed, envs = whole_and_resumed(lambda: parts(PPO(), lambda: Bandit(True, []), "steps", 3, "sync"), tmp_path, True)
    assert "which begin anew: played again, its episode leaves its attribute 'history' at another value" in envs.begun_anew
    assert resumed["iteration"] == ITERATIONS


class Views(Walk):
    """Its position is a part of its state, and it measures how long its steps take."""

    def __init__(self):
        super().__init__()
        self.inner = np.zeros(2)
        self.spot, self.pace = self.inner[:1], self.inner[1:]

    def reset(self, **options):
        self.inner[:] = 0.0, 0.1
        return super().reset(**options)

    def step(self, action):
        began = time.perf_counter()
        self.spot += self.pace
        observation, reward, *rest = super().step(action)
        self.took, self.last = time.perf_counter() - began, time.time_ns()
        return observation, reward + float(self.inner[0]), *rest


def test_arrays_that_are_parts_of_one_another_stay_so_and_times_are_no_memory(tmp_path: Path):
    whole, resumed, envs = whole_and_resumed(lambda: parts(PPO(), Views, "steps", 3, "sync"), tmp_path, True)
    assert envs.begun_anew == "" and differences(whole, resumed) == []
    inside = envs.vector.envs[0].unwrapped
    assert inside.spot.base is inside.inner and inside.pace.base is inside.inner


class Counting(gymnasium.Wrapper):
    """It pays more in every third episode, however short it is."""

    episodes = 0

    def reset(self, **options):
        self.episodes += 1
        return self.env.reset(**options)

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, reward + (self.episodes % 3 == 0), *rest


def test_what_it_keeps_and_cannot_be_set_is_named(tmp_path: Path):
    """Nothing of it shows in observations, rewards or the generator."""
    one, other = (control.make(lambda: Nested(), 2, seed=1, vectorization="sync") for _ in range(2))
    one.reset()
    for _ in range(31):
        one.step(np.zeros((2, 2), np.int64))
    kept = read_checkpoint(write_checkpoint(tmp_path, 1, one.state_dict()))
    other.load_state_dict(kept)
    assert other.begun_anew.endswith("its episode leaves its attribute 'nested' at another value: it remembers more than an episode")
    for episode in kept["vector"]["episodes"]:  # a checkpoint of before
        del episode["memory"]
    older = control.make(lambda: Nested(), 2, seed=1, vectorization="sync")
    older.load_state_dict(kept)
    assert older.begun_anew == ""


class Nested(Walk):
    """It counts episodes where nobody looks."""

    def __init__(self):
        super().__init__()
        self.nested = [[0]]

    def reset(self, **options):
        self.nested = [[1 + self.nested[0][0]]]
        return super().reset(**options)


def test_what_belongs_to_the_process_is_left_alone():
    one, other = (Bandit(levels=True) for _ in range(2))
    made, then = Made.of(other), Made.of(one)
    for _ in range(4):
        one.reset()
    state = {"made": then.marks, "before": then.changed(remembered(one)), "now": marks(one)}
    port, began = other.port, other.began
    set_back(other, made, state)
    assert (other.level, other.history, other.seconds, other.mode) == (4, None, [0.0], "hard")
    assert type(other.share) is np.float32 and other.share == one.share
    assert (other.port, other.began) == (port, began)
    assert first_difference(other, made, state) == ""
    other.level = 5
    assert first_difference(other, made, state) == "level"
    assert remembered(gymnasium.make("CartPole-v1")) == {}


class Forgets(Tells):
    """What it was set to is not what it says then."""

    def set_state(self, state):
        super().set_state({**state, "count": 0})


class TellsAll(Walk):
    """Its generator too, whose state has integers of 128 bits."""

    def get_state(self):
        return {"place": self.place, "count": self.count, "generator": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.place, self.count, self.np_random.bit_generator.state = np.array(state["place"]), state["count"], state["generator"]


@pytest.mark.parametrize("env, well", [(Forgets, False), (TellsAll, True)])
def test_what_an_environment_was_set_to_is_asked_for_again(env, well: bool, tmp_path: Path):
    one, other = control.make(env, 2, seed=1), control.make(env, 2, seed=9)
    one.reset()
    for _ in range(4):
        one.step(np.array([[1, 2], [0, 1]]))
    other.load_state_dict(read_checkpoint(write_checkpoint(tmp_path, 1, one.state_dict())))
    assert other.begun_anew.endswith("" if well else "behind set_state(state), its get_state() says something else")
    assert (other.begun_anew == "") is well


@pytest.mark.parametrize("one, other", [("a", "ab"), (1, 1.9), (np.uint8(1), 257), (2**100, 2**100 + 1), (True, 1), ([1], [1, 2])])
def test_states_are_the_same_to_the_bit_or_not(one, other):
    assert frozen({"x": one}) != frozen({"x": other})
    assert frozen({"x": one}) == frozen({"x": tuple(one) if isinstance(one, list) else one})
    assert frozen(np.zeros(2, np.float32)) != frozen(np.zeros(2))
    assert frozen({"x": float("nan"), "y": int("1" * 40)}) == frozen({"x": float("nan"), "y": int("1" * 40)})


@pytest.mark.parametrize("env", ["BipedalWalker-v3", "LunarLander-v3"])
def test_worlds_of_box2d_have_no_past(env: str, tmp_path: Path):
    """The bodies of earlier episodes change nothing of an episode that is played again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its wrapper generator's, which as an error ends the interpreter
        pytest.importorskip("Box2D")
    make = lambda: control.make(env, 1, seed=4, vectorization="sync")  # noqa: E731
    with make() as one, make() as other:
        one.reset()
        actions = np.random.default_rng(0)
        for count in range(300):
            one.step(actions.uniform(-1, 1, (1, 4)) if env.startswith("Bipedal") else actions.integers(0, 4, 1))
            if count % 30 == 29:
                other.load_state_dict(one.state_dict())
                assert other.begun_anew == ""


class Slow(Walk):
    """A step takes a third of its time."""

    def step(self, action):
        time.sleep(0.1)
        return super().step(action)


def test_playing_an_episode_again_may_take_as_long_as_its_steps():
    make = lambda: control.make(Slow, 2, seed=1, vectorization="async", step_timeout=0.4)  # noqa: E731
    with make() as one, make() as other:
        one.reset()
        for _ in range(7):
            one.step(np.array([[1, 2], [0, 1]]))
        other.load_state_dict(one.state_dict())
        assert other.begun_anew == ""
        assert differences(list(one.step(np.array([[1, 0], [1, 1]]))), list(other.step(np.array([[1, 0], [1, 1]])))) == []


class Hangs(Walk):
    """Where it is played again, in another process, it hangs."""

    def __init__(self, place: str):
        super().__init__()
        self.sign = Path(place, "again")

    def step(self, action):
        if self.sign.exists():
            self.sign.unlink(missing_ok=True)
            time.sleep(1000)
        return super().step(action)


def test_a_worker_that_hangs_over_an_episode_makes_place_for_another(tmp_path: Path):
    make = lambda: control.make(lambda: Hangs(str(tmp_path)), 2, seed=1, vectorization="async", step_timeout=0.3)  # noqa: E731
    with make() as one, make() as other:
        one.reset()
        for _ in range(3):
            one.step(np.array([[1, 2], [0, 1]]))
        (tmp_path / "again").touch()
        other.load_state_dict(one.state_dict())
        assert "did not answer within 0.3 s" in other.begun_anew
        other.reset()  # both answer, the one that was started anew too
        assert other.step(np.array([[1, 2], [0, 1]])).mask.all()
        assert other.restarts == 0


def test_an_environment_that_says_where_it_is_is_asked():
    one, other = control.make(Tells, 2, seed=1), control.make(Tells, 2, seed=9)
    one.reset()
    for _ in range(4):
        one.step(np.array([[1, 2], [0, 1]]))
    state = one.state_dict()
    other.load_state_dict(state)
    assert other.begun_anew == ""
    random.seed(7)
    expected = one.step(np.array([[1, 0], [1, 1]]))
    random.seed(7)
    found = other.step(np.array([[1, 0], [1, 1]]))
    assert differences(list(expected), list(found)) == []


class Promises(Walk):
    """It has the names, and not the methods."""

    def get_state(self):
        raise NotImplementedError

    def set_state(self, state):
        raise NotImplementedError


class SaysObjects(Promises):
    """It says what no file can hold."""

    def get_state(self):
        return {"inside": object()}


class TellsWithout(Walk):
    """It says where it is, and nothing of its generator."""

    def get_state(self):
        return {"place": self.place, "count": self.count}

    def set_state(self, state):
        self.place, self.count = np.array(state["place"]), state["count"]


def framed():
    return gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.FlattenObservation(TellsWithout()), 3)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("env", [Promises, SaysObjects, TellsWithout, framed])
def test_what_an_environment_says_is_used_only_where_it_is_enough(env, vectorization: str, tmp_path: Path):
    whole, resumed, envs = whole_and_resumed(lambda: parts(PPO(), env, "steps", 3, vectorization), tmp_path, True)
    assert envs.begun_anew == ""
    assert [path for path in differences(whole, resumed) if "/vector/episodes" not in path] == []


def test_wrappers_that_remember_more_than_an_episode_are_named(tmp_path: Path):
    env = lambda: gymnasium.wrappers.NormalizeReward(Walk())  # noqa: E731
    _, _, envs = whole_and_resumed(lambda: parts(PPO(), env, "steps", 2, "sync"), tmp_path, True)
    assert "its wrapper NormalizeReward remembers more than an episode" in envs.begun_anew


def test_a_vector_environment_that_says_nothing_begins_anew():
    class Opaque(gymnasium.vector.VectorEnv):
        num_envs = 2
        single_observation_space, single_action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
        observation_space, action_space = spaces.Box(-1, 1, (2, 1)), spaces.MultiDiscrete([2, 2])
        metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

        def reset(self, *, seed=None, options=None):
            return np.zeros((2, 1), np.float32), {}

        def step(self, action):
            return np.zeros((2, 1), np.float32), np.ones(2), np.zeros(2, bool), np.zeros(2, bool), {}

    envs = control.make(lambda: Opaque(), 2)
    envs.reset()
    other = control.make(lambda: Opaque(), 2)
    other.load_state_dict(envs.state_dict())
    assert "it does not say where it is" in other.begun_anew
    assert other.observation is None


def test_actions_of_every_space_come_back_as_they_were():
    space = spaces.Dict({"a": spaces.Discrete(4), "b": spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2])))})
    space.seed(0)
    actions = [space.sample() for _ in range(5)]
    again = unstacked(space, stacked(actions), 5)
    for before, after in zip(actions, again, strict=True):
        assert space.contains(after)
        assert before["a"] == after["a"]
        assert all((x == y).all() for x, y in zip(before["b"], after["b"], strict=True))
