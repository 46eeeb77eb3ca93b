"""From an environment's name, or anything that makes one, to :class:`~upslope.control.envs.Envs`."""

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, parse_env_id
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from upslope import environments
from upslope.control import atari
from upslope.control.envs import Envs
from upslope.control.guard import Guard, Misbehaved
from upslope.control.torch_state import torch_kept
from upslope.control.workers import Workers
from upslope.errors import UsageError, is_kind, missing_extra, one_line, require, unknown
from upslope.modules import hidden_by, import_named

Vectorization = Literal["auto", "sync", "async", "envpool"]
VECTOR_PAYS_FROM = 5
"""A natively vectorized environment costs about as much a step as five plain ones (CartPole: 145 µs against 20 to 30 µs each)."""

STEP_TIMEOUT = 120.0  # seconds that an environment in a separate process may take to answer, unless given

_EXTRAS = {"gymnasium.envs.mujoco": ("mujoco", "mujoco"), "gymnasium.envs.box2d": ("box2d", "box2d")}


@torch_kept()
def make(
    env: str | Callable[..., Any] | gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any],
    num_envs: int | None = None,
    seed: int = 0,
    *,
    vectorization: Vectorization = "auto",
    env_kwargs: Mapping[str, Any] | None = None,
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    reward_scale: float = 1.0,
    max_episode_steps: int | None = None,
    step_timeout: float | None = STEP_TIMEOUT,
    max_restarts: int = 0,
    training: bool = True,
) -> Envs:
    """``num_envs`` copies of an environment, 1 unless given, as one vector environment.

    ``env`` is a Gymnasium id (``"CartPole-v1"``), ``"module:Env-v0"`` (the module registers it), ``"module:factory"`` (the
    current folder is importable), or a callable that returns a Gymnasium environment. A callable may also return a whole
    vector environment of ``num_envs``, of any autoreset mode. An environment that is made already is taken as it is: a plain one once,
    a vector environment with as many as it has.

    ``vectorization``: ``"auto"`` takes the environment's vectorized version where it has one and ``num_envs`` is at least
    5, else one environment after the other in this process; ``"sync"`` the latter always; ``"async"`` one process for each;
    ``"envpool"`` EnvPool's C++ version. ``autoreset_mode`` matters for ``"sync"`` and ``"async"`` only. ``reward_scale``
    multiplies the rewards that the learner sees, not the returns that are reported. ``max_episode_steps`` truncates episodes after
    so many steps, in place of the limit that an id is registered with. ``step_timeout`` is for ``"async"``: the seconds that a
    constructor, a reset or a step may take there before the process counts as hanging (None: any time), and ``max_restarts`` how often
    in a row one that hung or died in a step or a reset is started anew, its episode cut off, before that is a fault.
    ``training=False`` makes Atari games for evaluation: without reward clipping and without an end at each lost life.

    Action masks are taken from ``info["action_mask"]``, from a method ``action_masks()`` of the environment (sb3-contrib's
    convention) or from ``observation["action_mask"]`` (RLlib's and PettingZoo's), in this order.

    Seeds: see :class:`Envs`. Sub-environment i of ``"sync"`` and ``"async"`` equals a single environment reset with ``seed + i``;
    EnvPool's take their seeds when they are made.

    Raises:
        UsageError: an environment that does not exist (with the nearest name), cannot be made, or lacks a package.
    """
    num_envs = _count(env, num_envs)
    require(_is_int(seed) and seed >= 0, f"seed: expected an integer ≥ 0, found {seed!r}")
    require(step_timeout is None or step_timeout > 0, f"step_timeout: expected a number > 0 or none, found {step_timeout!r}")
    require(0 < reward_scale < math.inf, f"reward_scale: expected a number > 0, found {reward_scale!r}")
    require(_is_int(max_restarts) and max_restarts >= 0, f"max_restarts: expected an integer ≥ 0, found {max_restarts!r}")
    limit = max_episode_steps
    require(limit is None or (_is_int(limit) and limit >= 1), f"max_episode_steps: expected an integer ≥ 1 or none, found {limit!r}")
    if vectorization not in get_args(Vectorization):
        raise unknown("vectorization", str(vectorization), get_args(Vectorization))
    kwargs = dict(env_kwargs or {})
    require(not (kwargs and is_made(env)), f"env_kwargs: found {kwargs!r}, but the environment is made already; give what makes it")
    if vectorization == "envpool":
        kwargs |= {} if limit is None else {"max_episode_steps": limit}
        return _envpool(env, num_envs, seed, kwargs, training=training, reward_scale=reward_scale)
    factory, spec, name = _resolve(env)
    game = spec is not None and atari.is_game(spec, kwargs)
    registered = spec is not None and not game
    if registered and limit is not None:
        kwargs["max_episode_steps"] = limit  # gymnasium.make and the vector version take it in place of the id's
    build = (lambda: atari.make(spec, kwargs, training=training)) if game else lambda: factory(**kwargs)
    vectorized = vectorization == "auto" and num_envs >= VECTOR_PAYS_FROM and registered
    vector = make_vector(spec, num_envs, kwargs) if vectorized and spec is not None else None
    if vector is None:
        options: Any = {"autoreset_mode": autoreset_mode, "step_timeout": step_timeout, "max_restarts": max_restarts, "name": name}
        apart = partial(Workers, **options) if vectorization == "async" else None
        limited = build if registered or limit is None else lambda: _cut(build(), limit, name)
        vector = _vector(limited, spec, name, num_envs, kwargs, apart, autoreset_mode)
        found = vector.num_envs  # a factory may make a whole vector environment; an evaluation takes as many as there are
        require(found == num_envs or not training, f"num_envs: env {name!r} makes a vector environment of {found}, expected {num_envs}")
    envs = Envs(vector, seed=seed, env_id=name, clip_reward=game and training, reward_scale=reward_scale)
    if game and envs.max_episode_steps is None:
        envs.max_episode_steps = atari.MAX_EPISODE_STEPS
    return envs


def vector_envs(env: Any, num_envs: int, seed: int, *, env_kwargs: Mapping[str, Any], max_episode_steps: int | None) -> Envs | None:
    """``num_envs`` rows of a registered environment's vectorized version, which is one object whatever their number; None without."""
    _, spec, name = _resolve(env)
    if spec is None or spec.vector_entry_point is None or atari.is_game(spec, env_kwargs):
        return None
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    vector = make_vector(spec, num_envs, {**env_kwargs, **limit})
    return None if vector is None else Envs(vector, seed=seed, env_id=name)


def _count(env: Any, num_envs: Any) -> int:
    """How many environments are asked for; of what is made already, as many as there are."""
    there: Any = getattr(env, "num_envs", 1) if is_made(env) else None
    wanted = there or 1 if num_envs is None else num_envs
    require(_is_int(wanted) and wanted >= 1, f"num_envs: expected an integer ≥ 1, found {num_envs!r}")
    require(there in (None, wanted), f"num_envs: the environment that is made already is {there}, found {wanted}; give what makes it")
    return wanted


def is_made(env: object) -> bool:
    """Whether it is an environment itself, and nothing that makes or names one."""
    return is_kind(env, gymnasium.Env) or is_kind(env, VectorEnv)


def _cut(env: Any, limit: int, name: str) -> Any:
    require(not isinstance(env, VectorEnv), f"max_episode_steps: env {name!r} makes a whole vector environment; give that its limit there")
    return gymnasium.wrappers.TimeLimit(env, limit) if is_kind(env, gymnasium.Env) else env


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------------- what the name means


def _resolve(env: Any) -> tuple[Callable[..., Any], EnvSpec | None, str]:
    """``(factory, spec of a registered environment or None, name to show)``."""
    if is_made(env):
        return lambda: env, None, getattr(getattr(env, "spec", None), "id", None) or type(env).__name__
    if callable(env):
        return env, None, getattr(env, "__name__", type(env).__name__)
    require(isinstance(env, str) and env != "", f"env: expected an environment's name or a callable, found {env!r}")
    module_name, _, name = env.rpartition(":")
    module = import_named(module_name, f"env {env!r}") if module_name else None
    if (spec := _registered(name)) is not None:
        # Gymnasium's checker only warns, and the checks of Envs see every step
        return partial(gymnasium.make, spec, disable_env_checker=True), spec, spec.id
    factory = getattr(module, name, None)
    if callable(factory):
        return factory, None, env
    if module is not None:
        defined = [name for name, x in vars(module).items() if callable(x) and getattr(x, "__module__", None) == module.__name__]
        raise unknown(f"environment in module {module_name!r}", name, [*defined, *gymnasium.registry], hidden_by(module))
    raise unknown("environment", name, gymnasium.registry)


def _registered(name: str) -> EnvSpec | None:
    """The spec with this id; without a version, the latest. A missing package of a known family is named."""
    if atari.looks_like(name):
        atari.register()
    if name.startswith(f"{environments.NAMESPACE}/"):
        environments.register()
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    try:
        namespace, plain, version = parse_env_id(name)
    except gymnasium.error.Error:
        return None
    family = [s for s in gymnasium.registry.values() if (s.namespace, s.name) == (namespace, plain) and s.version is not None]
    if not family:
        return None
    latest = max(family, key=lambda spec: spec.version or 0)
    require(version is None, f"unknown environment {name!r}: version v{version} does not exist, the latest is {latest.id!r}")
    return latest


# ---------------------------------------------------------------------------------------------------- vector versions


def make_vector(spec: EnvSpec, num_envs: int, kwargs: dict[str, Any]) -> VectorEnv[Any, Any, Any] | None:
    """The environment's registered vector version; None where there is none, or it lacks a package or an option."""
    if spec.vector_entry_point is None or spec.additional_wrappers:
        return None
    try:
        vector: Any = gymnasium.make_vec(spec, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
    except Exception:
        return None  # whatever it is, the plain version will either work or say it
    if type(vector.action_space) is spaces.MultiDiscrete:
        vector.action_space = Unasked(vector.action_space)
    return vector


class Unasked(spaces.MultiDiscrete):
    """Contains everything: CartPole asks at every step, for a sixth of its time, and actions were checked on their way here."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        super().__init__(space.nvec, np.dtype(space.dtype).type, start=space.start)

    def contains(self, x: Any) -> bool:
        return True


def _vector(
    build: Callable[[], Any],
    spec: EnvSpec | None,
    name: str,
    num_envs: int,
    kwargs: dict[str, Any],
    apart: Callable[..., Workers] | None,
    autoreset_mode: AutoresetMode,
) -> VectorEnv[Any, Any, Any]:
    """Plain environments side by side, or ``apart`` in a process each; a whole vector environment is taken as it is."""
    try:
        first = build()
    except (Exception, SystemExit) as error:
        raise _cannot_make(error, spec, name, kwargs) from error
    if is_kind(first, VectorEnv):
        return first
    if not is_kind(first, gymnasium.Env):
        kind = f"{type(first).__module__}.{type(first).__name__}"
        expected = "expected a gymnasium.Env (or gymnasium.vector.VectorEnv), its factory returned"
        raise UsageError(f"env {name!r}: {expected} {kind}{_what_to_use(first)}")
    for kind in ("observation_space", "action_space"):
        space = getattr(first, kind, None)
        require(isinstance(space, spaces.Space), f"env {name!r}: its {kind} is {space!r}, expected a space of gymnasium.spaces")
    require(isinstance(first.metadata, Mapping), f"env {name!r}: its metadata is {first.metadata!r}, expected a dict")
    try:
        if apart is not None:
            return apart(build, first, num_envs)
        envs = [first, *(build() for _ in range(num_envs - 1))]  # the first is made already, and some are slow to make
        message = f"env {name!r}: its factory returned the same environment twice; make a new one at each call"
        require(len({id(env.unwrapped) for env in envs}) == num_envs, message)
        guards = [Guard(env, tells=index == 0) for index, env in enumerate(envs)]
        return SyncVectorEnv([lambda guard=guard: guard for guard in guards], copy=False, autoreset_mode=autoreset_mode)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise _cannot_make(error, spec, name, kwargs) from error


def _what_to_use(found: Any) -> str:
    """Of environments after the conventions of other libraries, how they come here."""
    if hasattr(found, "possible_agents"):
        return ", which is PettingZoo's for many agents; one policy for all of them takes a VectorEnv with a row for each agent"
    if hasattr(found, "num_envs") and hasattr(found, "step"):
        missing = [name for name in ("single_observation_space", "single_action_space") if not hasattr(found, name)]
        lacks = f" It lacks {' and '.join(missing)}." if missing else ""
        how = "derive a gymnasium.vector.VectorEnv from it, with these spaces of one row and metadata['autoreset_mode']"
        return f", a vector environment of another kind (SuperSuit's, Stable-Baselines3's).{lacks} Give one environment, or {how}"
    return ""


def _envpool(env: Any, num_envs: int, seed: int, kwargs: dict[str, Any], *, training: bool, reward_scale: float) -> Envs:
    try:
        envpool = importlib.import_module("envpool")
    except ImportError as error:
        raise missing_extra("envpool", "envpool") from error
    require(isinstance(env, str), f"env: EnvPool knows its environments by name, found {env!r}")
    game = atari.looks_like(env)
    task = env.removeprefix("ALE/")
    known = envpool.list_all_envs()
    if task not in known:
        raise unknown("environment in EnvPool", task, known)
    if game:
        kwargs = {"episodic_life": training, **kwargs}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about bounds that lose digits in float32
            vector = envpool.make(task, env_type="gymnasium", num_envs=num_envs, seed=seed, **kwargs)
            return Envs(vector, seed=seed, env_id=env, clip_reward=game and training, reward_scale=reward_scale, seeded=True)
    except Exception as error:
        raise _cannot_make(error, None, env, kwargs) from error


# -------------------------------------------------------------------------------------------------------------- faults


def _cannot_make(error: BaseException, spec: Any, name: str, kwargs: dict[str, Any]) -> UsageError:
    if isinstance(error, UsageError):
        return error
    if isinstance(error, Misbehaved):
        return UsageError(f"env {name!r}{error}")
    missing = isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled))
    entry = str(getattr(spec, "entry_point", "") or "")
    for prefix, (package, extra) in _EXTRAS.items():
        if missing and entry.startswith(prefix):
            return missing_extra(package, extra)
    given = f" with env_kwargs {kwargs}" if kwargs else ""
    return UsageError(f"env {name!r} cannot be made{given}: {type(error).__name__}: {one_line(error, 300)}")
