"""``upslope chat RUN``: talk to a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from upslope.cli.caution import print_caution
from upslope.cli.flags import INTEGER, SWITCH, Flag, parse
from upslope.cli.help import section
from upslope.errors import UsageError, require
from upslope.run.load import Run

FLAGS = (
    Flag("max_tokens", INTEGER, 128, "the longest answer"),
    Flag("seed", INTEGER, 0, "of the sampling"),
    Flag("greedy", SWITCH, False, "the most likely token each time, instead of a draw"),
)

HELP = """\
usage: upslope chat RUN|MODEL [flags]

Talk to the model of a run, or in a model's folder. A line is a turn; an empty line or Ctrl-D ends the talk. A model with a chat
template gets the whole conversation, one without gets each line as it is. Lines may also be piped in.

  upslope chat runs/grpo-sums-0
  echo "12+34=" | upslope chat runs/grpo-addition-0 --greedy
"""


def main(words: list[str]) -> int:
    """Parse, load, answer line after line."""
    if "--help" in words or "-h" in words:
        print(HELP + "\n" + section("Flags:", FLAGS))
        return 0
    plain, values = parse(words, FLAGS, positionals=1)
    if not plain:
        raise UsageError("chat: expected RUN, a run folder; try: upslope chat runs/grpo-addition-0")
    given = {flag.name: flag.default for flag in FLAGS} | values
    require(given["max_tokens"] >= 1, f"--max-tokens: expected an integer ≥ 1, found {given['max_tokens']}")
    require(given["seed"] >= 0, f"--seed: expected an integer ≥ 0, found {given['seed']}")
    policy = policy_of(plain[0])
    policy.rendering.refuses_unknown = False  # what the model itself has said must not end the talk
    from upslope.language import EmbeddedEngine

    engine = EmbeddedEngine(policy)
    talk: list[dict[str, str]] = []
    for turn, line in enumerate(lines()):
        talk.append({"role": "user", "content": line})
        prompt: Any = talk if policy.tokenizer.chat_template else line
        made = engine.generate(
            [policy.encode(prompt)], group_size=1, max_tokens=given["max_tokens"], seed=given["seed"] + turn, greedy=given["greedy"]
        )
        answer = policy.decode(made.completion_ids[0, 0, : int(made.length[0, 0])].tolist(), after=prompt)
        talk.append({"role": "assistant", "content": answer})
        print(answer, flush=True)
    return 0


def policy_of(text: str) -> Any:
    """The policy of a run's folder, or of a model's."""
    from upslope.run.language_evaluate import policy_at
    from upslope.run.load import is_model_folder

    if is_model_folder(text):
        return policy_at(Path(text), best=False)
    run = Run.load(text)
    if run.world != "language":
        raise UsageError(f"chat: {text} holds a control policy; expected the run of a language model")
    if run.needs.scores_texts:
        raise UsageError(f"chat: {text} holds a reward model, which scores and does not talk; expected the run of another algorithm")
    print_caution(run, "final")
    return run.policy


def lines() -> Any:
    """What is typed or piped in, up to an empty line or the end."""
    while True:
        if sys.stdin.isatty():
            try:
                line = input("> ")
            except EOFError:
                return
        else:
            line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.rstrip("\n")
