"""``upslope chat RUN``: talk to a model."""

import sys
from collections.abc import Iterator
from typing import Any

import upslope
from upslope.cli.command import Command, print_caution
from upslope.cli.flags import SWITCH, Flag, between
from upslope.errors import require
from upslope.run.load import Run, is_model_folder

FLAGS = (
    Flag("max_tokens", between(1, 10**6), 128, "the longest answer"),
    Flag("seed", between(0), 0, "of the sampling"),
    Flag("greedy", SWITCH, False, "the most likely token each time, instead of a draw"),
)

HELP = """\
usage: upslope chat RUN|MODEL [flags]

Talk to the model of a run, or in a model's folder. A line is a turn; an empty line or Ctrl-D ends the talk. A model with a chat
template gets the whole conversation, one without gets each line as it is. Lines may also be piped in.

  upslope chat runs/grpo-sums-0
  echo "12+34=" | upslope chat runs/grpo-addition-0 --greedy
"""


def chat(plain: list[str], given: dict[str, Any]) -> int:
    policy = policy_of(plain[0])
    policy.rendering.refuses_unknown = False  # what the model itself has said must not end the talk
    engine = upslope.language.EmbeddedEngine(policy)
    talk: list[dict[str, str]] = []
    for turn, line in enumerate(lines()):
        talk.append({"role": "user", "content": line})
        prompt: Any = talk if policy.tokenizer.chat_template else line
        made = engine.generate([policy.encode(prompt)], group_size=1, **{**given, "seed": given["seed"] + turn})
        answer = policy.decode(made.completion_ids[0, 0, : int(made.length[0, 0])].tolist(), after=prompt)
        talk.append({"role": "assistant", "content": answer})
        print(answer, flush=True)
    return 0


def policy_of(text: str) -> "upslope.language.LanguagePolicy":
    if is_model_folder(text):
        return upslope.language.LanguagePolicy.from_pretrained(text).requires_grad_(False)
    run = Run.load(text)
    require(run.world == "language", f"chat: {text} holds a control policy; expected the run of a language model")
    what = "a reward model, which scores and does not talk; expected the run of another algorithm"
    require(not run.needs.scores_texts, f"chat: {text} holds {what}")
    print_caution(run, "final")
    return run.policy


def lines() -> Iterator[str]:
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            return
        if not line.strip():
            return
        yield line.rstrip("\n")


COMMAND = Command(chat, HELP, FLAGS, "chat: expected RUN, a run folder; try: upslope chat runs/grpo-addition-0")
