"""Atari games the way agents are trained on them: Mnih et al. 2015, with the reset rules of the usual baselines.

Up to 30 no-ops at a reset, each action repeated for 4 frames, the brighter of the last two frames, 84 × 84 gray, 4 frames stacked.
In training every lost life ends an episode (the game goes on behind it) and rewards are clipped to their sign; evaluation
plays whole games for their score. Sticky actions are the game's setting: 0.25 in the ``ALE/…-v5`` environments
(``env_kwargs={"repeat_action_probability": 0.0}`` turns them off).
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import gymnasium

from upslope.errors import missing_extra

MAX_EPISODE_STEPS = 27_000
"""Steps of a game at most: the Arcade Learning Environment cuts it after 108,000 frames, of which a step holds 4."""


def looks_like(env_id: str) -> bool:
    """Whether an id names an Atari game, installed or not."""
    return env_id.startswith("ALE/") or "NoFrameskip-v" in env_id


def is_game(spec: Any, env_kwargs: Mapping[str, Any]) -> bool:
    """Whether a registered environment runs in the Arcade Learning Environment and shows the screen, not the memory."""
    return str(spec.entry_point).startswith("ale_py") and {**spec.kwargs, **env_kwargs}.get("obs_type", "rgb") != "ram"


def register() -> None:
    """Make the Atari ids known; :class:`UsageError` names the extra where they cannot be."""
    try:
        gymnasium.register_envs(importlib.import_module("ale_py"))
    except ImportError as error:
        raise missing_extra("ale-py", "atari") from error


def make(spec: Any, env_kwargs: Mapping[str, Any], *, training: bool) -> gymnasium.Env[Any, Any]:
    """One game, preprocessed; observations are uint8 ``[4, 84, 84]``."""
    if importlib.util.find_spec("cv2") is None:  # AtariPreprocessing needs it
        raise missing_extra("opencv-python-headless", "atari")
    # the game's frame skip off: the preprocessing skips, and takes the maximum over two frames while it does
    env: Any = gymnasium.make(spec, **{"frameskip": 1, **env_kwargs}, disable_env_checker=True)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84, grayscale_obs=True)
    if training:
        env = EpisodicLife(env)
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = FireReset(env)
    return gymnasium.wrappers.FrameStackObservation(env, stack_size=4)


class EpisodicLife(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A lost life ends the episode; the next one goes on in the same game until that is over."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lives, self._over = 0, True

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._over = terminated or truncated
        lives = int(info.get("lives", 0))
        terminated = terminated or 0 < lives < self._lives
        self._lives = lives
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new game, or the running one with its next life; a seed always starts a new game."""
        if self._over or seed is not None:
            observation, info = self.env.reset(seed=seed, options=options)
        else:
            observation, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        self._over = False
        self._lives = int(info.get("lives", 0))
        return observation, info


class FireReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Press FIRE after a reset, where the game waits for it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        game: Any = self.unwrapped
        fire = game.get_action_meanings().index("FIRE")
        observation, _, terminated, truncated, info = self.env.step(fire)
        if terminated or truncated:
            observation, info = self.env.reset(options=options)
        return observation, info
