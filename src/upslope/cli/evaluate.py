"""``upslope evaluate RUN``: fresh episodes with a trained policy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upslope.cli.flags import INTEGER, PATH, SWITCH, TEXT, Flag, parse, several
from upslope.cli.help import section
from upslope.errors import UsageError, require
from upslope.run.language_load import is_model_folder
from upslope.run.load import Run
from upslope.run.report import plural

FLAGS = (
    Flag("episodes", INTEGER, None, "fresh episodes to play (none: 20; of a language model all held-out problems)"),
    Flag("seed", INTEGER, 100, "of the episodes; each is seeded differently"),
    Flag("json", SWITCH, False, "print one JSON object and nothing else"),
    Flag("best", SWITCH, False, "the policy of the best periodic evaluation instead of the final one"),
    Flag("sample", SWITCH, False, "draw actions instead of taking the most likely one"),
    Flag("env", TEXT, None, "the environment, where the run's own is module:name, or to try another one"),
    Flag("task", TEXT, None, "language models: the task to measure on (none: the run's own)"),
    Flag("reward", several(TEXT, None), None, "language models: rewards, where the run's own are module:function"),
    Flag("pairs", PATH, None, "language models: a JSONL file of prompt, chosen, rejected: how many pairs are ranked right"),
    Flag("max_tokens", INTEGER, None, "language models: the longest completion (none: as in training)"),
)

HELP = """\
usage: upslope evaluate RUN|MODEL [flags]

Play fresh episodes with the policy in a run folder and report the mean return with a 95 % bootstrap interval.
A language model, of a run or in a model's folder, answers held-out problems, greedily: accuracy with its interval, reward,
format rate, length. A reward model, and any model with --pairs, ranks preference pairs.

  upslope evaluate runs/ppo-CartPole-v1-0 --episodes 100
  upslope evaluate runs/grpo-addition-0 --task addition --json
  upslope evaluate smollm2 --task sums --episodes 64
"""


def main(words: list[str]) -> int:
    """Parse, play, report."""
    if "--help" in words or "-h" in words:
        print(HELP + "\n" + section("Flags:", FLAGS))
        return 0
    plain, values = parse(words, FLAGS, positionals=1)
    if not plain:
        raise UsageError("evaluate: expected RUN, a run folder; try: upslope evaluate runs/ppo-CartPole-v1-0")
    given = {flag.name: flag.default for flag in FLAGS} | values
    for name in ("episodes", "max_tokens"):
        require(given[name] is None or given[name] >= 1, f"--{name.replace('_', '-')}: expected an integer ≥ 1, found {given[name]}")
    require(given["seed"] >= 0, f"--seed: expected an integer ≥ 0, found {given['seed']}")
    run: Any = Path(plain[0]) if is_model_folder(plain[0]) else Run.load(plain[0])
    if isinstance(run, Path) or run.world == "language":
        require(given["env"] is None, "--env: this run trained a language model; say --task to try another task")
        return evaluate_language(run, given)
    for name in ("task", "reward", "max_tokens", "pairs"):
        require(given[name] is None, f"--{name.replace('_', '-')}: this run trained on an environment, {run.env_id}")
    given["episodes"] = given["episodes"] or 20
    env = run.environment(given["env"])
    policy = run.best_policy if given["best"] else run.policy
    from upslope.control import evaluate
    from upslope.run.threads import one_thread

    kwargs = run.config["env"]["env_kwargs"] if given["env"] in (None, run.env_id) else None
    with one_thread(policy):
        result = evaluate(policy, env, episodes=given["episodes"], seed=given["seed"], greedy=not given["sample"], env_kwargs=kwargs)
    low, high = result.return_interval
    if given["json"]:
        fields = {"return_mean": result.return_mean, "return_std": result.return_std, "return_interval": [low, high]}
        print(json.dumps({**fields, "length_mean": result.length_mean, "episodes": result.episodes}))
    else:
        how = "with sampled actions" if given["sample"] else "greedy"
        print(f"{run.algorithm} on {env}, {how}: {result.episodes} fresh episodes (seed {given['seed']})")
        print_caution(run, given["best"])
        print(f"  return {result.return_mean:.2f} ± {result.return_std:.2f} (95 % interval of the mean {low:.2f} to {high:.2f})")
        print(f"  length {result.length_mean:.1f} steps")
    return 0


def print_caution(run: Run, best: bool) -> None:
    """Say so where the policy is not the end of its run."""
    if words := run.caution("best_policy" if best else "policy"):
        print(f"  {words}")


def evaluate_language(run: Run | Path, given: dict[str, Any]) -> int:
    """Answer held-out problems, or rank pairs, and report; ``run`` may also be a model's folder."""
    from upslope.run.language_evaluate import evaluate_model

    result = evaluate_model(
        run,
        task=given["task"],
        reward=given["reward"],
        pairs=given["pairs"],
        episodes=given["episodes"],
        max_tokens=given["max_tokens"],
        seed=given["seed"],
        greedy=not given["sample"],
        best=given["best"],
    )
    if given["json"]:
        print(json.dumps(asdict(result)))
        return 0
    name, task = (run.algorithm, run.env_id) if isinstance(run, Run) else (str(run), "")
    if hasattr(result, "preference_accuracy"):
        head, *lines = pair_lines(name, result)
    else:
        how = "sampled" if given["sample"] else "greedy"
        head, *lines = answer_lines(f"{name} on {given['task'] or task}, {how}", result)
    print(head)
    if isinstance(run, Run):
        print_caution(run, given["best"])
    print("\n".join(f"  {line}" for line in lines))
    return 0


def pair_lines(name: str, result: Any) -> list[str]:
    """How many pairs were ranked right, in words."""
    low, high = result.preference_interval
    by = {"score": "score", "log_prob": "log-probability"}[result.ranked_by]
    return [
        f"{name}: {plural(result.pairs, 'pair')} ranked by {by}",
        f"ranked right {result.preference_accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})",
    ]


def answer_lines(what: str, result: Any) -> list[str]:
    """How problems were answered, in words."""
    lines = [f"{what}: {plural(result.episodes, 'held-out problem')}"]
    if result.accuracy is not None and result.accuracy_interval is not None:
        low, high = result.accuracy_interval
        lines.append(f"accuracy {result.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})")
    values = {"reward": result.reward_mean, "format rate": result.format_rate, "length in tokens": result.length_mean}
    return lines + [f"{label} {value:.3f}" for label, value in values.items() if value is not None]
