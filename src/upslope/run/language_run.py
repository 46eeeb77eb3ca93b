"""One run in the language world, from settings to a run folder: what ``upslope train grpo --model …`` does.

>>> run = LanguageRun.of("grpo", model="tiny", task="addition").run()  # doctest: +SKIP
>>> run.summary["accuracy"], run.policy.decode(ids)                    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from upslope.errors import UsageError, require, require_packages, unknown
from upslope.files import survivor
from upslope.run.control_run import check_device, flat_config
from upslope.run.control_settings import Output
from upslope.run.language_settings import CompletionsSettings, LanguageRunSettings, ModelSettings, RecordedSettings, TaskSettings
from upslope.run.load import Run
from upslope.run.settings import check_imports_nothing, check_names, load_object, plain_value, replaced, settings_of, to_json

SAMPLING, RECORDED = CompletionsSettings, RecordedSettings
ALGORITHMS: dict[str, tuple[str, str, type]] = {
    "grpo": ("upslope.algorithms.grpo", "GRPO", SAMPLING),
    "dr-grpo": ("upslope.algorithms.grpo", "GRPO", SAMPLING),
    "dapo": ("upslope.algorithms.grpo", "GRPO", SAMPLING),
    "gspo": ("upslope.algorithms.grpo", "GRPO", SAMPLING),
    "cispo": ("upslope.algorithms.grpo", "GRPO", SAMPLING),
    "reinforce-pp": ("upslope.algorithms.grpo", "GRPO", SAMPLING),
    "rloo": ("upslope.algorithms.rloo", "RLOO", SAMPLING),
    "reinforce": ("upslope.algorithms.reinforce", "REINFORCE", SAMPLING),
    "ppo": ("upslope.algorithms.ppo", "PPO", SAMPLING),
    "sft": ("upslope.algorithms.sft", "SFT", RECORDED),
    "dpo": ("upslope.algorithms.dpo", "DPO", RECORDED),
    "kto": ("upslope.algorithms.kto", "KTO", RECORDED),
    "reward-model": ("upslope.algorithms.reward_model", "RewardModeling", RECORDED),
}
"""The algorithms that train language models: name → module, class, and how it collects."""

FOR_TEXT: dict[str, dict[str, Any]] = {
    "reinforce": {"gamma": 1.0, "baseline": False, "max_grad_norm": 1.0},
    "ppo": {"gamma": 1.0, "gae_lambda": 1.0, "num_epochs": 2, "num_minibatches": 2, "max_grad_norm": 1.0},
    "dapo": {"refill": 3},
}
"""Settings that text asks for, where they differ from the class's own: rewards come at the end and are not discounted."""


def algorithm_for(name: str) -> Any:
    """A shipped algorithm with its settings for text; raises :class:`UsageError` with the nearest name."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    module, attribute, _ = ALGORITHMS[name]
    kind = getattr(importlib.import_module(module), attribute)
    relatives = getattr(importlib.import_module(module), "RELATIVES", {})
    return replaced(kind(**relatives.get(name, {})), FOR_TEXT.get(name, {}))


@dataclass(frozen=True, kw_only=True)
class LanguageRun:
    """Everything that decides a run's result; :meth:`run` carries it out."""

    name: str
    algorithm: Any
    collector: CompletionsSettings | RecordedSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    settings: LanguageRunSettings = field(default_factory=LanguageRunSettings)

    @classmethod
    def of(cls, algorithm: str, **settings: Any) -> Self:
        """A shipped algorithm: defaults, then the preset of model and task, then ``settings`` by their flat names.

        Raises:
            UsageError: an unknown algorithm or setting (with the nearest name), or a value that is not allowed.
        """
        from upslope.language.presets import preset_for

        run = cls(name=algorithm, algorithm=algorithm_for(algorithm), collector=ALGORITHMS[algorithm][2]())
        known = set(settings_of(*run.parts()))
        run = run.replaced({name: value for name, value in FOR_TEXT.get(algorithm, {}).items() if name in known})
        recorded = settings.get("pairs") is not None
        preset = preset_for(algorithm, str(settings.get("model", "tiny")), settings.get("task"), known, recorded=recorded)
        return run.replaced(preset).replaced(settings)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **settings: Any) -> Self:
        """The run that a ``config.json`` records, with ``settings`` changed.

        Raises:
            UsageError: the file names a ``module:function`` that ``settings`` do not name again.
        """
        from upslope.language.checks import BUILTIN

        name = config["algorithm"]["name"]
        run = cls(name=name, algorithm=algorithm_for(name), collector=ALGORITHMS[name][2]())
        left = {key: value for key, value in flat_config(config).items() if key not in settings}
        check_imports_nothing(left, "the configuration", lambda key, text: key != "reward" or text.partition(":")[0] not in BUILTIN)
        return run.replaced(left).replaced(settings)

    def parts(self) -> tuple[Any, ...]:
        """The dataclasses whose fields are the settings."""
        return self.algorithm, self.collector, self.model, self.task, self.settings

    def replaced(self, values: Mapping[str, Any]) -> Self:
        """A copy with settings changed by their flat names; functions may be given by name, tuples as lists."""
        known = settings_of(*self.parts())
        check_names(values, known)
        clean = {name: plain_value(value, known[name].owner, name) for name, value in values.items()}
        try:
            algorithm, collector, model, task, settings = (replaced(part, clean) for part in self.parts())
        except TypeError as error:  # a check compared a text with a number
            raise UsageError(f"settings: a value of {', '.join(clean)} has the wrong type ({error})") from error
        return replace(self, algorithm=algorithm, collector=collector, model=model, task=task, settings=settings)

    @property
    def target(self) -> str:
        """What is learned, in a word or two."""
        if isinstance(self.collector, RecordedSettings) and self.collector.pairs is not None:
            return self.collector.pairs.stem
        task = self.task.task or "nothing"
        return Path(task).stem if task.endswith(".jsonl") else task

    def config(self) -> dict[str, Any]:
        """Everything as JSON values, for ``config.json``."""
        return {
            "world": "language",
            "algorithm": {"name": self.name, **to_json(self.algorithm)},
            "collector": to_json(self.collector),
            "policy": to_json(self.model),
            "task": to_json(self.task),
            "settings": to_json(self.settings),
        }

    def prepare(self) -> PreparedLanguage:
        """Make task, policy and collector, and check all that can be known before the first step.

        Raises:
            UsageError: whatever cannot work, in one line.
        """
        check_extra()
        device = check_device(self.settings.device)
        task = self.make_task()
        if self.settings.until_accuracy is not None and (task is None or not task.held_out):
            raise UsageError("until_accuracy: nothing is held out, so accuracy is never measured; leave it out, or give a FILE.test.jsonl")
        if self.settings.warm_start > 0 and (task is None or task.solution is None or task.correct is None):
            raise UsageError("warm_start: the task has no answers to imitate; set --warm-start 0, or give the file a column answer")
        policy = make_policy(self.model, task, value_head=self.name in ("ppo", "reward-model"), seed=self.settings.seed).to(device)
        if self.model.compute_dtype == "auto" and self.model.model != "tiny" and device.type != "cpu":
            policy.compute_dtype = preferred_on(device)
        reference = self.make_reference(policy)
        task, num_long = self.fitted(policy, task)
        if isinstance(self.collector, CompletionsSettings):
            collect: Any = self.completions(policy, task, reference)
        else:
            collect, others = self.recorded(policy, task, reference)
            num_long += others
        return PreparedLanguage(run=self, task=task, policy=policy, collect=collect, num_long=num_long)

    def fitted(self, policy: Any, task: Any) -> tuple[Any, int]:
        """The task with prompts that leave room for a completion, and how many were dropped or cut for it."""
        from upslope.language.long_prompts import fit_task

        if task is None or (self.name == "reward-model" and self.task.long_prompts == "error"):  # which is asked no prompt
            return task, 0
        recorded = isinstance(self.collector, RecordedSettings)
        max_tokens = getattr(self.collector, "max_tokens", None) or task.max_tokens
        return fit_task(policy, task, max_tokens, self.task.long_prompts, recorded=recorded)

    def make_task(self) -> Any:
        """The task with the rewards that were asked for; None for recorded data that brings its own prompts."""
        from upslope.language.tasks import task

        if self.task.task is None:
            if isinstance(self.collector, RecordedSettings) and self.collector.pairs is not None:
                return None
            raise UsageError("task: expected addition, copy, sums, FILE.jsonl or reasoning-gym:NAME, found nothing; try --task addition")
        reward = rewards_from(self.task.reward, **self.task.reward_limits) if self.task.reward else None
        return task(self.task.task, seed=0, reward=reward, **self.task.task_kwargs)

    def make_reference(self, policy: Any) -> Any:
        """The frozen policy of a KL term, where one is needed."""
        from upslope.language import LanguagePolicy

        wanted = self.name in ("dpo", "kto") or max(getattr(self.algorithm, n, 0.0) for n in ("reference_kl_coef", "kl_coef")) > 0
        if self.name == "ppo":
            wanted = self.algorithm.reference_kl_coef > 0
        if self.name == "reward-model" or not (wanted or self.collector.reference):
            return None
        if self.collector.reference is None:
            return FrozenAtStart(policy.vocabulary)
        return (
            LanguagePolicy.from_pretrained(policy_folder(self.collector.reference), temperature=self.model.temperature)
            .frozen()
            .to(policy.device)
        )

    def completions(self, policy: Any, task: Any, reference: Any) -> Any:
        """The collector of sampled completions."""
        from upslope.language import Completions, Rewards
        from upslope.language.tasks import NO_REWARD

        settings = self.collector
        assert isinstance(settings, CompletionsSettings)
        max_tokens = settings.max_tokens or task.max_tokens
        kl = getattr(self.algorithm, "kl_coef", 0.0) > 0  # in the reward it gives every group spread of which the collector knows nothing
        require(
            settings.refill == 0 or not (kl or getattr(self.algorithm, "needs_every_group", True)),
            "refill: with this objective (a KL or entropy term, or no groups) equal scores carry gradient too; set it to 0",
        )
        compares = hasattr(self.algorithm, "needs_every_group")
        require(not compares or settings.group_size > 1, "group_size: this algorithm compares the completions of a prompt; take 2 or more")
        require(task.reward is not None, f"task {task.name}: {NO_REWARD}")
        timed = task.reward if isinstance(task.reward, Rewards) else Rewards.of(task.reward, **self.task.reward_limits)
        return Completions(
            task.train,
            timed,
            group_size=settings.group_size,
            max_tokens=max_tokens,
            num_prompts=settings.num_prompts,
            reference=reference,
            overlong_buffer=settings.overlong_buffer,
            refill=settings.refill,
            seed=self.settings.seed,
        )

    def recorded(self, policy: Any, task: Any, reference: Any) -> tuple[Any, int]:
        """The collector of recorded texts, and how many of a file's prompts were dropped or cut to fit."""
        from upslope.language import recorded as data
        from upslope.language.long_prompts import fit, lengths
        from upslope.language.tasks import pairs_from, read_labeled, read_pairs

        settings = self.collector
        assert isinstance(settings, RecordedSettings)
        options: dict[str, Any] = {"batch_size": settings.batch_size, "reference": reference, "seed": self.settings.seed}
        if self.name == "sft":
            require(
                settings.pairs is None,
                "pairs: sft imitates the task's answers; give --task FILE.jsonl with prompt and answer or completion",
            )
            return data.demonstrations(policy, examples_of(task), **{**options, "reference": None}), 0
        if self.name == "kto":
            examples: Any = read_labeled(settings.pairs) if settings.pairs else labeled_from(pairs_from(task, count=2048))
            completions, collector = [[example.completion] for example in examples], data.labeled
        else:
            examples = read_pairs(settings.pairs) if settings.pairs else pairs_from(task, count=2048)
            completions, collector = [[pair.chosen, pair.rejected] for pair in examples], data.preference_pairs
        num_long = 0
        if self.task.long_prompts != "error":  # the collector knows exactly what is too long
            examples, num_long = fit(policy, examples, lengths(policy, completions), self.task.long_prompts, "data")
        return collector(policy, examples, **options), num_long

    def run(self, output: Output | None = None) -> Run:
        """Train, evaluate, write the run folder; returns it loaded.

        Raises:
            UsageError: before anything was written.
            RunFault: while running; the folder holds everything up to the last iteration.
        """
        from upslope.run.language_session import LanguageSession

        return LanguageSession(self, output or Output()).run()


@dataclass(frozen=True)
class FrozenAtStart:
    """Stands for the reference until training starts: after a warm start it is the warm policy that counts."""

    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class PreparedLanguage:
    """The living parts of a run."""

    run: LanguageRun
    task: Any
    policy: Any
    collect: Any
    num_long: int = 0

    @property
    def target(self) -> str:
        """What is learned."""
        return self.run.target

    @property
    def solved_at(self) -> float | None:
        """The accuracy that counts as solved."""
        return self.run.settings.until_accuracy

    def close(self) -> None:
        """Nothing is held open."""


def check_extra() -> None:
    """Say which extra to install where Transformers is missing."""
    require_packages("language", "transformers", "tokenizers")


def make_policy(settings: ModelSettings, task: Any, *, value_head: bool, seed: int) -> Any:
    """A policy from a folder, or a fresh tiny one with the task's characters."""
    import torch

    from upslope.language import LanguagePolicy, tiny

    if settings.model == "tiny":
        require(settings.lora_rank is None, "lora_rank: the tiny model has nothing pretrained to adapt; leave it out")
        alphabet = {"alphabet": task.alphabet} if task is not None and task.alphabet else {}
        return tiny(**alphabet, seed=seed, value_head=value_head, temperature=settings.temperature)
    dtype = None if settings.compute_dtype == "auto" else getattr(torch, settings.compute_dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # fresh adapters are random
        return LanguagePolicy.from_pretrained(
            policy_folder(settings.model),
            temperature=settings.temperature,
            value_head=value_head,
            lora_rank=settings.lora_rank,
            compute_dtype=dtype,
        )


def preferred_on(device: Any) -> Any:
    """The precision of the passes on a device."""
    from upslope.language.precision import preferred

    return preferred(device)


def policy_folder(text: str) -> str:
    """The model's folder: itself, or the policy inside a run's folder."""
    inside = survivor(Path(text) / "policy")
    return str(inside) if (inside / "config.json").exists() else text


def rewards_from(texts: Sequence[str], **limits: Any) -> Any:
    """Rewards by name: built-ins, ``module:function``, runs of reward models; ``NAME=0.5`` weighs one; ``limits`` of their time."""
    from upslope.language.rewards import Part, Rewards, parse_weight, reward_from

    parts: list[Part] = []
    for text in texts:
        name, weight = parse_weight(text)
        parts.append(Part(name=name, function=reward_model(name) or reward_from(name, lambda t: load_object(t, "reward")), weight=weight))
    return Rewards(parts=tuple(parts), **limits)


def reward_model(name: str) -> Callable[..., list[float]] | None:
    """A trained reward model as a reward function, where ``name`` is the folder of a run."""
    if not (Path(name) / "config.json").exists():
        return None
    from upslope.language.scoring import score_with

    run = Run.load(name)
    require(run.algorithm == "reward-model", f"reward {name}: expected the run of a reward-model, found one of {run.algorithm}")
    return score_with(run.policy)


def examples_of(task: Any) -> list[Any]:
    """Training problems with right completions."""
    from upslope.language.problems import Labeled

    if task is None or task.solution is None:
        raise UsageError("task: it has no answers to imitate; give the file a column answer or completion")
    return [Labeled(prompt=p.prompt, completion=task.solution(p), label=True, place=p.place) for p in task.train]


def labeled_from(pairs: Sequence[Any]) -> list[Any]:
    """Unpaired labels from pairs."""
    from upslope.language.problems import Labeled

    return [
        Labeled(prompt=p.prompt, completion=text, label=label, place=p.place)
        for p in pairs
        for text, label in ((p.chosen, True), (p.rejected, False))
    ]
