"""``upslope export RUN``: a trained model as an ordinary Transformers folder."""

from __future__ import annotations

from typing import Any

import upslope
from upslope.cli.caution import print_caution
from upslope.cli.command import Command
from upslope.cli.flags import PATH, POLICY, SWITCH, Flag
from upslope.errors import UsageError
from upslope.run.folder import check_free
from upslope.run.load import Run, is_model_folder

FLAGS = (
    Flag("out", PATH, None, "folder to write"),
    Flag("bfloat16", SWITCH, False, "half the size: weights in bfloat16"),
    POLICY,
)

HELP = """\
usage: upslope export RUN|MODEL --out DIR [flags]

Write the model of a run, or in a model's folder (RUN/policy for one), as an ordinary Transformers folder, which plain
Transformers and vLLM load; adapters are merged.

  upslope export runs/grpo-sums-0 --out trained
"""


def export(plain: list[str], values: dict[str, Any]) -> int:
    """Load, write."""
    if "out" not in values:
        raise UsageError("--out: expected the folder to write, found nothing")
    folder = plain[0]
    if is_model_folder(folder):
        if "policy" in values:
            hint = "so there is nothing to choose from; name the run, or leave the flag out"
            raise UsageError(f"export: {folder} is one model and no run, {hint}")
        check_free(values["out"])
        policy = upslope.language.LanguagePolicy.from_pretrained(folder).requires_grad_(False)
    else:
        policy = policy_of(Run.load(folder), values)
    policy.save_pretrained(values["out"], dtype=torch_dtype("bfloat16") if values.get("bfloat16") else None)
    print(f"wrote {values['out']}")
    return 0


def policy_of(run: Run, values: dict[str, Any]) -> Any:
    """The language model of a run."""
    if run.world != "language":
        raise UsageError(
            f"export: {run.path} holds a control policy, which is plain safetensors already; expected the run of a language model"
        )
    check_free(values["out"])
    which = values.get("policy", "final")
    policy = run.chosen_policy(which)
    print_caution(run, which)
    return policy


def torch_dtype(name: str) -> Any:
    """A dtype by its name."""
    import torch

    return getattr(torch, name)


COMMAND = Command(
    export,
    HELP,
    FLAGS,
    "export: expected RUN, a run folder; try: upslope export runs/grpo-sums-0 --out trained",
    fills=False,
)
