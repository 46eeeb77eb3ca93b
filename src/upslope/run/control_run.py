"""One run in the control world, from settings to a run folder: what ``upslope train`` does, as a frozen dataclass.

>>> run = ControlRun.of("ppo", "CartPole-v1", until_return=475).run()  # doctest: +SKIP
>>> run.summary["return_mean"], run.policy.act(observation)            # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from upslope.errors import RunFault, UsageError, require, unknown
from upslope.run.control_settings import (
    CollectorSettings,
    DataSettings,
    EnvSettings,
    EpisodesSettings,
    GroupedEpisodesSettings,
    Output,
    PolicySettings,
    RunSettings,
    StepsSettings,
)
from upslope.run.load import Run, check_format, load_state, named_environment, read_json
from upslope.run.settings import check_imports_nothing, check_names, plain_value, replaced, settings_of, to_json

ALGORITHMS: dict[str, tuple[str, str, CollectorSettings]] = {
    "a2c": ("upslope.algorithms.a2c", "A2C", StepsSettings(num_steps=16)),
    "all-actions": ("upslope.algorithms.all_actions", "AllActions", StepsSettings(num_steps=16)),
    "npg": ("upslope.algorithms.trpo", "NPG", StepsSettings()),
    "actor-critic": ("upslope.algorithms.actor_critic", "OnlineActorCritic", StepsSettings(num_envs=1, num_steps=512)),
    "continuing-actor-critic": ("upslope.algorithms.actor_critic", "ContinuingActorCritic", StepsSettings(num_envs=1, num_steps=512)),
    "off-policy": ("upslope.algorithms.off_policy", "OffPolicyGradient", DataSettings(num_steps=32)),
    "ppo": ("upslope.algorithms.ppo", "PPO", StepsSettings()),
    "sarsa": ("upslope.algorithms.sarsa", "SARSA", StepsSettings(num_envs=1, num_steps=512)),
    "reinforce": ("upslope.algorithms.reinforce", "REINFORCE", EpisodesSettings()),
    "grpo": ("upslope.algorithms.grpo", "GRPO", GroupedEpisodesSettings()),
    "dr-grpo": ("upslope.algorithms.grpo", "GRPO", GroupedEpisodesSettings()),
    "dapo": ("upslope.algorithms.grpo", "GRPO", GroupedEpisodesSettings()),
    "gspo": ("upslope.algorithms.grpo", "GRPO", GroupedEpisodesSettings()),
    "cispo": ("upslope.algorithms.grpo", "GRPO", GroupedEpisodesSettings()),
    "reinforce-pp": ("upslope.algorithms.grpo", "GRPO", GroupedEpisodesSettings()),
    "rloo": ("upslope.algorithms.rloo", "RLOO", GroupedEpisodesSettings()),
    "trpo": ("upslope.algorithms.trpo", "TRPO", StepsSettings()),
}
"""The one table of shipped algorithms: name → module, class, and how it collects unless told otherwise."""

SLOW_TO_MAKE = 0.5
"""Seconds for one environment from which on an evaluation makes a single one."""

FRESH_NETWORK = {"learning_rate": 3e-3, "max_grad_norm": 0.5, "eps": 1e-5}
FOR_CONTROL: dict[str, dict[str, Any]] = {
    "GRPO": FRESH_NETWORK,
    "RLOO": FRESH_NETWORK,
    "PPO": {"learning_rate": 1e-3, "schedule": "linear"},
}
"""Settings that environments ask for, by class, where the class's own are for text: a small network starts from nothing."""


def relative(name: str) -> dict[str, Any]:
    """What makes a published relative of its class (``dapo`` of GRPO); nothing for the class itself."""
    return getattr(importlib.import_module(ALGORITHMS[name][0]), "RELATIVES", {}).get(name, {})


def algorithm_for(name: str) -> Any:
    """A shipped algorithm with its settings for environments; raises :class:`UsageError` with the nearest name."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    module, attribute, _ = ALGORITHMS[name]
    algorithm = getattr(importlib.import_module(module), attribute)(**relative(name))
    known = settings_of(algorithm)
    return replaced(algorithm, {key: plain_value(value, known[key].owner, key) for key, value in FOR_CONTROL.get(attribute, {}).items()})


@dataclass(frozen=True, kw_only=True)
class ControlRun:
    """Everything that decides a run's result; :meth:`run` carries it out."""

    env_id: str
    algorithm: Any
    env: EnvSettings = field(default_factory=EnvSettings)
    collector: CollectorSettings = field(default_factory=StepsSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    settings: RunSettings = field(default_factory=RunSettings)
    called: str | None = None
    """the algorithm's name where several share a class"""

    @classmethod
    def of(cls, algorithm: str, env_id: str, **settings: Any) -> Self:
        """A shipped algorithm on a task: defaults, then the task's preset, then ``settings`` by their flat names.

        Raises:
            UsageError: an unknown algorithm or setting (with the nearest name), or a value that is not allowed.
        """
        from upslope.control.presets import SAMPLED, preset_for

        run = cls(env_id=env_id, algorithm=algorithm_for(algorithm), collector=ALGORITHMS[algorithm][2], called=algorithm)
        run = run.replaced({"eval_sample": env_id in SAMPLED})
        family = next(name for name in ALGORITHMS if ALGORITHMS[name][:2] == ALGORITHMS[algorithm][:2])
        preset = preset_for(family, env_id)
        return run.replaced({**preset.settings, **relative(algorithm)} if preset else {}).replaced(settings)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, env_id: str | None = None, **settings: Any) -> Self:
        """The run that a ``config.json`` records, with ``settings`` changed.

        Raises:
            UsageError: the file names a ``module:name`` that ``env_id`` or ``settings`` do not name again.
        """
        name = config["algorithm"]["name"]
        left = {key: value for key, value in recorded_settings(config).items() if key not in settings}
        check_imports_nothing(left, "the configuration")
        env_id = named_environment(config["env_id"], env_id, "env_id=")
        run = cls(env_id=env_id, algorithm=algorithm_for(name), collector=ALGORITHMS[name][2], called=name)
        return run.replaced(left).replaced(settings)

    @property
    def name(self) -> str:
        """The algorithm's name on the command line; for a class of the user's own, the class's in lower case."""
        if self.called is not None:
            return self.called
        kind = type(self.algorithm)
        shipped = (name for name, (module, attribute, _) in ALGORITHMS.items() if (module, attribute) == (kind.__module__, kind.__name__))
        return next(shipped, kind.__name__.lower())

    def parts(self) -> tuple[Any, ...]:
        """The dataclasses whose fields are the settings."""
        return self.algorithm, self.collector, self.policy, self.env, self.settings

    def replaced(self, values: Mapping[str, Any]) -> Self:
        """A copy with settings changed by their flat names; functions may be given by name, tuples as lists."""
        known = settings_of(*self.parts())
        check_names(values, known)
        if values.get("features") in ("network", "linear"):  # which know no limits: those of the preset go
            values = {"feature_low": None, "feature_high": None, **values}
        clean = {name: plain_value(value, known[name].owner, name) for name, value in values.items()}
        try:
            algorithm, collector, policy, env, settings = (replaced(part, clean) for part in self.parts())
        except TypeError as error:  # a check compared a text with a number
            raise UsageError(f"settings: a value of {', '.join(clean)} has the wrong type ({error})") from error
        return replace(self, algorithm=algorithm, collector=collector, policy=policy, env=env, settings=settings)

    def config(self) -> dict[str, Any]:
        """Everything as JSON values, for ``config.json``."""
        return {
            "world": "control",
            "env_id": self.env_id,
            "algorithm": {"name": self.name, **to_json(self.algorithm)},
            "collector": to_json(self.collector),
            "policy": to_json(self.policy),
            "env": to_json(self.env),
            "settings": to_json(self.settings),
        }

    def prepare(self) -> Prepared:
        """Make environments, policy and collector, and check all that can be known before the first step.

        Raises:
            UsageError: whatever cannot work, in one line.
        """
        check_minibatches(self.algorithm, self.collector)
        check_one_environment(self)
        device = check_device(self.settings.device)
        saved = None if self.settings.init is None else saved_policy(self.settings.init)
        from upslope import control

        seed = self.settings.seed
        data = self.data()
        started = time.perf_counter()
        envs = control.make(
            self.env_id,
            self.collector.num_envs if data is None else 1,
            seed,
            vectorization=self.env.vectorization,
            env_kwargs=self.env.env_kwargs,
            reward_scale=self.env.reward_scale,
            max_episode_steps=self.env.max_episode_steps,
            step_timeout=self.env.step_timeout,
        )
        seconds = (time.perf_counter() - started) / envs.num_envs
        try:
            if self.settings.until_solved:
                known_goal(envs.env_id, otherwise="until_solved")
            policy = (self.make_policy(envs) if saved is None else continued(saved, envs, self.settings.init)).to(device)
            envs.reset()
            inputs = policy.inputs(envs.observation, action_mask=envs.action_mask)
            if by_action_values(self.algorithm):
                policy.action_values(**inputs)
            collect = self.make_collector(envs) if data is None else data
            if data is not None:
                data.check(policy)
        except RunFault as fault:  # a first observation that is already wrong is no fault of the run
            envs.close()
            raise UsageError(str(fault)) from fault
        except BaseException:
            envs.close()
            raise
        run = self if saved is None else replace(self, policy=recorded_policy(saved))
        return Prepared(run=run, envs=envs, policy=policy, collect=collect, make_seconds=seconds)

    def make_collector(self, envs: Any) -> Any:
        """What plays in these environments."""
        from upslope import control

        settings, seed = self.collector, self.settings.seed
        if hasattr(self.algorithm, "learn"):
            return control.Stream(envs, getattr(settings, "num_steps", 512), seed=seed)
        if isinstance(settings, StepsSettings):
            return control.Steps(envs, settings.num_steps, seed=seed)
        if isinstance(settings, EpisodesSettings):
            return control.Episodes(envs, settings.num_episodes, seed=seed)
        collect = control.GroupedEpisodes(envs, settings.group_size, max_steps=settings.max_steps, seed=seed)
        check_groups(self.algorithm, collect)
        return collect

    def data(self) -> Any:
        """The recorded steps to learn from, where the collector names a file of them."""
        if not isinstance(self.collector, DataSettings) or self.collector.data is None:
            return None
        from upslope.control import Recorded

        scale, seed = self.env.reward_scale, self.settings.seed
        return Recorded(self.collector.data, num_rows=self.collector.num_rows, reward_scale=scale, seed=seed)

    def make_policy(self, envs: Any) -> Any:
        """A fresh policy for these environments."""
        from upslope.control.policy import CNNPolicy, LinearPolicy, QCriticPolicy, policy_for
        from upslope.control.spaces import Encoder

        chosen, by_values = self.policy, getattr(self.algorithm, "action_values", False)  # in place of preferences
        require(by_values or chosen.epsilon is None, f"epsilon: {self.name} learns no action values; leave it out, or take sarsa")
        sizes = {} if chosen.hidden_sizes is None else {"hidden_sizes": chosen.hidden_sizes}
        options = {
            "distribution": chosen.distribution,
            "log_std": chosen.log_std,
            "scale_actions": chosen.scale_actions,
            "epsilon": None if not by_values else 0.1 if chosen.epsilon is None else chosen.epsilon,
            "image": chosen.image,
            "normalize_observation": chosen.normalize_observation,
            "normalize_reward": chosen.normalize_reward,
            "reward_gamma": getattr(self.algorithm, "gamma", 0.99),
            "seed": self.settings.seed,
            "critic": not isinstance(self.collector, GroupedEpisodesSettings),  # the others of a group are the baseline
        }
        values: dict[str, Any] = {"normalize_value": chosen.normalize_value}
        if getattr(self.algorithm, "action_critic", False):
            require(chosen.features == "network", f"features: {self.name} learns a value for every action with a network; leave it out")
            return QCriticPolicy.for_envs(envs, **sizes, activation=chosen.activation, **options, **values)
        if chosen.features != "network":
            names = ("features", "num_tilings", "num_tiles", "fourier_order", "feature_low", "feature_high")
            options["critic"] = options["critic"] and not by_values
            return LinearPolicy.for_envs(envs, **{name: getattr(chosen, name) for name in names}, **options)
        if Encoder(envs.observation_space, chosen.image).images:
            return CNNPolicy.for_envs(envs, **sizes, **options, **values)
        return policy_for(envs, **sizes, activation=chosen.activation, **options, **values)

    def run(self, output: Output | None = None) -> Run:
        """Train, evaluate, write the run folder; returns it loaded.

        Raises:
            UsageError: before anything was written.
            RunFault: while running; the folder holds everything up to the last iteration.
        """
        from upslope.run.session import Session

        return Session(self, output or Output()).run()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The living parts of a run."""

    run: ControlRun
    envs: Any
    policy: Any
    collect: Any
    make_seconds: float = 0.0
    """how long it took to make one of the environments"""

    @property
    def solved_at(self) -> float | None:
        """The return that counts as solved: ``until_return``, else the task's own goal, else unknown."""
        until = self.run.settings.until_return
        return known_goal(self.envs.env_id) if until is None else until

    @property
    def stop_at(self) -> float | None:
        """The return that ends the run, where one does."""
        settings = self.run.settings
        return self.solved_at if settings.until_solved or settings.until_return is not None else None

    @property
    def target(self) -> str:
        """What is learned: the environment."""
        return self.envs.env_id

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def evaluator(self, *, own: bool = False) -> Any:
        """Plays fresh episodes, each call others; its seeds lie far from those of the training environments.

        It makes no more environments than training did, and one where they are slow to make. ``own`` makes none: it plays in
        those of the training, which must be over.
        """
        from upslope.control import Evaluator

        settings, env = self.run.settings, self.run.env
        return Evaluator(
            self.envs if own else self.run.env_id,
            episodes=settings.eval_episodes,
            seed=1_000_000 * (settings.seed + 1),
            greedy=not settings.eval_sample,
            num_envs=1 if self.make_seconds > SLOW_TO_MAKE else self.run.collector.num_envs,
            vectorization=env.vectorization,
            env_kwargs=env.env_kwargs,
            max_episode_steps=env.max_episode_steps,
            step_timeout=env.step_timeout,
        )


def known_goal(env_id: str, *, otherwise: str | None = None) -> float | None:
    """The mean return at which a task counts as solved: Gymnasium's threshold, else the presets'; None where neither knows one.

    Raises:
        UsageError: it is not known, and ``otherwise`` names a setting that needs it.
    """
    import gymnasium

    from upslope.control.presets import GOALS

    spec = gymnasium.registry.get(env_id)
    goal = GOALS.get(env_id) if spec is None or spec.reward_threshold is None else spec.reward_threshold
    if goal is None and otherwise is not None:
        raise UsageError(f"{otherwise}: no return is known at which {env_id!r} counts as solved; say it with until_return")
    return goal


# ------------------------------------------------------------------------------------------------------------- checks


def by_action_values(algorithm: Any) -> bool:
    """Whether the policy must have action values: SARSA acts by them, AllActions learns from them."""
    return getattr(algorithm, "action_values", False) or getattr(algorithm, "action_critic", False)


def check_minibatches(algorithm: Any, collector: CollectorSettings) -> None:
    """The minibatches of an iteration must be of one size."""
    if not isinstance(collector, StepsSettings) or getattr(collector, "data", None) is not None or not hasattr(algorithm, "update"):
        return
    transitions = collector.num_envs * collector.num_steps
    for name in ("num_minibatches", "num_value_minibatches"):
        count = getattr(algorithm.update, name, 1)
        if transitions % count:
            divisors = [d for d in range(1, transitions + 1) if transitions % d == 0]
            near = min(divisors, key=lambda d: abs(d - count))
            product = f"{collector.num_envs} environments × {collector.num_steps} steps = {transitions} transitions"
            raise UsageError(f"{name}: {count} does not divide {product}; {near} does")


def check_one_environment(run: ControlRun) -> None:
    """A method that learns at every step has one trace, and so one environment."""
    count = run.collector.num_envs
    if hasattr(run.algorithm, "learn") and count != 1:
        raise UsageError(f"num_envs: {run.name} learns at every step of 1 environment, found {count}; leave the flag out")


def check_groups(algorithm: Any, collect: Any) -> None:
    """What group methods may ask for and environments do not have."""
    if getattr(algorithm, "kl_coef", 0.0) > 0:
        raise UsageError("kl_coef: it needs a reference policy, which only language models have; leave it out")
    if getattr(algorithm, "average_over", None) == "constant" and collect.max_steps is None:
        raise UsageError(
            f"average_over: 'constant' divides by the longest that an episode may be, and {collect.envs.env_id!r} has no time limit; "
            "give --max-steps, or take --average-over sequences"
        )


def check_device(name: str) -> Any:
    """The torch device of this name; raises :class:`UsageError` where there is none here."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device: expected cpu, cuda, cuda:N or mps, found {name!r}") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device: {name!r} is not available, {torch.cuda.device_count()} CUDA devices are; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device: 'mps' is not available here; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device: expected cpu, cuda, cuda:N or mps, found {name!r}")
    return device


def saved_policy(path: Path) -> Any:
    """The policy of a run of this world."""
    run = Run.load(path)
    require(run.world == "control", f"init: {path} holds a language model; expected a run that was trained on an environment")
    return run.load_policy("policy")


def continued(saved: Any, envs: Any, path: Path | None) -> Any:
    """A saved policy as one to train on; its spaces must be those of the environments."""
    from upslope.control.policy import policy_from_description
    from upslope.control.spaces import short

    for kind in ("observation_space", "action_space"):
        here, there = getattr(envs, kind), getattr(saved, kind)
        if here != there:
            raise UsageError(f"init: the policy in {path} is for {kind} {short(there)}, the environment has {short(here)}")
    policy = policy_from_description(saved.describe())
    load_state(policy, saved.state_dict(), path or Path("policy"))
    return policy


def recorded_policy(saved: Any) -> PolicySettings:
    """The settings that a saved policy was made with."""
    names = {item.name for item in fields(PolicySettings)}
    options = {name: value for name, value in saved.describe().items() if name in names}
    clean: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return PolicySettings(**clean)


# ------------------------------------------------------------------------------------------------------------- configs


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a ``config.json`` by their flat names; what is already flat stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("format_version", "versions", "world", "env_id", "name"):
            continue
        if isinstance(value, Mapping) and key in ("algorithm", "collector", "policy", "env", "task", "settings", "update"):
            flat |= flat_config(value)
        else:
            flat[key] = value
    return flat


def recorded_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat settings of a run's ``config.json``; one written before a choice was there chose what was then done."""
    policy = config.get("policy")
    before = {"scale_actions": False, "image": "bytes"} if isinstance(policy, Mapping) and config.get("world") == "control" else {}
    return before | flat_config(config)


def read_config(path: Path) -> dict[str, Any]:
    """Flat settings from a JSON file: a run's ``config.json``, the folder that holds one, or an object of settings."""
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise UsageError(f"config: there is no file {file}")
    config = read_json(file)
    if "format_version" in config:
        check_format(file, config)
    return recorded_settings(config)
