"""What a run in the control world is made of, from its settings: the policy, the collector, and the checks before the first step."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from upslope import control
from upslope.control.policy import CNNPolicy, LinearPolicy, QCriticPolicy, policy_for, policy_from_description
from upslope.control.spaces import Encoder, short
from upslope.errors import UsageError, require
from upslope.records import EitherAlgorithm
from upslope.run.config import RunConfig
from upslope.run.control_settings import DataSettings, EpisodesSettings, GroupedEpisodesSettings, PolicySettings, StepsSettings
from upslope.run.load import Run, load_state
from upslope.run.process import one_thread
from upslope.run.settings import plain_value


@one_thread()
def make_policy(config: RunConfig, envs: control.Envs) -> Any:
    chosen, by_values = config.policy, getattr(config.algorithm, "action_values", False)  # in place of preferences
    require(by_values or chosen.epsilon is None, f"epsilon: {config.name} learns no action values; leave it out, or take sarsa")
    sizes = {} if chosen.hidden_sizes is None else {"hidden_sizes": chosen.hidden_sizes}
    taken = ("distribution", "log_std", "scale_actions", "image", "normalize_observation", "normalize_reward")
    options = {name: getattr(chosen, name) for name in taken} | {
        "epsilon": None if not by_values else 0.1 if chosen.epsilon is None else chosen.epsilon,
        "reward_gamma": getattr(config.algorithm, "gamma", 0.99),
        "seed": config.settings.seed,
        "critic": not isinstance(config.collector, GroupedEpisodesSettings),  # the others of a group are the baseline
    }
    values: dict[str, Any] = {"normalize_value": chosen.normalize_value}
    if getattr(config.algorithm, "action_critic", False):
        require(chosen.features == "network", f"features: {config.name} learns a value for every action with a network; leave it out")
        return QCriticPolicy.for_envs(envs, **sizes, activation=chosen.activation, **options, **values)
    if chosen.features != "network":
        names = ("features", "num_tilings", "num_tiles", "fourier_order", "feature_low", "feature_high")
        options["critic"] = options["critic"] and not by_values
        return LinearPolicy.for_envs(envs, **{name: getattr(chosen, name) for name in names}, **options)
    if Encoder(envs.observation_space, chosen.image).images:
        return CNNPolicy.for_envs(envs, **sizes, **options, **values)
    return policy_for(envs, **sizes, activation=chosen.activation, **options, **values)


def make_collector(config: RunConfig, envs: control.Envs) -> Any:
    settings, seed = config.collector, config.settings.seed
    if hasattr(config.algorithm, "learn"):
        return control.Stream(envs, getattr(settings, "num_steps", 512), seed=seed)
    if isinstance(settings, StepsSettings):
        return control.Steps(envs, settings.num_steps, seed=seed)
    if isinstance(settings, EpisodesSettings):
        return control.Episodes(envs, settings.num_episodes, seed=seed)
    collect = control.GroupedEpisodes(envs, settings.group_size, max_steps=settings.max_steps, seed=seed)
    check_groups(config.algorithm, collect)
    return collect


def recorded_steps(config: RunConfig) -> control.Recorded | None:
    if not isinstance(config.collector, DataSettings) or config.collector.data is None:
        return None
    scale, seed = config.problem.reward_scale, config.settings.seed
    return control.Recorded(config.collector.data, num_rows=config.collector.num_rows, reward_scale=scale, seed=seed)


def check_collector(config: RunConfig) -> None:
    """What a method asks of its collector: minibatches of one size; one environment where it learns at every step, with one trace."""
    check_minibatches(config.algorithm, config.collector)
    count = config.collector.num_envs
    if hasattr(config.algorithm, "learn") and count != 1:
        raise UsageError(f"num_envs: {config.name} learns at every step of 1 environment, found {count}; leave the flag out")


def check_minibatches(algorithm: Any, collector: Any) -> None:
    if not isinstance(collector, StepsSettings) or getattr(collector, "data", None) is not None or not hasattr(algorithm, "update"):
        return
    transitions = collector.num_envs * collector.num_steps
    if transitions == 1 and getattr(algorithm, "normalize_advantage", False):
        raise UsageError("num_steps: a batch of 1 transition has 1 advantage, normalized to 0; take more, or --no-normalize-advantage")
    for name in ("num_minibatches", "num_value_minibatches"):
        count = getattr(algorithm.update, name, 1)
        if transitions % count:
            near = min((d for d in range(1, transitions + 1) if transitions % d == 0), key=lambda d: abs(d - count))
            product = f"{collector.num_envs} environments × {collector.num_steps} steps = {transitions} transitions"
            raise UsageError(f"{name}: {count} does not divide {product}; {near} does")


def check_groups(algorithm: EitherAlgorithm, collect: Any) -> None:
    """What group methods may ask for and environments do not have."""
    if getattr(algorithm, "kl_coef", 0.0) > 0:
        raise UsageError("kl_coef: it needs a reference policy, which only language models have; leave it out")
    if getattr(algorithm, "average_over", None) == "constant" and collect.max_steps is None:
        what = f"'constant' divides by the longest that an episode may be, and {collect.envs.env_id!r} has no time limit"
        raise UsageError(f"average_over: {what}; give --max-steps, or take --average-over sequences")


def saved_policy(path: Path, stopped: Path | None = None) -> Any:
    """The policy to begin with; of a run that goes on its own, in the folder ``stopped``, for where it began may be gone by now."""
    try:
        run = Run.load(stopped or path)
    except UsageError as error:
        raise UsageError(f"init: {error}") from error
    require(run.world == "control", f"init: {path} holds a language model; expected a run that was trained on an environment")
    return run.policy


def continued(saved: Any, envs: Any, path: Path | None) -> Any:
    """A saved policy as one to train on; its spaces must be those of the environments."""
    for kind in ("observation_space", "action_space"):
        here, there = getattr(envs, kind), getattr(saved, kind)
        require(here == there, f"init: the policy in {path} is for {kind} {short(there)}, the environment has {short(here)}")
    policy = policy_from_description(saved.describe())
    load_state(policy, saved.state_dict(), path or Path("policy"))
    return policy


def recorded_policy(saved: Any) -> PolicySettings:
    names = {item.name for item in fields(PolicySettings)}
    options = {name: value for name, value in saved.describe().items() if name in names}
    return PolicySettings(**{name: plain_value(value, PolicySettings, name) for name, value in options.items()})
