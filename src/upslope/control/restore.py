"""The state of environments, so that a run can go on in the middle of an episode; and where episodes begin and how long they may be.

An environment that has ``get_state()`` and ``set_state(state)`` is asked. Every other one is brought back by playing the episode again:
its generator is set to what it was before the last reset, it is reset as it was then, and takes the same actions. That is exact for
whatever draws its randomness from ``self.np_random``; the last observation, the generator's state and what the environment keeps from
episode to episode (:mod:`upslope.control.memory`) are compared to the bit.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.utils import seeding
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.vector.utils import concatenate

from upslope.control import memory, trees
from upslope.control.kinds import AnyDict, AnyList, AnyTuple, DictSpace, TupleSpace
from upslope.errors import UsageError, is_kind
from upslope.records import State

MAX_ACTIONS = 100_000  # actions of one episode that are remembered; a longer one cannot be played again
STATELESS = {"Guard", "TimeLimit", "OrderEnforcing", "PassiveEnvChecker"}
"""Wrappers that remember nothing but the steps of the episode."""
BIT_GENERATORS = {"PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"}


class Episode:
    """What an environment was asked since its last reset."""

    def __init__(self, env: Any, seed: int | None, options: dict[str, Any] | None, *, looked_at: bool) -> None:
        self.seed, self.options = seed, options
        self.generator = generator_state(env) if seed is None else None
        self.actions: list[Any] | None = []
        self.total: Any = 0.0  # the undiscounted return so far, which an episode that is played again must have, too
        self.before = memory.remembered(env) if looked_at else {}

    def note(self, action: Any) -> None:
        """One more action; it is copied, for callers use their arrays again."""
        actions = self.actions
        if actions is None:
            return
        if type(action) is np.ndarray:
            action = action.copy()
        elif isinstance(action, (dict, tuple)):
            action = trees.tree_map(np.array, action)
        actions.append(action)
        if len(actions) > MAX_ACTIONS:
            self.actions = None

    def state_dict(self, env: Any, made: memory.Made, *, apart: bool) -> State:
        """All that :func:`replay` needs, and the generator's state now; ``made`` is what the environment remembered when it was made.

        An environment ``apart``, in a process that remembers by itself that a reset is next, is always played again.
        """
        attributes = {} if apart else reported_state(env)
        actions = None if self.actions is None or attributes else stacked(self.actions)
        recorded = {"seed": self.seed, "options": self.options, "generator": self.generator, "actions": actions}
        num_actions = 0 if actions is None else len(self.actions or ())
        now: State = {"generator_now": generator_state(env), "total": float(self.total)}
        if not attributes:
            now["memory"] = {"made": dict(made.marks), "before": made.changed(self.before), "now": memory.marks(env)}
        return {**recorded, "num_actions": num_actions, **now, **attributes}


def replay(guard: Any, state: Mapping[str, Any], *, but_last: bool = False) -> Any:
    """Bring an environment to a recorded state, or ``but_last`` to the one before; its last observation, None where it is not known.

    Raises ValueError where it cannot be brought there.
    """
    for wrapper in wrappers(guard):
        if type(wrapper).__name__.startswith("Normalize"):  # its running moments outlast an episode
            raise ValueError(f"its wrapper {type(wrapper).__name__} remembers more than an episode; normalize with the policy instead")
    kept = state.get("memory")
    if kept is not None:
        memory.set_back(guard, guard.made, kept)
    if state["generator"] is not None:
        set_generator(guard, state["generator"])
    observation, _ = guard.reset(seed=state["seed"], options=state["options"])
    if "own" in state:
        guard.get_wrapper_attr("set_state")(state["own"])
        if state["generator_now"] is not None:
            set_generator(guard, state["generator_now"])
        for wrapper in time_limits(guard):
            wrapper._elapsed_steps = state["elapsed_steps"]
        if frozen(reported_state(guard.env).get("own")) != frozen(state["own"]):
            raise ValueError("behind set_state(state), its get_state() says something else")
        guard._episode.total = state.get("total", 0.0)
        guard._episode.actions = None
        return None
    if state["actions"] is None:
        raise ValueError(f"its episode has more than {MAX_ACTIONS:,} steps")
    actions = unstacked(guard.action_space, state["actions"], state["num_actions"])
    for action in actions[:-1] if but_last else actions:
        observation, *_ = guard.step(action)
    if not but_last and generator_state(guard) != state["generator_now"]:
        raise ValueError("played again, its episode leaves its generator in another state")
    if not but_last and float(guard._episode.total) != state.get("total", float(guard._episode.total)):
        raise ValueError("played again, its episode has other rewards: it draws from other generators, or remembers earlier episodes")
    if kept is not None and not but_last and (name := memory.first_difference(guard, guard.made, kept)):
        raise ValueError(f"played again, its episode leaves its attribute {name!r} at another value: it remembers more than an episode")
    return observation


def reported_state(env: Any) -> State:
    """What the environment says of its state itself, with the steps of its time limit.

    Empty where it says nothing, or nothing that tensors and JSON can hold, and where a wrapper around it may remember more.
    """
    if not (env.has_wrapper_attr("get_state") and env.has_wrapper_attr("set_state")):
        return {}
    if any(type(wrapper).__name__ not in STATELESS for wrapper in wrappers(env)):
        return {}
    try:
        found = env.get_wrapper_attr("get_state")()
    except Exception:  # it has the name and not the method
        return {}
    return {"own": found, "elapsed_steps": next((w._elapsed_steps for w in time_limits(env)), None)} if storable(found) else {}


def storable(value: Any) -> bool:
    if is_kind(value, Mapping):
        return all(isinstance(name, str) and storable(part) for name, part in value.items())
    if isinstance(value, (AnyList, AnyTuple)):
        return all(map(storable, value))
    if is_kind(value, np.ndarray):
        return value.dtype.kind in "biuf" and value.dtype.isnative
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def frozen(value: Any) -> Any:
    """A state that can be stored in a form that is equal where the states are to the bit; a tuple is as good as a list."""
    if is_kind(value, Mapping):
        return {name: frozen(part) for name, part in value.items()}
    if isinstance(value, (AnyList, AnyTuple)):
        return [frozen(part) for part in value]
    if is_kind(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return repr(value.item() if is_kind(value, np.generic) else value)


def new_world(env: Any) -> None:
    """Before a reset, a world of Box2D without a past: bodies that were in it once leave it with other numbers of the same episode."""
    inner = env.unwrapped
    if type(inner).__module__.startswith("gymnasium.envs.box2d.") and inner.world is not None:
        inner._destroy()
        inner.world = type(inner.world)(gravity=inner.world.gravity)


def wrappers(env: Any) -> list[Any]:
    found: list[Any] = []
    while isinstance(env, gymnasium.Wrapper):
        found.append(env)
        env = found[-1].env
    return found


def time_limits(env: Any) -> list[Any]:
    return [wrapper for wrapper in wrappers(env) if isinstance(wrapper, gymnasium.wrappers.TimeLimit)]


# -------------------------------------------------------------------------------------------------- generators and actions


def generator_state(env: Any) -> Any:
    """The state of ``env.np_random``; None where it has not drawn yet, or is no generator of NumPy's."""
    generator = getattr(env.unwrapped, "_np_random", None)
    return plain_state(generator.bit_generator.state) if isinstance(generator, np.random.Generator) else None


def plain_state(state: Any) -> Any:
    if is_kind(state, Mapping):
        return {name: plain_state(part) for name, part in state.items()}
    return state.tolist() if is_kind(state, np.ndarray) else state


def set_generator(env: Any, state: Mapping[str, Any]) -> None:
    name = state["bit_generator"]
    if name not in BIT_GENERATORS:
        raise ValueError(f"its generator {name!r} is not known")
    bits = getattr(np.random, name)()
    bits.state = state
    env.unwrapped.np_random = np.random.Generator(bits)


def stacked(actions: Sequence[Any]) -> Any:
    """Actions of one space as one tree, time first; a tuple becomes a list."""
    if not actions:
        return []
    if isinstance(actions[0], AnyDict):
        return {name: stacked([action[name] for action in actions]) for name in actions[0]}
    if isinstance(actions[0], AnyTuple):
        return [stacked(parts) for parts in zip(*actions, strict=True)]
    return np.stack([np.asarray(action) for action in actions])


def unstacked(space: Space[Any], tree: Any, count: int) -> list[Any]:
    if count == 0:
        return []
    if isinstance(space, DictSpace):
        parts = {name: unstacked(part, tree[name], count) for name, part in space.spaces.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(count)]
    if isinstance(space, TupleSpace):
        return list(zip(*(unstacked(part, item, count) for part, item in zip(space.spaces, tree, strict=True)), strict=True))
    return list(tree)


# ------------------------------------------------------------------------------------------------------- vector environments


def vector_state(vector: Any) -> State:
    """Where a vector environment is; empty where that cannot be known."""
    inner: Any = vector.unwrapped
    if vector is not inner:  # a wrapper, and nobody knows what it remembers
        return {}
    if isinstance(inner, SyncVectorEnv):
        return {"episodes": [guard.saved_episode() for guard in vector.envs]}
    if hasattr(inner, "saved_episodes"):
        return {"episodes": inner.saved_episodes()}
    if hasattr(inner, "get_state") and hasattr(inner, "set_state"):
        return {"own": inner.get_state()}
    if type(inner).__module__.startswith("gymnasium."):  # natively vectorized: plain arrays
        arrays = {name: value for name, value in inner.__dict__.items() if is_kind(value, np.ndarray)}
        return {"arrays": arrays, "generator_now": generator_state(inner)}
    return {}


def restore_vector(vector: Any, state: Mapping[str, Any], resetting: Any, observation: Any) -> None:
    """Bring a vector environment there; ``resetting [N]`` says whose next step is a reset, ``observation`` what it showed last.

    Raises ValueError where it cannot be brought there, and says why.
    """
    inner = vector.unwrapped
    if "episodes" in state:
        flags = np.zeros(vector.num_envs, np.bool_) if resetting is None else resetting
        one_by_one, episodes = isinstance(inner, SyncVectorEnv), state["episodes"]
        seen = [replay(*pair) for pair in zip(inner.envs, episodes, strict=True)] if one_by_one else inner.restore_episodes(episodes, flags)
        for i, found in enumerate(seen):
            shown = trees.tree_map(lambda array, i=i: array[i], observation)
            if found is not None and not same_observation(found, shown):
                raise ValueError(f"played again, the episode of environment {i} ends with another observation")
        if one_by_one:
            rows = [trees.tree_map(lambda array, i=i: array[i].copy(), observation) for i in range(vector.num_envs)]
            inner._env_obs, inner._autoreset_envs = rows, flags.copy()
            inner._observations = concatenate(inner.single_observation_space, rows, inner._observations)
    elif "own" in state:
        inner.set_state(state["own"])
    elif "arrays" in state:
        vector.reset(seed=0)
        for name, array in state["arrays"].items():
            if not isinstance(getattr(inner, name, None), np.ndarray):
                raise ValueError(f"it has no array {name!r}")
            setattr(inner, name, array.copy())
        set_generator(inner, state["generator_now"])
    else:
        raise ValueError("it does not say where it is (it has no get_state and set_state)")


def same_observation(found: Any, shown: Any) -> bool:
    """Whether an environment's observation is to the bit the one that was ``shown``, which has the space's types."""
    if isinstance(shown, AnyDict):
        return all(same_observation(found[name], part) for name, part in shown.items())
    if isinstance(shown, AnyTuple):
        return all(same_observation(part, other) for part, other in zip(found, shown, strict=True))
    array = np.asarray(found)
    return array.shape == shown.shape and array.astype(shown.dtype).tobytes() == shown.tobytes()


def reset_each(vector: Any, seeds: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    """``vector.reset`` with a seed for each sub-environment: one with seed s starts as a single environment reset with s does.

    Raises UsageError where the vector environment takes one seed for all.
    """
    if isinstance(vector.unwrapped, SyncVectorEnv | AsyncVectorEnv):
        return vector.reset(seed=list(seeds))
    cartpole = sys.modules.get("gymnasium.envs.classic_control.cartpole")
    if cartpole is not None and type(vector) is cartpole.CartPoleVectorEnv:
        return _reset_cartpole(vector, seeds)
    try:
        return vector.reset(seed=list(seeds))
    except Exception as error:
        what = f"{type(vector.unwrapped).__name__} takes one seed for all of its environments, so no two of them can start alike"
        raise UsageError(f"envs: {what}; make them with vectorization='sync'") from error


def _reset_cartpole(vector: Any, seeds: Sequence[int]) -> tuple[Any, dict[str, Any]]:
    """Gymnasium's vectorized CartPole takes one seed; its states are one array, drawn here as the single environments draw theirs."""
    _, info = vector.reset(seed=seeds[0])
    starts = {seed: seeding.np_random(seed)[0].uniform(vector.low, vector.high, 4) for seed in set(seeds)}
    vector.state = np.stack([starts[seed] for seed in seeds], 1)
    return vector.state.T.astype(np.float32), info


def same_in_groups(observation: Any, group_size: int) -> bool:
    """Whether the observations ``[groups · G, …]`` are the same within each group."""
    groups = (array.reshape(-1, group_size, *array.shape[1:]) for _, array in trees.named_leaves(observation))
    return all(bool((array == array[:, :1]).all()) for array in groups)


def time_limit(vector: Any) -> int | None:
    """Steps after which an episode is cut at the latest: the sub-environments' ``TimeLimit``, or what the vector environment says."""
    inner = vector.unwrapped
    if isinstance(inner, SyncVectorEnv):
        limits = [limit_of(env) for env in inner.envs]
        return None if None in limits else max(limit for limit in limits if limit is not None)
    return getattr(inner, "max_episode_steps", None) or getattr(getattr(vector, "spec", None), "max_episode_steps", None)


def limit_of(env: Any) -> int | None:
    return next((wrapper._max_episode_steps for wrapper in time_limits(env)), None)
