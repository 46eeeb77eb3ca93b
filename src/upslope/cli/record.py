"""``upslope record RUN --out FILE``: steps of a policy as a data set."""

from pathlib import Path
from typing import Any

import upslope
from upslope.cli.command import Command, print_caution
from upslope.cli.flags import INTEGER, PATH, POLICY, SEED, SWITCH, TEXT, Flag, kind_of
from upslope.errors import UsageError, require
from upslope.run.control_settings import MAX_ROWS, EnvSettings, check_num_envs
from upslope.run.load import Run
from upslope.run.report import amount

FLAGS = (
    Flag("out", PATH, None, "file to write; it must not exist yet"),
    Flag("steps", INTEGER, 50_000, "steps to record, rounded up to as many of each environment; reset steps are among them"),
    Flag("num_envs", INTEGER, 8, "environments played side by side: the rows of the data"),
    Flag("seed", SEED, 0, "of the environments and of the actions"),
    Flag("random", SWITCH, False, "record uniformly random actions; the command then names an environment instead of a run"),
    POLICY,
    Flag("env", TEXT, None, "the environment, where the run's is module:name"),
    Flag("env_kwargs", kind_of(dict[str, Any], EnvSettings, "env_kwargs"), None, "keyword arguments for the environment, as a JSON object"),
)

HELP = """\
usage: upslope record RUN --out FILE [flags]
       upslope record ENV_ID --random --out FILE [flags]

Play with sampled actions and write every step into a safetensors file: observations, actions and their log-probabilities,
rewards, ends. Another policy can learn from it.

  upslope record runs/ppo-CartPole-v1-0 --steps 50000 --out steps.safetensors
  upslope train off-policy CartPole-v1 --data steps.safetensors
"""


def record(plain: list[str], given: dict[str, Any]) -> int:
    require(1 <= given["steps"] <= MAX_ROWS, f"--steps: expected an integer from 1 to {MAX_ROWS}, found {given['steps']}")
    check_num_envs(given["num_envs"])
    check_new(given["out"])
    env, policy, options, behavior = behavior_of(plain[0], given)
    with upslope.control.make(env, given["num_envs"], given["seed"], **options) as envs:
        player = upslope.control.RandomPolicy(envs) if policy is None else policy
        num_steps, about = -(-given["steps"] // given["num_envs"]), {"env_kwargs": options["env_kwargs"], "behavior": behavior}
        data = upslope.control.record(envs, player, num_steps, seed=given["seed"], about=about)
    data.save(given["out"])
    episodes, mean = data.episodes()
    returned = "none from start to end" if mean is None else f"{episodes:,} of them from start to end, mean return {amount(mean)}"
    print(f"{data.num_steps:,} steps of {behavior} in {envs.env_id}; episodes: {returned}")
    print(f"wrote {given['out']}\n\ntry next:\n  upslope train off-policy {env} --data {given['out']}")
    return 0


def check_new(path: Path | None) -> None:
    if path is None:
        raise UsageError("--out: expected the file to write, found nothing")
    require(not path.exists(), f"--out: {path} exists; name another file or remove it")
    require(path.absolute().parent.is_dir(), f"--out: there is no folder {path.absolute().parent}; make it first")


def behavior_of(name: str, given: dict[str, Any]) -> tuple[str, Any, dict[str, Any], str]:
    """``(environment, policy, what it is made with, description)``; no policy means random actions."""
    if given["random"]:
        require(given["policy"] == "final" and given["env"] is None, "--random: it needs no run, so leave out --policy and --env")
        return name, None, {"env_kwargs": given["env_kwargs"]}, "random actions"
    run = Run.load(name)
    require(run.world == "control", f"record: {name} holds a language model; it records the policies of environments")
    policy, env = run.chosen_policy(given["policy"]), run.environment(given["env"])
    print_caution(run, given["policy"])
    options = run.env_options(env)
    if given["env_kwargs"] is not None:
        options["env_kwargs"] = given["env_kwargs"]
    return env, policy.frozen(), options, f"{run.algorithm}, seed {run.config['settings'].get('seed', 0)}"


MISSING = "record: expected RUN, a run folder, or ENV_ID with --random; try: upslope record CartPole-v1 --random --out FILE"
COMMAND = Command(record, HELP, FLAGS, MISSING)
