"""``upslope play RUN --out FILE``: an animation of what the policy does."""

from types import ModuleType
from typing import Any

from upslope.cli.command import Command, print_caution
from upslope.cli.flags import COUNT, ENV_KWARGS, PATH, POLICY, SEED, SWITCH, TEXT, Flag
from upslope.errors import require
from upslope.run.load import Run

FLAGS = (
    Flag("out", PATH, None, "file to write: .gif, or .mp4 where ffmpeg is installed (default play.gif in the run folder)"),
    Flag("episodes", COUNT, 1, "episodes to record, one after the other"),
    Flag("seed", SEED, 100, "of the first episode; the next ones count on"),
    Flag("max_steps", COUNT, 1000, "frames to record at most: one for each start and each step"),
    POLICY,
    Flag("sample", SWITCH, False, "draw actions instead of taking the most likely one"),
    Flag("env", TEXT, None, "the environment, where the run's is module:name"),
    ENV_KWARGS,
)

HELP = """\
usage: upslope play RUN [--out FILE.gif|FILE.mp4] [flags]

Record the policy in a run folder while it plays: the final one, unless --policy best takes that of the best evaluation.

  upslope play runs/ppo-CartPole-v1-0 --out cart.gif
"""


def animations() -> ModuleType:
    """:mod:`upslope.run.play`, which loads PyTorch and Gymnasium, so not for a page of help."""
    from upslope.run import play

    return play


def play(plain: list[str], given: dict[str, Any]) -> int:
    run = Run.load(plain[0])
    require(run.world == "control", f"play: {plain[0]} holds a language model; `upslope chat {plain[0]}` talks to it")
    print_caution(run, given["policy"])
    print(animations().write_animation(run, given.pop("out") or run.path / "play.gif", **given))
    return 0


COMMAND = Command(play, HELP, FLAGS, "play: expected RUN, a run folder; try: upslope play runs/ppo-CartPole-v1-0 --out cart.gif")
