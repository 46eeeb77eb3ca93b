"""The control world of a run: environments to learn in, episodes to evaluate on, and what is said and written of them."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import gymnasium

from upslope import control
from upslope.control.evaluate import MAX_ENVS, EvaluationResult, Evaluator
from upslope.control.presets import GOALS, SAMPLED, preset_for
from upslope.errors import RunFault, UsageError, require
from upslope.records import Collector, State, Stream
from upslope.run import control_make as parts
from upslope.run import control_report as report
from upslope.run.config import RunConfig
from upslope.run.control_settings import EnvSettings, RunSettings
from upslope.run.curve import draw_curve
from upslope.run.evaluations import UNTIL_EVERY, Point, Schedule
from upslope.run.folder import FORMAT_VERSION, RunFolder
from upslope.run.load import Run
from upslope.run.process import check_device, one_thread
from upslope.run.report import FIELDS
from upslope.run.session import Session
from upslope.run.train import RunState, compiled_paths
from upslope.run.world import Evaluated, World, rates

SLOW_TO_MAKE = 0.5  # seconds for one environment from which on an evaluation makes a single one


@dataclass(kw_only=True)
class Control(World[control.ActorCritic]):
    """Environments, a policy and a collector, as the :class:`~upslope.run.world.World` of a session."""

    config: RunConfig
    envs: control.Envs
    policy: control.ActorCritic
    collect: Collector | Stream
    make_seconds: float = 0.0  # how long it took to make one of the environments
    evaluator: Evaluator | None = None
    restarts: int = 0
    """how often an environment's process was started anew, as far as it is written down"""

    fields = FIELDS
    kept = ("total_steps", "evaluation_return", "evaluation_reward_per_step")

    def __post_init__(self) -> None:
        self.settings: RunSettings = self.config.settings
        self.schedule = Schedule(self.settings)
        self.target, self.budget = self.envs.env_id, {"total_steps": self.settings.total_steps}
        until, space = self.settings.until_return, self.envs.action_space
        # the return that counts as solved: ``until_return``, else the task's goal, else unknown; and the one that ends the run
        self.solved_at = self.good = known_goal(self.target, self.config.problem.max_episode_steps) if until is None else until
        self.stop_at = self.solved_at if self.settings.until_solved or until is not None else None
        self.action_dims = math.prod(space.shape) if isinstance(space, gymnasium.spaces.Box) else 0
        self.may_be_best, self.masked = bool(self.schedule.every), self.envs.action_mask is not None

    @classmethod
    def preset(cls, config: RunConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        found = preset_for(config.family, config.env_id or "")
        return {"eval_sample": config.env_id in SAMPLED} | ({} if found is None else dict(found.settings))

    @classmethod
    def settled(cls, config: RunConfig) -> RunConfig:
        """A run with a goal to stop at looks for it every :data:`UNTIL_EVERY` steps."""
        settings: RunSettings = config.settings
        is_open = settings.eval_every is None and (settings.until_return is not None or settings.until_solved)
        return config.replaced({"eval_every": UNTIL_EVERY}) if is_open else config

    @classmethod
    def prepare(cls, config: RunConfig, stopped: Path | None = None) -> Self:
        parts.check_collector(config)
        settings: RunSettings = config.settings
        device = check_device(settings.device)
        saved = None if settings.init is None else parts.saved_policy(settings.init, stopped)
        data = parts.recorded_steps(config)
        started = time.perf_counter()
        num_envs, scale = config.collector.num_envs if data is None else 1, config.problem.reward_scale
        restarts = {"max_restarts": config.problem.max_restarts}
        envs = control.make(config.env_id or "", num_envs, settings.seed, reward_scale=scale, **restarts, **env_options(config))
        seconds = (time.perf_counter() - started) / envs.num_envs
        try:
            if settings.until_solved:
                known_goal(envs.env_id, config.problem.max_episode_steps, otherwise="until_solved")
            policy = (parts.make_policy(config, envs) if saved is None else parts.continued(saved, envs, settings.init)).to(device)
            envs.reset()
            inputs = policy.inputs(envs.observation, action_mask=envs.action_mask)
            if any(getattr(config.algorithm, name, False) for name in ("action_values", "action_critic")):  # to act by, to learn from
                policy.action_values(**inputs)
            collect = parts.make_collector(config, envs) if data is None else data
            if data is not None:
                data.check(policy)
        except RunFault as fault:  # a first observation that is already wrong is no fault of the run
            envs.close()
            raise UsageError(str(fault)) from fault
        except BaseException:
            envs.close()
            raise
        config = cls.settled(config)
        if saved is not None:
            config = replace(config, policy=parts.recorded_policy(saved))
        return cls(config=config, envs=envs, policy=policy, collect=collect, make_seconds=seconds)

    # ----------------------------------------------------------------------------------------------------------- the folder

    def recorded(self) -> dict[str, Any]:
        """``config.json``; the environment with its version, where it was asked for without."""
        config = self.config.config()
        return config if ":" in config["env_id"] else config | {"env_id": self.envs.env_id}

    def save(self, folder: RunFolder, name: str, progress: Mapping[str, Any]) -> None:
        """``<name>.safetensors``, and before the first one ``policy.json``, which says how to build the policy."""
        if not (folder.path / "policy.json").exists():
            folder.write_json("policy.json", {"format_version": FORMAT_VERSION, **self.policy.describe()})
        folder.save_policy(self.policy, name, progress)

    def plan(self) -> list[str]:
        return report.plan(self.config, self.envs, self.policy, self.stop_at)

    @property
    def lost(self) -> str:
        return self.envs.begun_anew

    def state_dict(self) -> State:
        evaluator = None if self.evaluator is None else self.evaluator.state_dict()
        return {"schedule": self.schedule.state_dict(), "evaluator": evaluator, "restarts": self.restarts}

    def load_state_dict(self, state: State, folder: RunFolder) -> None:
        self.schedule.load_state_dict(state["schedule"])
        self.restarts = state.get("restarts", 0)
        if state["evaluator"] is not None:
            self.evaluator = self.make_evaluator()
            self.evaluator.load_state_dict(state["evaluator"])

    def follow(self, state: RunState, session: Session) -> Mapping[str, float]:
        """How many environments were started anew, where one was; once, that legal actions are known, but not at a reset."""
        if self.envs.action_mask is not None and not self.masked:
            self.masked = True
            source = 'the environment says which actions are legal in info["action_mask"] of its steps, but not of its resets'
            session.note(f"{source}: the first action of each episode may be any")
        before, self.restarts = self.restarts, self.envs.restarts
        restarts = {"environment_restarts": float(self.restarts - before)} if self.restarts > before else {}
        return rates(state) | restarts

    # ---------------------------------------------------------------------------------------------------------- evaluations

    def due(self, before: int, state: RunState) -> int:
        self.schedule.watch(state.metrics)
        return self.schedule.due(before, state.total_steps)

    def evaluate(self, episodes: int | None = None) -> Evaluated:
        try:
            found = self._played(episodes)
        except (RunFault, UsageError):
            self._close_evaluator()
            raise
        self.schedule.played(found, self.evaluator)
        return evaluated(found)

    def evaluate_last(self, session: Session) -> Evaluated:
        """The final policy; where other environments cannot be made or fail, in those of the training, which is over."""
        try:
            return evaluated(self._played())
        except (RunFault, UsageError) as fault:
            self._close_evaluator()
            try:
                require(not self.envs.clip_reward, "its training environments play lives, not games")
                self.evaluator = self.make_evaluator(in_training=True)
                result = evaluated(self._played())
            except (RunFault, UsageError) as again:
                raise RunFault(f"{fault}; then: {again}") from again
            if not session.failures.faults:
                session.note(f"no environments for an evaluation ({fault}): the final policy plays in those of the training")
            return result

    def _played(self, episodes: int | None = None) -> EvaluationResult:
        if self.evaluator is None:
            self.evaluator = self.make_evaluator()
        self.evaluator.cut_after = self.schedule.cut_after
        return self.evaluator(compiled_paths().fast_policy(self.policy) if self.settings.fast else self.policy, episodes)

    def make_evaluator(self, *, in_training: bool = False) -> Evaluator:
        """Plays fresh episodes, each call others; its seeds lie far from those of the training environments.

        It makes no more environments than training did, and one where they are slow to make; none if it plays ``in_training``'s.
        """
        options = env_options(self.config)
        options |= {"episodes": self.settings.eval_episodes, "greedy": not self.settings.eval_sample}
        options["num_envs"] = 1 if self.make_seconds > SLOW_TO_MAKE else self.config.collector.num_envs
        env = self.envs if in_training else self.config.env_id or ""
        return Evaluator(env, seed=1_000_000 * (self.settings.seed + 1), **options)

    def reached(self, points: Sequence[Point]) -> bool:
        """Twice in a row, with no episode cut off."""
        goal, last = self.stop_at, points[-2:]
        return goal is not None and len(last) == 2 and all(point.complete and point.mean >= goal for point in last)

    def _close_evaluator(self) -> None:
        if self.evaluator is not None:
            self.evaluator.close()
            self.evaluator = None

    # -------------------------------------------------------------------------------------------------------------- the end

    def headline(self, result: Evaluated | None, points: Sequence[Point], *, reached: bool, failed: bool) -> dict[str, Any]:
        goal = self.solved_at
        solved = None if goal is None else result is not None and result.complete and result.mean is not None and result.mean >= goal
        best = max(points, key=lambda point: point.mean, default=None)
        headline: dict[str, Any] = {"env_id": self.recorded()["env_id"], **dict.fromkeys(NOTHING_PLAYED)}
        headline |= {"evaluated": "sampled" if self.settings.eval_sample else "greedy", "episodes": 0, "episodes_ended": 0}
        headline |= {} if result is None else result.headline
        bests = (None, None) if best is None else (best.mean, best.total_steps)
        headline |= {"best_return": bests[0], "best_total_steps": bests[1]}
        return headline | {"solved": solved if self.stop_at is None else reached, "solved_at": goal}

    def draw(self, path: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        end: list[dict[str, Any]] = []
        if summary["return_mean"] is not None:
            points = {"evaluation_return": summary["return_mean"], "evaluation_reward_per_step": summary["reward_per_step"]}
            end = [{"total_steps": summary["total_steps"], **points}]
        title = f"{type(self.config.algorithm).__name__} on {summary['env_id']}, seed {summary['seed']}"
        draw_curve(path, [*rows, *end], title=title, solved_at=summary["solved_at"])

    outcome = staticmethod(report.outcome)

    def next_commands(self, summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
        return report.next_commands(summary, folder, self.envs)

    def close(self) -> None:
        self._close_evaluator()
        self.envs.close()


NOTHING_PLAYED = ("return_mean", "return_std", "return_interval", "length_mean", "reward_per_step")
"""What is None in a summary without a final evaluation."""


def evaluated(result: EvaluationResult) -> Evaluated:
    """Episodes as an evaluation; where some were cut off, the row says how many were not."""
    complete, row = result.episodes_ended == result.episodes, {"evaluation_return": result.return_mean}
    if not complete:
        row |= {"evaluation_episodes_ended": float(result.episodes_ended), "evaluation_reward_per_step": result.reward_per_step}
    said = {name: getattr(result, name) for name in (*NOTHING_PLAYED, "episodes", "episodes_ended")}
    said["return_interval"] = list(result.return_interval)
    return Evaluated(mean=result.return_mean, std=result.return_std, episodes=result.episodes, complete=complete, row=row, headline=said)


def env_options(config: RunConfig) -> dict[str, Any]:
    env: EnvSettings = config.problem
    return {name: getattr(env, name) for name in ("vectorization", "env_kwargs", "max_episode_steps", "step_timeout")}


def known_goal(env_id: str, max_episode_steps: int | None = None, *, otherwise: str | None = None) -> float | None:
    """The return at which a task counts as solved: Gymnasium's threshold, else the presets'; ``otherwise`` is a setting that needs it.

    It is not known for episodes that end earlier or later than the task's.
    """
    spec = gymnasium.registry.get(env_id)
    goal = GOALS.get(env_id) if spec is None or spec.reward_threshold is None else spec.reward_threshold
    why = f"no return is known at which {env_id!r} counts as solved"
    if goal is not None and spec is not None and max_episode_steps not in (None, spec.max_episode_steps):
        goal, why = None, f"{env_id!r} counts as solved at {goal:g} in {spec.max_episode_steps} steps, not in {max_episode_steps}"
    if goal is None and otherwise is not None:
        raise UsageError(f"{otherwise}: {why}; say it with until_return")
    return goal


def evaluate_run(
    run: Run,
    env: str,
    *,
    which: str,
    episodes: int,
    seed: int,
    greedy: bool,
    max_episode_steps: int | None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """The ``final`` or ``best`` policy of a run on fresh episodes, in environments that are made as those of its training were,
    but for ``env_kwargs``."""
    policy, options = run.chosen_policy(which), run.env_options(env, env_kwargs)
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    if env == run.env_id:  # no more environments than training had
        options |= {"num_envs": min(MAX_ENVS, run.num_envs), "vectorization": run.config["env"].get("vectorization", "auto")}
    with one_thread(policy):
        return control.evaluate(policy, env, episodes=episodes, seed=seed, greedy=greedy, **options)
