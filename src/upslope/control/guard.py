"""One environment, checked against Gymnasium's interface at every call: what it answers otherwise is said in one line that names it.

:class:`Guard` stands around each environment that is not natively vectorized. It also finds the action masks, whichever convention
the environment follows, and hands them on as ``info["action_mask"]``.
"""

import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import get_default_dtype, is_grad_enabled

from upslope.control import trees
from upslope.control.action_masks import ActionMasks
from upslope.control.kinds import AnyDict, AnyList, AnyTuple, Box, DictSpace, MultiDiscrete
from upslope.control.memory import Made
from upslope.control.restore import Episode, new_world, replay
from upslope.control.torch_state import set_back, torch_kept
from upslope.errors import UsageError, one_line
from upslope.records import State

STEP = "observation, reward, terminated, truncated, info"
OLD = "(the old Gym's interface)"
NUMBERS: tuple[type[Any], ...] = (float, int, np.floating, np.integer, np.bool_)
FLAGS = frozenset((bool, np.bool_))
LOOKALIKES = frozenset(
    f"{legal}_{action}" for legal in ("legal", "valid", "available", "avail", "allowed") for action in ("actions", "moves", "action_mask")
) | {"action_masks", "actions_mask", "invalid_action_mask", "legal_mask", "valid_mask"}
"""What other conventions call the legal actions, some by their numbers: not taken, for nobody knows which of them it is."""


class Misbehaved(RuntimeError):
    """What an environment did wrong, a text that follows its name: `` raised KeyError in step: …``; it travels between processes."""


class Lost(Misbehaved):
    """The process of an environment hangs or has ended."""


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Passes on what an environment answers, checked.

    ``apart``: the environment has a separate process, where Gymnasium writes an observation into shared memory whatever its shape
    and dtype, so they are checked here. ``keep_info=False`` leaves out everything of info but the action mask: nobody reads it, and
    it would have to be stacked or sent. ``tells=False`` leaves it to another guard to speak of names that look like a mask's.

    Raises:
        Misbehaved: from ``step`` and ``reset``, where the environment raises, or answers what is no number, no flag or no dict.
        UsageError: from the constructor, for an action mask in the observation that does not fit the actions.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, apart: bool = False, keep_info: bool = False, tells: bool = True) -> None:
        super().__init__(env)
        self.apart, self.keep_info = apart, keep_info
        self.mask_source = mask_source(env)
        self._masks = ActionMasks(env.action_space, 1)
        self._tells = tells and self.mask_source is None and self._masks.num_choices > 0
        space = env.observation_space
        self._plain = (space.shape, space.dtype) if isinstance(space, Box) else None
        self._keys = space.spaces.keys() if isinstance(space, DictSpace) else None
        self._looks = apart or self._keys is not None
        self._episode: Episode | None = None
        self.made = Made.of(env)

    def __getattr__(self, name: str) -> Any:
        """What the environment itself has, as if nothing stood around it."""
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        new_world(self.env)
        self._episode = Episode(self.env, seed, options, looked_at=self.made.looked_at)
        try:
            with torch_kept():
                answer: Any = self.env.reset(seed=seed, options=options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Misbehaved(raised(error, "reset")) from error
        if not isinstance(answer, AnyTuple) or len(answer) != 2:
            old = "" if answer is None or isinstance(answer, AnyTuple) else f" {OLD}"
            raise Misbehaved(f", reset: it returned {trees.describe_tree(answer)}{old}, expected (observation, info)")
        observation, info = answer
        if self._tells and isinstance(info, AnyDict):
            self._tell_of_lookalikes(observation, info)
        if self._looks:
            observation = self._seen(observation, "reset")
        return observation, self._info(info, observation, "reset")

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._episode is not None:
            self._episode.note(action)
        before = get_default_dtype(), is_grad_enabled()
        try:
            answer: Any = self.env.step(action)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Misbehaved(raised(error, "step")) from error
        finally:
            if get_default_dtype() is not before[0] or is_grad_enabled() is not before[1]:
                set_back(before)
        if not isinstance(answer, (AnyTuple, AnyList)) or len(answer) != 5:
            raise Misbehaved(f", step: {miscounted(answer)}")
        observation, reward, terminated, truncated, info = answer
        if not isinstance(reward, NUMBERS):
            reward = number(reward)
        if self._episode is not None:
            self._episode.total += reward
        if type(terminated) not in FLAGS or type(truncated) not in FLAGS:
            terminated, truncated = flag(terminated, "terminated"), flag(truncated, "truncated")
        if self._looks:
            observation = self._seen(observation, "step")
        if type(info) is AnyDict and self.mask_source is None and "action_mask" not in info:  # the usual case, and the quick one
            return observation, reward, terminated, truncated, info if self.keep_info else {}
        info = self._info(info, observation, "step", terminated=terminated, truncated=truncated)
        return observation, reward, terminated, truncated, info

    def saved_episode(self) -> State | None:
        """What brings another environment of this kind to where this one is; None before the first reset."""
        return None if self._episode is None else self._episode.state_dict(self.env, self.made, apart=self.apart)

    def restore_episode(self, state: State, but_last: bool = False) -> tuple[Any, str]:
        """Bring a worker's environment to where another one was: its last observation, or why not, for what is raised ends the worker."""
        try:
            return replay(self, state, but_last=but_last), ""
        except Exception as why:
            return None, str(why).strip() or type(why).__name__

    def close(self) -> None:
        """Close the environment; what it raises is a warning, for there is nothing left to lose."""
        try:
            self.env.close()
        except (Exception, SystemExit) as error:
            self._warn(raised(error, "close"))

    def _warn(self, fault: str) -> None:
        line = f"environment {type(self.unwrapped).__name__}{fault}"
        if self.apart:
            sys.stderr.write(f"upslope: warning: {line}\n")  # in one piece: other workers write there too
            sys.stderr.flush()
        else:
            warnings.warn(line, stacklevel=2)

    def _tell_of_lookalikes(self, observation: Any, info: dict[str, Any]) -> None:
        """Say once that what is called almost like an action mask is not one."""
        self._tells = False
        if "action_mask" in info:
            return
        for name, keys in (("info", info), ("observation", observation if isinstance(observation, AnyDict) else {})):
            for key in LOOKALIKES.intersection(keys):
                what = f'{name}["{key}"] looks like an action mask and is not used as one'
                self._warn(f': {what}; call it "action_mask" (1 legal, 0 illegal)')

    def _seen(self, observation: Any, where: str) -> Any:
        if not self.apart and isinstance(observation, AnyDict) and observation.keys() == self._keys:
            return observation  # the rest is seen when all are stacked; Gymnasium passes over keys that are too many
        if self._plain is not None and type(observation) is np.ndarray and (observation.shape, observation.dtype) == self._plain:
            return observation
        try:
            batch = trees.tree_map(lambda array: array[None], observation)
            return trees.tree_map(lambda array: array[0], trees.as_arrays(batch, self.observation_space, 1))
        except ValueError as error:
            raise Misbehaved(f", {where}: {error}".replace(" in environment 0", "")) from error

    def _info(self, info: Any, observation: Any, where: str, *, terminated: bool = False, truncated: bool = False) -> dict[str, Any]:
        """What is handed on of info, with the action mask; of a terminal state nobody asks for it.

        Behind a truncation nobody acts, but a method may ask what the next action would be worth: there the mask is handed on where the
        environment gives one that says something.
        """
        if not isinstance(info, AnyDict):
            raise Misbehaved(f", {where}: info is {shown(info)}, expected a dict")
        kept: dict[str, Any] = info if self.keep_info else {}
        source = 'info["action_mask"]' if "action_mask" in info else self.mask_source
        if source is None or terminated:
            return kept
        try:
            return {**kept, "action_mask": self._masks.row(self._given_mask(source, info, observation))}
        except (ValueError, Misbehaved) as error:
            if truncated:
                return {name: value for name, value in kept.items() if name != "action_mask"}
            if isinstance(error, Misbehaved):
                raise
            raise Misbehaved(f", {where}: {error}; it comes from {source}") from error

    def _given_mask(self, source: str, info: dict[str, Any], observation: Any) -> Any:
        if source == METHOD:
            method = self.env.get_wrapper_attr("action_masks")
            try:
                return method() if callable(method) else method
            except (Exception, SystemExit) as error:
                raise Misbehaved(raised(error, METHOD)) from error
        return (observation if source == OBSERVED else info)["action_mask"]


# ------------------------------------------------------------------------------------------------------------ action masks

METHOD, OBSERVED = "action_masks()", 'observation["action_mask"]'
"""Where masks come from, apart from ``info``: the conventions of sb3-contrib, and of RLlib and PettingZoo."""


def mask_source(env: Any) -> str | None:
    """Where an environment says which actions are legal, as far as that is known before its first answer."""
    if masked_by_observation(env.observation_space, env.action_space):
        return OBSERVED
    return METHOD if env.has_wrapper_attr("action_masks") else None


def masked_by_observation(observation_space: Any, action_space: Any) -> bool:
    """Whether a Dict observation holds the mask of the actions under ``"action_mask"``; :class:`UsageError` where its size is another.

    With other actions than Discrete and MultiDiscrete it is an observation like every other.
    """
    choices = ActionMasks(action_space, 1).num_choices
    if not choices or not isinstance(observation_space, DictSpace) or "action_mask" not in observation_space.spaces:
        return False
    space = observation_space.spaces["action_mask"]
    if isinstance(space, Box | spaces.MultiBinary | MultiDiscrete) and space.shape == (choices,):
        return True
    found = " ".join(repr(space).split())
    raise UsageError(f'observation["action_mask"] is {found}, the action space has {choices} choices; give a 0 or 1 for each')


# ------------------------------------------------------------------------------------------------------------------ answers


def raised(error: BaseException, where: str) -> str:
    """`` raised KeyError in step: 'x' (maze.py, line 12)``."""
    message = one_line(error, 300)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    hint = f"; step returns {STEP}, and reset (observation, info)" if "values to unpack" in message else ""
    return f" raised {type(error).__name__} in {where}: {message or 'no message'}{place}{hint}"


def miscounted(answer: Any) -> str:
    if not isinstance(answer, AnyTuple):
        return f"it returned {trees.describe_tree(answer)}, expected ({STEP})"
    old = f" {OLD}" if len(answer) == 4 else ""
    return f"it returned {len(answer)} values{old}, expected 5: {STEP}"


def shown(value: Any) -> str:
    return f"{one_line(repr(value), 40)} ({type(value).__name__})"


def number(reward: Any) -> float:
    """A reward as a float; :class:`Misbehaved` for an array, even of one number, and for what is none."""
    try:
        array = np.asarray(reward)
    except Exception as error:
        raise Misbehaved(f", step: reward is {shown(reward)}, expected a number") from error
    if array.shape != ():
        hint = "; return float(reward.item())" if array.size == 1 else ""
        raise Misbehaved(f", step: reward is an array of shape {array.shape}, expected a number{hint}")
    if array.dtype.kind not in "fiub":
        raise Misbehaved(f", step: reward is {shown(reward)}, expected a number")
    return float(array)


def flag(value: Any, name: str) -> bool:
    """``terminated`` or ``truncated`` as a bool; :class:`Misbehaved` for what is neither true nor false."""
    array = np.asarray(value)
    if array.shape == () and (array.dtype.kind == "b" or (array.dtype.kind in "iuf" and array in (0, 1))):
        return bool(array)
    raise Misbehaved(f", step: {name} is {shown(value)}, expected True or False")
