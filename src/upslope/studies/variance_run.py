"""``upslope variance``: estimators by name, measured in an environment at a fixed policy, as a table, a picture and a JSON file."""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from upslope import control, environments, tabular
from upslope import functional as F
from upslope.control.recording import check_spaces
from upslope.errors import UsageError, require
from upslope.records import Policy, Rollout, map_tensors
from upslope.run.drawing import Dots, draw_dots, save
from upslope.run.folder import RunFolder, default_path, versions
from upslope.run.load import Run
from upslope.run.process import one_thread
from upslope.run.report import plural
from upslope.studies.estimators import DEFAULT, ESTIMATORS, estimator_of, reinforce
from upslope.studies.variance import Measurement, Reference, concatenated, measure
from upslope.tabular.chains import endless_start
from upslope.typed import norm
from upslope.updates.fisher import reached

MIN_ESS = 0.2
"""Share of the steps below which importance weights are too uneven to judge by a bootstrap: what it never saw it cannot resample."""


def mark(row: Measurement) -> str:
    """What to think of a bias: unknown (?) where the weights rest on few of the samples, or there (*)."""
    return " ?" if row.effective_sample_size is not None and row.effective_sample_size < MIN_ESS else " *" if row.biased else ""


def cells(row: Measurement) -> tuple[str, ...]:
    """A row of the table but for what the estimator is unbiased for."""
    (low, high), (from_, to), size = row.variance_interval, row.cosine_interval, row.effective_sample_size
    return (
        row.estimator,
        f"{row.variance:.4g} ({low:.4g} to {high:.4g})",
        f"{row.relative_variance:.3g}",
        f"{row.bias:.3g} ({row.bias_by_chance:.3g}){mark(row)}",
        f"{f'{row.cosine:.3f}' if row.direction_known else '?'} ({from_:.3f} to {to:.3f})",
        "" if size is None else f"{size:.1%}",
        f"{1000 * row.seconds:.1f}",
    )


@dataclass(frozen=True)
class Comparison:
    """The table: a row for each estimator, and what they were compared with."""

    run: Any
    rows: tuple[Measurement, ...]
    targets: tuple[str, ...]  # for whose gradient each is unbiased
    reference: str
    reference_length: float
    num_steps: int
    seconds: float

    def text(self) -> str:
        run = self.run
        taker = f", weighted ones on samples of {run.behavior}" if run.behavior else ""
        lines = [
            f"{run.env_id}, {run.policy} policy, γ = {run.gamma:g}: {plural(len(self.rows), 'estimator')} on the same "
            f"{run.samples:,} episodes ({self.num_steps:,} steps{taker})",
            f"reference: gradient of the {run.objective} J, {self.reference}, length {self.reference_length:.4g}",
            "",
        ]
        table = [("estimator", "variance (95 %)", "relative", "bias (by chance)", "cosine (95 %)", "ESS", "ms", "unbiased for")]
        table += [(*cells(row), target) for row, target in zip(self.rows, self.targets, strict=True)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        lines += [
            "",
            "variance: of one episode, trace of the covariance. relative: over the squared length of the mean: so many episodes hold as",
            "much noise as signal. bias: distance from the reference; by chance: 1 % of unbiased ones would show more; *: this one does.",
        ]
        if not all(row.direction_known for row in self.rows):
            lines.append("cosine ?: so few samples do not tell whether the gradient points along the reference or against it; take more.")
        if any("?" in mark(row) for row in self.rows):
            seen = f"at an ESS below {MIN_ESS:.0%} the episodes that count are hardly among the samples"
            lines.append(f"bias ?: {seen}: variance is more, bias unknown.")
        return "\n".join(lines)

    def fields(self) -> dict[str, Any]:
        rows = [
            asdict(row) | {"biased": row.biased, "direction_known": row.direction_known, "unbiased_for": target}
            for row, target in zip(self.rows, self.targets, strict=True)
        ]
        measured = {name: getattr(self, name) for name in ("reference", "reference_length", "num_steps")}
        return {**asdict(self.run), **measured, "rows": rows, "seconds": round(self.seconds, 3), "versions": versions()}

    def write(self, out: Path | None) -> Path:
        """``variance.png`` and ``variance.json`` in ``out`` (none: ``runs/variance-TASK-SEED``); returns the folder."""
        names = [row.estimator for row in self.rows]
        variance = Dots("variance of one episode", [(row.variance, *row.variance_interval) for row in self.rows], logarithmic=True)
        relative = Dots("relative variance", [(x, x, x) for x in (row.relative_variance for row in self.rows)], logarithmic=True)
        bias = Dots("bias (line: by chance)", [(row.bias, 0.0, row.bias_by_chance) for row in self.rows])
        cosines = [(row.cosine if row.direction_known else math.nan, *row.cosine_interval) for row in self.rows]
        cosine = Dots("cosine with the reference", cosines)
        title = f"{self.run.env_id}, {self.run.policy} policy, {self.run.samples:,} episodes, γ = {self.run.gamma:g}"
        with RunFolder.create(out, default_path("variance", self.run.env_id, self.run.seed)) as folder:
            save(draw_dots(title, names, [variance, relative, bias, cosine]), folder.path / "variance.png")
            folder.write_json("variance.json", self.fields())
        return folder.shown


Objective = Literal["discounted", "undiscounted"]
MAX_EPISODES = 10**6  # of any kind
MAX_LANES = 64  # environments played side by side, unless a group is larger
FIT_STEPS = 50  # of L-BFGS on the critic


@dataclass(frozen=True, kw_only=True)
class VarianceRun:
    """Everything that decides what is measured; :meth:`run` measures."""

    env_id: str
    estimators: tuple[str, ...] = DEFAULT
    """which ones"""
    policy: str = "fresh"
    """a run folder, or fresh: the policy that a run would begin with"""
    behavior: str | None = None
    """who takes the samples of estimators with importance weights: a run folder, or uniform (none: the policy itself)"""
    samples: int = 256
    """episodes that every estimator sees"""
    group_size: int = 8
    """episodes from the same start that group estimators compare"""
    reference_samples: int | None = None
    """other episodes behind the reference (none: exact in upslope/…, else four times the samples)"""
    critic_samples: int = 64
    """other episodes that the critic is fitted on first (0: it stays as it is)"""
    gamma: float = 0.99
    """discount factor"""
    objective: Objective = "discounted"
    """whose gradient is the reference"""
    seed: int = 0
    """of environments, policy and actions"""

    def __post_init__(self) -> None:
        require(len(self.estimators) > 0, f"--estimators: expected at least one of {', '.join(ESTIMATORS)}")
        chosen = [estimator_of(name)[0] for name in self.estimators]
        twice = [name for name in self.estimators if self.estimators.count(name) > 1]
        require(not twice, f"--estimators: {twice[0] if twice else ''} is named twice")
        grouped = any(item.grouped for item in chosen)
        least = {"samples": 2, "critic_samples": 0, "reference_samples": 2, "group_size": 2 if grouped else 1}
        for name, low in least.items():
            count, flag = getattr(self, name), name.replace("_", "-")
            if name != "reference_samples" or count is not None:
                require(low <= count <= MAX_EPISODES, f"--{flag}: expected an integer from {low} to {MAX_EPISODES}, found {count}")
        require(0.0 <= self.gamma <= 1.0, f"--gamma: expected a number in [0, 1], found {self.gamma}")
        require(self.objective in ("discounted", "undiscounted"), f"--objective: discounted or undiscounted, found {self.objective!r}")
        require(0 <= self.seed < 2**32, f"--seed: expected an integer from 0 to {2**32 - 1}, found {self.seed}")
        if grouped and (self.samples % self.group_size or self.samples < 2 * self.group_size):
            expected = f"a multiple of the group size {self.group_size}, at least {2 * self.group_size}"
            raise UsageError(f"--samples: expected {expected}, found {self.samples}")
        if self.behavior is not None and not any(item.weighted for item in chosen):
            reason = "it takes the samples of estimators with importance weights, and none is among them"
            raise UsageError(f"--behavior: {reason}; add off-policy-per-decision")

    def run(self) -> Comparison:
        started = time.perf_counter()
        chosen = {name: estimator_of(name) for name in self.estimators}
        grouped = any(item.grouped for item, _ in chosen.values())
        lanes = min(self.samples, MAX_LANES)
        lanes = max(self.group_size, lanes - lanes % self.group_size) if grouped else lanes
        with control.make(self.env_id, lanes, self.seed) as envs, contextlib.ExitStack() as stack:
            policy = self.make_policy(envs)
            stack.enter_context(one_thread(policy))
            alone = control.Episodes(envs, seed=self.seed)
            collect = control.GroupedEpisodes(envs, self.group_size, seed=self.seed) if grouped else alone
            critics = [name for name, (item, _) in chosen.items() if item.critic]
            if critics and self.critic_samples:
                others = episodes(collect, policy, self.critic_samples)
                require(others.value is not None, f"--estimators: {critics[0]} needs a critic, and the policy has none; leave it out")
                fit_critic(policy, others, self.gamma)
            reference, kind = self.reference(policy, collect)
            rollout = episodes(collect, policy, self.samples)
            away = rollout if self.behavior is None else episodes(collect, ActsAs(self.make_behavior(envs, policy), policy), self.samples)
            found: dict[str, Measurement] = {}
            for weighted, samples in ((False, rollout), (True, away)):
                algorithms = {name: item.make(self.gamma, trace) for name, (item, trace) in chosen.items() if item.weighted is weighted}
                if algorithms:
                    found |= {row.estimator: row for row in measure(algorithms, policy, samples, reference, seed=self.seed)}
        rows, targets = tuple(found[name] for name in chosen), tuple(item.target for item, _ in chosen.values())
        length, seconds = float(norm(reference.gradient)), time.perf_counter() - started
        return Comparison(self, rows, targets, kind, reference_length=length, num_steps=rollout.num_steps, seconds=seconds)

    def make_policy(self, envs: Any) -> Any:
        """A copy of a run's policy, or a fresh one: linear in what a Discrete observation is, a network of anything else."""
        from gymnasium.spaces import Discrete

        if self.policy != "fresh":
            return control_policy(self.policy, "--policy").frozen().requires_grad_(True)
        if isinstance(envs.observation_space, Discrete):
            return control.LinearPolicy.for_envs(envs, features="linear", seed=self.seed)
        return control.policy_for(envs, seed=self.seed)

    def make_behavior(self, envs: Any, policy: Any) -> Any:
        """Who takes the samples of estimators with importance weights; its actions must be stored as the policy's are."""
        behavior = control.RandomPolicy(envs) if self.behavior == "uniform" else control_policy(str(self.behavior), "--behavior").frozen()
        check_spaces(behavior, envs)
        kinds = type(behavior.head).__name__, type(policy.head).__name__
        require(kinds[0] == kinds[1], f"--behavior: its actions are drawn by {kinds[0]}, the policy's by {kinds[1]}; take the same kind")
        return behavior

    def reference(self, policy: Policy, collect: Any) -> tuple[Reference, str]:
        """The exact gradient where the environment is a finite problem, else that of a large separate batch."""
        gamma = self.gamma if self.objective == "discounted" else 1.0
        mdp = finite_problem(self.env_id)
        if mdp is not None and self.reference_samples is None:
            table = Tabulated(policy, mdp)
            if gamma == 1.0 and endless_start(mdp, tabular.chain(mdp, table)[0]) is not None:
                flag = "--gamma: 1" if self.objective == "discounted" else "--objective: undiscounted"
                why = "which this policy may never end (a time limit stops the recording only)"
                raise UsageError(f"{flag} in {self.env_id}, {why}; give --gamma below 1 with --objective discounted")
            return Reference.exact(tabular.gradient(mdp, table, gamma)), "exact"
        count = self.reference_samples or 4 * self.samples
        rollout = episodes(collect, policy, count)
        algorithm = reinforce("to-go-discounted", rollout.value is not None)(gamma, 1.0)
        return Reference.sampled(algorithm, policy, rollout), f"{count:,} other episodes"


# ---------------------------------------------------------------------------------------------- policies and episodes


def control_policy(path: str, flag: str) -> Any:
    run = Run.load(path)
    require(run.world == "control", f"{flag}: {path} trained a language model; take a run in an environment")
    return run.policy


class ActsAs:
    """Acts as ``behavior`` does; what is recorded is what ``policy`` sees of it, and what it expects."""

    def __init__(self, behavior: Any, policy: Any) -> None:
        self.behavior, self.policy, self.head = behavior, policy, behavior.head
        self.seen: dict[str, Tensor] = {}

    def inputs(self, observation: Any, *, action_mask: Any = None, update: Any = False) -> dict[str, Tensor]:
        """The policy's inputs; the behavior's are kept for :meth:`sample`."""
        self.seen = self.behavior.inputs(observation, action_mask=action_mask)
        return self.policy.inputs(observation, action_mask=action_mask)

    def sample(self, inputs: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> Any:
        return self.behavior.sample(self.seen, generator=generator)

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        return self.policy.value(inputs)

    def evaluate(self, **inputs: Tensor) -> Any:
        return self.policy.evaluate(**inputs)


class Tabulated:
    """A policy over the observations of a finite problem as the table that :mod:`upslope.tabular` asks for."""

    def __init__(self, policy: Any, mdp: tabular.MDP) -> None:
        self.policy, self.mdp = policy, mdp
        self.parameters = policy.parameters

    def probabilities(self) -> Tensor:
        """``π(a|o)``, ``[O, A]``, differentiable."""
        inputs = self.policy.inputs(np.arange(self.mdp.num_observations))
        actions = torch.arange(self.mdp.num_actions).unsqueeze(1).expand(-1, self.mdp.num_observations)
        return torch.stack([self.policy.evaluate(**inputs, action=action).log_prob for action in actions], -1).exp()


def finite_problem(env_id: str, **options: Any) -> tabular.MDP | None:
    """The problem behind an environment of :mod:`upslope.tabular.envs`, made with these options; None for any other."""
    if not env_id.startswith(environments.NAMESPACE + "/"):
        return None
    import gymnasium

    environments.register()
    return getattr(gymnasium.make(env_id, **options).unwrapped, "mdp", None)


def episodes(collect: Any, policy: object, count: int) -> Rollout:
    """``count`` whole episodes, one a row, from as many recordings as that takes; groups are kept whole."""
    played = -(-count // collect.num_envs)
    rollout = concatenated([collect(policy) for _ in range(played)])
    rows = -(-count * len(rollout.mask) // (played * collect.num_envs))
    return map_tensors(rollout, lambda x: x[:rows])


def fit_critic(policy: Any, rollout: Rollout, gamma: float) -> None:
    """Least squares of the value on the returns to go, by L-BFGS; parameters that the distribution depends on are left alone."""
    returns = F.returns_to_go(rollout.reward, rollout.terminated, rollout.truncated, gamma, rollout.mask, rollout.next_value)
    found, everything = policy.evaluate(**rollout.inputs), list(policy.parameters())
    actor = {id(p) for p in reached(found.log_prob, everything)}
    critic = [p for p in reached(found.value, everything) if id(p) not in actor]
    message = "--policy: its critic shares every parameter with its actor, so it cannot be fitted alone; say --critic-samples 0"
    require(len(critic) > 0, message)
    optimizer: Any = torch.optim.LBFGS(critic, max_iter=FIT_STEPS, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        mean = F.squared_error(policy.evaluate(**rollout.inputs).value, returns, rollout.mask).sum() / rollout.num_steps
        for parameter, gradient in zip(critic, torch.autograd.grad(mean, critic), strict=True):
            parameter.grad = gradient
        return mean

    optimizer.step(error)
    for parameter in critic:
        parameter.grad = None
