"""``upslope evaluate RUN``: fresh episodes with a trained policy."""

from __future__ import annotations

import json

from upslope.cli.flags import INTEGER, SWITCH, TEXT, Flag, parse
from upslope.cli.help import section
from upslope.errors import UsageError, require
from upslope.run.load import Run

FLAGS = (
    Flag("episodes", INTEGER, 20, "fresh episodes to play"),
    Flag("seed", INTEGER, 100, "of the episodes; each is seeded differently"),
    Flag("json", SWITCH, False, "print one JSON object and nothing else"),
    Flag("best", SWITCH, False, "the policy of the best periodic evaluation instead of the final one"),
    Flag("sample", SWITCH, False, "draw actions instead of taking the most likely one"),
    Flag("env", TEXT, None, "the environment, where the run's own is module:name, or to try another one"),
)

HELP = """\
usage: upslope evaluate RUN [flags]

Play fresh episodes with the policy in a run folder and report the mean return with a 95 % bootstrap interval.

  upslope evaluate runs/ppo-CartPole-v1-0 --episodes 100
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
    require(given["episodes"] >= 1, f"--episodes: expected an integer ≥ 1, found {given['episodes']}")
    require(given["seed"] >= 0, f"--seed: expected an integer ≥ 0, found {given['seed']}")
    run = Run.load(plain[0])
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
        print(f"  return {result.return_mean:.2f} ± {result.return_std:.2f} (95 % interval of the mean {low:.2f} to {high:.2f})")
        print(f"  length {result.length_mean:.1f} steps")
    return 0
