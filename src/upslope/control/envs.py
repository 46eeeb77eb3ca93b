"""Vector environments of every autoreset mode as one masked stream of steps."""

import contextlib
import sys
import warnings
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from upslope.control import trees
from upslope.control.action_masks import ActionMasks
from upslope.control.guard import METHOD, OBSERVED, Guard, Misbehaved, mask_source, masked_by_observation, raised
from upslope.control.kinds import AnyDict, Array
from upslope.control.restore import reset_each, restore_vector, time_limit, vector_state
from upslope.control.spaces import spaces_of
from upslope.control.workers import Workers
from upslope.errors import RunFault, UsageError, is_kind, require
from upslope.records import State
from upslope.reward_bound import MAX_REWARD, beyond


class Step(NamedTuple):
    """What one vector step gave; every array has the environments on its first axis.

    ``observation`` is what to act on next. ``mask`` is False where the action was ignored because the environment was being
    reset. Where ``successors`` is ``(indices, observations)``, those environments ended and the true successor of their step
    is not in ``observation`` any more; ``successor_masks`` says which actions are legal in those successors, None where nothing is
    said of any. ``finished`` holds ``(return, length)`` of the episodes that ended, in row order; the return is NaN where one was
    cut off because its environment's process hung or died and was started anew.
    """

    observation: Any
    reward: Array
    terminated: Array
    truncated: Array
    mask: Array
    successors: tuple[Array, Any] | None
    finished: list[tuple[float, int]]
    successor_masks: Array | None = None


_NONE_FINISHED: list[tuple[float, int]] = []


class Envs:
    """A Gymnasium vector environment of any autoreset mode, checked at every step.

    In ``NEXT_STEP`` mode the step after an end is a reset step: masked, reward 0, not counted. In ``SAME_STEP`` mode the true
    successor comes from ``info["final_obs"]``; in ``DISABLED`` mode the ended environments are reset here, with
    ``options={"reset_mask": …}``. ``observation`` and ``action_mask`` (None until an environment gives one in its info) are
    what the next action answers; of a truncated episode's last state, where no action is taken, the mask is the environment's too.

    Seeds: the first reset passes ``seed``, of which Gymnasium's vector environments make seed, seed + 1, … for their
    sub-environments; a natively vectorized environment draws its first states from one generator with that seed. Later resets
    go on with the environments' generators. ``seeded`` says that the vector environment has had its seed already.
    ``max_episode_steps`` is their time limit, where it is known.

    ``clip_reward`` hands on the reward's sign and ``reward_scale`` multiplies it; ``finished`` speaks of the rewards themselves.

    Raises:
        UsageError: the vector environment declares no autoreset mode.
        RunFault: from ``reset`` and ``step``, where the environment raises, or returns what its spaces do not allow or what is
            not finite.
    """

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        *,
        seed: int = 0,
        env_id: str | None = None,
        clip_reward: bool = False,
        reward_scale: float = 1.0,
        seeded: bool = False,
    ) -> None:
        self.vector, self.seed = vector, seed
        self.num_envs = int(vector.num_envs)
        self.env_id = env_id or (vector.spec.id if vector.spec is not None else type(vector).__name__)
        self.observation_space, self.action_space = spaces_of(vector)
        self.autoreset_mode = _autoreset_mode(vector, self.env_id)
        self.clip_reward = clip_reward
        self.max_episode_steps = time_limit(vector)
        self.seeded, self.reward_scale = seeded, reward_scale
        self._most = sys.float_info.max if clip_reward else MAX_REWARD / reward_scale
        self.observation: Any = None
        self.action_mask: Array | None = None
        # what environments of Gymnasium return is new at every step; others may use their arrays again
        self._copies = not type(vector.unwrapped).__module__.startswith("gymnasium.")
        self._masks = ActionMasks(self.action_space, self.num_envs)
        self.mask_source, guarded = self._guard()
        self._asks = self.mask_source is not None and not guarded
        space = self.observation_space
        other = isinstance(space, (spaces.Dict, spaces.Tuple, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))
        self._plain: tuple[Any, Any] = (None, None) if other else ((self.num_envs, *(space.shape or ())), np.dtype(space.dtype))
        self._all = np.ones(self.num_envs, dtype=np.bool_)
        self._returns = np.zeros(self.num_envs, dtype=np.float64)
        self.first_step = np.zeros(self.num_envs, dtype=np.int64)
        """``[N]`` how many steps the running episodes have behind them; 0 where the next step is a reset step"""
        self._resetting: Array | None = None
        if isinstance(workers := vector.unwrapped, Workers):
            workers.on_restart = self._cut_off
        self.begun_anew = ""
        """why the episodes under way were not restored, in a sentence, after a :meth:`load_state_dict` that could not"""

    def _guard(self) -> tuple[str | None, bool]:
        """Put a guard around each sub-environment that can be reached; where masks come from, and whether guards bring them."""
        inner: Any = self.vector.unwrapped
        if isinstance(inner, SyncVectorEnv):
            inner.envs = [env if isinstance(env, Guard) else Guard(env, keep_info=True, tells=i == 0) for i, env in enumerate(inner.envs)]
            return mask_source(inner.envs[0]), True
        if hasattr(inner, "mask_source"):
            return inner.mask_source, True
        if masked_by_observation(self.observation_space, self.action_space):
            return OBSERVED, False
        return (METHOD if callable(getattr(self.vector, "action_masks", None)) else None), False

    # ------------------------------------------------------------------------------------------------ reset and step

    def reset(self, seed: int | Sequence[int] | None = None) -> Any:
        """Start new episodes everywhere and return the observation; without a seed, the first reset takes ``self.seed``.

        A sequence is a seed for each environment.
        """
        if self.seeded:
            require(seed is None, f"seed: {self.env_id!r} took its seed when it was made and cannot be seeded again; make it anew")
        elif seed is None and self.observation is None:
            seed = self.seed
        with self._faults("reset"):
            observation, info = reset_each(self.vector, seed) if isinstance(seed, Sequence) else self.vector.reset(seed=seed)
        self._returns[:] = 0.0
        self.first_step = np.zeros_like(self.first_step)
        self._resetting = None
        self.observation = self._checked(observation, "reset")
        self._read_action_mask(info, "reset")
        return self.observation

    def _cut_off(self, index: int) -> None:
        """The return of this environment's running episode will not be known."""
        self._returns[index] = np.nan

    @property
    def restarts(self) -> int:
        """How often the process of an environment was started anew."""
        return getattr(self.vector.unwrapped, "restarts", 0)  # only workers are

    def running(self, index: int) -> tuple[float, int]:
        """``(return, length)`` of an environment's running episode so far."""
        return float(self._returns[index]), int(self.first_step[index])

    def state_dict(self) -> State:
        names = ("observation", "action_mask", "_returns", "first_step", "_resetting")
        workers = self.vector.unwrapped.restart_state() if isinstance(self.vector.unwrapped, Workers) else None
        return {**{name: getattr(self, name) for name in names}, "vector": vector_state(self.vector), "workers": workers}

    def load_state_dict(self, state: State) -> None:
        """Go on where another one was; where its environments cannot be brought there, ``begun_anew`` says why, and they are reset."""
        if state["observation"] is None:
            return
        if any(np.shape(state[name]) != (self.num_envs,) for name in ("_returns", "first_step")):
            raise ValueError(f"it is of another number of environments than {self.num_envs}")
        if isinstance(workers := self.vector.unwrapped, Workers) and state["workers"] is not None:
            workers.load_restart_state(state["workers"])
        observation = trees.by_space(self.observation_space, state["observation"])  # of JSON, which has no tuples
        try:
            restore_vector(self.vector, state["vector"], state["_resetting"], observation)
        except Exception as why:  # whatever it is, there is a way on
            self.begun_anew = f"environment {self.env_id!r} cannot go on in the middle of its episodes, which begin anew: {why}"
            self.seed = (self.seed + 7919 * (1 + int(state["first_step"].sum()))) % 2**31  # not the first episodes again
            self.observation, self.action_mask, self._resetting = None, None, None
            return
        for name, value in state.items():
            if name not in ("observation", "vector", "workers"):
                setattr(self, name, value)
        self.observation = observation

    def step(self, action: Array) -> Step:
        """One step everywhere; ``action [N, …]`` as the environment takes it."""
        try:
            observation, reward, terminated, truncated, info = self.vector.step(action)
        except (Exception, SystemExit) as error:
            self._raise("step", error)
        observation = self._checked(observation, "step")
        reward, terminated, truncated = self._checked_outcome(reward, terminated, truncated)
        self.first_step = self.first_step + 1  # a new array, for recordings keep the old one
        resetting, self._resetting = self._resetting, None
        mask = self._all if resetting is None else ~resetting
        if resetting is not None:  # what a reset step reports belongs to no decision
            reward, terminated, truncated = np.where(mask, reward, 0.0), terminated & mask, truncated & mask
            self.first_step[resetting] = 0
        self._returns += reward
        ended = terminated | truncated
        successors, finished, legal = None, _NONE_FINISHED, None
        if np.count_nonzero(ended):
            indices = np.flatnonzero(ended)
            finished = list(zip(self._returns[indices].tolist(), self.first_step[indices].tolist(), strict=True))
            self._returns[indices], self.first_step[indices] = 0.0, 0
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                self._resetting = ended
            else:
                observation, info, successors, legal = self._replaced(observation, info, ended, terminated)
        self.observation = observation
        if self.action_mask is not None or "action_mask" in info or self._asks:
            self._read_action_mask(info, "step", terminated)
        reward = (np.sign(reward) if self.clip_reward else reward) * self.reward_scale
        return Step(observation, reward, terminated, truncated, mask, successors, finished, legal)

    def _replaced(self, observation: Any, info: dict[str, Any], ended: Array, terminated: Array) -> Any:
        """Where an end is followed by the next start at once: ``(observation, info, successors, successor_masks)``."""
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            successors = self._final_observations(ended, info)
            return observation, info, successors, self._successor_masks(info.get("final_info"), terminated, successors)
        successors = (np.flatnonzero(ended), trees.rows(observation, np.flatnonzero(ended)))
        legal = self._successor_masks(info, terminated, successors)
        return *self._reset_ended(ended, info), successors, legal

    def _final_observations(self, ended: Array, info: dict[str, Any]) -> tuple[Array, Any]:
        """SAME_STEP: ``info["final_obs"]`` as Gymnasium builds it (an object array) or as a batched observation."""
        indices = np.flatnonzero(ended)
        final = info.get("final_obs")
        if final is None:
            self._fault("step", 'an episode ended in autoreset mode SAME_STEP, but info has no "final_obs"')
        if is_kind(final, np.ndarray) and final.dtype == object:
            items = [final[index] for index in indices]
            if any(item is None for item in items):
                self._fault("step", 'an episode ended in autoreset mode SAME_STEP, but its row of info["final_obs"] is None')
            with self._faults("step"):
                batch = trees.stack(self.observation_space, items)
        else:
            batch = trees.rows(final, indices)
        try:
            return indices, trees.as_arrays(batch, self.observation_space, len(indices))
        except ValueError as error:
            self._fault("step", f"info['final_obs']: {error}")

    def _reset_ended(self, ended: Array, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        with self._faults("reset"):
            observation, reset_info = self.vector.reset(options={"reset_mask": ended.copy()})
        observation = self._checked(observation, "reset")
        if "action_mask" in info or "action_mask" in reset_info:
            masks = self._given_action_mask(reset_info, "reset"), self._given_action_mask(info, "step")
            reset_info = {"action_mask": np.where(ended[:, None], *masks)}
        return observation, reset_info

    # ------------------------------------------------------------------------------------------------------- checks

    def _checked(self, observation: Any, where: str) -> Any:
        shape, dtype = self._plain
        fits = type(observation) is np.ndarray and observation.shape == shape and observation.dtype == dtype
        if fits and (dtype.kind != "f" or np.count_nonzero(np.isfinite(observation)) == observation.size):  # quicker than .all()
            return observation
        try:
            return trees.as_arrays(observation, self.observation_space, self.num_envs)
        except ValueError as error:
            self._fault(where, str(error))

    def _checked_outcome(self, reward: Any, terminated: Array, truncated: Array) -> tuple[Array, Array, Array]:
        reward = np.asarray(reward)
        if reward.shape != (self.num_envs,) or reward.dtype.kind not in "fiub":
            self._fault("step", f"reward has shape {reward.shape} and dtype {reward.dtype}, expected {self.num_envs} numbers")
        if self._copies or reward.dtype.kind != "f":
            reward = reward.astype(np.float64)
        if np.count_nonzero(np.abs(reward) <= self._most) < self.num_envs:
            index = int(np.flatnonzero(~(np.abs(reward) <= self._most))[0])
            self._fault("step", f"reward is {beyond(float(reward[index]), f'in environment {index}')}")
        if self._copies:
            terminated, truncated = np.array(terminated), np.array(truncated)
        if terminated.dtype != np.bool_ or truncated.dtype != np.bool_ or not terminated.shape == truncated.shape == reward.shape:
            self._fault("step", f"terminated and truncated should be bool arrays of shape {reward.shape}")
        return reward, terminated, truncated

    @contextlib.contextmanager
    def _faults(self, where: str) -> Generator[None, None, None]:
        try:
            yield
        except (RunFault, UsageError):
            raise
        except (Exception, SystemExit) as error:
            self._raise(where, error)

    def _raise(self, where: str, error: BaseException) -> NoReturn:
        """An exception inside the environment as one line; where it comes from stacking sub-environments, what they returned."""
        if isinstance(error, (ValueError, TypeError, LookupError)) and (misfit := self._misfit()):
            raise RunFault(f"environment {self.env_id!r}, {where}: {misfit}") from error
        raise RunFault(f"environment {self.env_id!r}{error if isinstance(error, Misbehaved) else raised(error, where)}") from error

    def _fault(self, where: str, message: str) -> NoReturn:
        raise RunFault(f"environment {self.env_id!r}, {where}: {message}")

    def _misfit(self) -> str | None:
        """The first sub-environment's observation that its space does not allow, if Gymnasium shows them."""
        inner = self.vector.unwrapped
        for item in getattr(inner, "_env_obs", ()) if isinstance(inner, SyncVectorEnv) else ():
            if item is None:
                return "observation is None"
            try:
                trees.as_arrays(trees.tree_map(lambda array: array[None], item), self.observation_space, 1)
            except ValueError as error:
                return str(error)
        return None

    def _given_action_mask(self, info: dict[str, Any], where: str) -> Array:
        try:
            return self._masks.read(info)
        except ValueError as error:
            self._fault(where, str(error))

    def _successor_masks(self, info: Any, terminated: Array, successors: tuple[Array, Any]) -> Array | None:
        """``[K, choices]`` what is legal in the last states of episodes, which the next ones' have replaced; all where nothing is said."""
        indices, observations = successors
        if isinstance(info, AnyDict) and "action_mask" in info:
            legal = self._given_action_mask(info, "step")[indices]
        elif self._asks and self.mask_source == OBSERVED:
            legal = np.asarray(observations["action_mask"]) != 0
        else:
            return None
        legal[terminated[indices] | ~self._masks.has_legal(legal)] = True
        return legal

    def _read_action_mask(self, info: dict[str, Any], where: str, terminated: Array | None = None) -> None:
        """Keep the masks for the next action; where an episode has terminated, or nothing was said, everything is legal."""
        if self._asks and "action_mask" not in info:  # a user's vector environment says it elsewhere
            vector: Any = self.vector
            with self._faults(METHOD):
                info = {"action_mask": vector.action_masks() if self.mask_source == METHOD else self.observation["action_mask"]}
        if self.action_mask is None and "action_mask" not in info:
            return
        mask = self._given_action_mask(info, where)
        if self._resetting is not None:  # a finished game has no legal move, and needs none; what was cut off would have one
            mask[self._resetting & (terminated | ~self._masks.has_legal(mask))] = True
        if not (legal := self._masks.has_legal(mask)).all():
            self._fault(where, f"action_mask allows no action in environment {int(np.flatnonzero(~legal)[0])}")
        self.action_mask = mask

    # --------------------------------------------------------------------------------------------------------- close

    def close(self) -> None:
        """Release the environments; safe at any time, any number of times, also after a fault."""
        for options in ({}, {"terminate": True}):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*while waiting for a pending call")
                self.vector.close(**options)
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Envs({self.env_id!r}, num_envs={self.num_envs}, seed={self.seed}, autoreset_mode={self.autoreset_mode.name})"


def _autoreset_mode(vector: Any, env_id: str) -> AutoresetMode:
    mode = vector.metadata.get("autoreset_mode")
    try:
        return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
    except ValueError:
        names = ", ".join(f"AutoresetMode.{item.name}" for item in AutoresetMode)
        what = f"the vector environment's metadata['autoreset_mode'] is {mode!r}, so its reset steps cannot be recognized"
        raise UsageError(f"env {env_id!r}: {what}; set it to one of {names}") from None
