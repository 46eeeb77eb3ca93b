"""``upslope verify-resume METHOD …``: whether a run that is killed and resumed is the run that was never interrupted."""

import tempfile
from pathlib import Path

from upslope.cli.command import HELP_FLAGS, asks_for_help, section
from upslope.cli.flags import COUNT, Flag
from upslope.cli.train import requested

FLAGS = (
    Flag("stop_after", COUNT, 6, "iterations to train"),
    Flag("kill_at", COUNT, 3, "iteration behind which the second run kills itself"),
)

HELP = """\
usage: upslope verify-resume ALGORITHM ENV_ID [flags]
       upslope verify-resume ALGORITHM --model MODEL --task TASK [flags]

Train for some iterations; train the same in another process that kills itself on the way; resume what it has left; compare. Every row
of metrics, every parameter, the optimizer and all that a checkpoint holds must be equal to the bit; what differs first is named
(exit code 1). The arguments and flags are those of `upslope train`, your environments, algorithms and rewards included.

  upslope verify-resume ppo CartPole-v1
  upslope verify-resume a2c mytasks:make_maze --num-envs 4 --kill-at 2
  upslope verify-resume grpo --model tiny --task addition --warm-start 0
"""


def main(argv: list[str]) -> int:
    if asks_for_help(argv) or not argv:
        print(f"{HELP}\n{section('Flags, besides those of `upslope train`:', FLAGS)}")
        return 0
    asked = requested([word for word in argv if word not in HELP_FLAGS], FLAGS, command="verify-resume")
    if isinstance(asked, int):
        return asked
    from upslope.run.verify import verify_resume  # loads PyTorch

    counts = {flag.name: flag.default for flag in FLAGS} | asked.output
    with tempfile.TemporaryDirectory() as folder:
        found = verify_resume(asked.config, Path(folder), iterations=counts["stop_after"], kill_at=counts["kill_at"])
    head = f"killed behind iteration {counts['kill_at']}, resumed after iteration {found.resumed_at}, compared after {found.rows}:"
    if not found.differs:
        print(f"{head} {found.rows} rows of metrics and {found.tensors} tensors are equal to the bit")
        return 0
    more = f", and {len(found.differs) - 1} more" if len(found.differs) > 1 else ""
    print("\n".join([f"{head} not the same: {found.differs[0]}{more}", *(f"  the resumed run said: {line}" for line in found.warnings)]))
    return 1


COMMAND = main
