"""``upslope evaluate`` for language models: a run's policy, or the model in a folder, on held-out problems or preference pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import UsageError
from upslope.language import LanguagePolicy, LanguageResult, Pair, PairsResult, evaluate, evaluate_pairs, pairs_from, read_pairs
from upslope.language import task as make_task
from upslope.language.checks import BUILTIN
from upslope.language.long_prompts import fit
from upslope.language.rewards import parse_weight
from upslope.run.language_make import rewards_from
from upslope.run.language_settings import TaskSettings
from upslope.run.load import Run

HELD_OUT_PAIRS = 256  # pairs that are made of a task's held-out problems to measure a preference on

NO_CONFIG: dict[str, dict[str, Any]] = {"task": {}, "collector": {}}
"""That of a model's folder, which was trained by nobody that we know."""


def evaluate_model(
    target: Run | Path,
    *,
    task: str | None = None,
    reward: Sequence[str] | None = None,
    pairs: Path | None = None,
    episodes: int | None = None,
    max_tokens: int | None = None,
    seed: int = 100,
    greedy: bool = True,
    best: bool = False,
    long_prompts: Any = None,
) -> LanguageResult | PairsResult:
    """Measure a run's policy, or the model in a Transformers folder, as it was trained or as the caller says.

    A :class:`~upslope.language.LanguageResult` on the held-out problems of the run's task or of ``task``; a
    :class:`~upslope.language.PairsResult` on ``pairs``, and of a reward model or of what was trained on a file of pairs.

    Raises:
        UsageError: nothing to measure on, a reward whose module only the caller may name, a damaged folder.
    """
    config: dict[str, dict[str, Any]] = target.config if isinstance(target, Run) else NO_CONFIG
    recorded, scores = config["task"], isinstance(target, Run) and target.needs.scores_texts
    name = task or recorded.get("task")
    if pairs is not None and task is not None:
        raise UsageError("pairs: a model is measured on a task's problems or on pairs, never both; leave out --task or --pairs")
    if pairs is not None or scores or name is None:
        found = pairs_for(target, task, given=pairs)
        if found is None:
            if isinstance(target, Run):
                hint = "say what to measure on: --task addition, or --pairs FILE.jsonl of preferences"
                raise UsageError(f"task: this run was trained on recorded texts; {hint}")
            hint = "so say what to measure it on: --task addition, or --pairs FILE.jsonl"
            raise UsageError(f"task: {target} is a model's folder and no run, {hint}")
        return evaluate_pairs(policy_at(target, best), found[:episodes], by_score=scores)
    same = name == recorded.get("task")
    names = rewards_for(recorded if same else {}, reward)
    how = TaskSettings(long_prompts=long_prompts or recorded.get("long_prompts", "error")).long_prompts
    limits = TaskSettings(reward_timeout=recorded.get("reward_timeout")).reward_limits
    options: dict[str, Any] = recorded.get("task_kwargs", {}) if same else {}
    made = make_task(name, reward=rewards_from(names, **limits) if names else None, **options)
    tokens = max_tokens or (config["collector"].get("max_tokens") if same else None)
    policy, problems = policy_at(target, best), made.held_out[:episodes]
    problems, _ = fit(policy, problems, [tokens or made.max_tokens] * len(problems), how)
    return evaluate(policy, made, episodes=episodes, max_tokens=tokens, seed=seed, greedy=greedy, problems=problems)


def policy_at(target: Run | Path, best: bool) -> LanguagePolicy:
    if isinstance(target, Run):
        return target.best_policy if best else target.policy
    return LanguagePolicy.from_pretrained(target).requires_grad_(False)


def rewards_for(recorded: Mapping[str, Any], given: Sequence[str] | None) -> list[str]:
    """The rewards to measure with, by name: those given, else those of the run; of these the caller names again what runs code."""
    names = [str(name) for name in recorded.get("reward") or ()]
    foreign = [name for name in names if is_foreign(name)]
    if foreign and not given:
        why = f"this run was trained with {', '.join(foreign)}, and what a file names is not imported"
        raise UsageError(f"reward: {why}; say --reward {' '.join(names)} to measure with it, or another one")
    return list(given or names)


def is_foreign(reward: str) -> bool:
    """Whether a reward's name, ``module:function=0.5`` for one, is not that of a built-in one."""
    return parse_weight(reward)[0].partition(":")[0] not in BUILTIN


def pairs_for(target: Run | Path, task: str | None = None, *, given: Path | None = None) -> list[Pair] | None:
    """Preference pairs to measure on, None where there are none.

    Those of the file ``given``, else of ``task``, else what the run was trained on: its file of pairs, better the one beside it that
    was held out (``FILE.test.jsonl``), or its task. Of a task, pairs are made of held-out problems.
    """
    if given is not None:
        return read_pairs(given)
    config: dict[str, dict[str, Any]] = target.config if isinstance(target, Run) else NO_CONFIG
    trained_on, recorded = config["collector"].get("pairs"), config["task"]
    if task is None and trained_on is not None and isinstance(target, Run) and target.needs.learns_from == "pairs":
        return read_pairs(held_out_file(Path(trained_on)) or Path(trained_on))
    name = task or recorded.get("task")
    if name is None:
        return None
    options: dict[str, Any] = recorded.get("task_kwargs", {}) if name == recorded.get("task") else {}
    return pairs_from(make_task(name, **options), count=HELD_OUT_PAIRS, held_out=True)


def held_out_file(pairs: Path) -> Path | None:
    """``FILE.test.jsonl`` beside ``FILE.jsonl``, where it exists."""
    beside = pairs.with_name(f"{pairs.stem}.test.jsonl")
    return beside if beside.exists() else None
