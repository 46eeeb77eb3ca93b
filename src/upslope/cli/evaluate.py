"""``upslope evaluate RUN``: fresh episodes with a trained policy."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upslope.cli.command import Command
from upslope.cli.flags import COUNT, ENV_KWARGS, PATH, POLICY, SEED, SWITCH, TEXT, Flag, one_of, several
from upslope.errors import require
from upslope.run.folder import finite_or_none
from upslope.run.load import Run, is_model_folder
from upslope.run.report import amount, plural

FLAGS = (
    Flag("episodes", COUNT, None, "fresh episodes to play (none: 20; of a language model all held-out problems)"),
    Flag("seed", SEED, 100, "of the episodes; each is seeded differently"),
    Flag("json", SWITCH, False, "print one JSON object and nothing else"),
    POLICY,
    Flag("sample", SWITCH, False, "draw actions instead of taking the most likely one"),
    Flag("env", TEXT, None, "the environment, where the run's is module:name, or to try another one"),
    ENV_KWARGS,
    Flag("max_episode_steps", COUNT, None, "truncate episodes after so many steps (none: as in training)"),
    Flag("task", TEXT, None, "language models: the task to measure on (none: the run's)"),
    Flag("reward", several(TEXT, None), None, "language models: rewards, where the run's are module:function"),
    Flag("pairs", PATH, None, "language models: a JSONL file of prompt, chosen, rejected: how many pairs are ranked right"),
    Flag("long_prompts", one_of(("error", "drop", "cut")), None, "language models: of prompts without room (none: as in training)"),
    Flag("max_tokens", COUNT, None, "language models: the longest completion (none: as in training)"),
)

HELP = """\
usage: upslope evaluate RUN|MODEL [flags]

Play fresh episodes with the policy in a run folder and report the mean return with a 95 % bootstrap interval.
It is the final policy unless --policy best takes that of the best evaluation on the way.
A language model, of a run or in a model's folder, answers held-out problems, greedily: accuracy with its interval, reward,
format rate, length. A reward model, and any model with --pairs, ranks preference pairs.

  upslope evaluate runs/ppo-CartPole-v1-0 --episodes 100
  upslope evaluate runs/grpo-addition-0 --task addition --json
  upslope evaluate smollm2 --task sums --episodes 64
"""


def measure(plain: list[str], given: dict[str, Any]) -> int:
    run: Any = Path(plain[0]) if is_model_folder(plain[0]) else Run.load(plain[0])
    if isinstance(run, Path) or run.world == "language":
        require(given["env"] is None, "--env: this run trained a language model; say --task to try another task")
        require(given["max_episode_steps"] is None, "--max-episode-steps: this run trained a language model; say --max-tokens")
        require(given["env_kwargs"] is None, "--env-kwargs: this run trained a language model, in no environment")
        return evaluate_language(run, given)
    for name in ("task", "reward", "max_tokens", "pairs", "long_prompts"):
        require(given[name] is None, f"--{name.replace('_', '-')}: this run trained on an environment, {run.env_id}")
    return evaluate_control(run, given)


def evaluate_control(run: Run, given: dict[str, Any]) -> int:
    env = run.environment(given["env"])
    from upslope.run.control import evaluate_run  # loads PyTorch

    options: dict[str, Any] = {name: given[name] for name in ("seed", "max_episode_steps", "env_kwargs")}
    options["episodes"] = given["episodes"] or 20
    result = evaluate_run(run, env, which=given["policy"], greedy=not given["sample"], **options)
    if given["json"]:
        print(json.dumps(finite_or_none(asdict(result)) | which_policy(run, given)))
        return 0
    how = "with sampled actions" if given["sample"] else "greedy"
    print(f"{run.algorithm} on {env}, {how}: {plural(result.episodes, 'fresh episode')} (seed {given['seed']})")
    print(f"  {run.policy_words(given['policy'])}")
    print(f"  {spread_text(result)}")
    print(f"  length {result.length_mean:.1f} steps")
    if result.episodes_ended < result.episodes:
        seen = f"{result.episodes_ended} of {result.episodes} episodes ended; the others were cut off and count with what they had"
        print(f"  {seen} (--max-episode-steps N says after how many steps), reward per step {amount(result.reward_per_step, 3)}")
    return 0


def spread_text(result: Any) -> str:
    """The mean return with what is known of it from so many episodes."""
    low, high = result.return_interval
    mean, std = amount(result.return_mean, 2), amount(result.return_std, 2)
    if result.episodes == 1:
        return f"return {mean} (one episode has no interval)"
    if low == high:
        return f"return {mean} in each of them"
    return f"return {mean} ± {std} (95 % interval of the mean {amount(low, 2)} to {amount(high, 2)})"


def which_policy(run: Run, given: dict[str, Any]) -> dict[str, Any]:
    progress = run.progress(given["policy"]) or {}
    return {"policy": given["policy"], **{k: n for k, n in progress.items() if k != "format_version"}, "finished": run.finished}


def evaluate_language(run: Run | Path, given: dict[str, Any]) -> int:
    from upslope.run.language_evaluate import evaluate_model  # loads Transformers

    options = {name: given[name] for name in ("task", "reward", "pairs", "episodes", "max_tokens", "seed", "long_prompts")}
    result: Any = evaluate_model(run, greedy=not given["sample"], best=given["policy"] == "best", **options)
    if given["json"]:
        print(json.dumps(asdict(result) | (which_policy(run, given) if isinstance(run, Run) else {})))
        return 0
    name, task = (run.algorithm, run.env_id) if isinstance(run, Run) else (str(run), "")
    if hasattr(result, "preference_accuracy"):
        (low, high), by = result.preference_interval, {"score": "score", "log_prob": "log-probability"}[result.ranked_by]
        head = f"{name}: {plural(result.pairs, 'pair')} ranked by {by}"
        lines = [f"ranked right {result.preference_accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})"]
    else:
        how = "sampled" if given["sample"] else "greedy"
        head, lines = f"{name} on {given['task'] or task}, {how}: {plural(result.episodes, 'held-out problem')}", answer_lines(result)
    print(head)
    if isinstance(run, Run):
        print(f"  {run.policy_words(given['policy'])}")
    print("\n".join(f"  {line}" for line in lines))
    return 0


def answer_lines(result: Any) -> list[str]:
    lines: list[str] = []
    if result.accuracy is not None and result.accuracy_interval is not None:
        low, high = result.accuracy_interval
        lines = [f"accuracy {result.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})"]
    values = {"reward": result.reward_mean, "format rate": result.format_rate, "length in tokens": result.length_mean}
    return lines + [f"{label} {value:.3f}" for label, value in values.items() if value is not None]


COMMAND = Command(measure, HELP, FLAGS, "evaluate: expected RUN, a run folder; try: upslope evaluate runs/ppo-CartPole-v1-0")
