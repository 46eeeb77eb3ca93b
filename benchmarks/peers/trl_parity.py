"""Our objectives against TRL's own losses, values and gradients, on the same tensors; prints one JSON object, exits 1 where they differ.

.envs/trl/bin/python peers/trl_parity.py --source ../src

TRL's trainers are built around a tiny random model and asked for their loss (`_compute_loss`), with one change: the log-probabilities
are fixed float64 tensors instead of the model's, so that what is compared is the loss alone, and its gradient by each log-probability.
Advantages come from TRL's own scoring of completions that the tiny model really generates. Of `upslope` only what needs torch is imported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import language_work as work

TOLERANCE = 1e-6
GROUPS, SIZE, STEPS, MAX_TOKENS = 3, 4, 7, 9
EPSILON = (0.2, 0.28)
BETA = 0.05
TRL_STD_EPS = 1e-4
"""What TRL adds to a group's standard deviation; `group_relative` takes it as an argument."""


class Parity:
    """Builds the trainers, holds the fixed tensors, and keeps what was found."""

    def __init__(self, folder: Path, source: Path) -> None:
        sys.path.insert(0, str(source))
        import torch
        from transformers import AutoTokenizer

        self.torch = torch
        self.model = str(work.write_tiny(folder / "tiny"))
        self.tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left")
        self.folder = str(folder / "out")
        self.found: dict[str, dict[str, float]] = {}
        draw = torch.Generator().manual_seed(0)
        shape = (GROUPS, SIZE, STEPS)
        # Ratios from 0.4 to 2.5: well outside the range on both sides, for advantages of both signs.
        self.log_prob = -3.0 * torch.rand(shape, generator=draw, dtype=torch.float64)
        self.old = self.log_prob + 0.4 * torch.randn(shape, generator=draw, dtype=torch.float64)
        self.reference = self.log_prob + 0.5 * torch.randn(shape, generator=draw, dtype=torch.float64)
        self.advantage = torch.randn(shape[:2], generator=draw, dtype=torch.float64)
        length = torch.tensor([[1, 7, 3, 5], [2, 2, 7, 4], [6, 1, 1, 7]])
        self.mask = torch.arange(STEPS) < length.unsqueeze(-1)

    def common(self) -> dict[str, Any]:
        return {"output_dir": self.folder, "bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}

    def grpo(self, reward: Callable[..., list[float]] | None = None, **settings: Any) -> Any:
        """A GRPOTrainer of the tiny model."""
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        rows = GROUPS * SIZE
        config = GRPOConfig(
            **self.common(), per_device_train_batch_size=rows, num_generations=SIZE, max_completion_length=MAX_TOKENS,
            epsilon=EPSILON[0], epsilon_high=settings.pop("epsilon_high", EPSILON[1]), **settings,
        )  # fmt: skip
        data = Dataset.from_list([{"prompt": f"{index}+1="} for index in range(GROUPS)])
        function = reward or (lambda completions, **_: [0.0] * len(completions))
        trainer = GRPOTrainer(model=self.model, reward_funcs=function, args=config, train_dataset=data, processing_class=self.tokenizer)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    def grpo_loss(self, **settings: Any) -> tuple[Any, Any]:
        """TRL's loss and its gradient by the log-probabilities `[G, SIZE, T]`."""
        torch, rows = self.torch, GROUPS * SIZE
        trainer = self.grpo(**settings)
        leaf = self.log_prob.clone().requires_grad_()
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (leaf.view(rows, STEPS), torch.zeros(rows, STEPS), None)
        ones = torch.ones(rows, 2, dtype=torch.long)
        inputs = {
            "prompt_ids": ones, "prompt_mask": ones, "completion_ids": torch.ones(rows, STEPS, dtype=torch.long),
            "completion_mask": self.mask.view(rows, STEPS).long(), "advantages": self.advantage.view(rows),
            "old_per_token_logps": self.old.view(rows, STEPS), "ref_per_token_logps": self.reference.view(rows, STEPS),
            "num_items_in_batch": self.mask.sum(),
        }  # fmt: skip
        loss = trainer._compute_loss(trainer.model, inputs)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def compare(self, name: str, theirs: tuple[Any, Any], objective: Callable[[Any], Any], log_prob: Any) -> None:
        """Their loss is minus our objective; the same of the gradients."""
        leaf = log_prob.clone().requires_grad_()
        ours = objective(leaf)
        (gradient,) = self.torch.autograd.grad(ours, leaf)
        self.keep(name, value=theirs[0] + ours.detach(), gradient=theirs[1] + gradient)

    def keep(self, name: str, **differences: Any) -> None:
        self.found[name] = {key: float(difference.abs().max()) for key, difference in differences.items()}


def group_objectives(parity: Parity) -> None:
    """grpo, dr_grpo, dapo; ratios of tokens and of sequences; without and with a KL; two relatives: dual clip and CISPO."""
    from upslope import functional as F
    from upslope.algorithms.grpo import GRPO
    from upslope.records import Batch, Evaluation

    p = parity
    advantage = p.advantage.unsqueeze(-1).expand_as(p.log_prob)
    averages: dict[str, F.AverageOver] = {"grpo": "sequences", "dr_grpo": "constant", "dapo": "steps"}
    ratios = {"token": F.token_ratio, "sequence": F.sequence_mean_ratio}

    def total(log_prob: Any, surrogate: Callable[..., Any], over: F.AverageOver, kl: Callable[[Any], Any] | None, bounds: Any) -> Any:
        value = surrogate(log_prob, p.old, advantage, p.mask, bounds)
        value = value if kl is None else value - BETA * kl(log_prob)
        return F.weighted_sum(value, F.average_weight(p.mask, over, MAX_TOKENS, dtype=p.torch.float64))

    def k3(log_prob: Any) -> Any:
        return F.kl_k3(log_prob, p.reference, p.mask)

    def algorithm(log_prob: Any, rule: GRPO) -> Any:
        """The same number from the algorithm itself, given a policy that says these log-probabilities."""
        weight = F.average_weight(p.mask, rule.average_over, MAX_TOKENS, dtype=p.torch.float64)
        batch = Batch(
            inputs={},
            behavior_log_prob=p.old,
            mask=p.mask,
            weight=weight,
            unit="group",
            advantage=advantage,
            reference_log_prob=p.reference,
        )
        policy = SimpleNamespace(evaluate=lambda: Evaluation(log_prob=log_prob, entropy=p.torch.zeros_like(log_prob)))
        return rule.objective(policy, batch)[0]

    for loss_type, over in averages.items():
        for level, ratio in ratios.items():
            surrogate = partial(F.clipped_surrogate, ratio=ratio)
            for beta in (0.0, BETA):
                name = f"{loss_type}, {level} ratio, beta {beta}"
                theirs = p.grpo_loss(loss_type=loss_type, importance_sampling_level=level, beta=beta, use_bias_correction_kl=False)
                p.compare(name, theirs, partial(total, surrogate=surrogate, over=over, kl=k3 if beta else None, bounds=EPSILON), p.log_prob)
                rule = GRPO(ratio=ratio, clip_range=EPSILON, average_over=over, kl_coef=beta)
                p.compare(f"{name}: GRPO", theirs, partial(algorithm, rule=rule), p.log_prob)

    # TRL's default multiplies k3 by the ratio.
    theirs = p.grpo_loss(loss_type="grpo", beta=BETA, use_bias_correction_kl=True)

    def weighted_k3(log_prob: Any) -> Any:
        return F.token_ratio(log_prob, p.old, p.mask) * k3(log_prob)

    p.compare(
        "grpo, token ratio, k3 weighted by the ratio",
        theirs,
        partial(total, surrogate=F.clipped_surrogate, over="sequences", kl=weighted_k3, bounds=EPSILON),
        p.log_prob,
    )
    theirs = p.grpo_loss(loss_type="grpo", delta=1.5)
    dual = GRPO(clip_range=EPSILON, dual_clip=1.5, average_over="sequences")
    p.compare("grpo, delta (dual clip): GRPO", theirs, partial(algorithm, rule=dual), p.log_prob)
    theirs = p.grpo_loss(loss_type="cispo", epsilon_high=1.6)
    truncated = GRPO(surrogate=F.truncated_score, clip_range=(1.0, 0.6), average_over="steps")
    p.compare("cispo: GRPO", theirs, partial(algorithm, rule=truncated), p.log_prob)


def group_advantages(parity: Parity) -> None:
    """Rewards of really generated completions, compared within their group; one group has no spread."""
    from upslope import functional as F

    p = parity
    scores = p.torch.tensor([[0.0, 1.0, 2.0, 5.0], [1.0, 1.0, 1.0, 1.0], [-1.0, 0.5, 0.25, 3.0]])
    for how in ("group", "none"):
        trainer = p.grpo(lambda completions, **_: scores.flatten().tolist(), scale_rewards=how)
        prompts = [{"prompt": f"{index // SIZE}+1="} for index in range(GROUPS * SIZE)]
        theirs = trainer._generate_and_score_completions(prompts)["advantages"].view(GROUPS, SIZE)
        ours = F.group_relative(scores, scale=how == "group", eps=TRL_STD_EPS)
        p.keep(f"advantages, scale_rewards {how}", value=theirs - ours)


def preferences(parity: Parity) -> None:
    """DPO: sigmoid, hinge, ipo, and label smoothing, which TRL has under another name."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from upslope import functional as F
    from upslope.algorithms.dpo import DPO
    from upslope.records import Batch, Evaluation

    p, torch = parity, parity.torch
    # [pairs, 2, T], ragged, chosen first; TRL's rows are all chosen, then all rejected, one column of prompt before.
    pairs = GROUPS * SIZE // 2
    log_prob, reference = p.log_prob.view(pairs, 2, STEPS), p.reference.view(pairs, 2, STEPS)
    mask = p.mask.view(pairs, 2, STEPS)
    data = Dataset.from_list([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])

    def rows(x: Any) -> Any:
        return x.transpose(0, 1).reshape(-1, STEPS)

    def trl_loss(chosen: slice, loss_type: str, **settings: Any) -> tuple[Any, Any]:
        config = DPOConfig(**p.common(), loss_type=[loss_type], beta=0.3, precompute_ref_log_probs=True, **settings)
        trainer = DPOTrainer(model=p.model, args=config, train_dataset=data, processing_class=p.tokenizer)
        leaf = log_prob[chosen].clone().requires_grad_()
        shown = rows(mask[chosen])
        first = torch.zeros(shown.shape[0], 1, dtype=torch.long)
        empty = torch.zeros(shown.shape, dtype=torch.float64)

        def model(**_: Any) -> SimpleNamespace:
            said = rows(leaf).masked_fill(~shown, 0.0)
            return SimpleNamespace(log_probs=said, entropy=empty, mean_logits=empty, is_top1=shown)

        ids = torch.ones(shown.shape[0], STEPS + 1, dtype=torch.long)
        said = rows(reference[chosen]).masked_fill(~shown, 0.0).sum(-1).chunk(2)
        inputs = {
            "input_ids": ids, "attention_mask": ids, "completion_mask": torch.cat([first, shown.long()], 1),
            "ref_chosen_logps": said[0], "ref_rejected_logps": said[1],
        }  # fmt: skip
        loss = trainer._compute_loss(model, inputs, return_outputs=False)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def algorithm(new: Any, rule: DPO, chosen: slice) -> Any:
        shown = mask[chosen]
        weight = shown.to(new.dtype) / (shown.sum((-2, -1), keepdim=True) * shown.shape[0])
        batch = Batch(
            inputs={}, behavior_log_prob=log_prob[chosen], mask=shown, weight=weight, unit="pair", reference_log_prob=reference[chosen]
        )
        policy = SimpleNamespace(evaluate=lambda: Evaluation(log_prob=new, entropy=torch.zeros_like(new)))
        return rule.objective(policy, batch)[0]

    everything = slice(None)
    for name, function in (("sigmoid", F.sigmoid_preference), ("hinge", F.hinge_preference), ("ipo", F.ipo_preference)):
        theirs = trl_loss(everything, name)
        p.compare(f"dpo, {name}", theirs, lambda new, f=function: f(new, reference, mask, 0.3).mean(), log_prob)
        rule = DPO(beta=0.3, preference=function)
        p.compare(f"dpo, {name}: DPO", theirs, partial(algorithm, rule=rule, chosen=everything), log_prob)
    # TRL 1.16's sigmoid takes no label smoothing. Its `aot` does; it sorts the margins of a batch, which changes nothing in one of one.
    smoothed = DPO(beta=0.3, label_smoothing=0.1)
    for index in range(pairs):
        one = slice(index, index + 1)
        theirs = trl_loss(one, "aot", label_smoothing=0.1)
        name = f"dpo, label smoothing (aot, pair {index}): DPO"
        p.compare(name, theirs, partial(algorithm, rule=smoothed, chosen=one), log_prob[one])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path(__file__).resolve().parents[2] / "src", help="the folder that holds upslope")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.simplefilter("ignore")
    stdout, sys.stdout = sys.stdout, sys.stderr  # the trainers print
    with tempfile.TemporaryDirectory() as folder:
        parity = Parity(Path(folder), args.source.resolve())
        group_objectives(parity)
        group_advantages(parity)
        preferences(parity)
    sys.stdout = stdout
    largest = max(max(found.values()) for found in parity.found.values())
    above = [name for name, found in parity.found.items() if not max(found.values()) <= args.tolerance]
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    record = {"largest": largest, "tolerance": args.tolerance, "above": above, "differences": parity.found, "versions": versions}
    print(json.dumps(record), flush=True)
    raise SystemExit(1 if above else 0)


if __name__ == "__main__":
    main()
