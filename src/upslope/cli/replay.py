"""``upslope replay RUN --iteration N``: an iteration again, to the bit, and what it saw as a file."""

from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import COUNT, PATH, Flag
from upslope.cli.resume import NAMED, named_again
from upslope.errors import require
from upslope.run.load import Run

FLAGS = (
    Flag("iteration", COUNT, None, "the iteration to play again (none: of a capsule, the one that failed)"),
    Flag("out", PATH, None, "file to write (none: replay-ITERATION.safetensors in the run folder)"),
    *NAMED,
)

HELP = """\
usage: upslope replay RUN [--iteration N] [flags]

Play an iteration of a run again, from the newest checkpoint before it or from the beginning, compare it to the bit with what the run has
recorded (exit code 1 where it differs), and write what it saw into a file: batch with advantages and returns, ratio (the policy after the
update over the one that acted, for each step), gradient (of the batch's whole objective, where the update began), parameters before and
after. A capsule, which a run leaves that stopped because nothing was finite any more, repeats that failure.

  upslope replay runs/ppo-CartPole-v1-0 --iteration 12
  upslope replay runs/ppo-CartPole-v1-0/capsule-00000031
"""


def play_again(plain: list[str], given: dict[str, Any]) -> int:
    """Replay, report, write."""
    run = Run.load(plain[0])
    config = named_again(run, given)
    out = given["out"]
    if out is not None:
        require(not out.is_dir(), f"--out: {out} is a folder; name a file")
        require(out.absolute().parent.is_dir(), f"--out: there is no folder {out.parent}; make it first")
    from upslope.run.replay import replay  # loads PyTorch

    found = replay(run, config, given["iteration"])
    path = out or run.path / f"replay-{found.iteration:08d}.safetensors"
    if found.tensors:
        found.write(path)
    print("\n".join([*found.lines(), *([f"written to {path}"] if found.tensors else ())]))
    return 1 if found.differs else 0


COMMAND = Command(play_again, HELP, FLAGS, "replay: expected RUN, a run folder; try: upslope replay runs/ppo-CartPole-v1-0 --iteration 12")
