"""``upslope evaluate`` for a language run: its policy on held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upslope.errors import UsageError
from upslope.run.language_run import check_extra, rewards_from
from upslope.run.language_settings import TaskSettings
from upslope.run.load import Run


def evaluate_run(
    run: Run,
    *,
    task: str | None = None,
    reward: Sequence[str] | None = None,
    episodes: int | None = None,
    max_tokens: int | None = None,
    seed: int = 100,
    greedy: bool = True,
    best: bool = False,
) -> Any:
    """A :class:`~upslope.language.LanguageResult` of the run's policy on its task's held-out problems, or another task's.

    A reward recorded as ``module:function`` is not imported unless the caller names it again; the task's own then counts.

    Raises:
        UsageError: no task, a damaged folder, a task that holds nothing out.
    """
    check_extra()
    from upslope.language import evaluate
    from upslope.language import task as make_task

    recorded = run.config["task"]
    name = task or recorded.get("task")
    if name is None:
        raise UsageError("task: this run was trained on recorded texts; say which task to measure on, --task addition for one")
    same = name == recorded.get("task")
    options = recorded.get("task_kwargs", {}) if same else {}
    seconds = recorded.get("reward_timeout")
    limits = TaskSettings(reward_timeout=None if seconds is None else float(seconds)).reward_limits
    rewards = rewards_from(reward, **limits) if reward else None
    made = make_task(str(name), seed=0, reward=rewards, **options)
    tokens = max_tokens or (run.config["collector"].get("max_tokens") if same else None)
    policy = run.best_policy if best else run.policy
    return evaluate(policy, made, episodes=episodes, max_tokens=tokens, seed=seed, greedy=greedy)
