"""Collectors of recorded texts: demonstrations ``[N, 1, T]``, labeled completions ``[N, 1, T]``, preference pairs ``[N, 2, T]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from upslope.errors import UsageError, require
from upslope.language.collect import Order, log_probs, padded, recorded
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Labeled, Pair
from upslope.language.rewards import Prompt
from upslope.records import Rollout


class Recorded:
    """``policy -> Rollout`` of ``batch_size`` recorded units per iteration, in an order that ``seed`` decides.

    ``rows`` are ``(prompt, completions, scores)``: one completion for demonstrations and labels, two for pairs, with what stands as
    the reward of each one's last token. An end token is put behind each. The reference's log-probabilities of a unit are computed
    once and remembered.

    Raises:
        UsageError: no rows, a text that does not fit into the model's context, a reference of another vocabulary.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        rows: Sequence[tuple[Prompt, Sequence[str], Sequence[float]]],
        *,
        batch_size: int = 16,
        reference: LanguagePolicy | None = None,
        seed: int = 0,
    ) -> None:
        require(bool(rows), "data: expected at least one row, found none")
        require(batch_size >= 1, f"batch_size: expected an integer ≥ 1, found {batch_size}")
        if reference is not None and reference.vocabulary != policy.vocabulary:
            raise UsageError(
                f"reference: it has {reference.vocabulary} tokens, the policy {policy.vocabulary}; take one of the same vocabulary"
            )
        self.prompts = policy.encode_all([prompt for prompt, _, _ in rows])
        ended = iter(with_end(policy, [completion_text(text, f"data[{i}]") for i, (_, texts, _) in enumerate(rows) for text in texts]))
        self.completions = [[next(ended) for _ in texts] for _, texts, _ in rows]
        self.scores = [list(scores) for _, _, scores in rows]
        for i, (prompt, texts) in enumerate(zip(self.prompts, self.completions, strict=True)):
            require(bool(prompt), f"data[{i}]: its prompt has no token")
            size = len(prompt) + max(map(len, texts))
            if size > policy.context:
                raise UsageError(f"data[{i}]: its {size} tokens exceed the model's context of {policy.context}; shorten it")
        policy.look_up_to(max(len(ids) + max(map(len, rest)) for ids, rest in zip(self.prompts, self.completions, strict=True)))
        self.batch_size, self.reference = min(batch_size, len(rows)), reference
        self.order = Order(len(rows), seed)
        self.remembered: dict[int, Tensor] = {}

    def __call__(self, policy: LanguagePolicy) -> Rollout:
        """The next units."""
        return self.rollout(policy, self.order.take(self.batch_size))

    def rollout(self, policy: LanguagePolicy, indices: list[int]) -> Rollout:
        """The units with these indices."""
        rows = [ids for i in indices for ids in self.completions[i]]
        count = len(self.completions[indices[0]])
        ids, length = padded(rows, policy.device)
        score = torch.tensor([self.scores[i] for i in indices], device=policy.device)
        rollout = recorded(
            [self.prompts[i] for i in indices],
            ids.view(len(indices), count, -1),
            length.view(len(indices), count),
            score=score,
            finished=torch.ones_like(score, dtype=torch.bool),
            unit="pair",
        )
        if self.reference is None:
            return rollout
        return replace(rollout, reference_log_prob=self.by_reference(indices, rollout))

    def by_reference(self, indices: list[int], rollout: Rollout) -> Tensor:
        """Log-probabilities under the reference, ``[units, G, T]``, from memory where they are known."""
        assert self.reference is not None
        new = [n for n, i in enumerate(indices) if i not in self.remembered]
        if new:
            part = {name: x[torch.tensor(new, device=x.device)] for name, x in rollout.inputs.items()}
            for n, row in zip(new, log_probs(self.reference, part), strict=True):
                self.remembered[indices[n]] = row
        steps = rollout.mask.shape[-1]
        rows = [
            torch.nn.functional.pad(self.remembered[i][..., :steps], (0, max(0, steps - self.remembered[i].shape[-1]))) for i in indices
        ]
        return torch.stack(rows).where(rollout.mask, 0.0)


def with_end(policy: LanguagePolicy, texts: Sequence[str]) -> list[list[int]]:
    """Recorded completions as token ids, each with the end token that the policy is to learn."""
    end = int(cast(int, policy.tokenizer.eos_token_id))
    return [[*ids, end] for ids in policy.encode_texts(texts)]


def completion_text(completion: Any, place: str) -> str:
    """A completion as text: a string, or one message of the assistant."""
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], Mapping):
        message = cast(Mapping[str, Any], completion[0])
        completion = message.get("content") if message.get("role") == "assistant" else completion
    require(
        isinstance(completion, str),
        f"{place}: expected a completion as a string or as one assistant message, found {type(completion).__name__} {completion!r:.60}",
    )
    return cast(str, completion)


def told(examples: Sequence[Any], *names: str) -> Iterator[tuple[Any, ...]]:
    """What each example says under these names: as a mapping, in this order, or as attributes."""
    for i, example in enumerate(examples):
        if isinstance(example, Mapping):
            missing = [name for name in names if name not in example]
            require(not missing, f"data[{i}]: {', '.join(missing)} is missing, found {', '.join(map(str, example))}")
            yield tuple(example[name] for name in names)
        elif isinstance(example, tuple | list):
            require(len(example) == len(names), f"data[{i}]: expected ({', '.join(names)}), found {len(example)} entries")
            yield tuple(example)
        else:
            known = all(hasattr(example, name) for name in names)
            require(known, f"data[{i}]: expected {', '.join(names)}, found {type(example).__name__} {example!r:.60}")
            yield tuple(getattr(example, name) for name in names)


def demonstrations(policy: LanguagePolicy, examples: Sequence[tuple[Prompt, str]], **options: Any) -> Recorded:
    """Prompts with the completion to imitate, for SFT."""
    return Recorded(policy, [(prompt, [text], [0.0]) for prompt, text in told(examples, "prompt", "completion")], **options)


def labeled(policy: LanguagePolicy, examples: Sequence[Labeled], **options: Any) -> Recorded:
    """Completions that are wanted (+1) or not (−1), for KTO."""
    rows = told(examples, "prompt", "completion", "label")
    return Recorded(policy, [(prompt, [text], [1.0 if label else -1.0]) for prompt, text, label in rows], **options)


def preference_pairs(policy: LanguagePolicy, pairs: Sequence[Pair], **options: Any) -> Recorded:
    """Chosen and rejected completions, for DPO and reward models."""
    rows = told(pairs, "prompt", "chosen", "rejected")
    return Recorded(policy, [(prompt, [chosen, rejected], [0.0, 0.0]) for prompt, chosen, rejected in rows], **options)
