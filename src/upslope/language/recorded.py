"""Collectors of recorded texts: demonstrations ``[N, 1, T]``, labeled completions ``[N, 1, T]``, preference pairs ``[N, 2, T]``."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.errors import is_kind, require
from upslope.language.checks import Prompt
from upslope.language.collect import Order, check_reference, log_probs, recorded, widened
from upslope.language.engine import Generated, padded
from upslope.language.policy import LanguagePolicy
from upslope.language.problems import Labeled, Pair
from upslope.language.rendering import Row, and_more
from upslope.language.tokens import check_unread, content_alone
from upslope.records import Rollout, State


class Recorded:
    """``policy -> Rollout`` of ``batch_size`` recorded units per iteration, in an order that ``seed`` decides.

    ``rows`` are ``(prompt, completions, scores)``: one completion for demonstrations and labels, two for pairs, with what stands as
    the reward of each one's last token. Prompt and completion are tokenized together, with one end
    (:mod:`~upslope.language.rendering`); tokens in which the completions of a pair differ although they are the prompt's are masked.
    The reference's log-probabilities of a unit are computed once and remembered. ``places`` name the rows in errors.

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
        places: Sequence[str] | None = None,
    ) -> None:
        require(bool(rows), "data: expected at least one row, found none")
        require(batch_size >= 1, f"batch_size: expected an integer ≥ 1, found {batch_size}")
        if reference is not None:
            check_reference(reference, policy)
        places = places or [f"data[{i}]" for i in range(len(rows))]
        texts = [[completion_text(text, place) for text in texts] for (_, texts, _), place in zip(rows, places, strict=True)]
        groups = policy.rendering.rows([prompt for prompt, _, _ in rows], texts, places)
        shared = [num_shared(group) for group in groups]
        self.prompts = [group[0].ids[:n] for group, n in zip(groups, shared, strict=True)]
        self.completions = [[row.ids[n:] for row in group] for group, n in zip(groups, shared, strict=True)]
        self.starts = [[row.start - n for row in group] for group, n in zip(groups, shared, strict=True)]
        self.scores = [list(scores) for _, _, scores in rows]
        for group, n, place in zip(groups, shared, places, strict=True):
            joined = " of its own: the completion's first letters are in its first token" if any(row.seam for row in group) else ""
            require(n > 0, f"{place}: its prompt has no token{joined}")
            differ = len({tuple(row.ids) for row in group}) == len(group)
            require(differ, f"{place}: chosen and rejected are the same tokens, so the pair says nothing; take it out")
            size = max(len(row.ids) for row in group)
            require(size <= policy.context, f"{place}: its {size} tokens exceed the model's context of {policy.context}; shorten it")
        policy.look_up_to(max(len(ids) + max(map(len, rest)) for ids, rest in zip(self.prompts, self.completions, strict=True)))
        warn_of_seams(groups, places)
        self.batch_size, self.reference = min(batch_size, len(rows)), reference
        self.order = Order(len(rows), seed)
        self.remembered: dict[int, Tensor] = {}

    def state_dict(self) -> State:
        """The order of the units, and what is remembered of the reference: computed among other units it would be rounded otherwise."""
        return {"order": self.order.state_dict(), "remembered": {str(i): row for i, row in self.remembered.items()}}

    def load_state_dict(self, state: State) -> None:
        self.order.load_state_dict(state["order"])
        self.remembered = {int(i): row for i, row in state["remembered"].items()}

    def __call__(self, policy: LanguagePolicy) -> Rollout:
        return self.rollout(policy, self.order.take(self.batch_size))

    def rollout(self, policy: LanguagePolicy, indices: list[int]) -> Rollout:
        rows = [ids for i in indices for ids in self.completions[i]]
        count = len(self.completions[indices[0]])
        ids, length = padded(rows, policy.device)
        score = torch.tensor([self.scores[i] for i in indices], device=policy.device)
        start = torch.tensor([self.starts[i] for i in indices], device=policy.device)
        shape = len(indices), count, ids.shape[-1]
        finished = torch.ones_like(score, dtype=torch.bool)
        ids, length, log_prob = ids.view(shape), length.view(shape[:2]), torch.zeros(shape, device=policy.device)
        made = Generated(completion_ids=ids, log_prob=log_prob, length=length, finished=finished)
        counted = torch.arange(ids.shape[-1], device=policy.device) >= start[..., None]
        rollout = recorded([self.prompts[i] for i in indices], made, score, counted, unit="pair")
        if self.reference is None:
            return rollout
        return replace(rollout, reference_log_prob=self.by_reference(self.reference, indices, rollout))

    def by_reference(self, reference: LanguagePolicy, indices: list[int], rollout: Rollout) -> Tensor:
        """Log-probabilities under the reference, ``[units, G, T]``, from memory where they are known."""
        new = [n for n, i in enumerate(indices) if i not in self.remembered]
        if new:
            part = {name: x[torch.tensor(new, device=x.device)] for name, x in rollout.inputs.items()}
            for n, row in zip(new, log_probs(reference, part), strict=True):
                self.remembered[indices[n]] = row
        return torch.stack([widened(self.remembered[i], rollout.mask.shape[-1]) for i in indices]).where(rollout.mask, 0.0)


def num_shared(group: Sequence[Row]) -> int:
    """How many tokens the completions of a prompt have before them in common."""
    first, n = group[0].ids, min(row.start for row in group)
    return next((k for k in range(n) if any(row.ids[k] != first[k] for row in group)), n)


def warn_of_seams(groups: Sequence[Sequence[Row]], places: Sequence[str]) -> None:
    """Say where the model is trained behind other tokens than it will be asked with."""
    seams = [(place, row.seam) for group, place in zip(groups, places, strict=True) for row in group if row.seam]
    if seams:
        found = sorted({place for place, _ in seams}, key=places.index)
        warnings.warn(
            f"{seams[0][0]}{and_more(found)}: the prompt's end is cut into other tokens once the completion follows ({seams[0][1]!r:.40}); "
            "trained on is the whole text as the tokenizer cuts it. Move blanks from the prompt's end to the completion's beginning",
            stacklevel=4,
        )


def completion_text(completion: Any, place: str) -> str:
    if is_kind(completion, list) and len(completion) == 1 and is_kind(completion[0], Mapping) and completion[0].get("role") == "assistant":
        completion = content_alone(completion[0], place)
    fault = f"{place}: expected a completion as a string or as one assistant message, found {type(completion).__name__} {completion!r:.60}"
    require(isinstance(completion, str), fault)
    require(completion.strip() != "", f"{place}: its completion is empty, so there is nothing to learn; fill it in, or take the row out")
    return completion


def unpack_examples(examples: Sequence[Any], *names: str) -> Iterator[tuple[Any, ...]]:
    """What each example says under these names: as a mapping, in this order, or as attributes."""
    for i, example in enumerate(examples):
        if is_kind(example, Mapping):
            missing = [name for name in names if name not in example]
            require(not missing, f"data[{i}]: {', '.join(missing)} is missing, found {', '.join(map(str, example))}")
            check_unread(example, f"data[{i}]")
            yield tuple(example[name] for name in names)
        elif is_kind(example, tuple, list):
            require(len(example) == len(names), f"data[{i}]: expected ({', '.join(names)}), found {len(example)} entries")
            yield tuple(example)
        else:
            known = all(hasattr(example, name) for name in names)
            require(known, f"data[{i}]: expected {', '.join(names)}, found {type(example).__name__} {example!r:.60}")
            yield tuple(getattr(example, name) for name in names)


def places_of(examples: Sequence[Any]) -> list[str]:
    return [getattr(example, "place", "") or f"data[{i}]" for i, example in enumerate(examples)]


def demonstrations(policy: LanguagePolicy, examples: Sequence[tuple[Prompt, str] | Labeled], **options: Any) -> Recorded:
    """Prompts with the completion to imitate, for SFT."""
    rows = [(prompt, [text], [0.0]) for prompt, text in unpack_examples(examples, "prompt", "completion")]
    return Recorded(policy, rows, places=places_of(examples), **options)


def labeled(policy: LanguagePolicy, examples: Sequence[Labeled], **options: Any) -> Recorded:
    """Completions that are wanted (+1) or not (−1), for KTO."""
    unpacked, places = unpack_examples(examples, "prompt", "completion", "label"), places_of(examples)
    rows = [(prompt, [text], [sign_of(label, place)]) for (prompt, text, label), place in zip(unpacked, places, strict=True)]
    return Recorded(policy, rows, places=places, **options)


def sign_of(label: Any, place: str) -> float:
    single = label.tolist() if hasattr(label, "tolist") else label
    require(isinstance(single, bool), f"{place}: label is True or False, found {label!r:.40}; write wanted and unwanted as these")
    return 1.0 if single else -1.0


def preference_pairs(policy: LanguagePolicy, pairs: Sequence[Pair], **options: Any) -> Recorded:
    """Chosen and rejected completions, for DPO and reward models."""
    rows = [(prompt, [chosen, rejected], [0.0, 0.0]) for prompt, chosen, rejected in unpack_examples(pairs, "prompt", "chosen", "rejected")]
    return Recorded(policy, rows, places=places_of(pairs), **options)
