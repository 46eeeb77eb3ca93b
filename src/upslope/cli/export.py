"""``upslope export RUN``: a trained model as an ordinary Transformers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upslope.cli.caution import print_caution
from upslope.cli.flags import PATH, POLICY, SWITCH, Flag, parse
from upslope.cli.help import section
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


def main(words: list[str]) -> int:
    """Parse, load, write."""
    if "--help" in words or "-h" in words:
        print(HELP + "\n" + section("Flags:", FLAGS))
        return 0
    plain, values = parse(words, FLAGS, positionals=1)
    if not plain:
        raise UsageError("export: expected RUN, a run folder; try: upslope export runs/grpo-sums-0 --out trained")
    if "out" not in values:
        raise UsageError("--out: expected the folder to write, found nothing")
    run: Any = Path(plain[0]) if is_model_folder(plain[0]) else Run.load(plain[0])
    if isinstance(run, Path):
        return export_folder(run, values)
    if run.world != "language":
        raise UsageError(
            f"export: {plain[0]} holds a control policy, which is plain safetensors already; expected the run of a language model"
        )
    check_free(values["out"])
    import torch

    policy = run.chosen_policy(values.get("policy", "final"))
    print_caution(run, values.get("policy", "final"))
    policy.save_pretrained(values["out"], dtype=torch.bfloat16 if values.get("bfloat16") else None)
    print(f"wrote {values['out']}")
    return 0


def export_folder(folder: Path, values: dict[str, Any]) -> int:
    """Write the model in a model's folder anew: a copy, or with ``--bfloat16`` one of half the size."""
    if "policy" in values:
        raise UsageError(
            f"export: {folder} is one model and no run, so there is nothing to choose from; name the run, or leave the flag out"
        )
    check_free(values["out"])
    import torch

    from upslope.run.language_evaluate import policy_at

    policy_at(folder, best=False).save_pretrained(values["out"], dtype=torch.bfloat16 if values.get("bfloat16") else None)
    print(f"wrote {values['out']}")
    return 0
