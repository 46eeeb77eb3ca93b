"""``upslope export RUN``: a trained model as an ordinary Transformers folder."""

from dataclasses import replace
from typing import Any

import upslope
from upslope.cli.command import Command, print_caution
from upslope.cli.flags import PATH, POLICY, SWITCH, Flag
from upslope.errors import require
from upslope.run.folder import check_free
from upslope.run.load import Run, is_model_folder

FLAGS = (
    Flag("out", PATH, None, "folder to write"),
    Flag("bfloat16", SWITCH, False, "half the size: weights in bfloat16"),
    replace(POLICY, default=None, help=f"{POLICY.help} (default final)"),  # which a folder that is no run refuses
)

HELP = """\
usage: upslope export RUN|MODEL --out DIR [flags]

Write the model of a run, or in a model's folder (RUN/policy for one), as an ordinary Transformers folder, which plain
Transformers and vLLM load; adapters are merged, and a temperature that was trained is in its generation settings.

  upslope export runs/grpo-sums-0 --out trained
"""


def export(plain: list[str], values: dict[str, Any]) -> int:
    (folder,), out, which = plain, values["out"], values["policy"]
    require(out is not None, "--out: expected the folder to write, found nothing")
    if is_model_folder(folder):
        hint = "so there is nothing to choose from; name the run, or leave the flag out"
        require(which is None, f"export: {folder} is one model and no run, {hint}")
        check_free(out)
        policy = upslope.language.LanguagePolicy.from_pretrained(folder).requires_grad_(False)
    else:
        run = Run.load(folder)
        what = "a control policy, which is plain safetensors already; expected the run of a language model"
        require(run.world == "language", f"export: {run.path} holds {what}")
        check_free(out)
        policy = run.chosen_policy(which or "final")
        print_caution(run, which or "final")
    import torch

    policy.save_pretrained(out, dtype=torch.bfloat16 if values["bfloat16"] else None)
    print(f"wrote {out}")
    return 0


COMMAND = Command(export, HELP, FLAGS, "export: expected RUN, a run folder; try: upslope export runs/grpo-sums-0 --out trained")
