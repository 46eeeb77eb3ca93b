"""What a run in the language world is made of, from its settings: task, policy, reference, collector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upslope import language
from upslope.errors import UsageError, require
from upslope.files import survivor
from upslope.language import Labeled, LanguagePolicy, Pair, Rewards, Task
from upslope.language.evaluate import score_with
from upslope.language.long_prompts import completion_lengths, fit, fit_task
from upslope.language.rewards import Part, parse_weight, reward_from
from upslope.language.tasks import NO_REWARD
from upslope.records import EitherAlgorithm
from upslope.run.config import RunConfig
from upslope.run.language_settings import CompletionsSettings, ModelSettings, RecordedSettings, TaskSettings
from upslope.run.load import Run
from upslope.run.settings import load_object

NO_TASK = "task: expected addition, copy, sums, FILE.jsonl or reasoning-gym:NAME, found nothing; try --task addition"


def fitted(config: RunConfig, policy: LanguagePolicy, task: Task | None) -> tuple[Task | None, int]:
    """The task with prompts that leave room for a completion, and how many were dropped or cut for it."""
    how = config.problem.long_prompts
    if task is None or (config.needs.scores_texts and how == "error"):  # a model that scores is asked no prompt
        return task, 0
    max_tokens = getattr(config.collector, "max_tokens", None) or task.max_tokens
    return fit_task(policy, task, max_tokens, how, recorded=isinstance(config.collector, RecordedSettings))


def make_task(config: RunConfig) -> Task | None:
    """The task with the rewards that were asked for; None for recorded data, which has prompts."""
    chosen: TaskSettings = config.problem
    if chosen.task is None:
        if isinstance(config.collector, RecordedSettings) and config.collector.pairs is not None:
            return None
        raise UsageError(NO_TASK)
    reward = rewards_from(chosen.reward, **chosen.reward_limits) if chosen.reward else None
    return language.task(chosen.task, seed=0, reward=reward, **chosen.task_kwargs)


def make_reference(config: RunConfig, policy: LanguagePolicy) -> Any:
    """The frozen policy that a KL term or a preference is measured against, where one is needed."""
    folder = config.collector.reference
    if config.needs.scores_texts or not (folder or config.needs.needs_reference or reference_kl(config.algorithm) > 0):
        return None
    if folder is None:
        return FrozenAtStart(policy.vocabulary)
    return LanguagePolicy.from_pretrained(policy_folder(folder), temperature=config.policy.temperature).frozen().to(policy.device)


def reference_kl(algorithm: EitherAlgorithm) -> float:
    """The weight of the KL to the reference; where it has another name, ``kl_coef`` is that of another KL, the one to π_old."""
    return getattr(algorithm, "reference_kl_coef", getattr(algorithm, "kl_coef", 0.0))


def make_collector(config: RunConfig, policy: LanguagePolicy, task: Task | None, reference: Any) -> tuple[Any, int]:
    """What gathers the texts, and how many of a file's prompts were dropped or cut to fit."""
    kind = config.needs.learns_from
    if kind in ("labels", "pairs"):
        return recorded(config, policy, task, reference)
    if kind != "demonstrations":
        return completions(config, task, reference), 0
    settings: RecordedSettings = config.collector
    hint = "give --task FILE.jsonl with prompt and answer or completion"
    require(settings.pairs is None, f"pairs: sft imitates the task's answers; {hint}")
    return language.demonstrations(policy, examples_of(task), batch_size=settings.batch_size, seed=config.settings.seed), 0


def completions(config: RunConfig, task: Task | None, reference: Any) -> language.Completions:
    settings: CompletionsSettings = config.collector
    kl = getattr(config.algorithm, "kl_coef", 0.0) > 0  # in the reward it gives every group spread of which the collector knows nothing
    dead = not kl and not getattr(config.algorithm, "zero_variance_groups_have_gradient", True)
    what = "with this objective (a KL or entropy term, or no groups) equal scores carry gradient too; set it to 0"
    require(settings.refill == 0 or dead, f"refill: {what}")
    compares = config.needs.learns_from == "groups"
    require(not compares or settings.group_size > 1, "group_size: this algorithm compares the completions of a prompt; take 2 or more")
    if task is None:
        raise UsageError(NO_TASK)
    if task.reward is None:
        raise UsageError(f"task {task.name}: {NO_REWARD}")
    reward = task.reward if isinstance(task.reward, Rewards) else Rewards.of(task.reward, **config.problem.reward_limits)
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("num_prompts", "group_size", "overlong_buffer", "refill")}
    options |= {"max_tokens": settings.max_tokens or task.max_tokens, "reference": reference, "seed": config.settings.seed}
    return language.Completions(task.train, reward, **options)


def recorded(config: RunConfig, policy: LanguagePolicy, task: Task | None, reference: Any) -> tuple[Any, int]:
    """Pairs of completions, one preferred to the other, or single ones, each labeled as wanted or not; and how many did not fit."""
    settings: RecordedSettings = config.collector
    labels, how, num_long = config.needs.learns_from == "labels", config.problem.long_prompts, 0
    if settings.pairs is not None:
        examples: list[Any] = (language.read_labeled if labels else language.read_pairs)(settings.pairs)
    elif task is None:
        raise UsageError(NO_TASK)
    else:
        made = language.pairs_from(task, count=2048)
        examples = labeled_from(made) if labels else made
    if how != "error":  # the collector knows exactly what is too long
        texts = [[each.completion] if labels else [each.chosen, each.rejected] for each in examples]
        examples, num_long = fit(policy, examples, completion_lengths(policy, examples, texts), how, "data")
    collector = language.labeled if labels else language.preference_pairs
    return collector(policy, examples, batch_size=settings.batch_size, reference=reference, seed=config.settings.seed), num_long


@dataclass(frozen=True)
class FrozenAtStart:
    """Stands for the reference until training starts: after a warm start it is the warm policy that counts."""

    vocabulary: int


def make_policy(settings: ModelSettings, task: Task | None, *, value_head: bool, seed: int) -> LanguagePolicy:
    """A policy from a folder, or a fresh tiny one with the task's characters."""
    if settings.model == "tiny":
        require(settings.lora_rank is None, "lora_rank: the tiny model has nothing pretrained to adapt; leave it out")
        alphabet: dict[str, Any] = {"alphabet": task.alphabet} if task is not None and task.alphabet else {}
        return language.tiny(**alphabet, seed=seed, value_head=value_head, temperature=settings.temperature)
    dtype = None if settings.compute_dtype == "auto" else getattr(torch, settings.compute_dtype)
    random: Any = torch.random
    with random.fork_rng(devices=[]):
        random.manual_seed(seed)  # fresh adapters are random
        options: dict[str, Any] = {"temperature": settings.temperature, "value_head": value_head, "lora_rank": settings.lora_rank}
        return LanguagePolicy.from_pretrained(policy_folder(settings.model), compute_dtype=dtype, **options)


def policy_folder(text: str) -> str:
    """The model's folder: itself, or the policy inside a run's folder."""
    inside = survivor(Path(text) / "policy")
    return str(inside) if (inside / "config.json").exists() else text


def rewards_from(texts: Sequence[str], **limits: Any) -> Rewards:
    """Rewards by name: built-ins, ``module:function``, runs of reward models; ``NAME=0.5`` weighs one; ``limits`` of their time."""
    parts: list[Part] = []
    for text in texts:
        name, weight = parse_weight(text)
        parts.append(Part(name=name, function=reward_model(name) or reward_from(name, lambda t: load_object(t, "reward")), weight=weight))
    return Rewards(parts=tuple(parts), **limits)


def reward_model(name: str) -> Callable[..., list[float]] | None:
    """A trained reward model as a reward function, where ``name`` is the folder of a run."""
    if not (Path(name) / "config.json").exists():
        return None
    run = Run.load(name)
    require(run.needs.scores_texts, f"reward {name}: expected the run of a reward-model, found one of {run.algorithm}")
    return score_with(run.policy)


def examples_of(task: Task | None) -> list[Labeled]:
    if task is None or task.solution is None:
        raise UsageError("task: it has no answers to imitate; give the file a column answer or completion")
    return [Labeled(prompt=p.prompt, completion=task.solution(p), label=True, place=p.place) for p in task.train]


def labeled_from(pairs: Sequence[Pair]) -> list[Labeled]:
    sides = [(pair, text, label) for pair in pairs for text, label in ((pair.chosen, True), (pair.rejected, False))]
    return [Labeled(prompt=pair.prompt, completion=text, label=label, place=pair.place) for pair, text, label in sides]
