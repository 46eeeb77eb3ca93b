"""``upslope play RUN --out FILE``: an animation of what the policy does."""

from __future__ import annotations

from pathlib import Path

from upslope.cli.caution import print_caution
from upslope.cli.flags import INTEGER, PATH, POLICY, SWITCH, TEXT, Flag, parse
from upslope.cli.help import section
from upslope.errors import UsageError, require
from upslope.run.load import Run

FLAGS = (
    Flag("out", PATH, None, "file to write: .gif, or .mp4 where ffmpeg is installed (default play.gif in the run folder)"),
    Flag("episodes", INTEGER, 1, "episodes to record, one after the other"),
    Flag("seed", INTEGER, 100, "of the first episode; the next ones count on"),
    Flag("max_steps", INTEGER, 1000, "frames to record at most: one for each start and each step"),
    POLICY,
    Flag("sample", SWITCH, False, "draw actions instead of taking the most likely one"),
    Flag("env", TEXT, None, "the environment, where the run's own is module:name"),
)

HELP = """\
usage: upslope play RUN [--out FILE.gif|FILE.mp4] [flags]

Record the policy in a run folder while it plays: the final one, unless --policy best takes that of the best evaluation.

  upslope play runs/ppo-CartPole-v1-0 --out cart.gif
"""


def main(words: list[str]) -> int:
    """Parse, record, say where."""
    if "--help" in words or "-h" in words:
        print(HELP + "\n" + section("Flags:", FLAGS))
        return 0
    plain, values = parse(words, FLAGS, positionals=1)
    if not plain:
        raise UsageError("play: expected RUN, a run folder; try: upslope play runs/ppo-CartPole-v1-0 --out cart.gif")
    given = {flag.name: flag.default for flag in FLAGS} | values
    for name in ("episodes", "max_steps"):
        fine = 1 <= given[name] <= 10**6
        require(fine, f"--{name.replace('_', '-')}: expected an integer ≥ 1 and at most 1,000,000, found {given[name]}")
    require(0 <= given["seed"] < 2**32, f"--seed: expected an integer from 0 to {2**32 - 1}, found {given['seed']}")
    run = Run.load(plain[0])
    if run.world == "language":
        raise UsageError(f"play: {plain[0]} holds a language model; `upslope chat {plain[0]}` talks to it")
    print_caution(run, given["policy"])
    from upslope.run.play import record

    path: Path = given["out"] or run.path / "play.gif"
    options = {name: given[name] for name in ("episodes", "seed", "max_steps", "policy", "sample", "env")}
    print(record(run, path, **options))
    return 0
