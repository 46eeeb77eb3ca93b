"""Animations of a policy: frames from the environment's renderer into a GIF (Pillow) or an mp4 (ffmpeg)."""

import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from upslope import control
from upslope.errors import RunFault, UsageError, install, require
from upslope.files import folder_for, whole_file
from upslope.run.drawing import INK, PAPER
from upslope.run.load import Run
from upslope.run.process import one_thread
from upslope.run.report import amount

Frame = NDArray[np.uint8]
DRAWN_BY_PYGAME = ("gymnasium.envs.classic_control", "gymnasium.envs.box2d", "gymnasium.envs.toy_text")
GIF_WIDTH, GIF_RATE = 480, 25  # pixels and frames per second: enough to watch, small enough to mail


def write_animation(
    run: Run,
    path: Path,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    episodes: int = 1,
    seed: int = 100,
    max_steps: int = 1000,
    policy: str = "final",
    sample: bool = False,
) -> str:
    """Play and write the animation; returns a sentence that says what was recorded."""
    kind = path.suffix.lower()
    require(kind in (".gif", ".mp4"), f"--out: expected a name that ends in .gif or .mp4, found {path}")
    can_write = kind == ".gif" or shutil.which("ffmpeg") is not None
    require(can_write, f"--out: {path.name} needs ffmpeg, which is not installed; write a .gif instead")
    player, name = run.chosen_policy(policy), run.environment(env)
    options = run.env_options(name, env_kwargs)
    with one_thread(player):
        frames, returns, rate, whole = play_frames(player, name, options, episodes, seed, max_steps, greedy=not sample)
    folder_for(path)
    (write_gif if kind == ".gif" else write_mp4)(path, frames, rate)
    played = ", ".join(amount(value) for value in returns)
    cut = "" if whole else f" (cut off after {len(frames) - len(returns)} steps)"
    return f"wrote {path}: {len(frames)} frames, return {played}{cut}\n{run.policy_words(policy)}"


def rendered(name: str, options: Mapping[str, Any]) -> Any:
    """One environment that renders to arrays; raises :class:`UsageError` where it cannot."""
    # the usual renderer needs neither a display nor its greeting
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default wants a display
    from gymnasium.vector import SyncVectorEnv

    options = {**options, "env_kwargs": {**options["env_kwargs"], "render_mode": "rgb_array"}}
    try:
        envs = control.make(name, 1, vectorization="sync", training=False, **options)
    except UsageError as error:
        unknown = "unexpected keyword argument 'render_mode'" in str(error)
        raise UsageError(f"play: {error}{'; what is to be recorded takes render_mode' if unknown else ''}") from error
    env = cast(SyncVectorEnv, envs.vector).envs[0]
    if env.render_mode != "rgb_array":
        envs.close()
        raise UsageError(f"play: environment {name!r} cannot render to rgb_array, so there is nothing to record")
    return envs, env


def can_render(envs: Any) -> bool:
    """Whether an animation can be made of such environments, as far as that shows without making another one."""
    metadata: Mapping[str, Any] = getattr(envs.vector, "metadata", None) or {}
    if "rgb_array" not in (metadata.get("render_modes") or ()):
        return False
    spec = gymnasium.registry.get(envs.env_id)
    module, _, name = envs.env_id.rpartition(":")
    entry: Any = spec.entry_point if spec is not None else getattr(sys.modules.get(module), name, None)
    if isinstance(entry, str):
        return not entry.startswith(DRAWN_BY_PYGAME) or importlib.util.find_spec("pygame") is not None
    try:
        parameters = inspect.signature(entry).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters)


def check_renders(name: str, env_kwargs: Mapping[str, Any]) -> None:
    """Render one frame and throw it away; raises :class:`UsageError` where that fails."""
    envs, env = rendered(name, {"env_kwargs": env_kwargs})
    try:
        envs.reset()
        frame_of(env, name)
    finally:
        envs.close()


def frame_of(env: Any, name: str) -> Frame:
    """What the environment shows now, uint8 ``[height, width, 3]``."""
    try:
        frame = env.render()
    except Exception as error:
        line = " ".join(str(error).split())
        hint = f"; {install('upslope[classic]')}" if "pygame" in line else ""
        raise UsageError(f"play: environment {name!r} cannot render ({line}){hint}") from error
    array = np.asarray(frame)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise UsageError(f"play: environment {name!r} rendered {array.dtype} of shape {array.shape}, expected uint8 (height, width, 3)")
    return array


def play_frames(
    policy: control.ActorCritic, name: str, options: Mapping[str, Any], episodes: int, seed: int, max_steps: int, *, greedy: bool
) -> tuple[list[Frame], list[float], float, bool]:
    """Frames, returns of the episodes, the environment's frames per second, and whether the last episode was seen to its end."""
    envs, env = rendered(name, options)
    try:
        rate = float(env.metadata.get("render_fps") or 30)
        frames: list[Frame] = []
        returns: list[float] = []
        over = True
        for episode in range(episodes):
            envs.reset(seed + episode)
            total, steps, over = 0.0, 0, False
            frames.append(labeled(frame_of(env, name), steps, total))
            while not over and len(frames) < max_steps:
                action, _ = policy.act(envs.observation, greedy=greedy, action_mask=envs.action_mask)
                step = envs.step(action)
                total, steps = total + float(step.reward[0]), steps + 1
                over = bool(step.terminated[0] or step.truncated[0])
                frames.append(labeled(frame_of(env, name), steps, total))
            returns.append(total)
            if len(frames) >= max_steps:
                break
        return frames, returns, rate, over
    finally:
        envs.close()


def labeled(frame: Frame, steps: int, total: float) -> Frame:
    """The frame with how many steps of the episode there were, and their return so far, in a line below it."""
    from PIL import Image, ImageDraw

    height, width = frame.shape[:2]
    size = max(9, min(round(width / 26), 20))
    picture = Image.new("RGB", (width, height + round(1.8 * size)), INK)
    picture.paste(Image.fromarray(frame))
    text, pen = f"step {steps:,}   return {amount(total)}", ImageDraw.Draw(picture)
    pen.text((size / 2, height + 0.35 * size), text, fill=PAPER, font_size=size)
    return np.asarray(picture)


def write_gif(path: Path, frames: Sequence[Frame], rate: float) -> None:
    """An endlessly repeated GIF in real time, thinned to at most 25 frames per second and scaled to 480 pixels."""
    from PIL import Image

    every = max(1, round(rate / GIF_RATE))
    milliseconds = max(20, round(1000 * every / rate / 10) * 10)  # the format counts in hundredths of a second
    pictures: list[Image.Image] = []
    for frame in frames[::every]:
        picture = Image.fromarray(frame)
        if picture.width > GIF_WIDTH:
            picture = picture.resize((GIF_WIDTH, round(picture.height * GIF_WIDTH / picture.width)), Image.Resampling.BILINEAR)
        pictures.append(picture.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
    with whole_file(path) as file:
        pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def write_mp4(path: Path, frames: Sequence[Frame], rate: float) -> None:
    """H.264 through ffmpeg, fed with raw frames; sides are made even, as the format wants."""
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate:g}"]
    pixels = b"".join(np.ascontiguousarray(frame[:height, :width]).tobytes() for frame in frames)
    with tempfile.TemporaryDirectory() as folder, whole_file(path) as file:  # ffmpeg opens by name, and would follow a link
        made = Path(folder, "play.mp4")
        command += ["-i", "-", "-an", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(made)]
        done = subprocess.run(command, input=pixels, capture_output=True, check=False)
        if done.returncode:
            raise RunFault(f"ffmpeg could not write {path}: {' '.join(done.stderr.decode(errors='replace').split())[:300]}")
        file.write(made.read_bytes())
