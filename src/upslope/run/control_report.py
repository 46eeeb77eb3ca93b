"""What a run in the control world says: the plan before it starts, the result, what to try next."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upslope.control import ActorCritic, Envs, LinearPolicy
from upslope.run.config import RunConfig
from upslope.run.control_settings import PolicySettings, RunSettings
from upslope.run.evaluations import POINTS
from upslope.run.play import can_render
from upslope.run.report import STOPPED, amount, climbing, epochs_line, plural

LARGE, SMALL = 100.0, 1e-3  # numbers of the observation beyond saturate a network's first layer, and up to here they hardly reach it
LARGE_PIXEL = 10.0
FEW_BYTES = 32.0  # bytes below are names of things or counts, rather than intensities


def plan(config: RunConfig, envs: Envs, policy: ActorCritic, stop_at: float | None) -> list[str]:
    title = f"{type(config.algorithm).__name__} on {envs.env_id}, seed {config.settings.seed}"
    described = policy_line(policy, config.policy, config.settings)
    return [title, collecting(config), stopping(config.settings, stop_at), *observing(envs, policy), described]


def observing(envs: Envs, policy: ActorCritic) -> list[str]:
    """What observations are taken for where that is a choice, how large they are where that matters, where action masks come from."""
    lines: list[str] = []
    encoder = policy.encoder
    if (seen := encoder.description()) is not None:
        others = " or ".join(choice for choice in ("auto", "yes", "no") if choice != policy.options["image"])
        lines.append(f"observation: {seen}; --image {others} takes it otherwise")
    numbers, images, octets = encoder.largest(envs.observation)
    if policy.observation_normalizer is None and (numbers > LARGE or 0.0 < numbers <= SMALL):
        size = "up to" if numbers > LARGE else "of at most"
        lines.append(f"the observation holds numbers {size} {numbers:,.6g}, and nothing scales them: --normalize-observation does")
    if policy.observation_normalizer is None and 0.0 < octets < FEW_BYTES:
        divided = f"the observation holds bytes up to {octets:.0f}, which are divided by 255"
        lines.append(f"{divided}: where they are no intensities, take --normalize-observation")
    if images > LARGE_PIXEL:
        promised = "where its space promises at most 1 or nothing: let the environment scale it"
        lines.append(f"an image holds numbers up to {images:,.6g} {promised}")
    if envs.action_mask is not None:
        source = envs.mask_source or 'info["action_mask"]'
        lines.append(f"only legal actions are taken, by the environment's {source}")
    return lines


def collecting(config: RunConfig) -> str:
    """``8 environments × 32 steps = 256 transitions per iteration, 10 epochs of 4 minibatches of 64 …``."""
    collector, update = config.collector, getattr(config.algorithm, "update", None)
    if update is None:
        rate, critic = (getattr(config.algorithm, name, None) for name in ("learning_rate", "value_learning_rate"))
        rates = "" if rate is None else f", learning rate {rate:g}" + ("" if critic is None else f" (critic {critic:g})")
        return f"1 environment, an update at every step, recorded every {plural(collector.num_steps, 'step')}{rates}"
    environments, transitions = plural(collector.num_envs, "environment"), None
    if getattr(collector, "data", None) is not None:
        text = f"{'all' if collector.num_rows is None else collector.num_rows} rows of {collector.data} per iteration"
    elif hasattr(collector, "num_steps"):
        transitions = collector.num_envs * collector.num_steps
        text = f"{environments} × {plural(collector.num_steps, 'step')} = {plural(transitions, 'transition')} per iteration"
    elif hasattr(collector, "group_size"):
        text = f"{plural(collector.num_groups, 'group')} of {collector.group_size} whole episodes, each from one start, per iteration"
    else:
        text = f"{environments}, {plural(collector.num_episodes or collector.num_envs, 'whole episode')} per iteration"
    return f"{text}, {(natural if hasattr(update, 'num_value_epochs') else climbing)(update, transitions)}"


def natural(update: Any, transitions: int | None) -> str:
    """``one natural-gradient step to a mean KL of at most 0.01 (…); critic: 10 epochs of 4 minibatches of 256, learning rate 0.001``."""
    fixed = getattr(update, "learning_rate", None)
    if fixed is not None:
        length = f"with step size {fixed:g}"
    else:
        searched = hasattr(update, "num_backtracks")
        length = f"to a mean KL of {'at most' if searched else 'about'} {update.max_kl:g}{' by line search' if searched else ''}"
    step = f"one natural-gradient step {length} ({plural(update.num_cg_steps, 'conjugate-gradient iteration')}, damping {update.damping:g})"
    critic = epochs_line(update.num_value_epochs, update.num_value_minibatches, transitions)
    return f"{step}; critic: {critic}, learning rate {update.value_learning_rate:g}"


def stopping(settings: RunSettings, stop_at: float | None) -> str:
    text = f"at most {plural(settings.total_steps, 'step')}, rounded up to whole iterations"
    every, how, episodes = settings.eval_every, "sampled" if settings.eval_sample else "greedy", settings.eval_episodes
    if stop_at is not None:
        goal = f"returns {stop_at:g} or more over {plural(episodes, 'fresh episode')}, twice in a row"
        return f"{text}; ends once the {how} policy {goal} (checked every {plural(every or 0, 'step')})"
    if every == 0:
        return f"{text}; no evaluation before the end"
    when = f"every {plural(every, 'step')}" if every else f"at about {POINTS} points"
    most = plural(episodes, "fresh episode") if every else f"up to {plural(episodes, 'fresh episode')}"
    return f"{text}; {how} evaluation on {most} {when}, the best policy is kept"


def policy_line(policy: ActorCritic, chosen: PolicySettings, settings: RunSettings) -> str:
    options, init = policy.describe(), "" if settings.init is None else f", continued from {settings.init}"
    if isinstance(policy, LinearPolicy):
        tiles, basis = f"{chosen.num_tilings} tilings of {chosen.num_tiles} tiles", f"a Fourier basis of order {chosen.fourier_order}"
        kind = {"tiles": tiles, "fourier": basis}.get(chosen.features, "the observation")
        return f"policy linear in {kind}, {policy.features.size:,} features{init}"
    layers = " × ".join(map(str, options.get("hidden_sizes", ()))) or "linear"
    kind = "convolutional policy" if "CNN" in options["class"] else f"{chosen.activation} policy"
    text = f"{kind} with hidden layers {layers}, {sum(p.numel() for p in policy.parameters()):,} parameters{init}"
    normalized = [w for w, on in (("observations", chosen.normalize_observation), ("rewards", chosen.normalize_reward)) if on]
    text += f", normalized {' and '.join(normalized)}" if normalized else ""
    return text if settings.device == "cpu" else f"{text}, on {settings.device}"


def outcome(summary: Mapping[str, Any]) -> list[str]:
    lines = [verdict(summary)]
    if summary.get("return_mean") is not None:
        lines.append(f"the {summary['evaluated']} policy {returned(summary)}")
    speed, seconds = f"{summary['steps_per_second']:,.0f} steps/s", f"{summary['wall_seconds']:.2f} s with evaluation and files"
    return [*lines, f"{plural(summary['total_steps'], 'step')} in {summary['train_seconds']:.2f} s of training ({speed}), {seconds}"]


def returned(result: Mapping[str, Any]) -> str:
    """``returns 500.0 on average over 20 fresh episodes (95 % interval …)``; where no episode ended, what a step paid."""
    low, high = result["return_interval"]
    count, ended = result["episodes"], result["episodes_ended"]
    if not ended:
        length = f"{result['length_mean']:,.0f} steps"
        return f"is paid {amount(result['reward_per_step'], 3)} a step: none of {plural(count, 'fresh episode')} ended within {length}"
    mean, fresh = amount(result["return_mean"]), plural(count, "fresh episode")
    text = f"returns {mean} on average over {fresh} (95 % interval {amount(low or 0.0)} to {amount(high or 0.0)})"
    if count == 1:
        text = f"returns {mean} in one fresh episode, which has no interval"
    elif low == high:  # resampled, equal returns stay what they are; that is no certainty
        text = f"returns {mean} in each of {fresh}"
    return text if ended == count else f"{text}; {ended} of {count} episodes ended, the others were cut off and count with what they had"


def verdict(summary: Mapping[str, Any]) -> str:
    """``solved: …``, ``not solved: …``, ``stopped: …`` or ``finished``."""
    goal = summary.get("solved_at")
    if summary["status"] == "interrupted":
        return STOPPED
    if summary["solved"]:
        return f"solved: the return reached {goal:g}"
    if goal is not None:
        return f"finished without reaching {goal:g}; a longer run (--total-steps) or another --seed may"
    return "finished"


def next_commands(summary: Mapping[str, Any], folder: Path, envs: Envs) -> dict[str, str]:
    """Commands to try next; watching only where there is something to see, help only of what the command line can name."""
    run, name = shlex.quote(str(folder)), shlex.quote(summary["env_id"])
    env = f" --env {name}" if ":" in summary["env_id"] else ""  # a module is never imported because a file says so
    commands = {f"upslope play {run}{env} --out policy.gif": "watch the policy"} if can_render(envs) else {}
    commands[f"upslope evaluate {run}{env} --episodes 100"] = "measure it again, on other episodes"
    if not summary["algorithm"].startswith("__main__:"):
        commands[f"upslope train {summary['algorithm']} {name} --help"] = "every setting, with its default"
    return commands
