"""``upslope evaluate RUN``: fresh episodes with a trained policy."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from upslope.cli.flags import INTEGER, POLICY, SWITCH, TEXT, Flag, parse, several
from upslope.cli.help import section
from upslope.errors import UsageError, require
from upslope.run.load import Run

FLAGS = (
    Flag("episodes", INTEGER, None, "fresh episodes to play (none: 20; of a language model all held-out problems)"),
    Flag("seed", INTEGER, 100, "of the episodes; each is seeded differently"),
    Flag("json", SWITCH, False, "print one JSON object and nothing else"),
    POLICY,
    Flag("sample", SWITCH, False, "draw actions instead of taking the most likely one"),
    Flag("env", TEXT, None, "the environment, where the run's own is module:name, or to try another one"),
    Flag("max_episode_steps", INTEGER, None, "truncate episodes after so many steps (none: as in training)"),
    Flag("task", TEXT, None, "language models: the task to measure on (none: the run's own)"),
    Flag("reward", several(TEXT, None), None, "language models: rewards, where the run's own are module:function"),
    Flag("max_tokens", INTEGER, None, "language models: the longest completion (none: as in training)"),
)

HELP = """\
usage: upslope evaluate RUN [flags]

Play fresh episodes with the policy in a run folder and report the mean return with a 95 % bootstrap interval.
It is the final policy unless --policy best takes that of the best evaluation on the way.
A language model answers held-out problems, greedily: accuracy with its interval, reward, format rate, length.

  upslope evaluate runs/ppo-CartPole-v1-0 --episodes 100
  upslope evaluate runs/grpo-addition-0 --task addition --json
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
    for name in ("episodes", "max_tokens", "max_episode_steps"):
        require(given[name] is None or given[name] >= 1, f"--{name.replace('_', '-')}: expected an integer ≥ 1, found {given[name]}")
    require(given["seed"] >= 0, f"--seed: expected an integer ≥ 0, found {given['seed']}")
    run = Run.load(plain[0])
    if run.world == "language":
        require(given["env"] is None, "--env: this run trained a language model; say --task to try another task")
        require(given["max_episode_steps"] is None, "--max-episode-steps: this run trained a language model; say --max-tokens")
        return evaluate_language(run, given)
    for name in ("task", "reward", "max_tokens"):
        require(given[name] is None, f"--{name.replace('_', '-')}: this run trained on an environment, {run.env_id}")
    return evaluate_control(run, given)


def evaluate_control(run: Run, given: dict[str, Any]) -> int:
    """Play fresh episodes and report."""
    from upslope.control import evaluate
    from upslope.control.evaluate import MOST_ENVS
    from upslope.run.threads import one_thread

    env = run.environment(given["env"])
    policy = run.chosen_policy(given["policy"])
    options = run.env_options(env)
    if given["max_episode_steps"] is not None:
        options["max_episode_steps"] = given["max_episode_steps"]
    if env == run.env_id:  # no more environments than training had, made as they were
        options |= {"num_envs": min(MOST_ENVS, run.num_envs), "vectorization": run.config["env"].get("vectorization", "auto")}
    with one_thread(policy):
        result = evaluate(policy, env, episodes=given["episodes"] or 20, seed=given["seed"], greedy=not given["sample"], **options)
    low, high = result.return_interval
    if given["json"]:
        fields = {"return_mean": result.return_mean, "return_std": result.return_std, "return_interval": [low, high]}
        fields |= {"length_mean": result.length_mean, "reward_per_step": result.reward_per_step}
        print(json.dumps({**fields, "episodes": result.episodes, "episodes_ended": result.episodes_ended, **which_policy(run, given)}))
        return 0
    how = "with sampled actions" if given["sample"] else "greedy"
    print(f"{run.algorithm} on {env}, {how}: {result.episodes} fresh episodes (seed {given['seed']})")
    print(f"  {run.reached_words(given['policy'])}")
    print(f"  return {result.return_mean:.2f} ± {result.return_std:.2f} (95 % interval of the mean {low:.2f} to {high:.2f})")
    print(f"  length {result.length_mean:.1f} steps")
    if result.episodes_ended < result.episodes:
        print(
            f"  {result.episodes_ended} of {result.episodes} episodes ended; the others were cut off and count with what they had "
            f"(--max-episode-steps N says after how many steps), reward per step {result.reward_per_step:.3f}"
        )
    return 0


def which_policy(run: Run, given: dict[str, Any]) -> dict[str, Any]:
    """Which policy was measured and how far it was trained: environment steps, of a language model iterations."""
    done, planned = run.reached(given["policy"]) or (None, None)
    return {"policy": given["policy"], "trained": done, "planned": planned, "finished": run.summary is not None}


def evaluate_language(run: Run, given: dict[str, Any]) -> int:
    """Answer held-out problems and report."""
    from upslope.run.language_evaluate import evaluate_run

    result = evaluate_run(
        run,
        task=given["task"],
        reward=given["reward"],
        episodes=given["episodes"],
        max_tokens=given["max_tokens"],
        seed=given["seed"],
        greedy=not given["sample"],
        best=given["policy"] == "best",
    )
    if given["json"]:
        print(json.dumps({**asdict(result), **which_policy(run, given)}))
        return 0
    how, of = ("sampled" if given["sample"] else "greedy"), given["task"] or run.env_id
    print(f"{run.algorithm} on {of}, {how}: {result.episodes} held-out problems")
    print(f"  {run.reached_words(given['policy'])}")
    if result.accuracy is not None and result.accuracy_interval is not None:
        low, high = result.accuracy_interval
        print(f"  accuracy {result.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})")
    for label, value in (("reward", result.reward_mean), ("format rate", result.format_rate), ("length in tokens", result.length_mean)):
        if value is not None:
            print(f"  {label} {value:.3f}")
    return 0
