"""Making environments: every kind of name, the vectorized versions, what cannot be made, and faults while running."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from tests.control.worlds import Counting
from upslope import UsageError, control

MODULE = """
from types import SimpleNamespace
import gymnasium
from tests.control.worlds import Counting

class Mine(Counting):
    def __init__(self, which=0, size=1):
        super().__init__(which)
        self.size = size

def broken():
    raise RuntimeError("no hardware\\nfound")

def number():
    return 3

def concatenated():
    return SimpleNamespace(num_envs=3, observation_space=None, action_space=None, step=None, reset=None)

def parallel():
    return SimpleNamespace(possible_agents=["a", "b"], agents=["a", "b"], step=None, reset=None)

gymnasium.register("Mine-v0", Mine)
gymnasium.register("Mine-v2", Mine, max_episode_steps=2)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the current folder that registers an environment and has factories."""
    monkeypatch.delitem(sys.modules, "my_module", raising=False)  # of another test's folder
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield
    sys.modules.pop("my_module", None)
    for name in ("Mine-v0", "Mine-v2"):
        gymnasium.registry.pop(name, None)


# ----------------------------------------------------------------------------------------------------------------- kinds


def test_names_and_callables(mine):
    assert control.make("my_module:Mine-v0", 2).env_id == "Mine-v0"
    assert control.make("my_module:Mine", 2).env_id == "Mine-v2"  # without a version, the latest
    envs = control.make("my_module:Mine-v0", 2, env_kwargs={"size": 5})
    assert envs.vector.envs[0].unwrapped.size == 5
    factory = control.make("my_module:Counting", 2, env_kwargs={"which": 3})
    assert factory.vector.envs[1].which == 3
    plain = control.make(Counting, 3, env_kwargs={"which": 1})
    assert (plain.num_envs, plain.env_id, plain.observation_space.shape) == (3, "Counting", (3,))
    assert [env.which for env in plain.vector.envs] == [1, 1, 1]


def test_a_factory_is_called_once_for_each_environment():
    calls = []
    control.make(lambda: (calls.append(1), Counting())[1], 4)
    assert len(calls) == 4


def test_a_whole_vector_environment():
    def factory():
        return SyncVectorEnv([Counting] * 3, autoreset_mode=AutoresetMode.SAME_STEP)

    assert control.make(factory, 3).autoreset_mode is AutoresetMode.SAME_STEP
    with pytest.raises(UsageError, match="makes a vector environment of 3, expected 2"):
        control.make(factory, 2)


def test_the_environments_own_vectorized_version_is_used_where_it_pays():
    assert isinstance(control.make("CartPole-v1", 8).vector, CartPoleVectorEnv)
    assert isinstance(control.make("CartPole-v1", 1).vector, SyncVectorEnv)
    assert isinstance(control.make("CartPole-v1", 8, vectorization="sync").vector, SyncVectorEnv)
    with control.make("CartPole-v1", 2, vectorization="async") as envs:
        assert isinstance(envs.vector, AsyncVectorEnv)
    assert control.make("CartPole-v1", 8, env_kwargs={"sutton_barto_reward": True}).vector._sutton_barto_reward


def balance(observation):
    """Keeps the pole up for as long as anybody looks."""
    return (observation @ np.array([0.1, 0.5, 5.0, 1.0]) > 0).astype(np.int64)


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
@pytest.mark.parametrize("limit", [None, 30])
def test_the_time_limit_truncates(vectorization, limit):
    """Gymnasium's vectorized CartPole counts for itself; it must stop at 500 like the wrapped one, as a truncation."""
    kwargs = {} if limit is None else {"max_episode_steps": limit}
    envs = control.make("CartPole-v1", 5, vectorization=vectorization, env_kwargs=kwargs)
    observation = envs.reset()
    for _ in range((limit or 500) - 1):
        step = envs.step(balance(observation))
        observation = step.observation
        assert not (step.terminated | step.truncated).any()
    step = envs.step(balance(observation))
    assert step.truncated.all()
    assert not step.terminated.any()
    assert step.finished == [(float(limit or 500), limit or 500)] * 5


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_async_gives_what_sync_gives(mode):
    def play(vectorization):
        with control.make("CartPole-v1", 3, seed=5, vectorization=vectorization, autoreset_mode=mode) as envs:
            rollout = control.Steps(envs, 60)(control.MLPPolicy.for_envs(envs))
            return rollout.inputs["observation"], rollout.next_value, rollout.mask

    for one, two in zip(play("sync"), play("async"), strict=True):
        assert (one == two).all()


def test_envpool_gives_the_same_task():
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    with control.make("CartPole-v1", 4, seed=3, vectorization="envpool") as envs:
        assert envs.autoreset_mode is AutoresetMode.NEXT_STEP
        rollout = control.Steps(envs, 100)(control.MLPPolicy.for_envs(envs))
        hidden = ~rollout.mask
        assert hidden.any()
        assert (rollout.terminated[:, :-1] == hidden[:, 1:]).all()
        assert len({tuple(row) for row in rollout.inputs["observation"][:, 0].tolist()}) == 4
        # the same dynamics: Gymnasium's CartPole started in the same states goes the same way (EnvPool computes in float32 and 64)
        single = gymnasium.make("CartPole-v1").unwrapped
        for t in range(99):
            if rollout.mask[0, t] and not rollout.terminated[0, t]:
                single.reset()
                single.state = rollout.inputs["observation"][0, t].double().numpy()
                following = single.step(int(rollout.inputs["action"][0, t]))[0]
                # the recorded state is float32
                np.testing.assert_allclose(rollout.inputs["observation"][0, t + 1], following, atol=1e-5)


def test_envpool_cannot_be_seeded_again():
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    with control.make("CartPole-v1", 2, vectorization="envpool") as envs:
        envs.reset()
        with pytest.raises(UsageError, match="took its seed when it was made"):
            envs.reset(seed=3)


def test_environments_that_are_made_already_are_taken_and_left_open():
    one, three = gymnasium.make("CartPole-v1"), gymnasium.make_vec("CartPole-v1", num_envs=3)
    assert (control.make(one).num_envs, control.make(one).env_id, control.make(three).num_envs) == (1, "CartPole-v1", 3)
    policy = control.MLPPolicy.for_envs(control.make("CartPole-v1"), seed=0)
    expected = control.evaluate(policy, "CartPole-v1", episodes=4, vectorization="sync").returns
    for env in (one, gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 3)):
        assert control.evaluate(policy, env, episodes=4).returns == expected
        env.reset(seed=0)
        env.step(env.action_space.sample())


# ------------------------------------------------------------------------------------------------------- what cannot be made

BAD = [
    ("CartPol-v1", {}, "unknown environment 'CartPol-v1': did you mean 'CartPole-v1'?"),
    ("CartPole-v7", {}, "unknown environment 'CartPole-v7': version v7 does not exist, the latest is 'CartPole-v1'"),
    ("LunarLander-v2", {}, "unknown environment 'LunarLander-v2': version v2 does not exist, the latest is 'LunarLander-v3'"),
    ("no spaces!", {}, "unknown environment 'no spaces!'"),
    ("", {}, "env: expected an environment's name or a callable, found ''"),
    (3, {}, "env: expected an environment's name or a callable, found 3"),
    ("no_such_module:Env-v0", {}, "no module named 'no_such_module'"),
    ("my_module:Mime-v0", {}, "unknown environment in module 'my_module' 'Mime-v0': did you mean 'Mine-v0'?"),
    ("my_module:numbr", {}, "did you mean 'number'?"),
    ("my_module:broken", {}, "env 'my_module:broken' cannot be made: RuntimeError: no hardware found"),
    ("my_module:number", {}, "expected a gymnasium.Env (or gymnasium.vector.VectorEnv), its factory returned builtins.int"),
    (
        "my_module:concatenated",
        {},
        "another kind (SuperSuit's, Stable-Baselines3's). It lacks single_observation_space and single_action_space.",
    ),
    ("my_module:parallel", {}, "PettingZoo's for many agents; one policy for all of them takes a VectorEnv with a row for each agent"),
    (gymnasium.make("CartPole-v1"), {"num_envs": 2}, "num_envs: the environment that is made already is 1, found 2; give what makes it"),
    (gymnasium.make("CartPole-v1"), {"env_kwargs": {"x": 1}}, "env_kwargs: found {'x': 1}, but the environment is made already"),
    ("CartPole-v1", {"num_envs": 0}, "num_envs: expected an integer ≥ 1, found 0"),
    ("CartPole-v1", {"num_envs": -1}, "num_envs: expected an integer ≥ 1, found -1"),
    ("CartPole-v1", {"num_envs": 1.5}, "num_envs: expected an integer ≥ 1, found 1.5"),
    ("CartPole-v1", {"reward_scale": 0.0}, "reward_scale: expected a number > 0, found 0.0"),
    ("CartPole-v1", {"seed": -1}, "seed: expected an integer ≥ 0, found -1"),
    ("CartPole-v1", {"vectorization": "asinc"}, "unknown vectorization 'asinc': did you mean 'async'?"),
    ("CartPole-v1", {"env_kwargs": {"gravity": 3}}, "env 'CartPole-v1' cannot be made with env_kwargs {'gravity': 3}: TypeError"),
    ("CartPole-v1", {"env_kwargs": {"gravity": 3}, "num_envs": 8}, "env 'CartPole-v1' cannot be made with env_kwargs {'gravity': 3}"),
]


@pytest.mark.parametrize("env, options, message", BAD, ids=[str(case[0]) + str(case[1]) for case in BAD])
def test_one_clear_line(mine, env, options, message):
    with pytest.raises(UsageError) as caught:
        control.make(env, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


MISSING = [
    ("HalfCheetah-v5", {}, "mujoco", "mujoco"),
    ("LunarLander-v3", {}, "Box2D", "box2d"),
    ("ALE/Pong-v5", {}, "ale_py", "atari"),
    ("PongNoFrameskip-v4", {}, "ale_py", "atari"),
    ("CartPole-v1", {"vectorization": "envpool"}, "envpool", "envpool"),
]


@pytest.mark.parametrize("env_id, options, module, extra", MISSING)
def test_a_missing_extra_is_named(monkeypatch, env_id, options, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.mujoco", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=rf"pip install .*\[{extra}\]'$"):
        control.make(env_id, **options)


# ----------------------------------------------------------------------------------------------------------------- Atari


@pytest.fixture
def atari():
    pytest.importorskip("ale_py", reason="ale-py is not installed")
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")


def test_atari_is_preprocessed(atari):
    envs = control.make("ALE/Breakout-v5", 2, seed=0)
    assert envs.observation_space.shape == (4, 84, 84)
    assert envs.observation_space.dtype == np.uint8
    rollout = control.Steps(envs, 40)(control.policy_for(envs))
    assert rollout.inputs["image"].shape == (2, 40, 4, 84, 84)
    assert rollout.reward.abs().max() <= 1


def test_a_lost_life_ends_an_episode_in_training_only(atari):
    def deaths(training):
        with control.make("ALE/Breakout-v5", 1, seed=0, training=training) as envs:
            envs.reset()
            lives = []
            for _ in range(300):
                step = envs.step(np.zeros(1, np.int64))
                if step.terminated[0]:
                    lives.append(envs.vector.envs[0].unwrapped.ale.lives())
                if len(lives) == 3 or (lives and not training):
                    break
            return lives

    assert deaths(training=True) == [4, 3, 2]  # the game goes on behind a lost life
    assert deaths(training=False) in ([], [0])


def test_a_games_memory_is_a_vector(atari):
    assert control.make("ALE/Pong-v5", 1, env_kwargs={"obs_type": "ram"}).observation_space.shape == (128,)


def test_an_evaluation_takes_as_many_environments_as_a_vector_factory_makes():
    def factory():
        return SyncVectorEnv([Counting] * 3, autoreset_mode=AutoresetMode.SAME_STEP)

    with pytest.raises(UsageError, match="makes a vector environment of 3, expected 20"):
        control.make(factory, 20)
    policy = control.MLPPolicy.for_envs(control.make(factory, 3))
    assert control.evaluate(policy, factory, episodes=7).episodes == 7


def test_a_factory_that_returns_one_environment_twice_is_refused():
    env = Counting()
    with pytest.raises(UsageError, match="returned the same environment twice"):
        control.make(lambda: env, 2)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("env", ["MountainCar-v0", "tests.control.worlds:Loop"])
def test_a_time_limit_of_ones_own_truncates(env, vectorization):
    """In place of the 200 steps that MountainCar is registered with, also where it is longer."""
    limit = 230 if env == "MountainCar-v0" else 4
    with control.make(env, 2, vectorization=vectorization, max_episode_steps=limit) as envs:
        assert envs.max_episode_steps == limit
        envs.reset()
        lengths = [item[1] for _ in range(limit + 1) for item in envs.step(np.zeros(2, np.int64)).finished]
    assert lengths == [limit, limit]


def test_a_time_limit_of_ones_own_in_a_native_vector_version():
    with control.make("CartPole-v1", 8, max_episode_steps=5) as envs:
        assert not isinstance(envs.vector, SyncVectorEnv) and envs.max_episode_steps == 5
        envs.reset()
        steps = [envs.step(np.zeros(8, np.int64)) for _ in range(5)]
    assert steps[-1].truncated.all() and not steps[-1].terminated.any()


def test_a_time_limit_that_cannot_be_given_is_refused():
    with pytest.raises(UsageError, match="max_episode_steps: expected an integer ≥ 1 or none, found 0"):
        control.make("CartPole-v1", max_episode_steps=0)
    with pytest.raises(UsageError, match="makes a whole vector environment; give that its limit there"):
        control.make(lambda: gymnasium.make_vec("CartPole-v1", 2), 2, max_episode_steps=5)
